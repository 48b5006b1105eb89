"""Lines that a worker logs appear in the server's log, under the ids of who asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from tightfit_service.adapters.execution.messages import decode, encode
from tightfit_service.adapters.execution.worker_log import send_logs, write_log


@pytest.fixture
def sent() -> Iterator[list[dict[str, Any]]]:
    before = structlog.get_config()
    messages: list[dict[str, Any]] = []
    send_logs(messages.append)
    yield messages
    structlog.configure(**before)


def test_a_line_travels_with_its_values(sent: list[dict[str, Any]]) -> None:
    log = structlog.get_logger()
    log.warning("training.diverged", step=3, loss=1.5, shape=(1, 2), text="x" * 10_000)

    (message,) = (decode(encode(item)) for item in sent)
    assert (message["type"], message["level"]) == ("log", "warning")
    assert message["event"] == "training.diverged"
    assert message["values"]["step"] == 3
    assert message["values"]["shape"] == "[1, 2]"
    assert len(message["values"]["text"]) == 4_000


def test_an_exception_travels_as_text(sent: list[dict[str, Any]]) -> None:
    structlog.get_logger().error("failed", exc_info=ValueError("bad"))

    assert "ValueError: bad" in sent[0]["values"]["exception"]


def test_a_line_that_arrives_is_logged_at_its_level() -> None:
    message = {"type": "log", "level": "warning", "event": "slow", "values": {"step": 3}}
    with capture_logs() as lines:
        write_log(message, pid=7)

    assert lines == [{"event": "slow", "step": 3, "worker_pid": 7, "log_level": "warning"}]
