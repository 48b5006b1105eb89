"""Floor 2: use cases and the ports that floor 3 implements."""
