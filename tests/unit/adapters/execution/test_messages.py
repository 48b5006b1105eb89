"""Errors of the domain cross the pipe whole; other lines are refused."""

from __future__ import annotations

import pytest

from tightfit_service.adapters.execution.messages import (
    decode,
    encode,
    error_from,
    error_message,
)
from tightfit_service.domain import errors
from tightfit_service.domain.errors import TightfitError, WorkFailedError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TightfitError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_crosses_whole(kind: type[TightfitError]) -> None:
    error = kind("line one\nline two", field="a.b", remedy="do ü")
    again = error_from(decode(encode(error_message(error))))
    assert type(again) is kind
    assert (again.message, again.field, again.remedy) == (error.message, "a.b", "do ü")


def test_an_error_of_a_newer_version_is_failed_work() -> None:
    message = {"type": "error", "reason": "NEW", "message": "m", "field": "f", "remedy": "r"}
    assert type(error_from(message)) is WorkFailedError


def test_a_message_is_one_line() -> None:
    assert encode({"text": "a\nb"}).count(b"\n") == 1


@pytest.mark.parametrize("line", [b"", b"noise\n", b"[1]\n", b"\xff\n"])
def test_a_line_that_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        decode(line)
