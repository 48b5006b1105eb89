"""What is asked of an S3 store, request by request: checksums, conditions, encryption, retries, rules."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from minio.credentials.credentials import Credentials

from fakes.http_server import serving
from tightfit_service.adapters.storage.s3_bucket import S3Bucket, part_bytes
from tightfit_service.adapters.storage.s3_connection import (
    FileCredentials,
    S3Options,
    StoreAwayError,
    open_client,
)
from tightfit_service.adapters.storage.s3_signing import signed_url
from tightfit_service.adapters.storage.store_metering import NotMeasured
from tightfit_service.domain.errors import InvalidRequestError, UnavailableError

DATA = b"some bytes"
CREATED = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
COMPLETED = (
    b"<CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>key</Key>"
    b"<Location>x</Location><ETag></ETag></CompleteMultipartUploadResult>"
)


class Script:
    """What was asked, and the errors with which the next requests end, by method."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.errors: dict[str, list[tuple[int, str]]] = {}
        self.size = len(DATA)

    def headers(self, method: str) -> list[dict[str, str]]:
        return [headers for name, _, headers in self.requests if name == method]


class Handler(BaseHTTPRequestHandler):
    script: Script

    def serve(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        lowered = {name.lower(): value for name, value in self.headers.items()}
        self.script.requests.append((self.command, self.path, lowered))
        body = b""
        status = 200
        if errors := self.script.errors.get(self.command):
            status, code = errors.pop(0)
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        elif self.command == "POST":
            body = CREATED if "uploads" in self.path else COMPLETED
        self.send_response(status)
        length = self.script.size if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", "application/xml")
        self.send_header("ETag", '"etag"')
        self.send_header("Last-Modified", "Tue, 01 Jan 2030 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = serve  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    with serving(Handler, script=script) as address:
        yield address


def bucket(url: str, **changes: Any) -> S3Bucket:
    values: dict[str, Any] = {
        "access_key": "key",
        "secret_key": "secret",
        "timeout_seconds": 2.0,
        "retry_seconds": 0.001,
        **changes,
    }
    return S3Bucket(options=S3Options(url=url, **values), name="bucket")


def test_a_small_object_is_created_once_and_verified_by_the_store(url: str, script: Script) -> None:
    bucket(url).put("key", DATA, create_only=True)
    (headers,) = script.headers("PUT")
    assert headers["if-none-match"] == "*"
    assert headers["content-md5"] == base64.b64encode(hashlib.md5(DATA).digest()).decode()


@pytest.mark.parametrize(
    ("status", "code"), [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict")]
)
def test_an_object_that_is_there_is_no_error(
    url: str, script: Script, status: int, code: str
) -> None:
    script.errors["PUT"] = [(status, code)]
    bucket(url).put("key", DATA, create_only=True)
    assert len(script.requests) == 1


def test_a_store_without_conditions_is_written_without(url: str, script: Script) -> None:
    script.errors["PUT"] = [(501, "NotImplemented")]
    opened = bucket(url)
    for _ in range(2):
        opened.put("key", DATA, create_only=True)
    assert ["if-none-match" in headers for headers in script.headers("PUT")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_busy_store_is_asked_again(url: str, script: Script, method: str, status: int) -> None:
    script.errors[method] = [(status, "SlowDown")] * 3
    script.size = 6
    bucket(url).put_parts("key", [b"abc", b"def"], size_bytes=6)
    assert len(script.headers(method)) == 5
    assert not script.headers("DELETE")


def test_a_store_that_stays_busy_is_away(url: str, script: Script) -> None:
    script.errors["PUT"] = [(503, "SlowDown")] * 20
    with pytest.raises(StoreAwayError):
        bucket(url).put("key", DATA)
    assert len(script.requests) == 6


def test_what_goes_wrong_between_parts_removes_them(url: str, script: Script) -> None:
    def parts() -> Iterator[bytes]:
        yield b"abc"
        raise OSError("the disk broke")

    with pytest.raises(OSError, match="disk"):
        bucket(url).put_parts("key", parts(), size_bytes=6)
    assert [path for method, path, _ in script.requests if method == "DELETE"] == [
        "/bucket/key?uploadId=u"
    ]


def test_a_lost_answer_to_the_last_request_is_looked_into(url: str, script: Script) -> None:
    """Repeated, it says that there is no such upload; whether the object is there tells the truth."""
    script.size = 3
    opened = bucket(url)

    def complete_fails() -> Iterator[bytes]:
        yield b"abc"
        script.errors["POST"] = [(404, "NoSuchUpload")]

    opened.put_parts("key", complete_fails(), size_bytes=3)
    script.size = 2
    with pytest.raises(StoreAwayError):
        opened.put_parts("key", complete_fails(), size_bytes=3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"encryption": "sse-s3"}, {"x-amz-server-side-encryption": "AES256"}),
        (
            {"encryption": "sse-kms", "kms_key_id": "our-key"},
            {
                "x-amz-server-side-encryption": "aws:kms",
                "x-amz-server-side-encryption-aws-kms-key-id": "our-key",
            },
        ),
    ],
)
def test_everything_that_makes_an_object_asks_for_the_encryption(
    url: str, script: Script, options: dict[str, str], expected: dict[str, str]
) -> None:
    opened = bucket(url, **options)
    opened.put("key", DATA)
    script.size = 3
    opened.put_parts("key", [b"abc"], size_bytes=3)
    found = opened.stat("key")
    assert found is not None
    opened.copy(found, "other")
    signed = opened.sign("PUT", "key", lifetime=timedelta(minutes=1), size_bytes=3)
    makers = [
        headers
        for method, path, headers in script.requests
        if (method == "PUT" and "partNumber" not in path)
        or (method == "POST" and "uploads" in path)
    ]
    assert len(makers) == 3
    for headers in [*makers, {name.lower(): value for name, value in signed.headers.items()}]:
        told = {name: headers[name] for name in headers if "encryption" in name}
        assert told == expected


def test_a_store_that_takes_no_rules_is_served_without(url: str, script: Script) -> None:
    script.errors["GET"] = [(403, "AccessDenied")]
    bucket(url).ensure(prefix="")


def test_credentials_in_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    access, secret = tmp_path / "access", tmp_path / "secret"
    access.write_text("first\n")
    secret.write_text("one\n")
    credentials = FileCredentials(access, secret)
    assert credentials.retrieve().access_key == "first"
    access.write_text("second\n")
    secret.write_text("two\n")
    os.utime(secret, ns=(1, 1))
    assert (credentials.retrieve().access_key, credentials.retrieve().secret_key) == (
        "second",
        "two",
    )
    secret.unlink()
    with pytest.raises(UnavailableError) as caught:
        credentials.retrieve()
    assert caught.value.field == "s3_secret_key_file"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"encryption": "rot13"}, "s3_encryption"),
        ({"addressing": "sideways"}, "s3_addressing"),
        ({"public_url": "ftp://there"}, "s3_public_url"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        bucket("http://127.0.0.1:9", **changes)
    assert caught.value.field == field


def test_secrets_are_in_no_text_of_the_options() -> None:
    assert "hush" not in repr(S3Options(url="http://h", access_key="a", secret_key="hush"))


def test_signed_addresses_are_those_that_clients_reach() -> None:
    opened = bucket("http://inside:9000", public_url="https://outside.example")
    signed = opened.sign("GET", "a/key", lifetime=timedelta(minutes=1))
    parts = urlsplit(signed.url)
    assert (parts.scheme, parts.netloc, parts.path) == ("https", "outside.example", "/bucket/a/key")


def test_virtual_addressing_puts_the_bucket_into_the_host() -> None:
    opened = bucket("https://store.example", addressing="virtual")
    signed = opened.sign("GET", "key", lifetime=timedelta(minutes=1))
    assert urlsplit(signed.url).netloc.startswith("bucket.")


def test_the_signature_is_that_of_the_reference() -> None:
    """The example of "Authenticating Requests: Using Query Parameters", Amazon S3 API Reference."""
    signed = signed_url(
        "GET",
        urlsplit("https://examplebucket.s3.amazonaws.com/test.txt"),
        headers={},
        credentials=Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        region="us-east-1",
        now=datetime(2013, 5, 24, tzinfo=UTC),
        lifetime=timedelta(seconds=86400),
    )
    assert signed.endswith(
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


def test_parts_are_large_enough_for_the_largest_object() -> None:
    assert part_bytes(1) == 16 << 20
    assert -(-(5 << 40) // part_bytes(5 << 40)) <= 10_000


def test_the_client_of_the_environment_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client = open_client(S3Options(url="http://127.0.0.1:9"), telemetry=NotMeasured())
    assert client._provider is not None
    assert client._provider.retrieve().access_key == "from-the-environment"
