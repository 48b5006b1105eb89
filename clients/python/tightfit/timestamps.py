"""Times as RFC 3339 text, as `result.json` holds them."""

from __future__ import annotations

from datetime import datetime, timezone


def to_text(time: datetime) -> str:
    """Return an aware time in UTC as `2026-03-01T10:00:00.000Z`."""
    return time.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_text(text: str) -> datetime:
    """Return the time that `to_text` wrote."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def seconds_between(first: str, last: str) -> float:
    """Return the seconds from one time to another."""
    return (from_text(last) - from_text(first)).total_seconds()
