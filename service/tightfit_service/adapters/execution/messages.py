"""What the server and its worker processes say to one another: one JSON object per line.

The server sends units; a worker answers `ready` once, then for each unit `taken`, any number of
`progress` and `log` lines, and at last `result`, `error` (of the domain, whole) or `failure` (anything else, as text).
The last one brings the spans of the unit, where it belongs to a trace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tightfit_service.domain.errors import TightfitError, WorkFailedError

REPLY_VARIABLE = "TIGHTFIT_WORKER_REPLY_FD"
"""Environment variable: descriptor of the pipe for answers. Standard output is for native libraries."""
PARENT_VARIABLE = "TIGHTFIT_WORKER_PARENT_PID"
"""Environment variable: process id of the server that the worker must not outlive."""

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """Return a message as a line.

    Raises:
        TypeError: It holds something that JSON has no form for.
    """
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message of a line.

    Raises:
        ValueError: It is not a JSON object.
    """
    message = json.loads(line)
    if not isinstance(message, dict):
        raise TypeError(f"expected an object, got {type(message).__name__}")
    return message


def error_message(error: TightfitError) -> Message:
    """Return an error of the domain as a message."""
    return {
        "type": "error",
        "reason": error.reason,
        "message": error.message,
        "field": error.field,
        "remedy": error.remedy,
    }


def error_from(message: Message) -> TightfitError:
    """Return the error that `error_message` described."""
    # a class without a reason of its own travels as the one it narrows
    kinds = {kind.reason: kind for kind in _kinds(TightfitError) if "reason" in vars(kind)}
    kind = kinds.get(message["reason"], WorkFailedError)
    return kind(message["message"], field=message["field"], remedy=message["remedy"])


def _kinds(kind: type[TightfitError]) -> Iterator[type[TightfitError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)
