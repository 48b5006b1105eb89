"""What the transfer of models and of datasets share: opening, receiving and asking after uploads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Protocol

from tightfit.v1 import transfer_pb2
from tightfit_service.api import resource_names
from tightfit_service.application.use_cases import Assets, UploadStatus
from tightfit_service.domain.errors import InvalidRequestError, TightfitError


class StartRequest(Protocol):
    """The fields of StartModelUploadRequest and StartDatasetUploadRequest."""

    parent: str
    size_bytes: int
    digest: str
    display_name: str
    upload_id: str


class UploadPart(Protocol):
    """The oneof of UploadModelRequest and UploadDatasetRequest."""

    data: bytes

    @property
    def header(self) -> transfer_pb2.UploadHeader:
        """The header, empty in all messages but the first."""
        ...


class Uploads:
    """Uploads of one kind, `model` or `dataset`."""

    def __init__(self, *, assets: Assets, kind: str) -> None:
        self._assets = assets
        self._kind = kind

    async def start(self, request: StartRequest) -> tuple[str, UploadStatus]:
        """Open an upload; return the project id and how far it is."""
        project_id = resource_names.parse_project(request.parent)
        if request.size_bytes <= 0:
            raise InvalidRequestError(
                f"size_bytes is {request.size_bytes}",
                field="size_bytes",
                remedy="announce the number of bytes that will follow",
            )
        status = await self._assets.start_upload(
            project_id,
            self._kind,
            size_bytes=request.size_bytes,
            digest=request.digest,
            display_name=request.display_name,
            upload_id=request.upload_id,
        )
        return project_id, status

    async def status(self, name: str) -> tuple[str, UploadStatus]:
        """Return the project id and how far an upload is."""
        project_id, upload_id = resource_names.UPLOAD.ids(name)
        return project_id, await self._assets.upload_status(project_id, upload_id)

    async def receive(self, parts: AsyncIterator[UploadPart]) -> tuple[str, UploadStatus]:
        """Append a stream of parts to an upload and finish it; return the project id and the outcome.

        Raises:
            InvalidRequestError: No header first, or an upload of the other kind.
        """
        header = await _header(parts)
        project_id, upload_id = resource_names.UPLOAD.ids(header.upload, field="header.upload")
        if header.offset < 0:
            raise InvalidRequestError(
                f"header.offset is {header.offset}",
                field="header.offset",
                remedy="give the committed size of the upload",
            )
        committed = await self._append(project_id, upload_id, header.offset, parts)
        asset = await self._assets.finish_upload(project_id, upload_id)
        if asset.kind != self._kind:
            raise InvalidRequestError(
                f"the upload is of a {asset.kind}, not of a {self._kind}",
                field="header.upload",
                remedy="send models to ModelService and datasets to DatasetService",
            )
        status = UploadStatus(upload_id=upload_id, committed_bytes=committed, asset=asset)
        return project_id, status

    async def _append(
        self, project_id: str, upload_id: str, offset: int, parts: AsyncIterator[UploadPart]
    ) -> int:
        """Append all parts and return the committed size.

        While one part is written (in a thread) the next is received. At most these two are in
        memory: gRPC's flow control makes the client wait.
        """
        writing: asyncio.Task[int] | None = None
        try:
            async for part in parts:
                data = part.data
                if not data:
                    continue
                if writing is not None:
                    offset = await writing
                writing = asyncio.create_task(
                    self._write(project_id, upload_id, offset=offset, data=data)
                )
            return offset if writing is None else await writing
        except BaseException:
            if writing is not None and not writing.done():
                # A write that has begun cannot be taken back; the client asks for the size next.
                await asyncio.wait({writing})
            with suppress(TightfitError):
                await self._assets.flush(project_id, upload_id)
            raise

    async def _write(self, project_id: str, upload_id: str, *, offset: int, data: bytes) -> int:
        return await self._assets.append(project_id, upload_id, offset=offset, data=data)


async def _header(parts: AsyncIterator[UploadPart]) -> transfer_pb2.UploadHeader:
    async for part in parts:
        if part.header.upload:
            return part.header
        break
    raise InvalidRequestError(
        "the first message of an upload has no header",
        field="header",
        remedy="send the name of the upload and the offset first, then data",
    )
