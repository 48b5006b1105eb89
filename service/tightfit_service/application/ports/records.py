"""What is remembered: assets, jobs and who runs them, trials, events, results of work, quotas."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from tightfit_service.application.ports.execution import WorkResult
from tightfit_service.domain.errors import UnreadableRecordError
from tightfit_service.domain.job import Job, JobEvent, JobState
from tightfit_service.domain.quota import Quota, QuotaOverrides, Usage
from tightfit_service.domain.trial import Trial


@dataclass(frozen=True, kw_only=True)
class AssetRecord:
    """A model or dataset that was uploaded. `asset_id` is the last segment of its resource name."""

    asset_id: str
    project: str
    kind: str
    """`model` or `dataset`."""
    digest: str
    size_bytes: int
    display_name: str
    create_time: datetime
    description: Mapping[str, Any] = field(default_factory=dict)
    """Plain facts: signature, opset and warnings of a model; the manifest of a dataset."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Which part of a list is wanted: at most `size` records after the one that `after` names."""

    size: int
    after: str = ""


class AssetStore(Protocol):
    """Records of uploaded models and datasets."""

    def add_asset(self, record: AssetRecord) -> AssetRecord:
        """Store a record; one with the same project, kind and asset_id is returned unchanged if equal in digest.

        Raises:
            AlreadyExistsError: The id is taken by other bytes.
        """
        ...

    def get_asset(self, project: str, kind: str, asset_id: str) -> AssetRecord:
        """Return a record.

        Raises:
            NotFoundError: No such record.
        """
        ...

    def list_assets(self, project: str, kind: str, page: Page) -> Sequence[AssetRecord]:
        """Return records ordered by asset_id, those after `page.after`."""
        ...

    def delete_asset(self, project: str, kind: str, asset_id: str) -> AssetRecord:
        """Remove and return a record.

        Raises:
            NotFoundError: No such record.
            PreconditionError: A job that is not final uses it.
        """
        ...

    def is_digest_used(self, project: str, digest: str) -> bool:
        """Whether any asset, trial or cached result of the project still refers to the bytes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to run and write a job; of several for one job only that with the highest token holds."""

    job_id: str
    owner: str
    token: int


@dataclass(frozen=True, kw_only=True)
class LostLife:
    """A life of a job that ended without an orderly stop."""

    owner: str
    """Who ran the job."""
    since: datetime
    """When it had taken it."""
    last_heard: datetime
    """When its lease ran out."""
    unit: str
    """What was running: `trial 2`, or a stage."""
    only_waited: bool = False
    """Whether the job did nothing but wait for a worker: then it cannot be what ended the life."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job that was taken: it is RUNNING, and the lease is the caller's."""

    job: Job
    lease: Lease
    before: Job
    """The job as it was: QUEUED, or RUNNING under somebody who was not heard of any more."""
    losses: Sequence[LostLife] = ()
    """Lives that ended in a row at the same unit of work; empty for a job out of the queue.

    Of those in which the job only waited for a worker none is remembered but the last."""
    cancel_requested: bool = False


@dataclass(frozen=True, kw_only=True)
class UnitDeaths:
    """How often a unit of work killed its worker, and how it did the last time."""

    count: int = 0
    evidence: str = ""


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """What is remembered of a unit of work."""

    result: WorkResult | None = None
    deaths: UnitDeaths = UnitDeaths()
    claimant: str = ""
    """Who has claimed it and computes it now; empty where nobody does."""


@dataclass(frozen=True)
class JobMark:
    """How far a job is: it has news for whoever has seen less."""

    revision: int
    last_sequence: int


@dataclass(frozen=True, kw_only=True)
class UnreadableJob:
    """A job whose record cannot be read: what is known of it all the same."""

    job_id: str
    project: str
    state: JobState
    create_time: datetime
    revision: int
    error: UnreadableRecordError


class JobQueue(Protocol):
    """Which replica runs which job. Every method is one transaction; times are the store's own."""

    def claim_job(
        self,
        owner: str,
        *,
        lease_seconds: float,
        now: datetime,
        quota: Quota,
        take_over: bool = True,
    ) -> Claim | None:
        """Take the next job, or return None.

        A job whose lease ran out comes first (if `take_over`), then one of the queue: of the project
        with the fewest running jobs, of those the highest priority, of those the oldest. Projects that
        run as many as their quota allows are passed over, and so are jobs whose record cannot be read:
        a replica of the version that wrote it may come and run them.

        Args:
            owner: Of the lease; what it holds itself is never taken over.
            lease_seconds: How long the job is held without a heartbeat.
            now: Written to the job as the time of its change.
            quota: Of projects that have none of their own.
            take_over: Whether leases that ran out count.
        """
        ...

    def take_over_job(
        self, job_id: str, owner: str, *, lease_seconds: float, now: datetime
    ) -> Claim | None:
        """Take a running job whose lease ran out; None when it has not, or is not running."""
        ...

    def renew_leases(
        self, leases: Sequence[Lease], *, lease_seconds: float, waiting: Collection[str] = ()
    ) -> Collection[str]:
        """Prolong leases; return the ids of the jobs that are still held.

        Args:
            leases: Held by the caller.
            lease_seconds: How long the jobs are held without a further heartbeat.
            waiting: Ids of those jobs that at present only wait for a worker.
        """
        ...

    def cancel_requests(self, owner: str) -> Collection[str]:
        """Return the ids of the jobs that the owner holds and somebody wants cancelled."""
        ...

    def request_cancel(self, project: str, job_id: str) -> Job:
        """Leave word that a job that is not final is to be cancelled, and return it.

        Raises:
            NotFoundError: No such job.
            UnreadableRecordError: It is damaged, or of another version.
        """
        ...

    def end_leases(self) -> None:
        """Let all leases run out; for a server that knows that it is alone on its database."""
        ...


