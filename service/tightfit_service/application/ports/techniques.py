"""Techniques: passes from graph to graph, and training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tightfit_service.application.ports.export import QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.domain.network import (
    DEFAULT_IMPORTANCE,
    Alternative,
    ImportanceCriterion,
    NetworkProfile,
    PruningSpace,
    Variant,
)


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
class PassContext:
    """What a pass may use beside the graph and its parameters.

    Attributes:
        calibration: Inputs of the network as it is before this pass, or None where there is no data.
        seed: Of every random choice.
    """

    calibration: Samples | None = None
    seed: int = 0


class GraphPass(Protocol):
    """One technique: a pure function from working graph to working graph. Safe for many threads."""

    @property
    def name(self) -> str:
        """The name that recipes use."""
        ...

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        """Return one sentence for each reason why the pass cannot help there; none when it can."""
        ...

    def check(self, graph: bytes, parameters: Mapping[str, Any]) -> None:
        """Check parameters against a graph without applying them.

        Raises:
            InvalidRequestError: An unknown key, node or value out of range; `field` names it as
                `parameters.<key>`.
        """
        ...

    def apply(self, graph: bytes, parameters: Mapping[str, Any], context: PassContext) -> bytes:
        """Return the graph with the technique applied; names of nodes that stay do not change.

        Raises:
            InvalidRequestError: As `check`.
            InvalidDatasetError: The pass needs calibration samples and there are none.
        """
        ...


class NodePass(GraphPass, Protocol):
    """A technique that works on single nodes, with several strengths to choose from."""

    def alternatives(
        self,
        graph: bytes,
        profile: NetworkProfile,
        target: HardwareSpec,
        *,
        context: PassContext | None = None,
    ) -> Mapping[str, Sequence[Alternative]]:
        """Return, per node of the profile, its alternatives from mildest to strongest.

        With calibration samples in `context` their errors are those on real activations.
        """
        ...


class NetworkPass(GraphPass, Protocol):
    """A technique that changes the network as a whole, with several strengths to choose from."""

    def variants(
        self, graph: bytes, target: HardwareSpec, *, context: PassContext | None = None
    ) -> Sequence[Variant]:
        """Return variants from mildest to strongest; the untouched network is not among them."""
        ...


@dataclass(frozen=True, kw_only=True)
class ChangedLayer:
    """A graph in which the weight of a single layer was changed.

    Attributes:
        node: Name of the layer.
        error: Relative squared error of its weight, in [0, 1].
    """

    node: str
    graph: bytes
    error: float


class DownloadPass(GraphPass, Protocol):
    """A technique that makes the packed file of a network smaller, with several strengths to choose from."""

    def strengths(
        self, graph: bytes, target: HardwareSpec, number_format: NumberFormat
    ) -> Sequence[Mapping[str, Any]]:
        """Return parameters for the whole network from mildest to strongest; none where it cannot help.

        `number_format` is that of the exported weights.
        """
        ...

    def errors(
        self, graph: bytes, parameters: Mapping[str, Any], context: PassContext
    ) -> Mapping[str, float]:
        """Return the relative squared error of each chosen node's weight, in [0, 1].

        Raises:
            InvalidRequestError: As `check`.
        """
        ...

    def each_alone(
        self, graph: bytes, parameters: Mapping[str, Any], context: PassContext
    ) -> Iterator[ChangedLayer]:
        """Yield, for each chosen node, the graph with that node's weight changed and no other.

        Raises:
            InvalidRequestError: As `check`.
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
        feature_weight: Weight of the loss between inner activations and those of the original, on
            the channels that were kept; 0 leaves it out.
        quantization_aware: The network is trained as the exported file will compute: weights and
            activations rounded, per-channel scales, fused activations.
        keep_zeros: Weights that are exactly zero stay so (after sparsity).
        share_values: Weights of a layer that are equal stay equal (after clustering).
        teachers: Digests of the model files that taught besides the original: a record, which the
            trainer does not look at.
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
    feature_weight: float = 0.0
    quantization_aware: bool = False
    keep_zeros: bool = False
    share_values: bool = False
    teachers: tuple[str, ...] = ()
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
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """After quantization-aware training: least and greatest value per activation tensor of `graph`,
    which the exporter has to use instead of calibrating."""


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """The networks that a compressed one is trained back towards.

    Attributes:
        original: The original network.
        others: Other networks for the same inputs and classes, whose answers are averaged with the original's.
        reference: The network whose layers those of the compressed one were made from; None where that is the
            original itself, and not the original at another resolution.
    """

    original: bytes
    others: tuple[bytes, ...] = ()
    reference: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a training is given to learn from.

    Attributes:
        train: Samples that weights are updated on.
        selection: Samples that states are compared on.
        unlabeled: Further inputs, which only teachers answer for.
    """

    train: Samples
    selection: Samples
    unlabeled: Samples | None = None


ProgressCallback = Callable[[float, str], None]
"""Called with the share done (0 to 1) and a short message; must return quickly and not raise."""


class Trainer(Protocol):
    """Gradients and training of working graphs. One call at a time per process."""

    def importance(
        self,
        graph: bytes,
        space: PruningSpace,
        samples: Samples,
        *,
        seed: int,
        criterion: ImportanceCriterion = DEFAULT_IMPORTANCE,
    ) -> Mapping[str, Sequence[float]]:
        """Return, per group id, the importance of each unit: what its removal is predicted to cost.

        TAYLOR and FISHER are in units of the loss and comparable between groups; MAGNITUDE compares
        units of one group only, and looks neither at samples nor at the seed.

        Raises:
            UnsupportedError: TAYLOR or FISHER, and an operator has no gradient here.
        """
        ...

    def check_teacher(self, teacher: bytes, *, original: bytes, samples: Samples) -> None:
        """Refuse a network that cannot teach besides the original; runs both on one sample.

        Raises:
            InvalidRequestError: It takes other inputs, or answers something else.
        """
        ...

    def recover(
        self,
        graph: bytes,
        *,
        teachers: Teachers,
        data: TrainingData,
        settings: RecoverySettings,
        cache_dir: Path,
        on_progress: ProgressCallback,
        quantization: QuantizationSettings | None = None,
    ) -> RecoveryResult:
        """Train `graph` back towards its teachers.

        Teacher outputs on training data may be kept in `cache_dir` between calls.

        Args:
            graph: The compressed network.
            teachers: What it is to answer as.
            data: What it is trained and judged on.
            settings: How to train.
            cache_dir: Folder for teacher outputs.
            on_progress: Told about progress.
            quantization: How the result will be exported; needed for quantization-aware training.

        Raises:
            InvalidRequestError: One of the other teachers takes other inputs, or answers something else.
            DivergedError: Every rollback diverged again; the best state so far was no better than the start.
        """
        ...


AccuracyOf = Callable[[bytes], float]
"""Accuracy of a graph that onnxruntime runs, as a fraction."""


@dataclass(frozen=True, kw_only=True)
class LayerPrecision:
    """What one layer's number format costs.

    Attributes:
        node: Name of the layer.
        number_format: Its format in the settings.
        sqnr_db: Signal-to-quantization-noise ratio of its output when it alone is in that format and
            reads float values, in dB; under about 20 dB a layer is worth a look.
        accuracy_alone: Accuracy with this layer alone in its format and everything else in float32.
        accuracy_without: Accuracy with everything in its format but this layer, in float32.
    """

    node: str
    number_format: NumberFormat
    sqnr_db: float
    accuracy_alone: float
    accuracy_without: float


@dataclass(frozen=True, kw_only=True)
class PrecisionSensitivity:
    """Accuracy of a network by the precision of its layers, in schedule order.

    Attributes:
        float_accuracy: With everything in float32.
        quantized_accuracy: With everything in its format.
    """

    float_accuracy: float
    quantized_accuracy: float
    layers: tuple[LayerPrecision, ...]

    def drop_alone(self, layer: LayerPrecision) -> float:
        """Return the accuracy that the layer's format costs by itself, as a fraction."""
        return self.float_accuracy - layer.accuracy_alone

    def gain_in_float(self, layer: LayerPrecision) -> float:
        """Return the accuracy that keeping this layer in float32 gives back, as a fraction."""
        return layer.accuracy_without - self.quantized_accuracy

    def cost(self, layer: LayerPrecision) -> float:
        """Return the mean of both: what the layer's format costs alone, and among the others."""
        return (self.drop_alone(layer) + self.gain_in_float(layer)) / 2


class PrecisionProbe(Protocol):
    """Measures what the number format of each single layer costs."""

    def __call__(
        self,
        graph: bytes,
        *,
        calibration: Samples,
        score: AccuracyOf,
        settings: QuantizationSettings,
        nodes: Sequence[str] | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> PrecisionSensitivity:
        """Return accuracies with each layer alone in its format, and with it alone in float32.

        Costs about two evaluations by `score` per layer.
        """
        ...
