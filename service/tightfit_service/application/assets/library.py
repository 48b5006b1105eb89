"""Models and datasets: resumable uploads, content checks, and the bytes behind digests."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import Any

from tightfit_service.application.assets.quotas import Quotas
from tightfit_service.application.ports import (
    ArtifactStores,
    AssetRecord,
    AssetStore,
    Clock,
    Page,
    SignedUrl,
    Telemetry,
    UploadStaging,
    UploadTicket,
    WorkResult,
    WorkUnit,
)
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.application.units.kinds import Nothing
from tightfit_service.application.use_cases import UploadStatus
from tightfit_service.application.work.checks import (
    CHECK_DATASET,
    CHECK_TIMEOUT_SECONDS,
    CheckDatasetTask,
)
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.model_import import IMPORT_MODEL
from tightfit_service.domain.errors import InvalidRequestError, NotFoundError, TightfitError

MODEL = "model"
DATASET = "dataset"

_DIGEST = re.compile(r"[0-9a-f]{64}")
_UPLOAD_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

ASSET_ID_LENGTH = 20
"""Hex digits of the digest that name an asset: 80 bits, beyond accident within any project."""

SIGNED_LIFETIME = timedelta(minutes=15)
"""How long a signed address is valid: a transfer must begin within, it may end later."""


def asset_id_of(digest: str) -> str:
    """Return the id of the asset with these bytes."""
    return digest[:ASSET_ID_LENGTH]


class AssetLibrary:
    """Implements `use_cases.Assets` over a staging area, an artifact store and records."""

    def __init__(
        self,
        *,
        staging: UploadStaging,
        artifacts: ArtifactStores,
        records: AssetStore,
        units: CachedUnits,
        clock: Clock,
        telemetry: Telemetry,
        quotas: Quotas,
        max_bytes: int,
    ) -> None:
        self._staging = staging
        self._artifacts = artifacts
        self._records = records
        self._units = units
        self._clock = clock
        self._telemetry = telemetry
        self._quotas = quotas
        self._max_bytes = max_bytes

    async def start_upload(
        self,
        project: str,
        kind: str,
        *,
        size_bytes: int,
        digest: str,
        display_name: str,
        upload_id: str = "",
    ) -> UploadStatus:
        """Open an upload, or find it again; known bytes are answered with their asset at once."""
        if not _DIGEST.fullmatch(digest):
            raise InvalidRequestError(
                "the digest is not a sha-256 in lower-case hexadecimal",
                field="digest",
                remedy="send the 64 hex digits of the file's sha-256",
            )
        if not 0 < size_bytes <= self._max_bytes:
            raise InvalidRequestError(
                f"an upload of {size_bytes} bytes is outside (0, {self._max_bytes}]",
                field="size_bytes",
                remedy="send a file that is not empty, or raise the server's max_upload_bytes",
            )
        if upload_id and not _UPLOAD_ID.fullmatch(upload_id):
            raise InvalidRequestError(
                "the upload id may hold lower-case letters, digits and dashes, 63 at most",
                field="upload_id",
                remedy="leave it out to let the server choose one",
            )
        known = await self._find(project, kind, asset_id_of(digest))
        if known is not None and known.digest == digest and await self._is_stored(known):
            return UploadStatus(
                upload_id=upload_id or uuid.uuid4().hex, committed_bytes=size_bytes, asset=known
            )
        await self._quotas.check_stored_bytes(project, size_bytes)
        ticket = UploadTicket(
            upload_id=upload_id or uuid.uuid4().hex,
            project=project,
            kind=kind,
            size_bytes=size_bytes,
            digest=digest,
            display_name=display_name,
        )
        committed = await asyncio.to_thread(self._staging.open, ticket)
        direct = None
        if committed == 0:
            direct = await asyncio.to_thread(
                self._staging.direct_url, ticket, lifetime=SIGNED_LIFETIME
            )
        return UploadStatus(upload_id=ticket.upload_id, committed_bytes=committed, direct=direct)

    async def append(self, project: str, upload_id: str, *, offset: int, data: bytes) -> int:
        """Append bytes to an upload and return its size so far."""
        size = await asyncio.to_thread(
            self._staging.append, project, upload_id, offset=offset, data=data
        )
        self._telemetry.artifact_bytes("received", len(data))
        return size

    async def flush(self, project: str, upload_id: str) -> int:
        """Commit what was appended and return the committed size."""
        return await asyncio.to_thread(self._staging.flush, project, upload_id)

    async def finish_upload(self, project: str, upload_id: str) -> AssetRecord:
        """Verify, check the content in a worker, store bytes and record."""
        ticket, _ = await asyncio.to_thread(self._staging.find, project, upload_id)
        artifacts = self._artifacts.of(project)
        was_stored = await asyncio.to_thread(artifacts.size, ticket.digest) is not None
        await asyncio.to_thread(self._staging.complete, project, upload_id)
        if not was_stored:
            self._telemetry.artifact_bytes("stored", ticket.size_bytes)
        try:
            description = await self._describe(ticket)
        except TightfitError:
            await self._forget(project, ticket.digest)
            raise
        finally:
            await asyncio.to_thread(self._staging.discard, project, upload_id)
        record = AssetRecord(
            asset_id=asset_id_of(ticket.digest),
            project=project,
            kind=ticket.kind,
            digest=ticket.digest,
            size_bytes=ticket.size_bytes,
            display_name=ticket.display_name,
            create_time=self._clock.now(),
            description=description,
        )
        return await asyncio.to_thread(self._records.add_asset, record)

    async def upload_status(self, project: str, upload_id: str) -> UploadStatus:
        """Return how far an upload is."""
        ticket, committed = await asyncio.to_thread(self._staging.find, project, upload_id)
        return UploadStatus(upload_id=ticket.upload_id, committed_bytes=committed)

    async def get(self, project: str, kind: str, asset_id: str) -> AssetRecord:
        """Return a record."""
        return await asyncio.to_thread(self._records.get_asset, project, kind, asset_id)

    async def list(self, project: str, kind: str, page: Page) -> Sequence[AssetRecord]:
        """Return records by id."""
        return await asyncio.to_thread(self._records.list_assets, project, kind, page)

    async def delete(self, project: str, kind: str, asset_id: str) -> None:
        """Remove a record, and the bytes when nothing refers to them any more."""
        record = await asyncio.to_thread(self._records.delete_asset, project, kind, asset_id)
        await self._forget(project, record.digest)

    async def artifact_size(self, project: str, digest: str) -> int:
        """Return the size of an artifact."""
        artifacts = self._artifacts.of(project)
        size = await asyncio.to_thread(artifacts.size, digest)
        if size is None and await asyncio.to_thread(self._records.is_digest_used, project, digest):
            # set aside just when something came to refer to it
            await asyncio.to_thread(artifacts.restore, digest)
            size = await asyncio.to_thread(artifacts.size, digest)
        if size is None:
            raise NotFoundError(
                f"no artifact {digest}", field="name", remedy="take names from a job's trials"
            )
        return size

    async def download_url(self, project: str, digest: str) -> tuple[int, SignedUrl | None]:
        """Return the size of an artifact, and where it may be fetched directly."""
        size = await self.artifact_size(project, digest)
        url = await asyncio.to_thread(
            self._artifacts.of(project).download_url, digest, lifetime=SIGNED_LIFETIME
        )
        return size, url

    async def read(self, project: str, digest: str, *, offset: int) -> AsyncIterator[bytes]:
        """Yield the bytes of an artifact from `offset` on."""
        await self.artifact_size(project, digest)
        chunks: Iterator[bytes] = await asyncio.to_thread(
            self._artifacts.of(project).read, digest, offset=offset
        )
        while True:
            chunk = await asyncio.to_thread(next, chunks, None)
            if chunk is None:
                return
            self._telemetry.artifact_bytes("sent", len(chunk))
            yield chunk

    async def _is_stored(self, record: AssetRecord) -> bool:
        try:
            await self.artifact_size(record.project, record.digest)
        except NotFoundError:
            return False
        return True

    async def _find(self, project: str, kind: str, asset_id: str) -> AssetRecord | None:
        try:
            return await asyncio.to_thread(self._records.get_asset, project, kind, asset_id)
        except NotFoundError:
            return None

    async def _describe(self, ticket: UploadTicket) -> dict[str, Any]:
        """Check the content in a worker, so that no hostile file is parsed in this process."""
        if ticket.kind == MODEL:
            result = await self._units.run(import_unit(ticket.project, ticket.digest))
            return describe_model(IMPORT_MODEL.outcome(result), result)
        result = await self._units.run(
            CHECK_DATASET.unit(
                CheckDatasetTask(),
                project=ticket.project,
                inputs={"dataset": ticket.digest},
                timeout_seconds=CHECK_TIMEOUT_SECONDS,
                label=f"dataset {asset_id_of(ticket.digest)}",
            )
        )
        return {"manifest": dict(result.payload)}

    async def _forget(self, project: str, digest: str) -> None:
        if await asyncio.to_thread(self._records.is_digest_used, project, digest):
            return
        # not deleted at once: who stores the same bytes at this very moment may rely on these
        size = await asyncio.to_thread(self._artifacts.of(project).set_aside, digest)
        self._telemetry.artifact_bytes("deleted", size)


def import_unit(project: str, digest: str) -> WorkUnit:
    """Return the unit of work that imports an uploaded model."""
    return IMPORT_MODEL.unit(
        Nothing(),
        project=project,
        inputs={"model": digest},
        timeout_seconds=CHECK_TIMEOUT_SECONDS,
        label=f"model {asset_id_of(digest)}",
    )


def describe_model(facts: ModelFacts, result: WorkResult) -> dict[str, Any]:
    """Return what the record of a model tells about it."""
    return {
        "format": "onnx",
        "graph_digest": result.outputs["graph"],
        "opset": facts.opset,
        "node_count": facts.node_count,
        "parameter_count": facts.parameter_count,
        "macs": facts.macs,
        "is_quantized": facts.is_quantized,
        "inputs": [
            {"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in facts.inputs
        ],
        "outputs": [
            {"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in facts.outputs
        ],
        "warnings": list(facts.warnings),
    }
