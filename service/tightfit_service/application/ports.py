"""The Protocols that floor 3 implements; use cases know the outside world through these only.

Graphs travel between ports as serialized ONNX models (`bytes`) in working form: checked, opset and
batch normalised by the importer, every node uniquely named. A port never changes what it was given.
Unless a port says otherwise it may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.dataset import DatasetManifest, SplitName
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.job import Job, JobEvent, JobState
from tightfit_service.domain.network import NetworkProfile, Operator, PruningSpace
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.trial import Trial


@dataclass(frozen=True, kw_only=True)
class TensorSignature:
    """Name, shape and type of a model input or output; -1 stands for the free batch."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """A model in working form.

    Attributes:
        graph: Serialized ONNX in working form.
        warnings: What the user should know (operators that will be frozen, batch generalised, ...).
        is_quantized: The model came quantized; it can be estimated and evaluated, not compressed.
    """

    graph: bytes
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    opset: int
    node_count: int
    parameter_count: int
    macs: int
    is_quantized: bool = False
    warnings: tuple[str, ...] = ()


class ModelImporter(Protocol):
    """Brings a model file of one format into working form, and proves it."""

    def import_model(self, data: bytes) -> ImportedModel:
        """Check and normalise a model.

        Raises:
            InvalidModelError: Anything about the file that cannot be used, with the remedy.
        """
        ...

    def check_parity(self, original: bytes, graph: bytes, inputs: Sequence[FloatArray]) -> float:
        """Run both through onnxruntime on the same inputs and return the largest relative difference.

        Raises:
            ParityError: They differ by more than float32 rounding explains; says where and how much.
        """
        ...


class GraphInspector(Protocol):
    """Reads facts off a working graph."""

    def profile(self, graph: bytes) -> NetworkProfile:
        """Return the work of the graph as a runtime would execute it: BN folded, activations fused."""
        ...


class StructuredPruning(Protocol):
    """Removal of whole channels, found by index propagation."""

    def space(self, graph: bytes) -> PruningSpace:
        """Return what can be removed and what cannot. Deterministic: the same graph, the same ids."""
        ...

    def apply(self, graph: bytes, keep: Mapping[str, Sequence[int]]) -> bytes:
        """Return the graph with only the given units of each named group; others stay whole.

        Raises:
            InvalidRequestError: An unknown group, a unit out of range, or a group left empty.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RecoverySettings:
    """How a compressed graph is trained back.

    Attributes:
        epochs: Passes over the training set (may be fractional).
        max_seconds: The schedule is fitted into this time: where `epochs` would take longer, the
            number of steps is reduced before the learning-rate schedule starts. None for no limit.
        learning_rate: Peak of the one-cycle schedule; None lets the trainer find it.
        distillation_weight: Share of the distillation loss against the label loss, in [0, 1].
        temperature: Of the softened logits.
    """

    epochs: float = 1.0
    max_seconds: float | None = None
    batch_size: int = 128
    learning_rate: float | None = None
    weight_decay: float = 1e-4
    distillation_weight: float = 0.9
    temperature: float = 4.0
    augmentation: str = "auto"
    """`auto`, `none`, or `flip-crop` (for images)."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RecoveryResult:
    """A trained-back graph (BatchNorm folded again, input and output as before) and its history."""

    graph: bytes
    epochs: float
    steps: int
    history: tuple[Mapping[str, float], ...]
    """Per evaluation point: epoch, loss, learning_rate, selection_accuracy where measured."""
    notes: tuple[str, ...] = ()
    """Rollbacks, number format used in training, conditioning applied."""


ProgressCallback = Callable[[float, str], None]
"""Called with the share done (0 to 1) and a short message; must return quickly and not raise."""


class Trainer(Protocol):
    """Gradients and training of working graphs. One call at a time per process."""

    def importance(
        self, graph: bytes, space: PruningSpace, samples: Samples, *, seed: int
    ) -> Mapping[str, Sequence[float]]:
        """Return, per group id, the importance of each unit: predicted increase of the loss when removed.

        First-order Taylor (Molchanov et al., CVPR 2019): the squared sum of gradient times value,
        accumulated over the unit's channels; comparable between groups.
        """
        ...

    def recover(
        self,
        graph: bytes,
        *,
        teacher: bytes,
        train: Samples,
        selection: Samples,
        settings: RecoverySettings,
        cache_dir: Path,
        on_progress: ProgressCallback,
    ) -> RecoveryResult:
        """Train `graph` back towards `teacher`.

        Teacher outputs on training data may be kept in `cache_dir` between calls.

        Raises:
            DivergedError: Every rollback diverged again; the best state so far was no better than the start.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class QuantizationSettings:
    """How a graph is quantized on export.

    `number_format` FLOAT32 exports the graph unquantized. `method` is the calibration method:
    `minmax`, `percentile` or `mse`. The last clips what costs more than it brings: about a quarter of
    the noise of `minmax` on small residual networks, for a second or two more.
    """

    number_format: NumberFormat = NumberFormat.INT8
    per_channel: bool = True
    method: str = "mse"
    float_nodes: tuple[str, ...] = ()
    """Nodes kept in float."""


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A file for the target, reloaded in its runtime and compared with the graph it came from.

    Attributes:
        parity: Figures of the comparison (largest and mean difference of outputs, agreement of top-1).
    """

    data: bytes
    format: ModelFormat
    number_format: NumberFormat
    parity: Mapping[str, float]
    notes: tuple[str, ...] = ()


class Exporter(Protocol):
    """Writes a working graph as a file of one format."""

    def export(
        self,
        graph: bytes,
        *,
        calibration: Samples | None,
        settings: QuantizationSettings,
        metadata: Mapping[str, str],
    ) -> ExportedModel:
        """Quantize as told, write, reload in the target's runtime, compare.

        `calibration` is needed for integer formats. `metadata` travels inside the file.

        Raises:
            ParityError: The reloaded file does not compute what the graph does.
            UnsupportedError: The format cannot express the settings.
        """
        ...


class Evaluator(Protocol):
    """Runs exported files of one format in their own runtime."""

    def outputs(self, data: bytes, inputs: FloatArray) -> npt.NDArray[np.float32]:
        """Return the first output for a batch of float inputs in working layout, dequantized, shape (n, ...)."""
        ...

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        """Return the declared metric over the samples.

        Raises:
            InvalidDatasetError: Samples have no labels, or shapes or labels do not fit the model.
        """
        ...


class OpenDataset(Protocol):
    """A dataset ready to be read."""

    @property
    def manifest(self) -> DatasetManifest:
        """The manifest."""
        ...

    def samples(self, split: SplitName) -> Samples | None:
        """Return a split, or None where the dataset has none.

        SELECTION is held out of the training split (10 %, at most 2000, seeded by the dataset's
        digest, stratified by label) or, where there is no training split, is the first half of the
        shuffled evaluation split, EVALUATION then being the other half. TRAIN never contains it.
        """
        ...


class DatasetReader(Protocol):
    """Opens packed datasets."""

    def read_manifest(self, archive: Path) -> DatasetManifest:
        """Check the archive's structure and return its manifest without reading arrays.

        Raises:
            InvalidDatasetError: Not an archive of ours, unknown keys, bad values, missing arrays.
        """
        ...

    def open(self, archive: Path, *, model: ImportedModel | None) -> OpenDataset:
        """Open the dataset and check that it fits the model.

        Raises:
            InvalidDatasetError: Shapes or labels that do not fit, empty splits, NaN.
        """
        ...


class Emulator(Protocol):
    """Predicts what a network costs on a target without the device. Pure and fast (milliseconds)."""

    @property
    def name(self) -> str:
        """Short name for provenance and metrics."""
        ...

    def supports(self, target: HardwareSpec) -> bool:
        """Whether this emulator has a model for the target's core class."""
        ...

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        """Return the cost of a whole network. `file_bytes` is the exported file's size where known."""
        ...

    def operator_cost(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        """Return the cost of one operator; the sum over a network plus a constant gives `estimate`'s value."""
        ...

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        """Return memory use per schedule point; its maximum gives `estimate`'s peak RAM value."""
        ...


class TargetCatalogue(Protocol):
    """The named hardware targets."""

    def get(self, name: str) -> HardwareSpec:
        """Return a target.

        Raises:
            NotFoundError: No such target; the remedy offers the nearest names.
        """
        ...

    def list(self) -> Sequence[HardwareSpec]:
        """Return all targets by name."""
        ...

    def complete(self, partial: Mapping[str, Any]) -> HardwareSpec:
        """Return a full spec from a partial description, the rest taken from the core's class.

        Keys are those of `HardwareSpec`, nested as in the catalogue's YAML files.

        Raises:
            InvalidTargetError: Unknown keys, impossible figures, or a core that no class describes.
        """
        ...


class ArtifactStore(Protocol):
    """Immutable bytes by digest (lower-case hex sha-256). Safe for many threads and processes.

    All methods raise UnavailableError when the store is down and ResourceExhaustedError when it is full.
    """

    def put(self, source: Path, digest: str, *, is_verified: bool = False) -> None:
        """Store a file under its digest; storing what is there already does nothing.

        The bytes are verified while they are copied, and appear whole or not at all. `is_verified`
        says that the caller has just computed the digest of this file, so that a store which need
        not read it may leave that out.

        Raises:
            IntegrityError: The file does not have that digest.
        """
        ...

    def size(self, digest: str) -> int | None:
        """Return the size in bytes, or None when the digest is not stored."""
        ...

    def read(self, digest: str, *, offset: int = 0, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        """Yield the bytes from `offset` on.

        Raises:
            NotFoundError: The digest is not stored.
        """
        ...

    def fetch(self, digest: str, destination: Path) -> None:
        """Copy to a local file, verifying the digest.

        Raises:
            NotFoundError: The digest is not stored.
            IntegrityError: What is stored does not match the digest.
        """
        ...

    def delete(self, digest: str) -> None:
        """Remove the bytes; removing what is not there does nothing."""
        ...

    def check(self) -> None:
        """Raise UnavailableError unless the store can be read and written now."""
        ...


@dataclass(frozen=True, kw_only=True)
class UploadTicket:
    """What was announced when an upload was opened."""

    upload_id: str
    project: str
    kind: str
    size_bytes: int
    digest: str
    display_name: str


class UploadStaging(Protocol):
    """Where unfinished uploads wait; they survive a restart of the server.

    One caller at a time per upload; different uploads may be written from different threads.
    """

    def open(self, ticket: UploadTicket) -> int:
        """Open an upload, or find it again, and return the committed size in bytes.

        Raises:
            AlreadyExistsError: The id is in use for other bytes.
            ResourceExhaustedError: There is no room for what was announced.
        """
        ...

    def find(self, upload_id: str) -> tuple[UploadTicket, int]:
        """Return the ticket and the committed size. Raises NotFoundError."""
        ...

    def append(self, upload_id: str, *, offset: int, data: bytes) -> int:
        """Write at the committed size, which `offset` must be, and return the new size.

        Raises:
            PreconditionError: Another offset; the message tells the right one.
            InvalidRequestError: More bytes than announced.
            ResourceExhaustedError: The disk is full; what was committed stays.
        """
        ...

    def complete(self, upload_id: str) -> Path:
        """Verify size and digest and return the file, which stays until `discard`.

        Raises:
            PreconditionError: Bytes are missing.
            IntegrityError: The digest differs; the upload is discarded.
        """
        ...

    def discard(self, upload_id: str) -> None:
        """Remove an upload; one that is not there is no error."""
        ...


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

    def is_digest_used(self, digest: str) -> bool:
        """Whether any asset, trial or cached result still refers to the bytes."""
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

    def cached_result(self, input_digest: str) -> WorkResult | None:
        """Return the stored result of a unit of work with these inputs, or None."""
        ...

    def store_result(self, input_digest: str, result: WorkResult) -> None:
        """Store the result of a unit of work."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorkUnit:
    """A pure unit of work: the same kind, payload and inputs give the same result.

    Attributes:
        kind: Which handler runs it (see `application.work`).
        payload: Plain JSON data.
        inputs: Name to digest; the executor provides them to the worker as files.
        timeout_seconds: The worker is killed after this.
    """

    kind: str
    payload: Mapping[str, Any]
    inputs: Mapping[str, str]
    timeout_seconds: float = 3_600.0
    label: str = ""
    """For logs: `job 3f2c trial 4`. Not part of the identity."""


@dataclass(frozen=True, kw_only=True)
class WorkResult:
    """What a unit of work produced: plain JSON data, and files by digest (already in the artifact store)."""

    payload: Mapping[str, Any]
    outputs: Mapping[str, str] = field(default_factory=dict)


class Executor(Protocol):
    """Runs units of work in processes that can be killed."""

    async def run(self, unit: WorkUnit, *, on_progress: ProgressCallback) -> WorkResult:
        """Run a unit to its end.

        Cancelling the awaiting task kills the worker with all its children within a second and
        frees its slot. `on_progress` is called on the event loop.

        Raises:
            WorkFailedError: The worker raised, died, ran out of memory or time. Errors of the domain
                that the handler raised arrive as themselves.
        """
        ...

    async def start(self) -> None:
        """Start workers."""
        ...

    async def stop(self) -> None:
        """Kill all workers and wait until they are gone."""
        ...


class WorkHandler(Protocol):
    """Runs inside a worker process."""

    def __call__(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Return the result's payload and the files it wrote below `output_dir`, by name."""
        ...


class Clock(Protocol):
    """Time, injected so that tests own it."""

    def now(self) -> datetime:
        """Return the present time, UTC, timezone-aware."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        ...


class Telemetry(Protocol):
    """Where the use cases report what happens; Prometheus in production, nothing in most tests."""

    def job_state(self, job: Job, before: JobState | None) -> None:
        """Report a new job (`before` None) or a change of state."""
        ...

    def trial_finished(self, job_id: str, trial: Trial) -> None:
        """Report a trial's end with its stage times."""
        ...

    def best_so_far(self, job_id: str, trial: Trial | None) -> None:
        """Report the best trial of a running job; None when the job has ended and its series can go."""
        ...

    def emulator_called(self, emulator: str, seconds: float) -> None:
        """Report one estimate."""
        ...

    def worker_restarted(self, reason: str) -> None:
        """Report that a worker process was replaced (`killed`, `crashed`, `timeout`, `memory`)."""
        ...

    def artifact_bytes(self, direction: str, count: int) -> None:
        """Report bytes `received`, `sent`, `stored` or `deleted`."""
        ...

    def cache_lookup(self, *, hit: bool) -> None:
        """Report a look-up in the cache of work results."""
        ...
