"""Prometheus metrics of the service, and the HTTP port that they are scraped from."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from tightfit_service.adapters.telemetry.runner_metrics import RunnerMetrics
from tightfit_service.domain.errors import UnavailableError
from tightfit_service.domain.job import Job, JobState
from tightfit_service.domain.trial import Trial, TrialState

RPC_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800)
"""Buckets from a cached read to an upload or a watch that lasts as long as a job."""
WAIT_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 1_800, 3_600, 7_200, 21_600, 86_400)
"""Buckets from an idle server to one that is a day behind."""
STAGE_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 14_400)
"""Buckets from exporting a tiny network to training a large one for hours."""
EMULATOR_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
"""Buckets around the milliseconds that an estimate may take."""


class PrometheusTelemetry:
    """Implements `application.ports.Telemetry`, and counts RPCs for the API and runners in `runners`.

    All metrics live in a registry of their own: several servers in one process do not mix. Every
    method is thread-safe and returns at once.
    """

    def __init__(self, *, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._lock = threading.Lock()
        self._queued_since: dict[str, datetime] = {}
        ProcessCollector(registry=self.registry)
        self._rpc = _RpcMetrics(self.registry)
        self._jobs = _JobMetrics(self.registry)
        self._work = _WorkMetrics(self.registry)
        self.runners = RunnerMetrics(self.registry)

    def rpc_finished(self, method: str, code: str, seconds: float) -> None:
        """Count an RPC."""
        self._rpc.finished.labels(method=method, code=code).inc()
        self._rpc.seconds.labels(method=method).observe(seconds)

    def job_state(self, job: Job, before: JobState | None) -> None:
        """Move a job from one state to another."""
        if before is not None and not before.is_final:
            self._jobs.active.labels(state=before).dec()
        if job.state.is_final:
            self._jobs.finished.labels(outcome=job.state).inc()
        else:
            self._jobs.active.labels(state=job.state).inc()
        self._note_wait(job, before)

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
            self._jobs.forget(job_id)
            if trial is None or trial.metrics is None:
                return
            known = trial.metrics.accuracy or trial.metrics.selection_accuracy
            if known is not None:
                self._jobs.best_accuracy.labels(job=job_id).set(known.value)
            cost = trial.metrics.cost
            for gauge, interval in (
                (self._jobs.best_latency, cost.latency_ms.scaled(1e-3)),
                (self._jobs.best_energy, cost.energy_mj.scaled(1e-3)),
                (self._jobs.best_ram, cost.peak_ram_bytes),
                (self._jobs.best_flash, cost.flash_bytes),
            ):
                gauge.labels(job=job_id).set(interval.value)

    def emulator_called(self, emulator: str, seconds: float) -> None:
        """Count an estimate."""
        self._work.emulator_seconds.labels(emulator=emulator).observe(seconds)

    def worker_restarted(self, reason: str) -> None:
        """Count the replacement of a worker process."""
        self._work.restarts.labels(reason=reason).inc()

    def artifact_bytes(self, direction: str, count: int) -> None:
        """Count bytes of artifacts."""
        self._work.artifact_bytes.labels(direction=direction).inc(count)

    def cache_lookup(self, *, hit: bool) -> None:
        """Count a look-up in the cache of work results."""
        self._work.cache_lookups.labels(result="hit" if hit else "miss").inc()

    def _note_wait(self, job: Job, before: JobState | None) -> None:
        with self._lock:
            if job.state is JobState.QUEUED:
                self._queued_since[job.job_id] = job.update_time
                return
            since = self._queued_since.pop(job.job_id, None)
        if since is not None and before is JobState.QUEUED and job.state is JobState.RUNNING:
            waited = (job.update_time - since).total_seconds()
            self._jobs.queue_wait.observe(max(0.0, waited))


class MetricsPort:
    """An HTTP server that answers every GET with the metrics in text form.

    It runs in a thread of its own, so a busy event loop does not hide the service from its monitoring.
    """

    def __init__(self, *, registry: CollectorRegistry, host: str, port: int) -> None:
        self._registry = registry
        self._host = host
        self._port = port
        self._stop: Callable[[], None] | None = None

    def start(self) -> str:
        """Listen and serve; return the address as `host:port` with the port that was bound.

        Raises:
            UnavailableError: The address cannot be bound.
        """
        try:
            server, thread = start_http_server(self._port, addr=self._host, registry=self._registry)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}",
                field="metrics_listen",
                remedy="choose a free port, or 0 for any, on an address of this machine",
            ) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop = stop
        return f"{self._host}:{server.server_port}"

    def stop(self) -> None:
        """Stop listening; a port that is not open is left alone."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()


