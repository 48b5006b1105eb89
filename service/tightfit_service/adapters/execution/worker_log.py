"""Log lines of workers, which travel to the server and appear in its log with the ids bound there."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from tightfit_service.adapters.execution.messages import Message

log = structlog.get_logger(__name__)

_MOST_CHARS = 4_000


def send_logs(send: Callable[[Message], None]) -> None:
    """Have this process's log lines sent as messages of type `log` from now on."""

    def forward(_: object, level: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event = str(line.pop("event", ""))
        send({"type": "log", "level": level, "event": event, "values": _plain(line)})
        raise structlog.DropEvent

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            forward,
        ],
        cache_logger_on_first_use=False,
    )


def write_log(message: Message, *, pid: int) -> None:
    """Write a line that a worker sent into this process's log, under the ids of the unit's caller."""
    level = logging.getLevelNamesMapping().get(str(message["level"]).upper(), logging.INFO)
    log.log(level, message["event"], worker_pid=pid, **message["values"])


def _plain(line: MutableMapping[str, Any]) -> dict[str, Any]:
    """Return what JSON has a form for, cut to a length that a log can hold."""
    values: dict[str, Any] = {}
    for key, value in line.items():
        if isinstance(value, (bool, int, float)) or value is None:
            values[key] = value
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        values[key] = text[:_MOST_CHARS]
    return values
