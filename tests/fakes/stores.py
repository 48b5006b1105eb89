"""Job and asset records kept in memory."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, cast

from tightfit_service.application.ports import AssetRecord, AssetStore, JobStore, Page, WorkResult
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from tightfit_service.domain.job import Job, JobEvent, JobState, check_transition
from tightfit_service.domain.trial import Trial


class RecordStore(JobStore, AssetStore, Protocol):
    """Both record ports; one implementation serves both, because deletion looks across them."""


Method = TypeVar("Method", bound=Callable[..., Any])


def _transaction(method: Method) -> Method:
    @functools.wraps(method)
    def locked(self: InMemoryStore, *args: Any, **kwargs: Any) -> Any:
        if self.is_down:
            raise UnavailableError("the record store is down")
        with self.lock:
            return method(self, *args, **kwargs)

    return cast("Method", locked)


class InMemoryStore:
    """Implements `JobStore` and `AssetStore`; `is_down` plays an outage."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_down = False
        self.jobs: dict[str, Job] = {}
        self.trials: dict[str, dict[int, Trial]] = {}
        self.events: dict[str, list[JobEvent]] = {}
        self.results: dict[tuple[str, str], WorkResult] = {}
        self.assets: dict[tuple[str, str, str], AssetRecord] = {}

    @_transaction
    def create_job(self, job: Job) -> Job:
        for other in self.jobs.values():
            if job.request_id and (other.project, other.request_id) == (
                job.project,
                job.request_id,
            ):
                if other.spec != job.spec:
                    raise AlreadyExistsError("request_id was used before", field="request_id")
                return other
        if job.job_id in self.jobs:
            raise AlreadyExistsError(f"there is a job {job.job_id} already", field="job_id")
        self.jobs[job.job_id] = job
        self.trials[job.job_id] = {}
        self.events[job.job_id] = []
        return job

    @_transaction
    def get_job(self, project: str, job_id: str) -> Job:
        job = self.jobs.get(job_id)
        if job is None or job.project != project:
            raise NotFoundError(f"there is no job {job_id}", field="name", remedy="list the jobs")
        return job

    @_transaction
    def list_jobs(
        self, project: str, page: Page, *, states: Sequence[JobState] = ()
    ) -> Sequence[Job]:
        ordered = sorted(
            (job for job in self.jobs.values() if job.project == project),
            key=lambda job: (job.create_time, job.job_id),
            reverse=True,
        )
        if page.after:
            last = self.get_job(project, page.after)
            ordered = ordered[ordered.index(last) + 1 :]
        return [job for job in ordered if not states or job.state in states][: page.size]

    @_transaction
    def update_job(self, job: Job) -> Job:
        stored = self.get_job(job.project, job.job_id)
        if stored.revision != job.revision:
            raise PreconditionError("the job was changed meanwhile", field="revision")
        if stored.state is not job.state:
            check_transition(stored.state, job.state)
        self.jobs[job.job_id] = replace(job, revision=job.revision + 1)
        return self.jobs[job.job_id]

    @_transaction
    def delete_job(self, project: str, job_id: str) -> None:
        job = self.get_job(project, job_id)
        if not job.state.is_final:
            raise PreconditionError("a job that is not final cannot be deleted", field="name")
        del self.jobs[job_id], self.events[job_id]
        gone = {trial.input_digest for trial in self.trials.pop(job_id).values()}
        kept = {trial.input_digest for trial in self._all_trials(project)}
        for input_digest in gone - kept:
            self.results.pop((project, input_digest), None)

    @_transaction
    def unfinished_jobs(self) -> Sequence[Job]:
        return sorted(
            (job for job in self.jobs.values() if not job.state.is_final),
            key=lambda job: (job.create_time, job.job_id),
        )

    @_transaction
    def count_jobs(self) -> Mapping[JobState, int]:
        states = [job.state for job in self.jobs.values()]
        return {state: states.count(state) for state in JobState}

    @_transaction
    def save_trial(self, job_id: str, trial: Trial) -> None:
        self._known(job_id)
        self.trials[job_id][trial.index] = trial

    @_transaction
    def list_trials(self, job_id: str, page: Page | None = None) -> Sequence[Trial]:
        after = int(page.after) if page and page.after else -1
        found = sorted(
            (trial for trial in self.trials.get(job_id, {}).values() if trial.index > after),
            key=lambda trial: trial.index,
        )
        return found[: page.size] if page else found

    @_transaction
    def append_event(self, event: JobEvent) -> JobEvent:
        self._known(event.job_id)
        events = self.events[event.job_id]
        events.append(replace(event, sequence=len(events) + 1))
        return events[-1]

    @_transaction
    def list_events(self, job_id: str, *, after: int, limit: int) -> Sequence[JobEvent]:
        events = self.events.get(job_id, [])
        return [event for event in events if event.sequence > after][:limit]

    @_transaction
    def cached_result(self, project: str, input_digest: str) -> WorkResult | None:
        return self.results.get((project, input_digest))

    @_transaction
    def store_result(self, project: str, input_digest: str, result: WorkResult) -> None:
        self.results[project, input_digest] = result

    @_transaction
    def add_asset(self, record: AssetRecord) -> AssetRecord:
        key = (record.project, record.kind, record.asset_id)
        stored = self.assets.setdefault(key, record)
        if stored.digest != record.digest:
            raise AlreadyExistsError("the id is taken by other bytes", field="asset_id")
        return stored

    @_transaction
    def get_asset(self, project: str, kind: str, asset_id: str) -> AssetRecord:
        record = self.assets.get((project, kind, asset_id))
        if record is None:
            raise NotFoundError(f"there is no {kind} {asset_id}", field="name", remedy="list them")
        return record

    @_transaction
    def list_assets(self, project: str, kind: str, page: Page) -> Sequence[AssetRecord]:
        found = [
            record
            for key, record in sorted(self.assets.items())
            if key[:2] == (project, kind) and key[2] > page.after
        ]
        return found[: page.size]

    @_transaction
    def delete_asset(self, project: str, kind: str, asset_id: str) -> AssetRecord:
        record = self.get_asset(project, kind, asset_id)
        for job in self.unfinished_jobs():
            used = job.spec.model_digest if kind == "model" else job.spec.dataset_digest
            if job.project == project and used == record.digest:
                raise PreconditionError(f"job {job.job_id} uses the {kind}", field="name")
        return self.assets.pop((project, kind, asset_id))

    @_transaction
    def is_digest_used(self, project: str, digest: str) -> bool:
        return (
            any(r.project == project and r.digest == digest for r in self.assets.values())
            or any(digest in trial.artifacts.values() for trial in self._all_trials(project))
            or any(
                key[0] == project and digest in result.outputs.values()
                for key, result in self.results.items()
            )
            or any(
                job.project == project
                and digest in (job.spec.model_digest, job.spec.dataset_digest)
                for job in self.unfinished_jobs()
            )
        )

    def _all_trials(self, project: str) -> list[Trial]:
        return [
            trial
            for job_id, trials in self.trials.items()
            if self.jobs[job_id].project == project
            for trial in trials.values()
        ]

    def _known(self, job_id: str) -> None:
        if job_id not in self.jobs:
            raise NotFoundError(f"there is no job {job_id}", field="name", remedy="list the jobs")
