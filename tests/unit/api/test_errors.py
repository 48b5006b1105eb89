"""Every error of the domain has a code, a stable reason, and details that a client can act on."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # ships no types

from tightfit_service.api import errors as api_errors
from tightfit_service.api.errors import status_code, to_status
from tightfit_service.domain.errors import (
    IntegrityError,
    InvalidBudgetError,
    NoRunnerError,
    NotFoundError,
    ParityError,
    TightfitError,
    UnavailableError,
)


def _kinds(kind: type[TightfitError]) -> list[type[TightfitError]]:
    return [kind, *(k for child in kind.__subclasses__() for k in _kinds(child))]


def test_the_readme_of_the_protos_lists_every_reason_with_its_code() -> None:
    readme = Path(__file__).parents[3] / "protos" / "README.md"
    rows = re.findall(
        r"^\| (`[A-Z_`, ]+`) \| ([A-Z_]+) \|$", readme.read_text("utf-8"), re.MULTILINE
    )
    documented = {
        reason: code for reasons, code in rows for reason in re.findall(r"[A-Z_]+", reasons)
    }

    actual = {
        kind.reason: status_code(kind("x")).name
        for kind in _kinds(TightfitError)
        if kind.__module__.startswith("tightfit_service.")
    }

    assert documented == actual


def test_invalid_input_names_the_field_and_the_remedy() -> None:
    error = InvalidBudgetError(
        "max_latency_ms is 0", field="budget.max_latency_ms", remedy="leave it out"
    )

    status = to_status(error, request_id="r1")

    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert status.message == "max_latency_ms is 0"
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad_request)
    assert (info.reason, info.domain) == ("INVALID_BUDGET", "tightfit.dev")
    assert dict(info.metadata) == {
        "field": "budget.max_latency_ms",
        "remedy": "leave it out",
        "request_id": "r1",
    }
    assert bad_request.field_violations[0].field == "budget.max_latency_ms"


def test_missing_resources_are_named() -> None:
    status = to_status(NotFoundError("no job", field="job"), resource_name="projects/p/jobs/j")

    resource = error_details_pb2.ResourceInfo()
    assert status.details[1].Unpack(resource)
    assert (resource.resource_type, resource.resource_name) == ("job", "projects/p/jobs/j")


def test_unavailable_tells_when_to_try_again() -> None:
    status = to_status(UnavailableError("the store is down"))

    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.seconds >= 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (IntegrityError("x"), grpc.StatusCode.DATA_LOSS),
        (ParityError("x"), grpc.StatusCode.INTERNAL),
        (NoRunnerError("x"), grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_the_nearest_class_in_the_table_decides(
    error: TightfitError, code: grpc.StatusCode
) -> None:
    assert status_code(error) is code


def test_long_messages_are_cut_because_metadata_is_bounded() -> None:
    status = to_status(NotFoundError("x" * 100_000, remedy="y" * 100_000))

    assert len(status.SerializeToString()) < 4 * api_errors.MAX_MESSAGE_CHARACTERS
