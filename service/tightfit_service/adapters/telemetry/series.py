"""The Prometheus series of the service: their names, texts, labels and buckets.

Names follow https://prometheus.io/docs/practices/naming/. No label holds what grows without bound: methods
and error reasons come from the contract, job ids only from jobs that run, and names that users choose go
through `BoundedLabel`.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tightfit_service.domain.job import JobState
from tightfit_service.domain.trial import Metrics

RPC_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800)
"""Buckets from a cached read to an upload or a watch that lasts as long as a job."""
WAIT_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 1_800, 3_600, 7_200, 21_600, 86_400)
"""Buckets from an idle server to one that is a day behind."""
STAGE_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 14_400)
"""Buckets from exporting a tiny network to training a large one for hours."""
EMULATOR_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
"""Buckets around the milliseconds that an estimate may take."""
CHECK_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10)
"""Buckets from a database beside the server to a store that hardly answers."""
STORE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Buckets from a name on a local disk to a large file, or a request that was repeated to the last."""

OTHER = "other"
"""Label value of everything beyond the bound of a `BoundedLabel`."""


class BoundedLabel:
    """Lets so many different values of a label through, and calls all later ones `other`.

    A series that was opened is never closed, so names that users choose could fill the memory of the
    service and of the monitoring. Not thread-safe by itself: the telemetry's lock guards it.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """Return the value, or `other`."""
        if value in self._known:
            return value
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(value)
        return value


class RpcSeries:
    """Calls."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.finished = Counter(
            "tightfit_rpcs",
            "Finished RPCs, by full method name and gRPC status code.",
            ("method", "code"),
            registry=registry,
        )
        self.refused = Counter(
            "tightfit_rpcs_refused",
            "RPCs that ended with an error of the contract, by its reason.",
            ("reason",),
            registry=registry,
        )
        self.limited = Counter(
            "tightfit_rpcs_limited",
            "RPCs that were refused because their project was at a limit, by the limit.",
            ("limit",),
            registry=registry,
        )
        self.seconds = Histogram(
            "tightfit_rpc_duration_seconds",
            "Time from the start of an RPC to its end; for streams, the life of the stream.",
            ("method",),
            buckets=RPC_SECONDS,
            registry=registry,
        )


class JobSeries:
    """Jobs: how many, how long they wait, how they end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.active = Gauge(
            "tightfit_jobs",
            "Jobs in the database that are not final, by state; those in state queued are the depth of the queue.",
            ("state",),
            registry=registry,
        )
        self.finished = Counter(
            "tightfit_jobs_finished",
            "Jobs that became final, by outcome.",
            ("outcome",),
            registry=registry,
        )
        for state in JobState:
            if state.is_final:
                self.finished.labels(outcome=state)
            else:
                self.active.labels(state=state)
        self.oldest_queued = Gauge(
            "tightfit_oldest_queued_job_age_seconds",
            "Age of the job that has waited longest in the queue; 0 when none waits.",
            registry=registry,
        )
        self.queue_wait = Histogram(
            "tightfit_job_queue_wait_seconds",
            "Time that a job waited in the queue before it ran.",
            buckets=WAIT_SECONDS,
            registry=registry,
        )
        self.lease_events = Counter(
            "tightfit_job_lease_events",
            "Leases of jobs that were taken over by this replica, lost by it, or given up for good.",
            ("event",),
            registry=registry,
        )
        for event in ("taken_over", "lost", "given_up"):
            self.lease_events.labels(event=event)
        self.progress = Gauge(
            "tightfit_job_last_progress_timestamp_seconds",
            "Unix time at which a running job last told of progress.",
            ("job_id",),
            registry=registry,
        )


class BestTrialSeries:
    """The best trial so far of each job that runs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.accuracy = Gauge(
            "tightfit_job_best_accuracy_ratio",
            "Accuracy of the best trial so far of a running job.",
            ("job_id",),
            registry=registry,
        )
        self.latency = Gauge(
            "tightfit_job_best_estimated_latency_seconds",
            "Estimated latency of the best trial so far of a running job.",
            ("job_id",),
            registry=registry,
        )
        self.energy = Gauge(
            "tightfit_job_best_estimated_energy_joules",
            "Estimated energy per inference of the best trial so far of a running job.",
            ("job_id",),
            registry=registry,
        )
        self.ram = Gauge(
            "tightfit_job_best_estimated_peak_ram_bytes",
            "Estimated peak RAM of the best trial so far of a running job.",
            ("job_id",),
            registry=registry,
        )
        self.flash = Gauge(
            "tightfit_job_best_flash_bytes",
            "Flash of the best trial so far of a running job.",
            ("job_id",),
            registry=registry,
        )

    def show(self, job_id: str, metrics: Metrics) -> None:
        """Show what a job's best trial costs, and how accurate it is as far as that is known."""
        known = metrics.accuracy or metrics.selection_accuracy
        if known is not None:
            self.accuracy.labels(job_id=job_id).set(known.value)
        cost = metrics.cost
        for gauge, interval in (
            (self.latency, cost.latency_ms.scaled(1e-3)),
            (self.energy, cost.energy_mj.scaled(1e-3)),
            (self.ram, cost.peak_ram_bytes),
            (self.flash, cost.flash_bytes),
        ):
            gauge.labels(job_id=job_id).set(interval.value)

    def forget(self, job_id: str) -> None:
        """Remove what a job's best trial showed."""
        for gauge in (self.accuracy, self.latency, self.energy, self.ram, self.flash):
            gauge.remove(job_id)


