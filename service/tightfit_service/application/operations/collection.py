"""Collecting what nothing refers to: bytes of artifacts, abandoned uploads, cached results out of use.

Bytes go in two steps, each after a time of grace. First those that are old and that no record refers
to are *set aside*: `put` no longer finds them and stores anew, `fetch` still brings them back. Later,
what was set aside long enough ago, and is still not referred to, is purged.

Why nothing that is needed is lost, without any lock between the database and the store: a reference
is recorded after its bytes were put. A `put` that finds the bytes in place, and so writes none, comes
before they are set aside; the record that follows it comes at most an upload's or a unit's time
later, which the time of grace exceeds. It is there when the references are read again before the
purge, and the bytes are restored. A `put` that comes later finds nothing in place and writes anew.
A job that is given a cached result refers to bytes through that result, which is not forgotten while
a job may have it (see `ResultExpiry`). A collection that is cut off, or that several replicas run at
once, leaves bytes where they were, or set aside, or purges them twice: all of it is harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from tightfit_service.application.ports import (
    ArtifactStores,
    AssetStore,
    Clock,
    JobExpiry,
    ResultExpiry,
    StoredArtifact,
    Telemetry,
    UploadStaging,
)
from tightfit_service.domain.errors import InvalidRequestError, TightfitError

log = structlog.get_logger(__name__)

LEAST_GRACE = timedelta(hours=2)
"""Longer than the longest upload check or unit of work, whose outputs are referred to at its end."""

LEAST_JOB_AGE = timedelta(days=1)
"""Who started a job in the evening finds its result in the morning."""


@dataclass(frozen=True, kw_only=True)
class CollectionPolicy:
    """When things go.

    Attributes:
        grace: How old unreferenced bytes must be to be set aside, and how long they are then kept.
        upload_age: After which an upload that nothing is appended to is given up.
        result_age: After which a cached result that nobody asked for is forgotten.
        job_age: After which a job that ended is deleted; zero for never.
        interval: Between two collections of a server; zero for none.

    Raises:
        InvalidRequestError: The grace is too short for safety, or a time is negative.
    """

    grace: timedelta = timedelta(days=1)
    upload_age: timedelta = timedelta(days=1)
    result_age: timedelta = timedelta(days=30)
    job_age: timedelta = timedelta(0)
    interval: timedelta = timedelta(hours=6)

    def __post_init__(self) -> None:
        """Check the times."""
        least = {
            "gc_grace_seconds": (self.grace, LEAST_GRACE),
            "gc_upload_seconds": (self.upload_age, timedelta(minutes=10)),
            "gc_result_seconds": (self.result_age, timedelta(days=1)),
            "gc_interval_seconds": (self.interval, timedelta(0)),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise InvalidRequestError(
                    f"{name} is {value.total_seconds():.0f}",
                    field=name,
                    remedy=f"at least {bound.total_seconds():.0f}",
                )
        if self.job_age and self.job_age < LEAST_JOB_AGE:
            raise InvalidRequestError(
                f"gc_job_seconds is {self.job_age.total_seconds():.0f}",
                field="gc_job_seconds",
                remedy=f"at least {LEAST_JOB_AGE.total_seconds():.0f}, or 0 to keep all jobs",
            )


@dataclass(frozen=True, kw_only=True)
class CollectionReport:
    """What a collection did, or would do: numbers of things and bytes."""

    set_aside_count: int = 0
    set_aside_bytes: int = 0
    purged_count: int = 0
    purged_bytes: int = 0
    restored_count: int = 0
    expired_uploads: int = 0
    expired_results: int = 0
    expired_jobs: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to do."""
        return self == CollectionReport()


class Collector:
    """Runs collections, by itself from `start` to `stop`, or one at a time by `collect`."""

    def __init__(
        self,
        *,
        artifacts: ArtifactStores,
        staging: UploadStaging,
        records: AssetStore,
        jobs: JobExpiry,
        results: ResultExpiry,
        clock: Clock,
        telemetry: Telemetry,
        policy: CollectionPolicy | None = None,
    ) -> None:
        self._artifacts = artifacts
        self._staging = staging
        self._records = records
        self._jobs = jobs
        self._results = results
        self._clock = clock
        self._telemetry = telemetry
        self._policy = policy or CollectionPolicy()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Collect again and again, the first time after one interval."""
        if self._policy.interval > timedelta(0):
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop; a collection under way may be cut off."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def collect(self, *, dry_run: bool = False) -> CollectionReport:
        """Collect once and return what was done; with `dry_run` only say what would be.

        Jobs and results go first, so that what only they referred to is found; a dry run does not see that.

        Raises:
            UnavailableError: The database or the store is away; what was done stays done.
        """
        policy = self._policy
        expired_jobs = self._expire_jobs(dry_run=dry_run)
        expired_results = self._results.expire_results(
            unused_for=policy.result_age, dry_run=dry_run
        )
        expired_uploads = self._staging.expire(older_than=policy.upload_age, dry_run=dry_run)
        if not dry_run:
            self._artifacts.collect_remains(older_than=policy.grace)
        report = CollectionReport(
            expired_jobs=expired_jobs,
            expired_results=expired_results,
            expired_uploads=expired_uploads,
        )
        for project in self._artifacts.projects():
            report = self._purge(project, report, dry_run=dry_run)
            report = self._set_aside(project, report, dry_run=dry_run)
        return report

    def _expire_jobs(self, *, dry_run: bool) -> int:
        age = self._policy.job_age
        if not age:
            return 0
        return self._jobs.expire_jobs(ended_before=self._clock.now() - age, dry_run=dry_run)

    def _set_aside(
        self, project: str, report: CollectionReport, *, dry_run: bool
    ) -> CollectionReport:
        store = self._artifacts.of(project)
        for stored in self._unused(project, store.list_stored()):
            size = stored.size_bytes if dry_run else store.set_aside(stored.digest)
            report = replace(
                report,
                set_aside_count=report.set_aside_count + 1,
                set_aside_bytes=report.set_aside_bytes + size,
            )
        return report

    def _purge(self, project: str, report: CollectionReport, *, dry_run: bool) -> CollectionReport:
        store = self._artifacts.of(project)
        for aside in list(store.list_set_aside()):
            if self._records.is_digest_used(project, aside.digest):
                if not dry_run:
                    store.restore(aside.digest)
                report = replace(report, restored_count=report.restored_count + 1)
            elif self._is_old(aside):
                if not dry_run:
                    store.purge(aside)
                    self._telemetry.artifact_bytes("purged", aside.size_bytes)
                report = replace(
                    report,
                    purged_count=report.purged_count + 1,
                    purged_bytes=report.purged_bytes + aside.size_bytes,
                )
        return report

    def _unused(self, project: str, listed: Iterator[StoredArtifact]) -> Iterator[StoredArtifact]:
        for stored in listed:
            if self._is_old(stored) and not self._records.is_digest_used(project, stored.digest):
                yield stored

    def _is_old(self, stored: StoredArtifact) -> bool:
        return stored.modify_time < self._clock.now() - self._policy.grace

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._policy.interval.total_seconds())
            try:
                report = await asyncio.to_thread(self.collect)
            except TightfitError as error:
                log.warning("the collection was cut short", error=str(error))
            else:
                if not report.is_empty:
                    log.info("collected what nothing refers to", **report.__dict__)
