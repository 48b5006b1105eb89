"""Points in time and lengths of time."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

NANOS = 1_000_000_000


def timestamp_to_proto(value: datetime) -> Timestamp:
    """Return a timezone-aware time."""
    message = Timestamp()
    message.FromDatetime(value)
    return message


def timestamp_from_proto(message: Timestamp) -> datetime:
    """Return the time in UTC, to the microsecond."""
    return message.ToDatetime(tzinfo=UTC)


def duration_to_proto(seconds: float) -> Duration:
    """Return a length of time, to the nanosecond."""
    whole, nanos = divmod(round(seconds * NANOS), NANOS)
    return Duration(seconds=whole, nanos=nanos)


def duration_from_proto(message: Duration) -> float:
    """Return the length in seconds."""
    return (message.seconds * NANOS + message.nanos) / NANOS
