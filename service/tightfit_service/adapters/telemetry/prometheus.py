"""Prometheus metrics of the service."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata

from prometheus_client import CollectorRegistry, ProcessCollector

from tightfit_service.adapters.telemetry.runner_metrics import RunnerMetrics
from tightfit_service.adapters.telemetry.series import (
    BestTrialSeries,
    BoundedLabel,
    DeploymentSeries,
    JobSeries,
    RpcSeries,
    StoreSeries,
    WorkSeries,
)
from tightfit_service.domain.job import Job, JobState
from tightfit_service.domain.trial import Trial, TrialState

MOST_METHODS = 100
MOST_REASONS = 60
MOST_KINDS = 60
"""Bounds of labels that the code fixes today; a programming error must not open a series per call."""


class PrometheusTelemetry:
    """Implements the ports `Telemetry` and `StoreTelemetry`; counts RPCs for the API, runners in `runners`.

    All metrics live in a registry of their own: several servers in one process do not mix. Every
    method is thread-safe and returns at once.
    """

    def __init__(self, *, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._lock = threading.Lock()
        self._method = BoundedLabel(most=MOST_METHODS)
        self._reason = BoundedLabel(most=MOST_REASONS)
        self._kind = BoundedLabel(most=MOST_KINDS)
        ProcessCollector(registry=self.registry)
        self._rpc = RpcSeries(self.registry)
        self._jobs = JobSeries(self.registry)
        self._best = BestTrialSeries(self.registry)
        self._work = WorkSeries(self.registry)
        self._store = StoreSeries(self.registry)
        self._deployment = DeploymentSeries(self.registry)
        self._deployment.build.labels(version=metadata.version("tightfit-service")).set(1)
        self.runners = RunnerMetrics(self.registry)

    def rpc_finished(self, method: str, code: str, seconds: float) -> None:
        """Count an RPC."""
        with self._lock:
            method = self._method(method)
        self._rpc.finished.labels(method=method, code=code).inc()
        self._rpc.seconds.labels(method=method).observe(seconds)

    def limit_refused(self, limit: str) -> None:
        """Count a call that was refused because its project is at a limit."""
        self._rpc.limited.labels(limit=limit).inc()

    def rpc_refused(self, reason: str) -> None:
        """Count an error of the contract."""
        with self._lock:
            reason = self._reason(reason)
        self._rpc.refused.labels(reason=reason).inc()

    def job_state(self, job: Job, before: JobState | None) -> None:
        """Count a job that became final."""
        if job.state.is_final and before is not None:
            self._jobs.finished.labels(outcome=job.state).inc()

    def job_waited(self, seconds: float) -> None:
        """Count a wait in the queue."""
        self._jobs.queue_wait.observe(max(0.0, seconds))

    def queue_seen(self, counts: Mapping[JobState, int], *, oldest_seconds: float) -> None:
        """Show what the database holds; replicas of one database all show the same."""
        for state in JobState:
            if not state.is_final:
                self._jobs.active.labels(state=state).set(counts.get(state, 0))
        self._jobs.oldest_queued.set(oldest_seconds)

    def lease_event(self, event: str) -> None:
        """Count what happened to a lease."""
        self._jobs.lease_events.labels(event=event).inc()

    def job_progressed(self, job_id: str) -> None:
        """Note that a running job goes on."""
        self._jobs.progress.labels(job_id=job_id).set_to_current_time()

    def trial_finished(self, job_id: str, trial: Trial) -> None:
        """Count a trial and what its stages took."""
        del job_id
        result = str(trial.state)
        if trial.state is TrialState.COMPLETED:
            result = "feasible" if trial.is_feasible else "infeasible"
        self._work.trials.labels(role=trial.role, result=result).inc()
        for stage, seconds in trial.stage_seconds.items():
            self._work.stage_seconds.labels(stage=stage).observe(seconds)

    def best_so_far(self, job_id: str, trial: Trial | None) -> None:
        """Show the best trial of a running job, or forget the job."""
        with self._lock:
            self._best.forget(job_id)
            if trial is None:
                self._jobs.progress.remove(job_id)
            elif trial.metrics is not None:
                self._best.show(job_id, trial.metrics)

    def unit_finished(self, kind: str, result: str, seconds: float) -> None:
        """Count a unit of work."""
        with self._lock:
            kind = self._kind(kind)
        self._work.unit_seconds.labels(kind=kind, result=result).observe(seconds)

    def emulator_called(self, emulator: str, seconds: float) -> None:
        """Count an estimate."""
        self._work.emulator_seconds.labels(emulator=emulator).observe(seconds)

    def worker_restarted(self, reason: str) -> None:
        """Count the replacement of a worker process."""
        self._work.restarts.labels(reason=reason).inc()

    def artifact_bytes(self, direction: str, count: int) -> None:
        """Count bytes of artifacts."""
        self._work.artifact_bytes.labels(direction=direction).inc(count)

    def store_request(self, store: str, operation: str, outcome: str, seconds: float) -> None:
        """Count a request to the store of artifacts."""
        self._store.seconds.labels(store=store, operation=operation, outcome=outcome).observe(
            seconds
        )

    def store_retried(self, store: str, reason: str) -> None:
        """Count a repetition."""
        self._store.retries.labels(store=store, reason=reason).inc()

    def cache_lookup(self, *, hit: bool) -> None:
        """Count a look-up in the cache of work results."""
        self._work.cache_lookups.labels(result="hit" if hit else "miss").inc()

    def dependency_checked(self, dependency: str, *, is_up: bool, seconds: float) -> None:
        """Show whether the database or the store answered."""
        self._deployment.up.labels(dependency=dependency).set(is_up)
        self._deployment.check_seconds.labels(
            dependency=dependency, result="ok" if is_up else "failed"
        ).observe(seconds)

    def certificate_expires(self, certificate: str, end: datetime) -> None:
        """Show until when a certificate in use is valid."""
        self._deployment.certificate_end.labels(certificate=certificate).set(end.timestamp())
