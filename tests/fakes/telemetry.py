"""Telemetry that remembers what it was told."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from tightfit_service.domain.job import Job, JobState
from tightfit_service.domain.trial import Trial


class RecordingTelemetry:
    """Implements `Telemetry`; every report is a list that tests look into."""

    def __init__(self) -> None:
        self.job_states: list[tuple[JobState | None, JobState]] = []
        self.waits: list[float] = []
        self.progressed: list[str] = []
        self.lease_events: list[str] = []
        self.queues: list[tuple[Mapping[JobState, int], float]] = []
        self.units: list[tuple[str, str]] = []
        self.dependencies: list[tuple[str, bool]] = []
        self.certificates: dict[str, datetime] = {}
        self.trials: list[tuple[str, Trial]] = []
        self.best: list[tuple[str, Trial | None]] = []
        self.emulator_calls: list[tuple[str, float]] = []
        self.worker_restarts: list[str] = []
        self.bytes_by_direction: dict[str, int] = {}
        self.cache_lookups: list[bool] = []

    def job_state(self, job: Job, before: JobState | None) -> None:
        self.job_states.append((before, job.state))

    def job_waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def lease_event(self, event: str) -> None:
        self.lease_events.append(event)

    def job_progressed(self, job_id: str) -> None:
        self.progressed.append(job_id)

    def queue_seen(self, counts: Mapping[JobState, int], *, oldest_seconds: float) -> None:
        self.queues.append((dict(counts), oldest_seconds))

    def unit_finished(self, kind: str, result: str, seconds: float) -> None:
        self.units.append((kind, result))

    def dependency_checked(self, dependency: str, *, is_up: bool, seconds: float) -> None:
        self.dependencies.append((dependency, is_up))

    def certificate_expires(self, certificate: str, end: datetime) -> None:
        self.certificates[certificate] = end

    def trial_finished(self, job_id: str, trial: Trial) -> None:
        self.trials.append((job_id, trial))

    def best_so_far(self, job_id: str, trial: Trial | None) -> None:
        self.best.append((job_id, trial))

    def emulator_called(self, emulator: str, seconds: float) -> None:
        self.emulator_calls.append((emulator, seconds))

    def worker_restarted(self, reason: str) -> None:
        self.worker_restarts.append(reason)

    def artifact_bytes(self, direction: str, count: int) -> None:
        self.bytes_by_direction[direction] = self.bytes_by_direction.get(direction, 0) + count

    def cache_lookup(self, *, hit: bool) -> None:
        self.cache_lookups.append(hit)


class RecordingStoreTelemetry:
    """Implements `StoreTelemetry`; every report is in a list that tests look into."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self.seconds: list[float] = []
        self.retries: list[tuple[str, str]] = []

    def store_request(self, store: str, operation: str, outcome: str, seconds: float) -> None:
        self.requests.append((store, operation, outcome))
        self.seconds.append(seconds)

    def store_retried(self, store: str, reason: str) -> None:
        self.retries.append((store, reason))
