"""Databases, artifacts, uploads, and what keeps them in order."""

from __future__ import annotations

import fcntl
from datetime import timedelta
from pathlib import Path
from typing import TextIO

import structlog
from sqlalchemy import Engine

from tightfit_service.adapters.storage.database import open_database, upgrade
from tightfit_service.adapters.storage.folder_artifacts import FolderArtifactStores
from tightfit_service.adapters.storage.s3_artifacts import S3ArtifactStores
from tightfit_service.adapters.storage.s3_bucket import S3Bucket
from tightfit_service.adapters.storage.s3_connection import S3Options
from tightfit_service.adapters.storage.s3_uploads import S3UploadStaging
from tightfit_service.adapters.storage.sql_job_expiry import SqlJobExpiry
from tightfit_service.adapters.storage.sql_results import SqlResultExpiry
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.adapters.storage.upload_staging import FolderUploadStaging
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.application.operations.collection import (
    CollectionPolicy,
    CollectionReport,
    Collector,
)
from tightfit_service.application.ports import (
    ArtifactStores,
    StoreTelemetry,
    UploadStaging,
)
from tightfit_service.bootstrap.clock import SystemClock
from tightfit_service.bootstrap.observability import configure_logging
from tightfit_service.domain.errors import UnavailableError
from tightfit_service.domain.quota import Quota
from tightfit_service.settings import Settings

log = structlog.get_logger(__name__)


def migrate(settings: Settings) -> None:
    """Bring the database up to date.

    Raises:
        TightfitError: The database cannot be used, or a newer version wrote it.
    """
    configure_logging(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = open_records(settings)
    upgrade(engine)
    engine.dispose()
    log.info("database is up to date")


def collect(settings: Settings, *, dry_run: bool) -> CollectionReport:
    """Collect what nothing refers to, once; safe beside servers that run.

    Raises:
        TightfitError: The database or the artifact store cannot be used.
    """
    engine = open_records(settings)
    upgrade(engine)
    artifacts, staging = open_storage(settings)
    collector = make_collector(settings, engine, artifacts, staging, PrometheusTelemetry())
    try:
        return collector.collect(dry_run=dry_run)
    finally:
        engine.dispose()


def open_records(settings: Settings) -> Engine:
    """Return the database of the settings; its folder is made where it is SQLite."""
    if not settings.database_url:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    return open_database(
        settings.database_url or f"sqlite:///{settings.data_dir.resolve() / 'state.db'}",
        pool_size=settings.database_pool_size,
        statement_seconds=settings.database_statement_seconds,
    )


def default_quota(settings: Settings) -> Quota:
    """Return the quota of projects that have none of their own."""
    return Quota(
        running_jobs=settings.quota_running_jobs,
        queued_jobs=settings.quota_queued_jobs,
        trials=settings.quota_trials,
        stored_bytes=settings.quota_stored_bytes,
    )


def take_data_dir(data_dir: Path) -> TextIO:
    """Take the data folder for this process.

    Raises:
        UnavailableError: Another server works on it.
    """
    opened = (data_dir / "lock").open("w")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        opened.close()
        raise UnavailableError(
            f"another server works on {data_dir}",
            field="data_dir",
            remedy="stop it, or talk to it with --server, or give another --data-dir",
        ) from error
    return opened


def open_storage(
    settings: Settings, telemetry: StoreTelemetry | None = None
) -> tuple[ArtifactStores, UploadStaging]:
    """Return where artifacts live and where unfinished uploads wait."""
    if settings.artifact_store == "folder":
        shared = Path(settings.artifact_dir or settings.data_dir)
        folder = FolderArtifactStores(
            root=shared / "artifacts", link_sources=True, telemetry=telemetry
        )
        return folder, FolderUploadStaging(root=shared / "uploads", artifacts=folder)
    options = S3Options(
        url=settings.s3_url,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        access_key_file=settings.s3_access_key_file or None,
        secret_key_file=settings.s3_secret_key_file or None,
        region=settings.s3_region,
        ca_file=settings.s3_ca_file or None,
        addressing=settings.s3_addressing,
        encryption=settings.s3_encryption,
        kms_key_id=settings.s3_kms_key_id,
        public_url=settings.s3_public_url,
    )
    bucket = S3Bucket(options=options, name=settings.s3_bucket, telemetry=telemetry)
    bucket.ensure(prefix=settings.s3_prefix)
    offers_urls = settings.s3_presigned_urls
    stores = S3ArtifactStores(bucket=bucket, prefix=settings.s3_prefix, offers_urls=offers_urls)
    return stores, S3UploadStaging(artifacts=stores, offers_urls=offers_urls)


def make_collector(
    settings: Settings,
    engine: Engine,
    artifacts: ArtifactStores,
    staging: UploadStaging,
    telemetry: PrometheusTelemetry,
) -> Collector:
    """Compose what removes bytes and results that nothing refers to."""
    return Collector(
        artifacts=artifacts,
        staging=staging,
        records=SqlStore(engine=engine),
        jobs=SqlJobExpiry(engine=engine),
        results=SqlResultExpiry(engine=engine),
        clock=SystemClock(),
        telemetry=telemetry,
        policy=CollectionPolicy(
            grace=timedelta(seconds=settings.gc_grace_seconds),
            upload_age=timedelta(seconds=settings.gc_upload_seconds),
            result_age=timedelta(seconds=settings.gc_result_seconds),
            job_age=timedelta(seconds=settings.gc_job_seconds),
            interval=timedelta(seconds=settings.gc_interval_seconds),
        ),
    )
