"""What is remembered: assets, jobs, trials, events, results of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from tightfit_service.application.ports.execution import WorkResult
from tightfit_service.domain.job import Job, JobEvent, JobState
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


class JobStore(Protocol):
    """Jobs, their trials and their events. Every method is one transaction."""

    def create_job(self, job: Job) -> Job:
        """Store a new job; with a `request_id` seen before in the project, return that job instead.

        Raises:
            AlreadyExistsError: The request_id was used for a different spec.
        """
        ...

    def get_job(self, project: str, job_id: str) -> Job:
        """Return a job.

        Raises:
            NotFoundError: No such job.
        """
        ...

    def list_jobs(
        self, project: str, page: Page, *, states: Sequence[JobState] = ()
    ) -> Sequence[Job]:
        """Return jobs, newest first (by create_time, then id); `page.after` is a job id."""
        ...

    def update_job(self, job: Job) -> Job:
        """Store a changed job and return it with its revision raised.

        Raises:
            PreconditionError: `job.revision` is not the stored one, or the state change is not allowed.
            NotFoundError: No such job.
        """
        ...

    def delete_job(self, project: str, job_id: str) -> None:
        """Remove a final job with its trials and events.

        Raises:
            NotFoundError: No such job.
            PreconditionError: It is not final.
        """
        ...

    def unfinished_jobs(self) -> Sequence[Job]:
        """Return all jobs that are not final, oldest first, over all projects."""
        ...

    def count_jobs(self) -> Mapping[JobState, int]:
        """Return the number of jobs per state."""
        ...

    def save_trial(self, job_id: str, trial: Trial) -> None:
        """Insert or replace a trial by its index."""
        ...

    def list_trials(self, job_id: str, page: Page | None = None) -> Sequence[Trial]:
        """Return the trials by index; `page.after` is an index as text."""
        ...

    def append_event(self, event: JobEvent) -> JobEvent:
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
