"""Models, datasets and artifacts over a real gRPC connection: uploads that resume, lists, downloads."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from fakes.grpc_service import Service
from fakes.records import digest_of, make_asset
from fakes.rpc_errors import info_of
from fakes.streams import send
from fakes.waiting import until
from tightfit.v1 import artifact_pb2, dataset_pb2, model_pb2, transfer_pb2
from tightfit.v1.artifact_pb2_grpc import ArtifactServiceStub
from tightfit.v1.dataset_pb2_grpc import DatasetServiceStub
from tightfit.v1.model_pb2_grpc import ModelServiceStub

DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()
UPLOAD_MODEL = model_pb2.DESCRIPTOR.services_by_name["ModelService"].methods_by_name["UploadModel"]


def _parts(
    upload: str, data: bytes, *, offset: int = 0, part_bytes: int = 1000
) -> list[model_pb2.UploadModelRequest]:
    header = transfer_pb2.UploadHeader(upload=upload, offset=offset)
    return [
        model_pb2.UploadModelRequest(header=header),
        *(
            model_pb2.UploadModelRequest(data=data[start : start + part_bytes])
            for start in range(offset, len(data), part_bytes)
        ),
    ]


async def _start(stub: Any, **changes: Any) -> model_pb2.ModelUpload:
    values: dict[str, Any] = {
        "parent": "projects/p",
        "size_bytes": len(DATA),
        "digest": DIGEST,
        "display_name": "net.onnx",
    }
    upload: model_pb2.ModelUpload = await stub.StartModelUpload(
        model_pb2.StartModelUploadRequest(**(values | changes))
    )
    return upload


async def test_a_model_is_uploaded_and_found_again(service: Service) -> None:
    stub = ModelServiceStub(service.channel)
    upload = await _start(stub)
    assert (upload.committed_bytes, upload.HasField("model")) == (0, False)

    done = await stub.UploadModel(iter(_parts(upload.name, DATA)))

    assert done.committed_bytes == len(DATA)
    assert done.model.name == f"projects/p/models/{DIGEST[:20]}"
    assert (done.model.digest, done.model.size_bytes) == (DIGEST, len(DATA))
    assert done.model.facts["opset"] == 17
    assert await stub.GetModel(model_pb2.GetModelRequest(name=done.model.name)) == done.model
    again = await _start(stub)
    assert again.model == done.model


async def test_a_dataset_is_uploaded_the_same_way(service: Service) -> None:
    stub = DatasetServiceStub(service.channel)
    upload = await stub.StartDatasetUpload(
        dataset_pb2.StartDatasetUploadRequest(
            parent="projects/p", size_bytes=len(DATA), digest=DIGEST
        )
    )
    header = transfer_pb2.UploadHeader(upload=upload.name)

    done = await stub.UploadDataset(
        iter(
            [
                dataset_pb2.UploadDatasetRequest(header=header),
                dataset_pb2.UploadDatasetRequest(data=DATA),
            ]
        )
    )

    assert done.dataset.name == f"projects/p/datasets/{DIGEST[:20]}"
    assert await stub.GetDataset(dataset_pb2.GetDatasetRequest(name=done.dataset.name))
    listed = await stub.ListDatasets(dataset_pb2.ListDatasetsRequest(parent="projects/p"))
    assert [dataset.name for dataset in listed.datasets] == [done.dataset.name]
    await stub.DeleteDataset(dataset_pb2.DeleteDatasetRequest(name=done.dataset.name))
    listed = await stub.ListDatasets(dataset_pb2.ListDatasetsRequest(parent="projects/p"))
    assert not listed.datasets


async def test_an_upload_that_broke_goes_on_from_the_committed_size(service: Service) -> None:
    stub = ModelServiceStub(service.channel)
    upload = await _start(stub)
    half = [*_parts(upload.name, DATA)][:6]

    async def breaks() -> AsyncIterator[model_pb2.UploadModelRequest]:
        for part in half:
            yield part
        await asyncio.Event().wait()

    call = stub.UploadModel(breaks())
    await until(lambda: len(service.assets.uploads["upload-0"].data) == 5000)
    call.cancel()

    status = await stub.GetModelUpload(model_pb2.GetModelUploadRequest(name=upload.name))
    assert status.committed_bytes == 5000
    done = await stub.UploadModel(iter(_parts(upload.name, DATA, offset=5000)))
    assert done.model.digest == DIGEST


async def test_an_early_end_commits_what_came_and_says_so(service: Service) -> None:
    stub = ModelServiceStub(service.channel)
    upload = await _start(stub)

    with pytest.raises(grpc.RpcError) as caught:
        await send(service.address, UPLOAD_MODEL, _parts(upload.name, DATA)[:4])

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    status = await stub.GetModelUpload(model_pb2.GetModelUploadRequest(name=upload.name))
    assert status.committed_bytes == 3000


async def test_a_header_at_the_full_size_finishes(service: Service) -> None:
    stub = ModelServiceStub(service.channel)
    upload = await _start(stub)
    service.assets.uploads[upload.name.rpartition("/")[2]].data += DATA

    done = await stub.UploadModel(iter(_parts(upload.name, DATA, offset=len(DATA))))

    assert done.model.digest == DIGEST


async def test_parts_are_written_one_at_a_time_and_in_order(service: Service) -> None:
    service.assets.append_seconds = 0.002
    stub = ModelServiceStub(service.channel)
    upload = await _start(stub)

    done = await stub.UploadModel(iter(_parts(upload.name, DATA)))

    assert done.model.digest == DIGEST
    assert service.assets.most_appends_at_work == 1


async def test_a_wrong_offset_tells_the_right_one(service: Service) -> None:
    stub = ModelServiceStub(service.channel)
    upload = await _start(stub)

    with pytest.raises(grpc.RpcError) as caught:
        await send(service.address, UPLOAD_MODEL, _parts(upload.name, DATA, offset=1000))

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "0 bytes are committed" in (caught.value.details() or "")


async def test_bytes_that_do_not_match_their_digest_are_refused(service: Service) -> None:
    stub = ModelServiceStub(service.channel)
    upload = await _start(stub, digest=digest_of("something else"))

    with pytest.raises(grpc.RpcError) as caught:
        await send(service.address, UPLOAD_MODEL, _parts(upload.name, DATA))

    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert info_of(caught.value)[0] == "DIGEST_MISMATCH"


async def test_a_dataset_sent_as_a_model_is_refused(service: Service) -> None:
    stub = DatasetServiceStub(service.channel)
    upload = await stub.StartDatasetUpload(
        dataset_pb2.StartDatasetUploadRequest(
            parent="projects/p", size_bytes=len(DATA), digest=DIGEST
        )
    )

    with pytest.raises(grpc.RpcError) as caught:
        await send(service.address, UPLOAD_MODEL, _parts(upload.name, DATA))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([], "header"),
        ([model_pb2.UploadModelRequest(data=b"x")], "header"),
        (_parts("nonsense", b""), "header.upload"),
        (_parts("projects/p/uploads/u", b"", offset=-1), "header.offset"),
    ],
)
async def test_malformed_uploads_are_refused(
    service: Service, parts: list[model_pb2.UploadModelRequest], field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await send(service.address, UPLOAD_MODEL, parts)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(caught.value)[1]["field"] == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"size_bytes": 0}, "size_bytes"),
        ({"size_bytes": -5}, "size_bytes"),
        ({"parent": ""}, "parent"),
    ],
)
async def test_malformed_starts_are_refused(
    service: Service, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _start(ModelServiceStub(service.channel), **change)

    assert info_of(caught.value)[1]["field"] == field


async def test_models_are_listed_in_pages(service: Service) -> None:
    stub = ModelServiceStub(service.channel)
    for number in range(5):
        record = make_asset(f"m{number}", project="p")
        service.assets.records["p", "model", record.asset_id] = record
    names: list[str] = []
    token = ""
    pages = 0
    while True:
        page = await stub.ListModels(
            model_pb2.ListModelsRequest(parent="projects/p", page_size=2, page_token=token)
        )
        names += [model.name for model in page.models]
        pages += 1
        token = page.next_page_token
        if not token:
            break

    assert names == [f"projects/p/models/m{number}" for number in range(5)]
    assert pages == 3


async def test_a_token_of_another_project_is_refused(service: Service) -> None:
    stub = ModelServiceStub(service.channel)
    for number in range(2):
        record = make_asset(f"m{number}", project="p")
        service.assets.records["p", "model", record.asset_id] = record
    page = await stub.ListModels(model_pb2.ListModelsRequest(parent="projects/p", page_size=1))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListModels(
            model_pb2.ListModelsRequest(parent="projects/q", page_token=page.next_page_token)
        )

    assert info_of(caught.value)[1]["field"] == "page_token"


async def test_a_deleted_model_is_gone(service: Service) -> None:
    stub = ModelServiceStub(service.channel)
    service.assets.records["p", "model", "m"] = make_asset("m", project="p")

    await stub.DeleteModel(model_pb2.DeleteModelRequest(name="projects/p/models/m"))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetModel(model_pb2.GetModelRequest(name="projects/p/models/m"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("offset", [0, 1, 5000, len(DATA)])
async def test_an_artifact_is_read_from_any_offset(service: Service, offset: int) -> None:
    service.assets.artifacts["p", DIGEST] = DATA
    stub = ArtifactServiceStub(service.channel)
    name = f"projects/p/artifacts/{DIGEST}"

    artifact = await stub.GetArtifact(artifact_pb2.GetArtifactRequest(name=name))
    stream = stub.ReadArtifact(artifact_pb2.ReadArtifactRequest(name=name, offset=offset))
    data = b"".join([part.data async for part in stream])

    assert artifact.size_bytes == len(DATA)
    assert data == DATA[offset:]


@pytest.mark.parametrize("offset", [-1, len(DATA) + 1])
async def test_an_offset_outside_the_artifact_is_refused(service: Service, offset: int) -> None:
    service.assets.artifacts["p", DIGEST] = DATA
    stub = ArtifactServiceStub(service.channel)
    request = artifact_pb2.ReadArtifactRequest(name=f"projects/p/artifacts/{DIGEST}", offset=offset)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [part async for part in stub.ReadArtifact(request)]

    assert info_of(caught.value)[1]["field"] == "offset"


async def test_artifacts_of_another_project_are_not_found(service: Service) -> None:
    service.assets.artifacts["p", DIGEST] = DATA
    stub = ArtifactServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetArtifact(
            artifact_pb2.GetArtifactRequest(name=f"projects/q/artifacts/{DIGEST}")
        )

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
