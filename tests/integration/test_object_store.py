"""The object store against a real S3 server: killed and started again, racing writers, signed addresses."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from urllib.error import HTTPError

import pytest

from fakes.s3_gateway import START_SECONDS, S3Gateway, find_s3_gateway
from fakes.s3_stores import open_bucket, open_s3
from tightfit_service.adapters.storage.s3_artifacts import S3ArtifactStores
from tightfit_service.adapters.storage.s3_uploads import S3UploadStaging
from tightfit_service.application.ports import SignedUrl, UploadTicket
from tightfit_service.domain.errors import IntegrityError, UnavailableError

pytestmark = [
    pytest.mark.debian,
    # urllib3 leaves the socket of a connection that broke to the garbage collector
    pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
LARGE = os.urandom(1 << 20) * 120
LARGE_DIGEST = hashlib.sha256(LARGE).hexdigest()
DATA = os.urandom(100_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
LIFETIME = timedelta(minutes=1)
PATIENCE_SECONDS = 2.0 * START_SECONDS


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Gateway]:
    with find_s3_gateway(tmp_path_factory.mktemp("s3")) as gateway:
        if gateway.reason_missing:
            pytest.skip(gateway.reason_missing)
        yield gateway


@pytest.fixture
def mortal(gateway: S3Gateway) -> S3Gateway:
    """The gateway, where it may be killed."""
    if gateway.script is None:
        pytest.skip("the S3 server was not started by this test, so it is not killed")
    return gateway


@pytest.fixture(autouse=True)
def sockets_are_collected() -> Iterator[None]:
    """Collect what broken connections left while the marks above still apply, not as pytest ends."""
    yield
    gc.collect()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(LARGE)
    return path


@contextmanager
def killed_for_a_moment(gateway: S3Gateway, *, after_seconds: float) -> Iterator[None]:
    """Kill the gateway while the body runs, and start it again; raise what went wrong with that."""

    def run() -> None:
        time.sleep(after_seconds)
        gateway.kill()
        gateway.start_again()

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(run)
        try:
            yield
        finally:
            killed.result()


def unfinished(stores: S3ArtifactStores) -> int:
    return stores.bucket.abort_unfinished(stores.prefix, older_than=timedelta(seconds=-60))


@pytest.mark.timeout(2 * PATIENCE_SECONDS)
@pytest.mark.parametrize("after_seconds", [0.1, 0.4])
def test_a_put_goes_on_when_the_store_is_killed_and_comes_back(
    mortal: S3Gateway, source: Path, tmp_path: Path, after_seconds: float
) -> None:
    stores = open_s3(mortal, patience_seconds=PATIENCE_SECONDS)
    store = stores.of("default")
    with killed_for_a_moment(mortal, after_seconds=after_seconds):
        store.put(source, LARGE_DIGEST)
    store.fetch(LARGE_DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE
    assert [found.digest for found in store.list_stored()] == [LARGE_DIGEST]


@pytest.mark.timeout(2 * PATIENCE_SECONDS)
@pytest.mark.parametrize("after_seconds", [0.1])
def test_a_fetch_goes_on_when_the_store_is_killed_and_comes_back(
    mortal: S3Gateway, source: Path, tmp_path: Path, after_seconds: float
) -> None:
    store = open_s3(mortal, patience_seconds=PATIENCE_SECONDS).of("default")
    store.put(source, LARGE_DIGEST)
    with killed_for_a_moment(mortal, after_seconds=after_seconds):
        store.fetch(LARGE_DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE
    assert [path.name for path in tmp_path.iterdir() if "copy" in path.name] == ["copy"]


def test_without_patience_a_killed_store_is_an_error_and_the_next_attempt_succeeds(
    mortal: S3Gateway, source: Path
) -> None:
    stores = open_s3(mortal, patience_seconds=0.0, retry_count=1, retry_seconds=0.05)
    store = stores.of("default")
    mortal.kill()
    try:
        with pytest.raises(UnavailableError):
            store.put(source, LARGE_DIGEST)
        with pytest.raises(UnavailableError):
            stores.check()
    finally:
        mortal.start_again()
    store.put(source, LARGE_DIGEST)
    stores.check()
    assert store.size(LARGE_DIGEST) == len(LARGE)


@pytest.mark.timeout(2 * PATIENCE_SECONDS)
def test_an_upload_goes_on_through_a_kill_or_from_what_is_committed(mortal: S3Gateway) -> None:
    stores = open_s3(mortal)
    staging = S3UploadStaging(artifacts=stores)
    ticket = ticket_for(LARGE)
    staging.open(ticket)
    with killed_for_a_moment(mortal, after_seconds=0.3):
        offset = 0
        while offset < len(LARGE):
            part = LARGE[offset : offset + (1 << 20)]
            try:
                offset = staging.append("default", "up", offset=offset, data=part)
            except UnavailableError:
                offset = committed(staging)
    staging.complete("default", "up")
    seen = hashlib.sha256(b"".join(stores.of("default").read(LARGE_DIGEST)))
    assert seen.hexdigest() == LARGE_DIGEST


def committed(staging: S3UploadStaging) -> int:
    """Return how far an upload is, once the store answers."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return staging.find("default", "up")[1]
        except UnavailableError:
            assert time.monotonic() < end, "the store did not come back"
        time.sleep(0.5)


