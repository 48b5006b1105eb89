"""The use cases in memory, for tests of the API."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from fakes.records import START, make_job, make_target, make_trial
from tightfit_service.application.ports import AssetRecord, Page, SignedUrl
from tightfit_service.application.use_cases import (
    CheckReport,
    JobRequest,
    KnownTarget,
    UploadStatus,
)
from tightfit_service.domain.calibration import Calibration, CalibrationProgress, FitQuality
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import (
    IntegrityError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat, Runtime
from tightfit_service.domain.job import Job, JobEvent, JobEventKind, JobSpec, JobState
from tightfit_service.domain.quantities import Interval
from tightfit_service.domain.trial import Metrics, Trial


def make_cost(latency_ms: float = 10.0) -> CostEstimate:
    """Return the cost of some network."""
    interval = Interval(value=latency_ms, low=latency_ms / 2, high=latency_ms * 2)
    return CostEstimate(
        latency_ms=interval,
        energy_mj=interval.scaled(0.1),
        peak_ram_bytes=Interval.exact(1024),
        flash_bytes=Interval.exact(2048),
        macs=12_000,
        layers=(),
        peak_node="conv",
        provenance="a fake",
        confidence=0.9,
    )


@dataclass
class _Upload:
    project: str
    kind: str
    size_bytes: int
    digest: str
    display_name: str
    data: bytearray = field(default_factory=bytearray)


class InMemoryAssets:
    """Implements `use_cases.Assets`."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str, str], AssetRecord] = {}
        self.artifacts: dict[tuple[str, str], bytes] = {}
        self.uploads: dict[str, _Upload] = {}
        self.download: SignedUrl | None = None
        """Where artifacts may be fetched directly."""
        self.append_seconds = 0.0
        """How long a write takes."""
        self.appends_at_work = 0
        self.most_appends_at_work = 0

    async def start_upload(
        self,
        project: str,
        kind: str,
        *,
        size_bytes: int,
        digest: str,
        display_name: str,
        upload_id: str = "",
    ) -> UploadStatus:
        known = self.records.get((project, kind, digest[:20]))
        upload_id = upload_id or f"upload-{len(self.uploads)}"
        if known is not None:
            return UploadStatus(upload_id=upload_id, committed_bytes=size_bytes, asset=known)
        upload = self.uploads.setdefault(
            upload_id, _Upload(project, kind, size_bytes, digest, display_name)
        )
        return UploadStatus(upload_id=upload_id, committed_bytes=len(upload.data))

    async def append(self, project: str, upload_id: str, *, offset: int, data: bytes) -> int:
        upload = self._upload(project, upload_id)
        self.appends_at_work += 1
        self.most_appends_at_work = max(self.most_appends_at_work, self.appends_at_work)
        try:
            await asyncio.sleep(self.append_seconds)
        finally:
            self.appends_at_work -= 1
        if offset != len(upload.data):
            raise PreconditionError(
                f"offset is {offset}, {len(upload.data)} bytes are committed", field="offset"
            )
        if offset + len(data) > upload.size_bytes:
            raise InvalidRequestError("more bytes than announced", field="data")
        upload.data += data
        return len(upload.data)

    async def flush(self, project: str, upload_id: str) -> int:
        return len(self._upload(project, upload_id).data)

    async def download_url(self, project: str, digest: str) -> tuple[int, SignedUrl | None]:
        return await self.artifact_size(project, digest), self.download

    async def finish_upload(self, project: str, upload_id: str) -> AssetRecord:
        upload = self._upload(project, upload_id)
        if len(upload.data) < upload.size_bytes:
            raise PreconditionError("bytes are missing", field="upload")
        del self.uploads[upload_id]
        if hashlib.sha256(upload.data).hexdigest() != upload.digest:
            raise IntegrityError("the bytes do not match the digest", field="digest")
        record = AssetRecord(
            asset_id=upload.digest[:20],
            project=project,
            kind=upload.kind,
            digest=upload.digest,
            size_bytes=upload.size_bytes,
            display_name=upload.display_name,
            create_time=START,
            description={"opset": 17},
        )
        self.records[project, upload.kind, record.asset_id] = record
        self.artifacts[project, upload.digest] = bytes(upload.data)
        return record

    async def upload_status(self, project: str, upload_id: str) -> UploadStatus:
        upload = self._upload(project, upload_id)
        return UploadStatus(upload_id=upload_id, committed_bytes=len(upload.data))

    async def get(self, project: str, kind: str, asset_id: str) -> AssetRecord:
        if (project, kind, asset_id) not in self.records:
            raise NotFoundError(f"no {kind} {asset_id!r}", field=kind, remedy="upload it")
        return self.records[project, kind, asset_id]

    async def list(self, project: str, kind: str, page: Page) -> Sequence[AssetRecord]:
        records = sorted(
            (r for (p, k, _), r in self.records.items() if (p, k) == (project, kind)),
            key=lambda record: record.asset_id,
        )
        return [record for record in records if record.asset_id > page.after][: page.size]

    async def delete(self, project: str, kind: str, asset_id: str) -> None:
        await self.get(project, kind, asset_id)
        del self.records[project, kind, asset_id]

    async def artifact_size(self, project: str, digest: str) -> int:
        if (project, digest) not in self.artifacts:
            raise NotFoundError(f"no artifact {digest}", field="name")
        return len(self.artifacts[project, digest])

    async def read(self, project: str, digest: str, *, offset: int) -> AsyncIterator[bytes]:
        data = self.artifacts[project, digest]
        for start in range(offset, len(data), 1000):
            yield data[start : start + 1000]

    def _upload(self, project: str, upload_id: str) -> _Upload:
        upload = self.uploads.get(upload_id)
        if upload is None or upload.project != project:
            raise NotFoundError(f"no upload {upload_id!r}", field="upload")
        return upload


