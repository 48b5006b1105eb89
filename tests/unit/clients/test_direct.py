"""Both clients where bytes go directly to the object store, and where that fails."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from fakes.http_server import serving
from fakes.tightfit_server import FakeTightfit
from tightfit import AsyncClient, Client, Patience, direct
from tightfit.v1 import transfer_pb2

DATA = os.urandom(5 << 20)
DIGEST = sha256(DATA).hexdigest()
QUICK = Patience(first_seconds=0.001, most_seconds=0.002, total_seconds=0.02)

Call = Callable[..., Any]


class Store:
    """An object store: what arrives becomes the upload of that name, as the service would find it."""

    def __init__(self, fake: FakeTightfit) -> None:
        self.fake = fake
        self.data = DATA
        self.statuses: list[int] = []
        """Of the next requests, before they succeed."""
        self.cuts: list[int] = []
        """Bytes after which the next answers break off."""
        self.requests: list[tuple[str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    store: Store

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.begin():
            self.store.fake.state.uploads[self.path[1:]][:] = body
            self.answer(200, b"")

    def do_GET(self) -> None:
        if not self.begin():
            return
        offset = int(self.headers.get("Range", "bytes=0-")[6:-1])
        rest = self.store.data[offset:]
        cut = self.store.cuts.pop(0) if self.store.cuts else len(rest)
        self.answer(206 if offset else 200, rest[:cut], length=len(rest))
        self.close_connection = True

    def begin(self) -> bool:
        self.store.requests.append((self.command, self.headers.get("Range")))
        status = self.store.statuses.pop(0) if self.store.statuses else 200
        if status != 200:
            self.answer(status, b"no")
        return status == 200

    def answer(self, status: int, body: bytes, *, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@pytest.fixture
def store(fake: FakeTightfit, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(direct, "_FIRST_WAIT_SECONDS", 0.001)
    store = Store(fake)
    fake.state.artifacts[DIGEST] = DATA
    with serving(Handler, store=store) as address:
        fake.state.store_url = address
        yield store


@pytest.fixture(params=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest, fake: FakeTightfit) -> Call:
    """Call a method of either client."""

    def blocking(method: str, *args: Any, **kwargs: Any) -> Any:
        with Client(fake.address, patience=QUICK) as client:
            return getattr(client, method)(*args, **kwargs)

    def on_a_loop(method: str, *args: Any, **kwargs: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(fake.address, patience=QUICK) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else on_a_loop


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(DATA)
    return path


def test_a_model_goes_to_the_store_and_is_finished_by_the_server(
    call: Call, fake: FakeTightfit, store: Store, model: Path
) -> None:
    seen: list[int] = []
    uploaded = call("upload_model", model, on_progress=lambda done, _: seen.append(done))
    assert fake.state.assets[uploaded.digest] == DATA
    assert store.requests == [("PUT", None)]
    assert fake.state.offsets == [len(DATA)], "the stream through the server carries no bytes"
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)


def test_a_store_that_is_busy_is_asked_again(
    call: Call, fake: FakeTightfit, store: Store, model: Path
) -> None:
    store.statuses = [503, 500]
    assert fake.state.assets[call("upload_model", model).digest] == DATA
    assert len(store.requests) == 3


@pytest.mark.parametrize("status", [403, 400, 503])
def test_what_the_store_refuses_goes_through_the_server(
    call: Call, fake: FakeTightfit, store: Store, model: Path, status: int
) -> None:
    store.statuses = [status] * 10
    assert fake.state.assets[call("upload_model", model).digest] == DATA
    assert fake.state.offsets == [0]


def test_a_store_that_clients_cannot_reach_is_gone_past(
    call: Call, fake: FakeTightfit, store: Store, model: Path, tmp_path: Path
) -> None:
    fake.state.store_url = "http://127.0.0.1:9"
    assert fake.state.assets[call("upload_model", model).digest] == DATA
    call("download_artifact", DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert not store.requests


def test_small_files_go_through_the_server(
    call: Call, fake: FakeTightfit, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "small").write_bytes(DATA[:1000])
    digest = call("upload_model", tmp_path / "small").digest
    fake.state.artifacts[digest] = DATA[:1000]
    call("download_artifact", digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA[:1000]
    assert not store.requests


def test_an_artifact_comes_from_the_store_and_goes_on_where_it_broke(
    call: Call, fake: FakeTightfit, store: Store, tmp_path: Path
) -> None:
    store.cuts = [3 << 20, 1000]
    call("download_artifact", DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert [wanted for _, wanted in store.requests] == [
        None,
        f"bytes={3 << 20}-",
        f"bytes={(3 << 20) + 1000}-",
    ]
    assert not fake.state.read_offsets


def test_other_bytes_than_asked_for_are_fetched_again_through_the_server(
    call: Call, fake: FakeTightfit, store: Store, tmp_path: Path
) -> None:
    store.data = DATA[::-1]
    call("download_artifact", DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert fake.state.read_offsets == [0]


def test_what_the_store_has_begun_goes_on_through_the_server(
    call: Call, fake: FakeTightfit, store: Store, tmp_path: Path
) -> None:
    store.cuts, store.statuses = [2 << 20], [200, 403]
    call("download_artifact", DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert fake.state.read_offsets == [2 << 20]


def test_addresses_are_neither_logged_nor_told(
    call: Call, store: Store, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store.statuses = [403]
    call("upload_model", model)
    assert store.fake.state.store_url not in caplog.text
    secret = transfer_pb2.DirectTransfer(method="GET", url="http://127.0.0.1:9/?X-Amz-Signature=s")
    sending = direct.DirectSending(direct=secret, path=model, size=1, on_progress=None)
    with pytest.raises(Exception, match="reached") as caught:
        direct.send_directly(sending)
    assert "X-Amz" not in str(caught.value) + repr(sending)
    assert caught.value.__suppress_context__