class _RpcMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.finished = Counter(
            "tightfit_rpcs",
            "Finished RPCs, by full method name and gRPC status code.",
            ("method", "code"),
            registry=registry,
        )
        self.seconds = Histogram(
            "tightfit_rpc_duration_seconds",
            "Time from the start of an RPC to its end; for streams, the life of the stream.",
            ("method",),
            buckets=RPC_SECONDS,
            registry=registry,
        )


class _JobMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.active = Gauge(
            "tightfit_jobs",
            "Jobs that are not final, by state; those in state queued are the depth of the queue.",
            ("state",),
            registry=registry,
        )
        for state in JobState:
            if not state.is_final:
                self.active.labels(state=state)
        self.finished = Counter(
            "tightfit_jobs_finished",
            "Jobs that became final, by outcome.",
            ("outcome",),
            registry=registry,
        )
        for state in JobState:
            if state.is_final:
                self.finished.labels(outcome=state)
        self.queue_wait = Histogram(
            "tightfit_job_queue_wait_seconds",
            "Time that a job waited in the queue before it ran.",
            buckets=WAIT_SECONDS,
            registry=registry,
        )
        self.best_accuracy = Gauge(
            "tightfit_job_best_accuracy_ratio",
            "Accuracy of the best trial so far of a running job.",
            ("job",),
            registry=registry,
        )
        self.best_latency = Gauge(
            "tightfit_job_best_estimated_latency_seconds",
            "Estimated latency of the best trial so far of a running job.",
            ("job",),
            registry=registry,
        )
        self.best_energy = Gauge(
            "tightfit_job_best_estimated_energy_joules",
            "Estimated energy per inference of the best trial so far of a running job.",
            ("job",),
            registry=registry,
        )
        self.best_ram = Gauge(
            "tightfit_job_best_estimated_peak_ram_bytes",
            "Estimated peak RAM of the best trial so far of a running job.",
            ("job",),
            registry=registry,
        )
        self.best_flash = Gauge(
            "tightfit_job_best_flash_bytes",
            "Flash of the best trial so far of a running job.",
            ("job",),
            registry=registry,
        )

    def forget(self, job_id: str) -> None:
        for gauge in (
            self.best_accuracy,
            self.best_latency,
            self.best_energy,
            self.best_ram,
            self.best_flash,
        ):
            gauge.remove(job_id)


class _WorkMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.trials = Counter(
            "tightfit_trials",
            "Trials that ended, by role and result (feasible, infeasible, stopped, failed).",
            ("role", "result"),
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "tightfit_trial_stage_duration_seconds",
            "Time that trials spent per stage.",
            ("stage",),
            buckets=STAGE_SECONDS,
            registry=registry,
        )
        self.emulator_seconds = Histogram(
            "tightfit_emulator_call_duration_seconds",
            "Time per estimate of an emulator; the count is the number of calls.",
            ("emulator",),
            buckets=EMULATOR_SECONDS,
            registry=registry,
        )
        self.artifact_bytes = Counter(
            "tightfit_artifact_bytes",
            "Bytes of artifacts, by direction (received, sent, stored, deleted).",
            ("direction",),
            registry=registry,
        )
        self.restarts = Counter(
            "tightfit_worker_restarts",
            "Worker processes that were replaced, by reason (killed, crashed, timeout, memory).",
            ("reason",),
            registry=registry,
        )
        self.cache_lookups = Counter(
            "tightfit_work_cache_lookups",
            "Look-ups in the cache of work results, by result (hit, miss).",
            ("result",),
            registry=registry,
        )