class InMemoryJobs:
    """Implements `use_cases.Jobs`; tests move jobs along by `tell`."""

    def __init__(self) -> None:
        self.jobs: dict[tuple[str, str], Job] = {}
        self.job_trials: dict[str, list[Trial]] = {}
        self.events: dict[str, list[JobEvent]] = {}
        self.requests: list[JobRequest] = []
        self.failure: Exception | None = None
        """Raised by `get` when set."""
        self.watchers = 0
        self._news = asyncio.Condition()

    async def create(self, project: str, request: JobRequest) -> Job:
        job = await self.validate(project, request)
        job = replace(job, job_id=f"job-{len(self.jobs)}")
        self.jobs[project, job.job_id] = job
        self.events[job.job_id] = []
        return job

    async def validate(self, project: str, request: JobRequest) -> Job:
        self.requests.append(request)
        spec = JobSpec(
            model_digest="0" * 64,
            model_name=request.model,
            target=make_target(),
            budget=request.budget,
            dataset_name=request.dataset,
            objective=request.objective,
            search_limits=request.search_limits,
            output_format=request.output_format,
            seed=request.seed,
        )
        return make_job("imagined", project=project, spec=spec, request_id=request.request_id)

    async def check(self, project: str, request: JobRequest) -> CheckReport:
        self.requests.append(request)
        return CheckReport(
            target=make_target(),
            baseline=Metrics(cost=make_cost(), file_bytes=4096),
            baseline_int8=None,
            violations=(),
            notes=(),
            fits_already=True,
            reachable=True,
        )

    async def get(self, project: str, job_id: str) -> Job:
        if self.failure is not None:
            raise self.failure
        if (project, job_id) not in self.jobs:
            raise NotFoundError(f"no job {job_id!r}", field="job", remedy="list the jobs")
        return self.jobs[project, job_id]

    async def list(
        self, project: str, page: Page, *, states: Sequence[JobState] = ()
    ) -> Sequence[Job]:
        jobs = [
            job
            for (owner, _), job in reversed(self.jobs.items())
            if owner == project and (not states or job.state in states)
        ]
        ids = [job.job_id for job in jobs]
        first = ids.index(page.after) + 1 if page.after else 0
        return jobs[first : first + page.size]

    async def trials(self, project: str, job_id: str, page: Page) -> Sequence[Trial]:
        await self.get(project, job_id)
        after = int(page.after) if page.after else -1
        trials = [trial for trial in self.job_trials.get(job_id, []) if trial.index > after]
        return trials[: page.size]

    async def cancel(self, project: str, job_id: str) -> Job:
        job = await self.get(project, job_id)
        if not job.state.is_final:
            await self.tell(project, job_id, "cancelled", state=JobState.CANCELLED)
        return self.jobs[project, job_id]

    async def delete(self, project: str, job_id: str) -> None:
        job = await self.get(project, job_id)
        if not job.state.is_final:
            raise PreconditionError("the job is not final", field="job", remedy="cancel it first")
        del self.jobs[project, job_id]

    async def watch(self, project: str, job_id: str, *, after: int) -> AsyncIterator[JobEvent]:
        await self.get(project, job_id)
        self.watchers += 1
        try:
            while True:
                for event in self.events[job_id][after:]:
                    after = event.sequence
                    yield event
                if self.jobs[project, job_id].state.is_final:
                    return
                async with self._news:
                    if len(self.events[job_id]) == after:
                        await self._news.wait()
        finally:
            self.watchers -= 1

    async def tell(
        self, project: str, job_id: str, message: str, *, state: JobState | None = None
    ) -> None:
        """Append an event, and move the job to `state` where one is given."""
        if state is not None:
            self.jobs[project, job_id] = replace(self.jobs[project, job_id], state=state)
        events = self.events[job_id]
        events.append(
            JobEvent(
                job_id=job_id,
                sequence=len(events) + 1,
                time=START,
                kind=JobEventKind.NOTE if state is None else JobEventKind.STATE,
                message=message,
                state=state,
            )
        )
        async with self._news:
            self._news.notify_all()

    def add(self, project: str, *jobs: Job, trial_count: int = 0) -> None:
        """Store jobs, each with as many trials."""
        for job in jobs:
            self.jobs[project, job.job_id] = job
            self.events[job.job_id] = []
            self.job_trials[job.job_id] = [make_trial(index) for index in range(trial_count)]