class WorkSeries:
    """Trials, units of work, workers, artifacts."""

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
        self.unit_seconds = Histogram(
            "tightfit_work_unit_duration_seconds",
            "Time from asking for a unit of work to its end, the wait for a worker included, by kind and result (ok, refused, failed, cancelled).",
            ("kind", "result"),
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
            "Bytes of artifacts, by direction (received, sent, stored, deleted, purged).",
            ("direction",),
            registry=registry,
        )
        self.restarts = Counter(
            "tightfit_worker_restarts",
            "Worker processes that were replaced, by reason (killed, crashed, timeout, memory, ...).",
            ("reason",),
            registry=registry,
        )
        self.cache_lookups = Counter(
            "tightfit_work_cache_lookups",
            "Units of work that were asked for, by result (hit: answered from the cache; miss).",
            ("result",),
            registry=registry,
        )


class StoreSeries:
    """The store of artifacts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "tightfit_artifact_store_request_duration_seconds",
            "Time per request to the store of artifacts, repetitions included, by store (s3, folder), operation and outcome; the count is the number of requests.",
            ("store", "operation", "outcome"),
            buckets=STORE_SECONDS,
            registry=registry,
        )
        self.retries = Counter(
            "tightfit_artifact_store_retries",
            "Requests to the store of artifacts that were repeated, by reason: an HTTP status, connection, or transfer.",
            ("store", "reason"),
            registry=registry,
        )


class DeploymentSeries:
    """What the service stands on: its version, database, store, executor, certificates."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.build = Gauge(
            "tightfit_build_info",
            "1, with the version of the service as label.",
            ("version",),
            registry=registry,
        )
        self.up = Gauge(
            "tightfit_dependency_up",
            "Whether the last check of what the service needs (database, artifacts) succeeded.",
            ("dependency",),
            registry=registry,
        )
        self.check_seconds = Histogram(
            "tightfit_dependency_check_duration_seconds",
            "Time per check of a dependency, by result (ok, failed).",
            ("dependency", "result"),
            buckets=CHECK_SECONDS,
            registry=registry,
        )
        self.certificate_end = Gauge(
            "tightfit_certificate_not_after_timestamp_seconds",
            "Unix time at which a certificate in use expires.",
            ("certificate",),
            registry=registry,
        )