class QuotaStore(Protocol):
    """What projects may use and what they use."""

    def get_quota(self, project: str) -> QuotaOverrides:
        """Return what was set for a project; nothing but None where nothing was."""
        ...

    def set_quota(self, project: str, overrides: QuotaOverrides) -> None:
        """Replace what is set for a project."""
        ...

    def get_usage(self, project: str) -> Usage:
        """Return what a project uses now."""
        ...


class JobStore(Protocol):
    """Jobs, their trials and their events. Every method is one transaction.

    Methods that write take the lease of whoever runs the job, and raise LeaseLostError when it holds no
    more; without a lease they raise it while somebody holds one.
    """

    def create_job(self, job: Job, *, quota: Quota | None = None) -> Job:
        """Store a new job; with a `request_id` seen before in the project, return that job instead.

        Raises:
            AlreadyExistsError: The request_id was used for a different spec.
            ResourceExhaustedError: As many jobs of the project are queued as `quota` allows.
        """
        ...

    def get_job(self, project: str, job_id: str) -> Job:
        """Return a job.

        Raises:
            NotFoundError: No such job.
            UnreadableRecordError: It is damaged, or of another version.
        """
        ...

    def list_jobs(
        self, project: str, page: Page, *, states: Sequence[JobState] = ()
    ) -> Sequence[Job | UnreadableJob]:
        """Return jobs, newest first (by create_time, then id); `page.after` is a job id.

        One whose record cannot be read stands in its place as what is known of it.
        """
        ...

    def update_job(self, job: Job, *, lease: Lease | None = None) -> Job:
        """Store a changed job and return it with its revision raised.

        One that is not RUNNING any more is given back: its lease ends with the change.

        Raises:
            LeaseLostError: See above.
            PreconditionError: `job.revision` is not the stored one, or the state change is not allowed.
            NotFoundError: No such job.
        """
        ...

    def delete_job(self, project: str, job_id: str) -> None:
        """Remove a final job with its trials and events, or one that cannot be read and that nobody runs.

        Raises:
            NotFoundError: No such job.
            PreconditionError: It is not final.
        """
        ...

    def job_marks(self, job_ids: Sequence[str]) -> Mapping[str, JobMark]:
        """Return how far jobs are; unknown ones are left out."""
        ...

    def save_trial(
        self,
        job_id: str,
        trial: Trial,
        *,
        event: JobEvent | None = None,
        lease: Lease | None = None,
    ) -> None:
        """Insert or replace a trial by its index, and store the event that tells of it: both or neither."""
        ...

    def list_trials(self, job_id: str, page: Page | None = None) -> Sequence[Trial]:
        """Return the trials by index; `page.after` is an index as text."""
        ...

    def append_event(self, event: JobEvent, *, lease: Lease | None = None) -> JobEvent:
        """Store an event with the next sequence number of its job (the given one is ignored) and return it."""
        ...

    def list_events(self, job_id: str, *, after: int, limit: int) -> Sequence[JobEvent]:
        """Return events with a sequence number greater than `after`, in order."""
        ...

    def cached_result(self, project: str, input_digest: str) -> WorkResult | None:
        """Return the project's stored result of a unit of work with these inputs, or None."""
        ...

    def store_result(self, project: str, input_digest: str, result: WorkResult) -> None:
        """Store the result of a unit of work of the project."""
        ...

    def unit_record(self, project: str, input_digest: str, *, within_seconds: float) -> UnitRecord:
        """Return all that whoever is about to run a unit of work needs to know of it.

        That is the project's stored result; how often the unit killed its worker: none when the last
        time was longer ago than `within_seconds`; and who computes it now.
        """
        ...

    def add_unit_death(
        self, project: str, input_digest: str, evidence: str, *, within_seconds: float
    ) -> UnitDeaths:
        """Count one more death of a unit, and return all within that time."""
        ...


class JobExpiry(Protocol):
    """Deletes jobs that ended long ago."""

    def expire_jobs(self, *, ended_before: datetime, dry_run: bool = False) -> int:
        """Delete final jobs that ended before, as `JobStore.delete_job` does, over all projects.

        Returns:
            How many there were.
        """
        ...


class ResultExpiry(Protocol):
    """Forgets cached results that nobody asks for any more."""

    def expire_results(self, *, unused_for: timedelta, dry_run: bool = False) -> int:
        """Forget results that were not used for so long, over all projects; return their number.

        Kept are those that a trial of a job that exists stands for, and all that a job which is not
        final may have been given.
        """
        ...
