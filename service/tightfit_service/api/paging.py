"""Page sizes and page tokens of the List methods."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tightfit_service.application.ports import Page
from tightfit_service.domain.errors import InvalidRequestError

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500

T = TypeVar("T")


class PagedRequest(Protocol):
    """The paging fields that all List requests have."""

    page_size: int
    page_token: str


@dataclass(frozen=True, kw_only=True)
class PageCursor:
    """One page of one list: what to fetch, and how to name the page after it.

    One record more than the page holds is fetched, so that the last page is known to be the last.
    """

    size: int
    after: str
    fingerprint: str

    @property
    def page(self) -> Page:
        """What to ask the use case for."""
        return Page(size=self.size + 1, after=self.after)

    def cut(self, fetched: Sequence[T], key: Callable[[T], str]) -> tuple[Sequence[T], str]:
        """Return the records of this page and the token of the next, "" when there is none.

        Args:
            fetched: The answer to `page`.
            key: What `Page.after` understands of a record.
        """
        records = fetched[: self.size]
        if len(fetched) <= self.size:
            return records, ""
        token = json.dumps([self.fingerprint, key(records[-1])]).encode()
        return records, base64.urlsafe_b64encode(token).decode()


def page_cursor(request: PagedRequest, *list_parameters: object) -> PageCursor:
    """Return the cursor of a List request.

    Args:
        request: The request, of which the paging fields are read.
        *list_parameters: Whatever else determines the list: a token is good for that list only.

    Raises:
        InvalidRequestError: A negative page size, or a token that this list did not give.
    """
    if request.page_size < 0:
        raise InvalidRequestError(
            f"page_size is {request.page_size}",
            field="page_size",
            remedy=f"give 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}",
        )
    parameters = repr((type(request).__name__, *list_parameters)).encode()
    fingerprint = hashlib.sha256(parameters).hexdigest()[:16]
    return PageCursor(
        size=min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE),
        after=_after(request.page_token, fingerprint) if request.page_token else "",
        fingerprint=fingerprint,
    )


def _after(token: str, fingerprint: str) -> str:
    bad_token = InvalidRequestError(
        "the page token is not one that this list gave",
        field="page_token",
        remedy="take next_page_token of the page before and change nothing else in the request",
    )
    try:
        content = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise bad_token from error
    match content:
        case [str(given), str(after)] if given == fingerprint:
            return after
        case _:
            raise bad_token
