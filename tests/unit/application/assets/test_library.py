"""Uploads end as checked records; bytes are kept once, and go when nothing refers to them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from fakes.artifacts import InMemoryArtifactStores
from fakes.clock import FakeClock
from fakes.records import make_asset
from fakes.scripted_work import ScriptedExecutor
from fakes.stores import InMemoryStore
from fakes.telemetry import RecordingTelemetry
from tightfit_service.adapters.storage.upload_staging import FolderUploadStaging
from tightfit_service.application.assets.library import DATASET, MODEL, AssetLibrary
from tightfit_service.application.assets.quotas import Quotas
from tightfit_service.application.ports import AssetRecord, Page
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.domain.errors import (
    InvalidModelError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    ResourceExhaustedError,
)
from tightfit_service.domain.quota import Quota, QuotaOverrides

DATA = b"the bytes of a model" * 100
DIGEST = hashlib.sha256(DATA).hexdigest()


class Library:
    def __init__(self, root: Path) -> None:
        self.artifacts = InMemoryArtifactStores()
        self.records = InMemoryStore()
        self.executor = ScriptedExecutor()
        self.telemetry = RecordingTelemetry()
        self.assets = AssetLibrary(
            staging=FolderUploadStaging(root=root, artifacts=self.artifacts),
            artifacts=self.artifacts,
            quotas=Quotas(store=self.records, default=Quota()),
            records=self.records,
            units=CachedUnits(executor=self.executor, store=self.records, telemetry=self.telemetry),
            clock=FakeClock(),
            telemetry=self.telemetry,
            max_bytes=1 << 20,
        )

    async def upload(self, data: bytes = DATA, *, kind: str = MODEL) -> AssetRecord:
        status = await self.assets.start_upload(
            "default",
            kind,
            size_bytes=len(data),
            digest=hashlib.sha256(data).hexdigest(),
            display_name="mine",
        )
        assert status.asset is None
        await self.assets.append("default", status.upload_id, offset=0, data=data)
        return await self.assets.finish_upload("default", status.upload_id)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path)


async def test_a_model_is_described_by_what_its_import_found(library: Library) -> None:
    record = await library.upload()
    assert record.digest == DIGEST
    assert record.description["opset"] == 17
    assert record.description["inputs"][0]["name"] == "input"
    assert [r async for r in library.assets.read("default", DIGEST, offset=4)] == [DATA[4:]]
    assert library.telemetry.bytes_by_direction["stored"] == len(DATA)


async def test_known_bytes_are_not_sent_again(library: Library) -> None:
    record = await library.upload()
    status = await library.assets.start_upload(
        "default", MODEL, size_bytes=len(DATA), digest=DIGEST, display_name="again"
    )
    assert status.asset == record
    assert status.committed_bytes == len(DATA)


async def test_content_that_cannot_be_used_leaves_nothing_behind(library: Library) -> None:
    library.executor.fail[1] = InvalidModelError("not ONNX", field="model", remedy="send ONNX")
    with pytest.raises(InvalidModelError):
        await library.upload()
    assert library.artifacts.default.size(DIGEST) is None
    assert await library.assets.list("default", MODEL, Page(size=10)) == []
    assert (await library.upload()).digest == DIGEST, "the same file may be sent again"


async def test_deleting_a_record_frees_its_bytes(library: Library) -> None:
    record = await library.upload(kind=DATASET)
    await library.assets.delete("default", DATASET, record.asset_id)
    with pytest.raises(NotFoundError):
        await library.assets.artifact_size("default", DIGEST)
    assert library.telemetry.bytes_by_direction["deleted"] == len(DATA)


async def test_one_project_does_not_see_the_uploads_of_another(library: Library) -> None:
    status = await library.assets.start_upload(
        "default", MODEL, size_bytes=len(DATA), digest=DIGEST, display_name=""
    )
    with pytest.raises(NotFoundError):
        await library.assets.upload_status("other", status.upload_id)
    with pytest.raises(NotFoundError):
        await library.assets.finish_upload("other", status.upload_id)


@pytest.mark.parametrize(
    ("size", "digest", "upload_id", "field"),
    [
        (0, DIGEST, "", "size_bytes"),
        (2 << 20, DIGEST, "", "size_bytes"),
        (10, "abc", "", "digest"),
        (10, DIGEST.upper(), "", "digest"),
        (10, DIGEST, "../../etc", "upload_id"),
    ],
)
async def test_what_is_announced_must_make_sense(
    library: Library, size: int, digest: str, upload_id: str, field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await library.assets.start_upload(
            "default", MODEL, size_bytes=size, digest=digest, display_name="", upload_id=upload_id
        )
    assert caught.value.field == field
    assert caught.value.remedy


async def test_an_upload_that_is_not_whole_is_not_finished(library: Library) -> None:
    status = await library.assets.start_upload(
        "default", MODEL, size_bytes=len(DATA), digest=DIGEST, display_name=""
    )
    await library.assets.append("default", status.upload_id, offset=0, data=DATA[:10])
    with pytest.raises(PreconditionError):
        await library.assets.finish_upload("default", status.upload_id)
    again = await library.assets.upload_status("default", status.upload_id)
    assert again.committed_bytes == 10


async def test_an_upload_beyond_the_quota_names_it_with_use_and_remedy(tmp_path: Path) -> None:
    bench = Library(tmp_path)
    bench.records.set_quota("small", QuotaOverrides(stored_bytes=100))
    bench.records.add_asset(make_asset(project="small", size_bytes=60))
    options: dict[str, Any] = {"digest": "a" * 64, "display_name": "d"}
    await bench.assets.start_upload("small", "model", size_bytes=40, **options)
    with pytest.raises(ResourceExhaustedError, match=r"hold 60 bytes.*quota of 100") as caught:
        await bench.assets.start_upload("small", "model", size_bytes=41, **options)
    assert caught.value.remedy
    await bench.assets.start_upload("other", "model", size_bytes=41, **options)
