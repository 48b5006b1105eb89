"""The faces that the API talks to: what tightfit can be asked to do, free of gRPC.

All methods are coroutines so that a servicer can await them directly; blocking work is moved off the
event loop by the implementations. `project` is the segment after `projects/` (`default` when embedded).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from tightfit_service.application.ports import AssetRecord, Page, SignedUrl, UnreadableJob
from tightfit_service.application.runners.sessions import Runner, RunnerHello, RunnerSession
from tightfit_service.domain.budget import Budget, Objective, SearchLimits
from tightfit_service.domain.calibration import CalibrationProgress
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, Runtime
from tightfit_service.domain.job import Job, JobEvent, JobState, PreflightNote
from tightfit_service.domain.measurement import FailureKind, Measurement, Verification
from tightfit_service.domain.network import ImportanceCriterion
from tightfit_service.domain.recipe import Recipe
from tightfit_service.domain.trial import Metrics, Trial, Violation


@dataclass(frozen=True, kw_only=True)
class UploadStatus:
    """How far an upload is: bytes that are safely stored, and the asset once complete."""

    upload_id: str
    committed_bytes: int
    asset: AssetRecord | None = None
    direct: SignedUrl | None = None
    """Where all bytes may be sent at once instead; None where this server does not offer it."""


class Assets(Protocol):
    """Models and datasets. `kind` is `model` or `dataset`."""

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
        """Open an upload, or find the one with that id again, and return how far it is.

        When the bytes are stored already in this project the answer has the asset at once.

        Raises:
            InvalidRequestError: Bad digest, size of zero or beyond the limit.
            ResourceExhaustedError: No room.
        """
        ...

    async def append(self, project: str, upload_id: str, *, offset: int, data: bytes) -> int:
        """Append bytes at `offset`, which must be the committed size, and return the new size.

        Raises:
            NotFoundError: No such upload.
            PreconditionError: Wrong offset; the message tells the right one.
            InvalidRequestError: More bytes than announced.
            ResourceExhaustedError: The disk is full; what was committed stays.
        """
        ...

    async def flush(self, project: str, upload_id: str) -> int:
        """Commit what was appended and return the committed size; 0 for an unknown upload."""
        ...

    async def finish_upload(self, project: str, upload_id: str) -> AssetRecord:
        """Verify size and digest, check the content (import the model, read the manifest), store it.

        Raises:
            IntegrityError: Digest mismatch; the upload is discarded.
            InvalidModelError, InvalidDatasetError: The content cannot be used; the upload is discarded.
        """
        ...

    async def upload_status(self, project: str, upload_id: str) -> UploadStatus:
        """Return how far an upload is. Raises NotFoundError."""
        ...

    async def get(self, project: str, kind: str, asset_id: str) -> AssetRecord:
        """Return a record. Raises NotFoundError."""
        ...

    async def list(self, project: str, kind: str, page: Page) -> Sequence[AssetRecord]:
        """Return records ordered by id."""
        ...

    async def delete(self, project: str, kind: str, asset_id: str) -> None:
        """Remove a record, and its bytes when nothing refers to them. Raises NotFoundError, PreconditionError."""
        ...

    async def artifact_size(self, project: str, digest: str) -> int:
        """Return the size of an artifact of this project. Raises NotFoundError."""
        ...

    async def download_url(self, project: str, digest: str) -> tuple[int, SignedUrl | None]:
        """Return the size of an artifact and a short-lived address to fetch it from, None where there is none.

        Raises:
            NotFoundError: No such artifact.
        """
        ...

    def read(self, project: str, digest: str, *, offset: int) -> AsyncIterator[bytes]:
        """Yield the bytes of an artifact of this project from `offset` on. Raises NotFoundError."""
        ...


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A job as asked for, names still unresolved. `target` is a catalogue name or a partial description."""

    model: str
    """Asset id of the model."""
    dataset: str
    """Asset id of the dataset, or "" for none."""
    target: str | Mapping[str, Any]
    budget: Budget
    objective: Objective = field(default_factory=Objective)
    search_limits: SearchLimits = field(default_factory=SearchLimits)
    output_format: ModelFormat | None = None
    seed: int = 0
    techniques: tuple[str, ...] = ()
    """Names of the passes that the search may use; empty leaves the choice to the search."""
    recipe: Recipe | None = None
    """Applied as it is, without any search."""
    verification: Verification = Verification.NONE
    priority: int = 0
    """Among the queued jobs of the project the one with the highest starts first; -100 to 100."""
    teachers: tuple[str, ...] = ()
    """Models that recovery training learns from besides the original."""
    importance: ImportanceCriterion | None = None
    """What channels are chosen by; None leaves the choice to the search."""
    packed: bool = False
    """Whether a packed file for download is asked for beside the model."""
    runner_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that a runner must carry to measure for the job."""
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What can be said before a search: the baselines' cost, what is missed, and what could be reached."""

    target: HardwareSpec
    baseline: Metrics
    baseline_int8: Metrics | None
    violations: tuple[Violation, ...]
    """Limits that the quantized-only model misses (the float one where int8 is not offered)."""
    notes: tuple[PreflightNote, ...]
    fits_already: bool
    reachable: bool
    """False when the model misses a limit by estimate at any widths of its layers."""


