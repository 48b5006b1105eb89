"""Job and asset records, leases and quotas kept in memory."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar, cast

from tightfit_service.application.ports import (
    AssetRecord,
    AssetStore,
    Claim,
    JobMark,
    JobStore,
    Lease,
    LostLife,
    Page,
    UnitDeaths,
    UnitRecord,
    WorkResult,
)
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    LeaseLostError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from tightfit_service.domain.job import Job, JobEvent, JobState, check_transition
from tightfit_service.domain.quota import Quota, QuotaOverrides, Usage, check_queued_jobs
from tightfit_service.domain.trial import Trial, TrialState


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


@dataclass
class _Held:
    token: int = 0
    owner: str = ""
    since: datetime | None = None
    expire_time: datetime | None = None
    cancel_requested: bool = False
    only_waits: bool = False
    losses: tuple[LostLife, ...] = field(default_factory=tuple)


class InMemoryStore:
    """Implements `JobStore`, `AssetStore`, `JobQueue`, `QuotaStore` and `UnitClaims`; `is_down` plays an outage."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_down = False
        self.jobs: dict[str, Job] = {}
        self.trials: dict[str, dict[int, Trial]] = {}
        self.events: dict[str, list[JobEvent]] = {}
        self.results: dict[tuple[str, str], WorkResult] = {}
        self.use_times: dict[tuple[str, str], datetime] = {}
        self.deaths: dict[tuple[str, str], tuple[datetime, UnitDeaths]] = {}
        self.claims: dict[tuple[str, str], tuple[str, datetime]] = {}
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.assets: dict[tuple[str, str, str], AssetRecord] = {}
        self.held: dict[str, _Held] = {}
        self.quotas: dict[str, QuotaOverrides] = {}

    @_transaction
    def create_job(self, job: Job, *, quota: Quota | None = None) -> Job:
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
        check_queued_jobs(quota or Quota(), self.get_usage(job.project).queued_jobs)
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
    def update_job(self, job: Job, *, lease: Lease | None = None) -> Job:
        stored = self.get_job(job.project, job.job_id)
        self._check_lease(job.job_id, lease)
        if stored.revision != job.revision:
            raise PreconditionError("the job was changed meanwhile", field="revision")
        if stored.state is not job.state:
            check_transition(stored.state, job.state)
        if lease is not None and job.state is not JobState.RUNNING:
            self.held[job.job_id].expire_time = None
        self.jobs[job.job_id] = replace(job, revision=job.revision + 1)
        return self.jobs[job.job_id]

    @_transaction
    def delete_job(self, project: str, job_id: str) -> None:
        job = self.get_job(project, job_id)
        if not job.state.is_final:
            raise PreconditionError("a job that is not final cannot be deleted", field="name")
        del self.jobs[job_id], self.events[job_id]
        self.held.pop(job_id, None)
        gone = {trial.input_digest for trial in self.trials.pop(job_id).values()}
        kept = {trial.input_digest for trial in self._all_trials(project)}
        for input_digest in gone - kept:
            self.results.pop((project, input_digest), None)

    @_transaction
    def expire_jobs(self, *, ended_before: datetime, dry_run: bool = False) -> int:
        final = [job for job in self.jobs.values() if job.state.is_final]
        old = [job for job in final if job.end_time and job.end_time < ended_before]
        for job in [] if dry_run else old:
            self.delete_job(job.project, job.job_id)
        return len(old)

    @_transaction
    def job_marks(self, job_ids: Sequence[str]) -> Mapping[str, JobMark]:
        return {
            job_id: JobMark(self.jobs[job_id].revision, len(self.events[job_id]))
            for job_id in job_ids
            if job_id in self.jobs
        }

    @_transaction
    def save_trial(
        self,
        job_id: str,
        trial: Trial,
        *,
        event: JobEvent | None = None,
        lease: Lease | None = None,
    ) -> None:
        self._known(job_id)
        self._check_lease(job_id, lease)
        self.trials[job_id][trial.index] = trial
        if event is not None:
            self._append(event)

    @_transaction
    def list_trials(self, job_id: str, page: Page | None = None) -> Sequence[Trial]:
        after = int(page.after) if page and page.after else -1
        found = sorted(
            (trial for trial in self.trials.get(job_id, {}).values() if trial.index > after),
            key=lambda trial: trial.index,
        )
        return found[: page.size] if page else found

    @_transaction
    def append_event(self, event: JobEvent, *, lease: Lease | None = None) -> JobEvent:
        self._known(event.job_id)
        self._check_lease(event.job_id, lease)
        return self._append(event)

    def _append(self, event: JobEvent) -> JobEvent:
        events = self.events[event.job_id]
        events.append(replace(event, sequence=len(events) + 1))
        return events[-1]

    @_transaction
    def list_events(self, job_id: str, *, after: int, limit: int) -> Sequence[JobEvent]:
        events = self.events.get(job_id, [])
        return [event for event in events if event.sequence > after][:limit]

    @_transaction
    def cached_result(self, project: str, input_digest: str) -> WorkResult | None:
        result = self.results.get((project, input_digest))
        if result is not None:
            self.use_times[project, input_digest] = self.clock()
        return result

    @_transaction
    def unit_record(self, project: str, input_digest: str, *, within_seconds: float) -> UnitRecord:
        result = self.cached_result(project, input_digest)
        found = self.deaths.get((project, input_digest))
        if found is None or self.clock() - found[0] > timedelta(seconds=within_seconds):
            found = None
        return UnitRecord(
            result=result,
            deaths=UnitDeaths() if found is None else found[1],
            claimant=self._claimant(project, input_digest),
        )

    @_transaction
    def add_unit_death(
        self, project: str, input_digest: str, evidence: str, *, within_seconds: float
    ) -> UnitDeaths:
        earlier = self.unit_record(project, input_digest, within_seconds=within_seconds)
        deaths = UnitDeaths(count=earlier.deaths.count + 1, evidence=evidence)
        self.deaths[project, input_digest] = (self.clock(), deaths)
        return deaths

    @_transaction
    def claim_unit(self, project: str, input_digest: str, owner: str, *, seconds: float) -> bool:
        if self._claimant(project, input_digest) not in ("", owner):
            return False
        until = self.clock() + timedelta(seconds=seconds)
        self.claims[project, input_digest] = (owner, until)
        return True

    @_transaction
    def renew_unit_claim(
        self, project: str, input_digest: str, owner: str, *, seconds: float
    ) -> bool:
        held = self.claims.get((project, input_digest), ("", self.clock()))[0] == owner
        return held and self.claim_unit(project, input_digest, owner, seconds=seconds)

    @_transaction
    def end_unit_claim(self, project: str, input_digest: str, owner: str) -> None:
        if self.claims.get((project, input_digest), ("",))[0] == owner:
            del self.claims[project, input_digest]

    def _claimant(self, project: str, input_digest: str) -> str:
        owner, until = self.claims.get((project, input_digest), ("", self.clock()))
        return owner if until >= self.clock() else ""

    @_transaction
    def expire_results(self, *, unused_for: timedelta, dry_run: bool = False) -> int:
        begun = [job.create_time for job in self.jobs.values() if not job.state.is_final]
        cutoff = min([self.clock() - unused_for, *begun])
        old = [
            (project, digest)
            for project, digest in self.results
            if self.use_times[project, digest] < cutoff
            and digest not in {trial.input_digest for trial in self._all_trials(project)}
        ]
        for key in [] if dry_run else old:
            del self.results[key]
        return len(old)

    @_transaction
    def store_result(self, project: str, input_digest: str, result: WorkResult) -> None:
        self.results[project, input_digest] = result
        self.use_times[project, input_digest] = self.clock()

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
        for job in self._unfinished():
            models = {job.spec.model_digest, *(t.digest for t in job.spec.teachers)}
            used = models if kind == "model" else {job.spec.dataset_digest}
            if job.project == project and record.digest in used:
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
                and digest
                in (
                    job.spec.model_digest,
                    job.spec.dataset_digest,
                    *(teacher.digest for teacher in job.spec.teachers),
                )
                for job in self._unfinished()
            )
        )

    @_transaction
    def claim_job(
        self,
        owner: str,
        *,
        lease_seconds: float,
        now: datetime,
        quota: Quota,
        take_over: bool = True,
    ) -> Claim | None:
        if take_over:
            for job_id in self.held:
                claim = self.take_over_job(job_id, owner, lease_seconds=lease_seconds, now=now)
                if claim is not None:
                    return claim
        turns = []
        for job in self.jobs.values():
            running = self.get_usage(job.project).running_jobs
            own = quota.with_overrides(self.get_quota(job.project))
            has_room = not own.running_jobs or running < own.running_jobs
            if job.state is JobState.QUEUED and has_room:
                turns.append((running, -job.spec.priority, job.create_time, job.job_id))
        return self._take(min(turns)[-1], owner, lease_seconds, now) if turns else None

    @_transaction
    def take_over_job(
        self, job_id: str, owner: str, *, lease_seconds: float, now: datetime
    ) -> Claim | None:
        held = self.held.get(job_id, _Held())
        if (
            held.expire_time is None
            or held.expire_time >= datetime.now(UTC)
            or held.owner == owner
            or self.jobs[job_id].state is not JobState.RUNNING
        ):
            return None
        return self._take(job_id, owner, lease_seconds, now)

    @_transaction
    def renew_leases(
        self, leases: Sequence[Lease], *, lease_seconds: float, waiting: Collection[str] = ()
    ) -> Collection[str]:
        known = []
        for lease in leases:
            held = self.held.get(lease.job_id, _Held())
            if held.token == lease.token and held.expire_time is not None:
                held.expire_time = datetime.now(UTC) + timedelta(seconds=lease_seconds)
                held.only_waits = lease.job_id in waiting
                known.append(lease.job_id)
        return known

    @_transaction
    def cancel_requests(self, owner: str) -> Collection[str]:
        return [
            job_id
            for job_id, held in self.held.items()
            if held.owner == owner and held.cancel_requested and held.expire_time is not None
        ]

    @_transaction
    def request_cancel(self, project: str, job_id: str) -> Job:
        job = self.get_job(project, job_id)
        if not job.state.is_final:
            self.held.setdefault(job_id, _Held()).cancel_requested = True
        return job

    @_transaction
    def end_leases(self) -> None:
        for held in self.held.values():
            if held.expire_time is not None:
                held.expire_time = datetime.now(UTC) - timedelta(seconds=1)

    @_transaction
    def get_quota(self, project: str) -> QuotaOverrides:
        return self.quotas.get(project, QuotaOverrides())

    @_transaction
    def set_quota(self, project: str, overrides: QuotaOverrides) -> None:
        self.quotas[project] = overrides

    @_transaction
    def get_usage(self, project: str) -> Usage:
        states = [job.state for job in self.jobs.values() if job.project == project]
        return Usage(
            running_jobs=states.count(JobState.RUNNING),
            queued_jobs=states.count(JobState.QUEUED),
            stored_bytes=sum(self._sizes(project).values()),
        )

    def _sizes(self, project: str) -> dict[str, int]:
        sizes = {a.digest: a.size_bytes for a in self.assets.values() if a.project == project}
        for (owner, _), result in self.results.items():
            if owner == project:
                sizes.update(
                    {d: result.sizes[d] for d in result.outputs.values() if d in result.sizes}
                )
        return sizes

    def _take(self, job_id: str, owner: str, lease_seconds: float, now: datetime) -> Claim:
        before, held = self.jobs[job_id], self.held.setdefault(job_id, _Held())
        losses: tuple[LostLife, ...] = ()
        if before.state is JobState.RUNNING:
            assert held.expire_time is not None
            life = LostLife(
                owner=held.owner,
                since=held.since or held.expire_time,
                last_heard=held.expire_time,
                unit=self._running_unit(job_id),
                only_waited=held.only_waits,
            )
            losses = (*(loss for loss in held.losses if loss.unit == life.unit), life)
            held.losses = tuple(loss for loss in losses if not loss.only_waited)
        held.only_waits = False
        held.token, held.owner, held.since = held.token + 1, owner, datetime.now(UTC)
        held.expire_time = held.since + timedelta(seconds=lease_seconds)
        self.jobs[job_id] = replace(
            before,
            state=JobState.RUNNING,
            start_time=before.start_time or now,
            update_time=now,
            revision=before.revision + 1,
        )
        return Claim(
            job=self.jobs[job_id],
            lease=Lease(job_id=job_id, owner=owner, token=held.token),
            before=before,
            losses=losses,
            cancel_requested=held.cancel_requested,
        )

    def _running_unit(self, job_id: str) -> str:
        trials, events = self.trials[job_id], self.events[job_id]
        if trials and trials[max(trials)].state is TrialState.RUNNING:
            return f"trial {max(trials)}"
        done = f" after trial {max(trials)}" if trials else ""
        return f"stage {(events[-1].stage if events else '') or 'start'}{done}"

    def _check_lease(self, job_id: str, lease: Lease | None) -> None:
        held = self.held.get(job_id, _Held())
        is_held = held.expire_time is not None
        if (lease is None and is_held) or (
            lease is not None and (not is_held or held.token != lease.token)
        ):
            raise LeaseLostError(f"job {job_id} is held by {held.owner}", field="name")

    def _unfinished(self) -> list[Job]:
        return [job for job in self.jobs.values() if not job.state.is_final]

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
