"""The implementations that the contract suites run on."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from fakes.artifacts import InMemoryArtifactStores
from fakes.postgres_server import PostgresServer, reason_missing, running_postgres
from fakes.s3_gateway import S3Gateway, find_s3_gateway
from fakes.stores import InMemoryStore, RecordStore
from tightfit_service.adapters.storage.database import open_database, upgrade
from tightfit_service.adapters.storage.folder_artifacts import FolderArtifactStores
from tightfit_service.adapters.storage.s3_artifacts import S3ArtifactStores
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.application.ports import ArtifactStore, ArtifactStores


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL; tests that need one are skipped where there is none."""
    if reason := reason_missing():
        pytest.skip(reason)
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.debian)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RecordStore]:
    """Every implementation of the record ports."""
    if request.param == "memory":
        yield InMemoryStore()
        return
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        engine = open_database(postgres.database())
    else:
        engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    upgrade(engine)
    sql_store = SqlStore(engine=engine)
    yield sql_store
    sql_store.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.debian)])
def access_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database of its own on every system, with the schema of today."""
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        engine = open_database(postgres.database())
    else:
        engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    upgrade(engine)
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


def open_s3(gateway: S3Gateway) -> S3ArtifactStores:
    """Return a store of its own on the gateway."""
    store = S3ArtifactStores(
        url=gateway.url,
        bucket="tightfit-test",
        access_key=gateway.access_key,
        secret_key=gateway.secret_key,
        prefix=f"{uuid.uuid4().hex}/",
    )
    store.ensure_bucket()
    return store
