"""Page sizes are bounded, and page tokens are good for the list that gave them only."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightfit.v1.compression_pb2 import ListJobsRequest, ListTrialsRequest
from tightfit_service.api.paging import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, page_cursor
from tightfit_service.domain.errors import InvalidRequestError


@given(count=st.integers(0, 30), page_size=st.integers(1, 12))
def test_pages_bring_every_record_once_and_the_last_has_no_token(
    count: int, page_size: int
) -> None:
    records = [f"{index:03}" for index in range(count)]
    seen: list[str] = []
    token = ""
    for _ in range(count + 1):
        cursor = page_cursor(ListJobsRequest(page_size=page_size, page_token=token), "p")
        fetched = [r for r in records if r > cursor.page.after][: cursor.page.size]
        page, token = cursor.cut(fetched, lambda record: record)
        seen += page
        if not token:
            break

    assert token == ""
    assert seen == records


def test_size_zero_means_the_default_and_too_much_means_the_most() -> None:
    assert page_cursor(ListJobsRequest()).size == DEFAULT_PAGE_SIZE
    assert page_cursor(ListJobsRequest(page_size=10**6)).size == MAX_PAGE_SIZE


def test_refuses_a_negative_size() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        page_cursor(ListJobsRequest(page_size=-1))

    assert caught.value.field == "page_size"


def _token(*list_parameters: object) -> str:
    _, token = page_cursor(ListJobsRequest(page_size=1), *list_parameters).cut(["a", "b"], str)
    return token


def test_a_token_continues_its_list() -> None:
    cursor = page_cursor(ListJobsRequest(page_token=_token("p", ["queued"])), "p", ["queued"])

    assert cursor.after == "a"


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "%%%",
        "é",
        "bm90IGpzb24=",
        base64.urlsafe_b64encode(b"[1, 2]").decode(),
        base64.urlsafe_b64encode(json.dumps(["0" * 16, "a"]).encode()).decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        _token("other"),
        _token("p", ["running"]),
    ],
)
def test_refuses_tokens_that_this_list_did_not_give(token: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        page_cursor(ListJobsRequest(page_token=token), "p", ["queued"])

    assert caught.value.field == "page_token"


def test_refuses_tokens_of_another_method() -> None:
    with pytest.raises(InvalidRequestError):
        page_cursor(ListTrialsRequest(page_token=_token("p")), "p")
