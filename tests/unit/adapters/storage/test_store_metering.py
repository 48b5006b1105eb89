"""What stores of artifacts tell of the requests that are made to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from fakes.http_server import serving
from fakes.telemetry import RecordingStoreTelemetry
from tightfit_service.adapters.storage.folder_artifacts import FolderArtifacts, FolderArtifactStores
from tightfit_service.adapters.storage.s3_artifacts import S3ArtifactStores
from tightfit_service.adapters.storage.s3_bucket import S3Bucket
from tightfit_service.adapters.storage.s3_connection import S3Options
from tightfit_service.adapters.storage.store_metering import operation_of
from tightfit_service.application.ports import StoredArtifact
from tightfit_service.domain.errors import (
    IntegrityError,
    NotFoundError,
    ResourceExhaustedError,
    TightfitError,
    UnavailableError,
)

DATA = b"some bytes"
DIGEST = hashlib.sha256(DATA).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers with the statuses of the script, then with 200; 0 breaks the connection off."""

    script: list[int]

    def serve(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        status = self.script.pop(0) if self.script else 200
        if not status:
            self.close_connection = True
            return
        body = b"" if status == 200 else b"<Error><Code>Whatever</Code></Error>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml")
        self.send_header("ETag", '"etag"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = serve  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@pytest.fixture
def script() -> list[int]:
    return []


@pytest.fixture
def url(script: list[int]) -> Iterator[str]:
    with serving(Handler, script=script) as address:
        yield address


@pytest.fixture
def telemetry() -> RecordingStoreTelemetry:
    return RecordingStoreTelemetry()


def make_bucket(url: str, telemetry: RecordingStoreTelemetry, **changes: Any) -> S3Bucket:
    values: dict[str, Any] = {
        "access_key": "key",
        "secret_key": "secret",
        "timeout_seconds": 2.0,
        "retry_seconds": 0.001,
        "retry_count": 2,
        **changes,
    }
    return S3Bucket(options=S3Options(url=url, **values), name="bucket", telemetry=telemetry)


def test_a_request_is_told_once_with_its_repetitions(
    url: str, script: list[int], telemetry: RecordingStoreTelemetry
) -> None:
    script += [503, 0, 200]
    make_bucket(url, telemetry).put("key", DATA)
    assert telemetry.requests == [("s3", "put", "ok")]
    assert telemetry.retries == [("s3", "503"), ("s3", "connection")]
    assert telemetry.seconds[0] > 0


def test_a_request_that_is_given_up_tells_how_it_ended_last(
    url: str, script: list[int], telemetry: RecordingStoreTelemetry
) -> None:
    bucket = make_bucket(url, telemetry)
    for last, outcome in [(503, "busy"), (500, "failed"), (0, "failed")]:
        script[:] = [last] * 3
        with pytest.raises(UnavailableError):
            bucket.put("key", DATA)
        assert telemetry.requests[-1] == ("s3", "put", outcome)
    assert len(telemetry.retries) == 6
    assert len(telemetry.requests) == 3


@pytest.mark.parametrize(
    ("status", "outcome"), [(404, "missing"), (412, "conflict"), (403, "refused"), (507, "full")]
)
def test_answers_have_their_outcomes(
    url: str, script: list[int], telemetry: RecordingStoreTelemetry, status: int, outcome: str
) -> None:
    script.append(status)
    with pytest.raises(TightfitError):
        make_bucket(url, telemetry).put("key", DATA)
    assert telemetry.requests == [("s3", "put", outcome)]
    assert not telemetry.retries


def test_whole_transfers_that_are_repeated_are_told(
    url: str, script: list[int], telemetry: RecordingStoreTelemetry, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    # the store is away at first; then there is no such object, and it is written
    script += [503, 404, 200]
    bucket = make_bucket(url, telemetry, retry_count=0, patience_seconds=5.0)
    S3ArtifactStores(bucket=bucket).of("default").put(source, DIGEST)
    assert telemetry.retries == [("s3", "transfer")]
    operations = [("s3", "stat", "busy"), ("s3", "stat", "missing"), ("s3", "put", "ok")]
    assert telemetry.requests == operations


COPY = {"X-Amz-Copy-Source": "/bucket/other"}


@pytest.mark.parametrize(
    ("method", "query", "headers", "operation"),
    [
        ("GET", "", {}, "get"),
        ("HEAD", "", {}, "stat"),
        ("PUT", "", {}, "put"),
        ("PUT", "", COPY, "copy"),
        ("DELETE", "", {}, "delete"),
        ("GET", "?list-type=2&prefix=a", {}, "list"),
        ("GET", "?uploads=", {}, "multipart"),
        ("POST", "?uploads=", {}, "multipart"),
        ("PUT", "?partNumber=1&uploadId=u", {}, "put"),
        ("PUT", "?partNumber=1&uploadId=u", COPY, "copy"),
        ("POST", "?uploadId=u", {}, "multipart"),
        ("DELETE", "?uploadId=u", {}, "multipart"),
        ("GET", "?lifecycle=", {}, "other"),
        ("PUT", "?lifecycle=", {}, "other"),
        ("POST", "?delete=", {}, "other"),
    ],
)
def test_requests_are_named_after_what_they_do(
    method: str, query: str, headers: Mapping[str, str], operation: str
) -> None:
    assert operation_of(method, f"http://store/bucket/key{query}", headers) == operation


@pytest.fixture
def folder(tmp_path: Path, telemetry: RecordingStoreTelemetry) -> FolderArtifacts:
    return FolderArtifactStores(root=tmp_path / "artifacts", telemetry=telemetry).of("default")


def test_operations_on_a_folder_are_told(
    folder: FolderArtifacts, telemetry: RecordingStoreTelemetry, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    folder.put(source, DIGEST)
    assert folder.size(DIGEST) == len(DATA)
    folder.fetch(DIGEST, tmp_path / "fetched")
    assert folder.set_aside(DIGEST) == len(DATA)
    assert folder.restore(DIGEST)
    folder.delete(DIGEST)
    aside = StoredArtifact(
        digest=DIGEST, size_bytes=1, modify_time=datetime.now(UTC), handle=f"{DIGEST}.x"
    )
    folder.purge(aside)
    assert {store for store, *_ in telemetry.requests} == {"folder"}
    assert {outcome for *_, outcome in telemetry.requests} == {"ok"}
    told = [operation for _, operation, _ in telemetry.requests]
    assert {name: told.count(name) for name in ("put", "get", "copy", "delete")} == {
        "put": 1,
        "get": 1,
        "copy": 2,
        "delete": 2,
    }
    assert "stat" in told
    assert all(seconds > 0 for seconds in telemetry.seconds)


def test_failures_of_a_folder_have_their_outcomes(
    folder: FolderArtifacts,
    telemetry: RecordingStoreTelemetry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    with pytest.raises(NotFoundError):
        folder.fetch(DIGEST, tmp_path / "fetched")
    assert telemetry.requests[-1] == ("folder", "get", "missing")
    with pytest.raises(IntegrityError):
        folder.put(source, OTHER)
    assert telemetry.requests[-1] == ("folder", "put", "corrupt")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceExhaustedError):
        folder.put(source, DIGEST)
    assert telemetry.requests[-1] == ("folder", "put", "full")