class Jobs(Protocol):
    """Compression jobs."""

    async def create(self, project: str, request: JobRequest) -> Job:
        """Queue a job. Idempotent by `request_id`.

        Raises:
            NotFoundError: Unknown model, dataset or target.
            InvalidBudgetError, InvalidTargetError, InvalidDatasetError, InvalidModelError: See there.
        """
        ...

    async def validate(self, project: str, request: JobRequest) -> Job:
        """Check a request as `create` would and return the job it would make, without making it."""
        ...

    async def check(self, project: str, request: JobRequest) -> CheckReport:
        """Run the preflight: estimates only, nothing is trained."""
        ...

    async def get(self, project: str, job_id: str) -> Job:
        """Return a job. Raises NotFoundError, UnreadableRecordError."""
        ...

    async def list(
        self, project: str, page: Page, *, states: Sequence[JobState] = ()
    ) -> Sequence[Job | UnreadableJob]:
        """Return jobs, newest first; of those that cannot be read, what is known of them."""
        ...

    async def trials(self, project: str, job_id: str, page: Page) -> Sequence[Trial]:
        """Return trials by index. Raises NotFoundError."""
        ...

    async def cancel(self, project: str, job_id: str) -> Job:
        """Cancel a job and free its worker; a job that is final already is returned as it is."""
        ...

    async def delete(self, project: str, job_id: str) -> None:
        """Delete a final job, or one that cannot be read and that nobody runs.

        Raises NotFoundError, PreconditionError.
        """
        ...

    def watch(self, project: str, job_id: str, *, after: int) -> AsyncIterator[JobEvent]:
        """Yield events with a sequence number above `after`, stored ones first, until the job is final.

        Nothing is missed between stored and live events. Raises NotFoundError.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class KnownTarget:
    """A target that jobs can name: of the catalogue, or described by a project."""

    spec: HardwareSpec
    emulator: str
    """Name of the emulator that predicts costs on it; "" when none does yet."""
    project: str = ""
    """The project that described it; "" for the catalogue."""
    create_time: datetime | None = None


class Hardware(Protocol):
    """Targets and estimates. A project's own targets come before those of the catalogue."""

    async def get_target(self, project: str, name: str) -> KnownTarget:
        """Return the project's target of that name, or else the catalogue's; "" stands for no project.

        Raises:
            NotFoundError: Neither has it; offers near names.
        """
        ...

    async def list_targets(self, project: str, page: Page) -> Sequence[KnownTarget]:
        """Return the targets of the project and of the catalogue by name."""
        ...

    async def create_target(
        self, project: str, description: Mapping[str, Any], *, validate_only: bool = False
    ) -> KnownTarget:
        """Complete a description and store it as a target of the project.

        The same description again is the first one. With `validate_only` nothing is stored.

        Raises:
            InvalidTargetError: The description cannot be used, or has no name.
            AlreadyExistsError: The name stands for something else, here or in the catalogue.
            ResourceExhaustedError: The project has as many as it may.
        """
        ...

    async def delete_target(self, project: str, name: str) -> None:
        """Remove a target of the project; jobs that were created with it keep it.

        Raises:
            NotFoundError: The project has no target of that name.
        """
        ...

    async def estimate(
        self,
        project: str,
        *,
        target: str | Mapping[str, Any],
        model: str = "",
        layer_table: str = "",
        runtime: Runtime | None = None,
    ) -> tuple[HardwareSpec, Mapping[str, CostEstimate]]:
        """Return the target and the network's cost per number format (`float32`, `int8` where offered).

        The network is an uploaded model or a layer table. `runtime` replaces the target's own.

        Raises:
            InvalidModelError: The layer table cannot be used.
        """
        ...


class Calibrations(Protocol):
    """Correcting emulators by what devices measure."""

    def calibrate(
        self,
        project: str,
        target_name: str,
        *,
        runner_id: str,
        network_count: int,
        keep_measurements: bool,
    ) -> AsyncIterator[CalibrationProgress]:
        """Measure the designed set on a runner and correct the target's emulator for the project.

        Yields how far it is; the last one has the result. With `keep_measurements`, files that the last
        calibration measured are not measured again.

        Raises:
            NotFoundError: No such target.
            InvalidRequestError: A count out of range, or measurements of another runner are to be kept.
            PreconditionError: Measurements are to be kept that another version of the runtime made.
            UnsupportedError: No emulator covers the target, or its files cannot be measured.
            NoRunnerError: The runner is not connected.
            MeasurementFailedError: Too many networks could not be measured.
        """
        ...


class Runners(Protocol):
    """Agents on real devices. Belongs to one event loop; what is not a coroutine returns at once."""

    async def get(self, project: str, runner_id: str) -> Runner:
        """Return a runner. Raises NotFoundError."""
        ...

    async def list(self, project: str, page: Page) -> Sequence[Runner]:
        """Return runners by id."""
        ...

    async def connect(self, project: str, runner_id: str, hello: RunnerHello) -> RunnerSession:
        """Take an agent; its session says what to tell it, the welcome first.

        Raises:
            PreconditionError: Another version of the protocol, or a runner in quarantine.
            AlreadyExistsError: Another agent uses the name now.
            InvalidRequestError: What it says of its device cannot be.
        """
        ...

    def disconnect(self, session: RunnerSession) -> None:
        """Note that the agent's stream ended; its work goes to other runners."""
        ...

    def heartbeat(self, session: RunnerSession, order_ids: Sequence[str]) -> None:
        """Note that the agent lives, and what it works on."""
        ...

    def accepted(self, session: RunnerSession, order_id: str) -> None:
        """Note that the agent works on an offer."""
        ...

    def measured(self, session: RunnerSession, order_id: str, measurement: Measurement) -> None:
        """Take a measurement; one that cannot be true ends the session."""
        ...

    def failed(
        self, session: RunnerSession, order_id: str, kind: FailureKind, message: str
    ) -> None:
        """Take the answer that there is no measurement."""
        ...
