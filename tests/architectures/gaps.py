"""What is known not to work: kept true by the coverage tests in both directions."""

from __future__ import annotations

from collections.abc import Mapping

KNOWN_GAPS: Mapping[tuple[str, str], str] = {}
"""Per architecture and step, why it fails."""
