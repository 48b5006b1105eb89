"""An S3 store that is down, misconfigured or damaged, played by a small server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from fakes.http_server import serving
from tightfit_service.adapters.storage.s3_artifacts import S3Artifacts, S3ArtifactStores
from tightfit_service.adapters.storage.s3_bucket import S3Bucket
from tightfit_service.adapters.storage.s3_connection import S3Options
from tightfit_service.domain.errors import (
    IntegrityError,
    InvalidRequestError,
    ResourceExhaustedError,
    TightfitError,
    UnavailableError,
)

DATA = bytes(range(256)) * 400
DIGEST = hashlib.sha256(DATA).hexdigest()


class Script:
    """What the server does: an error for every request, or DATA with some of its ends cut off."""

    def __init__(self) -> None:
        self.error: tuple[int, str] | None = None
        self.cuts: list[int] = []
        self.data = DATA
        self.offsets: list[int] = []


class Handler(BaseHTTPRequestHandler):
    script: Script

    def do_HEAD(self) -> None:
        if self.script.error is None:
            self.answer(200, b"", length=len(DATA))
        else:
            self.answer(self.script.error[0], b"", length=0)

    def do_GET(self) -> None:
        if self.script.error is not None:
            self.fail()
            return
        wanted = self.headers.get("Range", "bytes=0-")
        offset = int(wanted.removeprefix("bytes=").split("-")[0])
        self.script.offsets.append(offset)
        rest = self.script.data[offset:]
        cut = self.script.cuts.pop(0) if self.script.cuts else len(rest)
        self.answer(206 if offset else 200, rest[:cut], length=len(rest))
        self.close_connection = True

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.fail()

    def fail(self) -> None:
        assert self.script.error is not None
        status, code = self.script.error
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.answer(status, body, length=len(body), kind="application/xml")

    def answer(self, status: int, body: bytes, *, length: int, kind: str = "binary/x") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", kind)
        self.send_header("Last-Modified", "Tue, 01 Jan 2030 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def stores(script: Script) -> Iterator[S3ArtifactStores]:
    with serving(Handler, script=script) as address:
        yield make_stores(address)


@pytest.fixture
def store(stores: S3ArtifactStores) -> S3Artifacts:
    return stores.of("default")


def make_stores(url: str, **changes: Any) -> S3ArtifactStores:
    values: dict[str, Any] = {
        "access_key": "key",
        "secret_key": "secret",
        "timeout_seconds": 2.0,
        "retry_seconds": 0.001,
        "patience_seconds": 0.0,
        **changes,
    }
    bucket = S3Bucket(options=S3Options(url=url, **values), name="bucket")
    return S3ArtifactStores(bucket=bucket)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def test_a_store_that_does_not_answer_is_unavailable(source: Path, tmp_path: Path) -> None:
    stores = make_stores("http://127.0.0.1:9")
    store = stores.of("default")
    for call in (
        stores.check,
        lambda: stores.bucket.ensure(prefix=""),
        lambda: store.put(source, DIGEST),
        lambda: store.size(DIGEST),
        lambda: store.read(DIGEST),
        lambda: store.fetch(DIGEST, tmp_path / "copy"),
        lambda: store.delete(DIGEST),
    ):
        with pytest.raises(UnavailableError):
            call()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        (403, "SignatureDoesNotMatch", UnavailableError, "credentials"),
        (404, "NoSuchBucket", UnavailableError, "bucket"),
        (503, "SlowDown", UnavailableError, "SlowDown"),
        (500, "InternalError", UnavailableError, "InternalError"),
        (409, "QuotaExceeded", ResourceExhaustedError, "no room"),
        (507, "XMinioStorageFull", ResourceExhaustedError, "no room"),
    ],
)
def test_refusals_of_the_store_become_errors_of_the_domain(
    stores: S3ArtifactStores,
    script: Script,
    status: int,
    code: str,
    error: type[TightfitError],
    words: str,
) -> None:
    script.error = (status, code)
    with pytest.raises(error, match=words) as caught:
        stores.check()
    assert caught.value.remedy


def test_a_broken_connection_is_taken_up_where_it_stopped(
    store: S3Artifacts, script: Script
) -> None:
    script.cuts = [1000, 5000]
    assert b"".join(store.read(DIGEST, chunk_bytes=512)) == DATA
    assert len(script.offsets) == 3
    assert script.offsets == sorted(set(script.offsets))


def test_a_connection_that_always_breaks_is_unavailable(store: S3Artifacts, script: Script) -> None:
    script.cuts = [0] * 20
    reader = store.read(DIGEST)
    with pytest.raises(UnavailableError):
        list(reader)


def test_damaged_bytes_are_noticed(store: S3Artifacts, script: Script, tmp_path: Path) -> None:
    script.data = DATA[:-1] + b"x"
    with pytest.raises(IntegrityError):
        store.fetch(DIGEST, tmp_path / "copy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["", "127.0.0.1:9000", "ftp://host", "http://host:1/bucket"])
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_stores(url)
    assert caught.value.field == "s3_url"
