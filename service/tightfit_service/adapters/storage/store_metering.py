"""Counting and timing what is asked of the store of artifacts: requests to S3, operations on a folder."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

import urllib3

from tightfit_service.application.ports import StoreTelemetry
from tightfit_service.domain.errors import (
    IntegrityError,
    NotFoundError,
    ResourceExhaustedError,
    TightfitError,
)

FOLDER, S3 = "folder", "s3"
"""The kinds of stores."""

CONNECTION, TRANSFER = "connection", "transfer"
"""Why something was tried again, besides the status of an answer: no answer came, a whole transfer broke."""

_OUTCOMES = {
    401: "refused",
    403: "refused",
    404: "missing",
    409: "conflict",
    412: "conflict",
    429: "busy",
    503: "busy",
    507: "full",
}
_BY_METHOD = {"GET": "get", "HEAD": "stat", "DELETE": "delete", "PUT": "put"}

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class NotMeasured:
    """Implements `StoreTelemetry` for those who keep no metrics."""

    def store_request(self, store: str, operation: str, outcome: str, seconds: float) -> None:
        """See `StoreTelemetry`."""

    def store_retried(self, store: str, reason: str) -> None:
        """See `StoreTelemetry`."""


class HasTelemetry(Protocol):
    """What tells of its operations."""

    telemetry: StoreTelemetry


Store = TypeVar("Store", bound=HasTelemetry)


def timed(
    operation: str,
) -> Callable[
    [Callable[Concatenate[Store, Parameters], Result]],
    Callable[Concatenate[Store, Parameters], Result],
]:
    """Tell of every call of a method of a folder's store under the name of the operation."""

    def wrap(
        method: Callable[Concatenate[Store, Parameters], Result],
    ) -> Callable[Concatenate[Store, Parameters], Result]:
        @functools.wraps(method)
        def call(self: Store, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            began, outcome = time.perf_counter(), "failed"
            try:
                result = method(self, *args, **kwargs)
                outcome = "ok"
            except TightfitError as error:
                outcome = _outcome_of_error(error)
                raise
            finally:
                seconds = time.perf_counter() - began
                self.telemetry.store_request(FOLDER, operation, outcome, seconds)
            return result

        return cast("Callable[Concatenate[Store, Parameters], Result]", call)

    return wrap


class TimedPool(urllib3.PoolManager):
    """Connections to an S3 store that tell of every request: how it ended, after how long, how often tried.

    The time is that to the head of the answer, repetitions and the waits between them included.
    """

    def __init__(self, *, telemetry: StoreTelemetry, **options: Any) -> None:
        super().__init__(**options)
        self._telemetry = telemetry

    def urlopen(
        self, method: str, url: str, *args: Any, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        """Make a request."""
        began, outcome = time.perf_counter(), "failed"
        try:
            answer = super().urlopen(method, url, *args, **options)
            outcome = _outcome_of_status(answer.status)
        finally:
            self._telemetry.store_request(
                S3,
                operation_of(method, url, options.get("headers") or {}),
                outcome,
                time.perf_counter() - began,
            )
        return answer


class CountedRetry(urllib3.Retry):
    """A policy of repetitions that tells of each."""

    telemetry: StoreTelemetry = NotMeasured()

    def new(self, **changes: Any) -> Self:
        """Return the policy with what is left of it."""
        following = super().new(**changes)
        following.telemetry = self.telemetry
        return following

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: urllib3.BaseHTTPResponse | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Self:
        """Use up one repetition.

        Raises:
            MaxRetryError: There is none left.
        """
        following = super().increment(method, url, response, *args, **kwargs)
        reason = CONNECTION if response is None else str(response.status)
        self.telemetry.store_retried(S3, reason)
        return following


def operation_of(method: str, url: str, headers: Mapping[str, str]) -> str:
    """Return what a request to S3 is about, by its method, its query and what it copies."""
    query = parse_qs(urlsplit(url).query, keep_blank_values=True)
    if method == "PUT" and any(name.lower() == "x-amz-copy-source" for name in headers):
        return "copy"
    if method != "PUT" and {"uploads", "uploadId"} & query.keys():
        return "multipart"
    if method == "GET" and {"list-type", "prefix", "delimiter"} & query.keys():
        return "list"
    if {"lifecycle", "location"} & query.keys():
        return "other"
    return _BY_METHOD.get(method, "other")


def _outcome_of_status(status: int) -> str:
    return "ok" if status < 400 else _OUTCOMES.get(status, "failed")


def _outcome_of_error(error: TightfitError) -> str:
    if isinstance(error, NotFoundError):
        return "missing"
    if isinstance(error, ResourceExhaustedError):
        return "full"
    return "corrupt" if isinstance(error, IntegrityError) else "failed"
