"""The implementations that the contract suites run on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine

from fakes.artifacts import InMemoryArtifactStores
from fakes.databases import open_migrated
from fakes.postgres_server import PostgresServer, reason_missing, running_postgres
from fakes.s3_gateway import S3Gateway, find_s3_gateway
from fakes.s3_stores import Uploads, open_s3
from fakes.stores import InMemoryStore, RecordStore
from tightfit_service.adapters.storage.database import open_database, upgrade
from tightfit_service.adapters.storage.folder_artifacts import FolderArtifactStores
from tightfit_service.adapters.storage.s3_uploads import S3UploadStaging
from tightfit_service.adapters.storage.sql_queue import SqlJobQueue
from tightfit_service.adapters.storage.sql_quotas import SqlQuotaStore
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.adapters.storage.upload_staging import FolderUploadStaging
from tightfit_service.application.ports import (
    ArtifactStore,
    ArtifactStores,
    JobQueue,
    QuotaStore,
    UploadStaging,
)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL; tests that need one are skipped where there is none."""
    if reason := reason_missing():
        pytest.skip(reason)
    with running_postgres() as server:
        yield server


@dataclass(frozen=True)
class Records:
    """The record ports of one database."""

    store: RecordStore
    queue: JobQueue
    quotas: QuotaStore


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.debian)])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Records]:
    """Every implementation of the record ports."""
    if request.param == "memory":
        memory = InMemoryStore()
        yield Records(memory, memory, memory)
        return
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        engine = open_database(postgres.database())
        upgrade(engine)
    else:
        engine = open_migrated(tmp_path / "state.db")
    yield Records(SqlStore(engine=engine), SqlJobQueue(engine=engine), SqlQuotaStore(engine=engine))
    engine.dispose()


@pytest.fixture
def store(records: Records) -> RecordStore:
    """Jobs and assets."""
    return records.store


@pytest.fixture
def queue(records: Records) -> JobQueue:
    """Who runs the jobs of `store`."""
    return records.queue


@pytest.fixture
def quotas(records: Records) -> QuotaStore:
    """Quotas in the database of `store`."""
    return records.quotas


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.debian)])
def access_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database of its own on every system, with the schema of today."""
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        engine = open_database(postgres.database())
        upgrade(engine)
    else:
        engine = open_migrated(tmp_path / "state.db")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def s3_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Gateway]:
    """A real S3 server; tests that need one are skipped where there is none."""
    with find_s3_gateway(tmp_path_factory.mktemp("s3")) as gateway:
        if gateway.reason_missing:
            pytest.skip(gateway.reason_missing)
        yield gateway


@pytest.fixture(
    params=["memory", "folder", "folder-linking", pytest.param("s3", marks=pytest.mark.debian)]
)
def artifact_stores(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStores:
    """Every implementation of the artifact ports, empty."""
    if request.param == "memory":
        return InMemoryArtifactStores()
    if request.param == "s3":
        gateway: S3Gateway = request.getfixturevalue("s3_gateway")
        return open_s3(gateway)
    root = tmp_path / "artifacts"
    return FolderArtifactStores(root=root, link_sources=request.param == "folder-linking")


@pytest.fixture
def artifacts(artifact_stores: ArtifactStores) -> ArtifactStore:
    """The store of one project."""
    return artifact_stores.of("default")


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.debian)])
def uploads(request: pytest.FixtureRequest, tmp_path: Path) -> Uploads:
    """Every implementation of the staging of uploads, empty."""
    if request.param == "s3":
        gateway: S3Gateway = request.getfixturevalue("s3_gateway")
        stores = open_s3(gateway)

        def reopen_s3() -> UploadStaging:
            return S3UploadStaging(artifacts=stores, offers_urls=True)

        return Uploads(stores, reopen_s3, reopen_s3(), finds_partial=False)
    folder = FolderArtifactStores(root=tmp_path / "artifacts", link_sources=True)

    def reopen_folder() -> UploadStaging:
        return FolderUploadStaging(root=tmp_path / "uploads", artifacts=folder)

    return Uploads(folder, reopen_folder, reopen_folder(), finds_partial=True)
