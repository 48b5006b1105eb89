"""A whole server on a real S3 store: uploads and downloads at signed addresses, and resumed on another replica."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fakes.s3_gateway import S3Gateway, find_s3_gateway
from running_server import RunningServer
from tightfit import direct
from tightfit.transfer import ArrivingFile
from tightfit.v1 import model_pb2, model_pb2_grpc, transfer_pb2

pytestmark = pytest.mark.debian


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Gateway]:
    with find_s3_gateway(tmp_path_factory.mktemp("s3")) as gateway:
        if gateway.reason_missing:
            pytest.skip(gateway.reason_missing)
        yield gateway


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An ONNX model of some 6 MB that says nothing twice."""
    generator = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    weight = generator.normal(size=(1200, 1280)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1200])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1280])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


@pytest.fixture
def start(gateway: S3Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("TIGHTFIT_ARTIFACT_STORE", "s3")
    monkeypatch.setenv("TIGHTFIT_S3_URL", gateway.url)
    monkeypatch.setenv("TIGHTFIT_S3_BUCKET", "tightfit-service-test")
    for name, key in (("access", gateway.access_key), ("secret", gateway.secret_key)):
        (tmp_path / name).write_text(key)
        monkeypatch.setenv(f"TIGHTFIT_S3_{name.upper()}_KEY_FILE", str(tmp_path / name))
    monkeypatch.setenv("TIGHTFIT_S3_PREFIX", f"{os.urandom(4).hex()}/")
    monkeypatch.setenv("TIGHTFIT_S3_PRESIGNED_URLS", "true")
    started: list[RunningServer] = []

    def start(name: str) -> RunningServer:
        server = RunningServer(tmp_path / name, "--log-level=debug").start()
        started.append(server)
        return server

    yield start
    for server in started:
        if server.is_running:
            server.stop()


def test_large_files_pass_the_service_by_and_no_address_is_logged(
    start: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    fetched: list[int] = []
    send, fetch = direct.send_directly, direct.fetch_directly

    def sending(step: direct.DirectSending) -> None:
        send(step)
        sent.append(step.size)

    def fetching(url: transfer_pb2.DirectTransfer, file: ArrivingFile) -> None:
        fetch(url, file)
        fetched.append(file.offset)

    monkeypatch.setattr("tightfit.client.send_directly", sending)
    monkeypatch.setattr("tightfit.client.fetch_directly", fetching)
    server = start("one")
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    with server.client() as client:
        assert client.upload_model(model).digest == digest
        client.download_artifact(digest, tmp_path / "copy")
    size = model.stat().st_size
    assert (sent, fetched) == ([size], [size])
    assert (tmp_path / "copy").read_bytes() == model.read_bytes()
    assert "X-Amz" not in server.log()
    assert (tmp_path / "secret").read_text() not in server.log()


def test_an_upload_that_one_replica_began_another_finishes(start: Any, model: Path) -> None:
    data = model.read_bytes()
    request = model_pb2.StartModelUploadRequest(
        parent="projects/default",
        size_bytes=len(data),
        digest=hashlib.sha256(data).hexdigest(),
        upload_id="moves",
    )
    one, two = start("one"), start("two")

    def messages(start: int, end: int) -> Iterator[model_pb2.UploadModelRequest]:
        header = transfer_pb2.UploadHeader(upload="projects/default/uploads/moves", offset=start)
        yield model_pb2.UploadModelRequest(header=header)
        for at in range(start, end, 1 << 20):
            yield model_pb2.UploadModelRequest(data=data[at : min(at + (1 << 20), end)])

    with one.client() as client:
        stub = model_pb2_grpc.ModelServiceStub(client._channel)
        assert stub.StartModelUpload(request).committed_bytes == 0
        with pytest.raises(Exception, match="have arrived"):
            stub.UploadModel(messages(0, 3 << 20))
    one.kill()
    with two.client() as client:
        stub = model_pb2_grpc.ModelServiceStub(client._channel)
        assert stub.StartModelUpload(request).committed_bytes == 3 << 20
        finished = stub.UploadModel(messages(3 << 20, len(data)))
        assert finished.model.digest == request.digest