def test_a_refused_upload_in_parts_leaves_nothing_behind(gateway: S3Gateway, source: Path) -> None:
    stores = open_s3(gateway)
    with pytest.raises(IntegrityError):
        stores.of("default").put(source, DIGEST)
    assert unfinished(stores) == 0
    assert not list(stores.of("default").list_stored())


def test_parts_that_a_dead_writer_left_are_dropped(gateway: S3Gateway) -> None:
    stores = open_s3(gateway)
    client = stores.bucket._client
    client._create_multipart_upload(stores.bucket.name, f"{stores.prefix}default/left", {})
    assert stores.collect_remains(older_than=timedelta(hours=1)) == 0
    assert unfinished(stores) == 1
    assert unfinished(stores) == 0


def test_the_rule_for_unfinished_uploads_is_set_beside_others(gateway: S3Gateway) -> None:
    bucket = open_bucket(gateway)
    bucket.ensure(prefix="")
    bucket.ensure(prefix="")
    rules = bucket._client.get_bucket_lifecycle(bucket.name)
    assert rules is not None
    own = [rule for rule in rules.rules if rule.rule_id == "tightfit-incomplete-uploads"]
    assert len(own) == 1
    action = own[0].abort_incomplete_multipart_upload
    assert action is not None
    assert action.days_after_initiation == 1


def test_of_racing_writers_one_writes_and_readers_see_whole_bytes(
    gateway: S3Gateway, tmp_path: Path
) -> None:
    stores = open_s3(gateway)
    small = tmp_path / "small"
    small.write_bytes(DATA)
    torn: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            size = stores.of("default").size(DIGEST)
            if size not in (None, len(DATA)):
                torn.append(size or 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: stores.of("default").put(small, DIGEST), range(16)))
    stop.set()
    watcher.join()
    assert not torn
    key = f"{stores.prefix}default/{DIGEST[:2]}/{DIGEST}"
    first = stores.bucket.stat(key)
    stores.bucket.put(key, b"other bytes", create_only=True)
    assert stores.bucket.stat(key) == first, "an object that is there stays"


def ticket_for(data: bytes) -> UploadTicket:
    return UploadTicket(
        upload_id="up",
        project="default",
        kind="model",
        size_bytes=len(data),
        digest=hashlib.sha256(data).hexdigest(),
        display_name="",
    )


def send(signed: SignedUrl, data: bytes | None = None) -> bytes:
    headers = dict(signed.headers)
    if data is not None:
        headers |= {"Content-Length": str(len(data)), "Content-Type": "binary/x"}
    request = urllib.request.Request(signed.url, method=signed.method, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return bytes(answer.read())


def test_a_client_sends_all_bytes_at_a_signed_address(gateway: S3Gateway) -> None:
    stores = open_s3(gateway)
    staging = S3UploadStaging(artifacts=stores, offers_urls=True)
    staging.open(ticket_for(DATA))
    signed = staging.direct_url(ticket_for(DATA), lifetime=LIFETIME)
    assert signed is not None
    assert staging.find("default", "up")[1] == 0
    send(signed, DATA)
    assert staging.find("default", "up")[1] == len(DATA)
    staging.complete("default", "up")
    assert b"".join(stores.of("default").read(DIGEST)) == DATA
    staging.discard("default", "up")
    send(signed, DATA[::-1])
    assert b"".join(stores.of("default").read(DIGEST)) == DATA, "an artifact is out of its reach"
    assert staging.expire(older_than=timedelta(seconds=-60)) == 1


def test_what_a_client_sends_directly_is_not_trusted(gateway: S3Gateway) -> None:
    stores = open_s3(gateway)
    staging = S3UploadStaging(artifacts=stores, offers_urls=True)
    staging.open(ticket_for(DATA))
    signed = staging.direct_url(ticket_for(DATA), lifetime=LIFETIME)
    assert signed is not None
    for data in (DATA + b"x", DATA[:-1]):
        with pytest.raises(HTTPError) as refused:
            send(signed, data)
        assert refused.value.code == 403, "the size is part of the signature"
    send(signed, DATA[::-1])
    with pytest.raises(IntegrityError):
        staging.complete("default", "up")
    assert stores.of("default").size(DIGEST) is None
    assert staging.open(ticket_for(DATA)) == 0


def test_a_client_fetches_at_a_signed_address_until_it_expires(
    gateway: S3Gateway, tmp_path: Path
) -> None:
    store = open_s3(gateway).of("default")
    (tmp_path / "source").write_bytes(DATA)
    store.put(tmp_path / "source", DIGEST)
    signed = store.download_url(DIGEST, lifetime=LIFETIME)
    assert signed is not None
    assert send(signed) == DATA
    assert signed.url not in repr(signed)
    wrong = signed.url[:-1] + ("0" if signed.url[-1] != "0" else "1")
    with pytest.raises(HTTPError) as refused:
        urllib.request.urlopen(wrong)
    assert refused.value.code == 403
    short = store.download_url(DIGEST, lifetime=timedelta(seconds=1))
    assert short is not None
    time.sleep(2.5)
    with pytest.raises(HTTPError) as expired:
        send(short)
    assert expired.value.code == 403
