"""ModelService, DatasetService and ArtifactService over the use case `Assets`."""
# ruff: noqa: N802, D102, ARG002  (gRPC gives names and parameters, the protos document them)

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.empty_pb2 import Empty

from tightfit.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    dataset_pb2,
    dataset_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from tightfit_service.api import resource_names
from tightfit_service.api.codec.asset import (
    dataset_to_proto,
    dataset_upload_to_proto,
    model_to_proto,
    model_upload_to_proto,
    signed_url_to_proto,
)
from tightfit_service.api.paging import page_cursor
from tightfit_service.api.uploads import Uploads
from tightfit_service.application.use_cases import Assets
from tightfit_service.domain.errors import InvalidRequestError, UnsupportedError

MODEL = "model"
DATASET = "dataset"


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Translates ModelService."""

    def __init__(self, *, assets: Assets) -> None:
        self._assets = assets
        self._uploads = Uploads(assets=assets, kind=MODEL)

    async def StartModelUpload(
        self, request: model_pb2.StartModelUploadRequest, context: Any
    ) -> model_pb2.ModelUpload:
        project_id, status = await self._uploads.start(request)
        return model_upload_to_proto(status, project_id=project_id)

    async def UploadModel(
        self, request_iterator: AsyncIterator[model_pb2.UploadModelRequest], context: Any
    ) -> model_pb2.ModelUpload:
        project_id, status = await self._uploads.receive(request_iterator)
        return model_upload_to_proto(status, project_id=project_id)

    async def GetModelUpload(
        self, request: model_pb2.GetModelUploadRequest, context: Any
    ) -> model_pb2.ModelUpload:
        project_id, status = await self._uploads.status(request.name)
        return model_upload_to_proto(status, project_id=project_id)

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.Model:
        project_id, model_id = resource_names.MODEL.ids(request.name)
        return model_to_proto(await self._assets.get(project_id, MODEL, model_id))

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Any
    ) -> model_pb2.ListModelsResponse:
        project_id = resource_names.parse_project(request.parent)
        cursor = page_cursor(request, project_id)
        fetched = await self._assets.list(project_id, MODEL, cursor.page)
        records, token = cursor.cut(fetched, lambda record: record.asset_id)
        return model_pb2.ListModelsResponse(
            models=[model_to_proto(record) for record in records], next_page_token=token
        )

    async def DeleteModel(self, request: model_pb2.DeleteModelRequest, context: Any) -> Empty:
        project_id, model_id = resource_names.MODEL.ids(request.name)
        await self._assets.delete(project_id, MODEL, model_id)
        return Empty()


class DatasetServicer(dataset_pb2_grpc.DatasetServiceServicer):
    """Translates DatasetService."""

    def __init__(self, *, assets: Assets) -> None:
        self._assets = assets
        self._uploads = Uploads(assets=assets, kind=DATASET)

    async def StartDatasetUpload(
        self, request: dataset_pb2.StartDatasetUploadRequest, context: Any
    ) -> dataset_pb2.DatasetUpload:
        project_id, status = await self._uploads.start(request)
        return dataset_upload_to_proto(status, project_id=project_id)

    async def UploadDataset(
        self, request_iterator: AsyncIterator[dataset_pb2.UploadDatasetRequest], context: Any
    ) -> dataset_pb2.DatasetUpload:
        project_id, status = await self._uploads.receive(request_iterator)
        return dataset_upload_to_proto(status, project_id=project_id)

    async def GetDatasetUpload(
        self, request: dataset_pb2.GetDatasetUploadRequest, context: Any
    ) -> dataset_pb2.DatasetUpload:
        project_id, status = await self._uploads.status(request.name)
        return dataset_upload_to_proto(status, project_id=project_id)

    async def GetDataset(
        self, request: dataset_pb2.GetDatasetRequest, context: Any
    ) -> dataset_pb2.Dataset:
        project_id, dataset_id = resource_names.DATASET.ids(request.name)
        return dataset_to_proto(await self._assets.get(project_id, DATASET, dataset_id))

    async def ListDatasets(
        self, request: dataset_pb2.ListDatasetsRequest, context: Any
    ) -> dataset_pb2.ListDatasetsResponse:
        project_id = resource_names.parse_project(request.parent)
        cursor = page_cursor(request, project_id)
        fetched = await self._assets.list(project_id, DATASET, cursor.page)
        records, token = cursor.cut(fetched, lambda record: record.asset_id)
        return dataset_pb2.ListDatasetsResponse(
            datasets=[dataset_to_proto(record) for record in records], next_page_token=token
        )

    async def DeleteDataset(self, request: dataset_pb2.DeleteDatasetRequest, context: Any) -> Empty:
        project_id, dataset_id = resource_names.DATASET.ids(request.name)
        await self._assets.delete(project_id, DATASET, dataset_id)
        return Empty()


class ArtifactServicer(artifact_pb2_grpc.ArtifactServiceServicer):
    """Translates ArtifactService."""

    def __init__(self, *, assets: Assets) -> None:
        self._assets = assets

    async def GetArtifact(
        self, request: artifact_pb2.GetArtifactRequest, context: Any
    ) -> artifact_pb2.Artifact:
        project_id, digest = resource_names.parse_artifact(request.name)
        size = await self._assets.artifact_size(project_id, digest)
        return artifact_pb2.Artifact(name=request.name, size_bytes=size)

    async def CreateDownloadUrl(
        self, request: artifact_pb2.CreateDownloadUrlRequest, context: Any
    ) -> artifact_pb2.CreateDownloadUrlResponse:
        project_id, digest = resource_names.parse_artifact(request.name)
        size, url = await self._assets.download_url(project_id, digest)
        if url is None:
            raise UnsupportedError(
                "this server gives out no addresses of artifacts",
                field="name",
                remedy="read them by ReadArtifact",
            )
        return artifact_pb2.CreateDownloadUrlResponse(
            size_bytes=size, direct=signed_url_to_proto(url)
        )

    async def ReadArtifact(
        self, request: artifact_pb2.ReadArtifactRequest, context: Any
    ) -> AsyncIterator[artifact_pb2.ReadArtifactResponse]:
        project_id, digest = resource_names.parse_artifact(request.name)
        size = await self._assets.artifact_size(project_id, digest)
        if not 0 <= request.offset <= size:
            raise InvalidRequestError(
                f"offset is {request.offset}, outside [0, {size}]",
                field="offset",
                remedy="give the number of bytes that you have already",
            )
        if request.offset == size:
            return
        stream: Any = self._assets.read(project_id, digest, offset=request.offset)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield artifact_pb2.ReadArtifactResponse(data=chunk)
