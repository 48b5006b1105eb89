"""Transfers past the server: bytes sent to, or fetched from, the object store at a signed address.

The address is a secret. It is in no message of an error raised here, and nothing is logged.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tightfit.errors import UnavailableError, UnsupportedError
from tightfit.transfer import CHUNK_BYTES, ArrivingFile, ProgressCallback
from tightfit.v1 import transfer_pb2

LEAST_BYTES = 4 << 20
"""Below this a stream is faster than asking for an address."""

_ATTEMPTS = 4
_FIRST_WAIT_SECONDS = 0.3
_TIMEOUT_SECONDS = 60.0
_PASSING = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class DirectSending:
    """A whole file for the object store.

    Attributes:
        direct: The request; it is sent as it is.
        path: The file.
        size: Bytes that were announced.
        on_progress: Told after each piece that was taken.
    """

    direct: transfer_pb2.DirectTransfer = field(repr=False)
    path: Path
    size: int
    on_progress: ProgressCallback | None


class _Sent:
    """The file as an HTTP body: no more than was announced, and not after it was called off."""

    def __init__(
        self, file: IO[bytes], sending: DirectSending, is_cancelled: Callable[[], bool]
    ) -> None:
        self._file = file
        self._sending = sending
        self._is_cancelled = is_cancelled
        self._done = 0

    def __iter__(self) -> Iterator[bytes]:
        size = self._sending.size
        while self._done < size and not self._is_cancelled():
            data = self._file.read(min(CHUNK_BYTES, size - self._done))
            if not data:
                return
            yield data
            self._done += len(data)
            if self._sending.on_progress is not None:
                self._sending.on_progress(self._done, size)


def _never() -> bool:
    return False


def send_directly(sending: DirectSending, *, is_cancelled: Callable[[], bool] = _never) -> None:
    """Send a file, from its beginning on again when the store fails for a moment.

    Raises:
        UnavailableError: The store does not answer, or keeps failing.
        UnsupportedError: It refuses the request.
    """

    def attempt() -> None:
        with sending.path.open("rb") as file:
            body = _Sent(file, sending, is_cancelled)
            with _opened(sending.direct, data=body):
                pass

    _repeatedly(attempt, is_cancelled)


def fetch_directly(
    direct: transfer_pb2.DirectTransfer,
    arriving: ArrivingFile,
    *,
    is_cancelled: Callable[[], bool] = _never,
) -> None:
    """Append what is missing to an arriving file, taking broken connections up again.

    Raises:
        UnavailableError: The store does not answer, or keeps failing.
        UnsupportedError: It refuses the request.
    """

    def attempt() -> None:
        with _opened(direct, offset=arriving.offset) as answer:
            left = int(answer.headers["Content-Length"])
            while not is_cancelled() and (data := answer.read(min(CHUNK_BYTES, left))):
                arriving.write(data)
                left -= len(data)
        if left:
            raise UnavailableError("the object store broke off")

    arriving.distrust()
    _repeatedly(attempt, is_cancelled)


def _repeatedly(attempt: Callable[[], None], is_cancelled: Callable[[], bool]) -> None:
    wait = _FIRST_WAIT_SECONDS
    for count in range(_ATTEMPTS):
        try:
            attempt()
        except UnavailableError:
            if count == _ATTEMPTS - 1 or is_cancelled():
                raise
            time.sleep(wait)
            wait *= 2
        else:
            return


@contextmanager
def _opened(
    direct: transfer_pb2.DirectTransfer, *, data: _Sent | None = None, offset: int = 0
) -> Iterator[http.client.HTTPResponse]:
    if not direct.url.startswith(("https://", "http://")):
        raise UnsupportedError("the server gave an address that is not HTTP")
    headers = dict(direct.headers)
    if offset:
        headers["Range"] = f"bytes={offset}-"
    if data is not None:
        # else urllib calls it a form
        headers.setdefault("Content-Type", "application/octet-stream")
    request = urllib.request.Request(  # noqa: S310  # the scheme was checked
        direct.url, method=direct.method, headers=headers, data=data
    )
    try:
        with urllib.request.urlopen(  # noqa: S310  # nosec B310
            request, timeout=_TIMEOUT_SECONDS
        ) as answer:
            if offset and answer.status != http.client.PARTIAL_CONTENT:
                raise UnsupportedError("the object store sends no part of a file")
            yield answer
    except urllib.error.HTTPError as error:
        kind = UnavailableError if error.code in _PASSING else UnsupportedError
        raise kind(f"the object store answered with status {error.code}") from None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise UnavailableError(
            f"the object store cannot be reached ({type(error).__name__})"
        ) from None