class InMemoryHardware:
    """Implements `use_cases.Hardware`."""

    def __init__(self, *names: str) -> None:
        self.targets = {name: replace(make_target(), name=name) for name in names}
        self.own: dict[tuple[str, str], KnownTarget] = {}
        self.descriptions: list[Mapping[str, Any]] = []
        self.asked: list[tuple[str, str, str | Mapping[str, Any]]] = []
        self.runtimes: list[Runtime | None] = []

    async def get_target(self, project: str, name: str) -> KnownTarget:
        if (project, name) in self.own:
            return self.own[project, name]
        if name not in self.targets:
            raise NotFoundError(
                f"no target {name!r}",
                field="target",
                remedy=f"did you mean {', '.join(self.targets)}?",
            )
        return KnownTarget(spec=self.targets[name], emulator="mcu")

    async def list_targets(self, project: str, page: Page) -> Sequence[KnownTarget]:
        own = {name for owner, name in self.own if owner == project}
        names = [name for name in sorted({*self.targets, *own}) if name > page.after]
        return [await self.get_target(project, name) for name in names[: page.size]]

    async def calibrate(
        self,
        project: str,
        target_name: str,
        *,
        runner_id: str,
        network_count: int,
        keep_measurements: bool,
    ) -> AsyncIterator[CalibrationProgress]:
        target = await self.get_target(project, target_name)
        message = "keeping" if keep_measurements else "measuring"
        yield CalibrationProgress(fraction=0.5, message=message)
        quality = FitQuality(
            number_format=NumberFormat.INT8,
            count=network_count,
            median_error=0.02,
            p90_error=0.08,
            within_10_percent=0.93,
            median_error_before=0.6,
            coverage=0.91,
        )
        calibration = Calibration(
            project=project,
            target_name=target.spec.name,
            runner=runner_id,
            runtime_name=target.spec.runtime.name,
            runtime_version="litert 2.3",
            create_time=datetime(2026, 1, 2, tzinfo=UTC),
            observations=(),
            quality=(quality,),
            skipped=("pooling in int8: no kernel",),
        )
        yield CalibrationProgress(fraction=1.0, message="calibrated", calibration=calibration)

    async def create_target(
        self, project: str, description: Mapping[str, Any], *, validate_only: bool = False
    ) -> KnownTarget:
        self.descriptions.append(description)
        target = KnownTarget(
            spec=replace(make_target(), name=description["name"]),
            emulator="",
            project=project,
            create_time=datetime(2030, 1, 2, tzinfo=UTC),
        )
        if not validate_only:
            self.own[project, target.spec.name] = target
        return target

    async def delete_target(self, project: str, name: str) -> None:
        if self.own.pop((project, name), None) is None:
            raise NotFoundError(f"no target {name!r}", field="name")

    async def estimate(
        self,
        project: str,
        *,
        target: str | Mapping[str, Any],
        model: str = "",
        layer_table: str = "",
        runtime: Runtime | None = None,
    ) -> tuple[HardwareSpec, Mapping[str, CostEstimate]]:
        self.asked.append((project, model or layer_table, target))
        self.runtimes.append(runtime)
        return make_target(), {"float32": make_cost(40.0), "int8": make_cost(10.0)}


class RecordingRpcMetrics:
    """Implements the API's `RpcMetrics`."""

    def __init__(self) -> None:
        self.finished: list[tuple[str, str]] = []
        self.refused: list[str] = []
        self.limits: list[str] = []

    def rpc_refused(self, reason: str) -> None:
        self.refused.append(reason)

    def limit_refused(self, limit: str) -> None:
        self.limits.append(limit)

    def rpc_finished(self, method: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.finished.append((method, code))
