"""Wire messages to domain values (`from_proto`) and back (`to_proto`); what only leaves has no way in."""
