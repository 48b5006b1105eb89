"""Files for the target: written, reloaded, evaluated in their own runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tightfit_service.application.samples import ModelInputs, Samples
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.quantities import Accuracy


@dataclass(frozen=True, kw_only=True)
class QuantizationSettings:
    """How a graph is brought to the numbers it is exported in.

    Attributes:
        number_format: Of all nodes that `node_formats` does not name: `int8`; `int16x8` (activations
            of 16 bits, weights of 8); `int4` (weights of 4 bits, activations of 8); `float16`,
            `bfloat16`, `float32`.
        node_formats: Formats of single nodes, by name in the working graph.
        per_channel: One scale per output channel of a weight, or one per tensor.
        method: How activation ranges are found: `minmax`; `percentile` (the tails beyond
            `percentile` are clipped); `mse` (what clipping costs and rounding brings is balanced);
            `entropy` (least KL divergence of histograms, as in TensorRT).
        percentile: Share of values kept by `percentile`, in percent.
        bias_correction: Biases are shifted by the mean error that rounding weights makes (Nagel et
            al., ICCV 2019, measured on calibration data).
    """

    number_format: NumberFormat = NumberFormat.INT8
    node_formats: Mapping[str, NumberFormat] = field(default_factory=dict)
    per_channel: bool = True
    method: str = "mse"
    percentile: float = 99.99
    bias_correction: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A file for the target, reloaded in its runtime and compared with the graph it came from.

    Attributes:
        parity: Figures of the comparison (largest and mean difference of outputs, agreement of top-1).
        notes: What the user should know about the file.
        format_notes: Which nodes compute in other numbers than the rest, and why.
        device_bytes: What a device stores of it, in bytes, where that is not the file as it is:
            source text and archives.
    """

    data: bytes
    format: ModelFormat
    number_format: NumberFormat
    parity: Mapping[str, float]
    notes: tuple[str, ...] = ()
    format_notes: tuple[str, ...] = ()
    device_bytes: int | None = None


class Exporter(Protocol):
    """Writes a working graph as a file of one format."""

    def export(
        self,
        graph: bytes,
        *,
        calibration: Samples | None,
        settings: QuantizationSettings,
        metadata: Mapping[str, str],
        ranges: Mapping[str, tuple[float, float]] | None = None,
        target: HardwareSpec | None = None,
    ) -> ExportedModel:
        """Quantize as told, write, reload in the target's runtime, compare.

        `calibration` is needed for integer formats. `metadata` travels inside the file. `ranges`
        holds least and greatest values of activation tensors that training has fixed; tensors it
        does not name are calibrated. Operators are spelled as the runtime of `target` is good at, where
        it is given.

        Raises:
            ParityError: The reloaded file does not compute what the graph does.
            UnsupportedError: The format cannot express the settings.
        """
        ...


class Evaluator(Protocol):
    """Runs exported files of one format in their own runtime."""

    def outputs(self, data: bytes, inputs: ModelInputs) -> npt.NDArray[np.float32]:
        """Return the first output for a batch of float inputs in working layout, dequantized, shape (n, ...)."""
        ...

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        """Return the declared metric over the samples.

        Raises:
            InvalidDatasetError: Samples have no labels, or shapes or labels do not fit the model.
        """
        ...


class FileCompiler(Protocol):
    """Compiles exported files for the accelerator of a target."""

    @property
    def source_format(self) -> ModelFormat:
        """Format of the files that it compiles."""
        ...

    def compile(self, exported: ExportedModel, target: HardwareSpec) -> ExportedModel:
        """Compile a file, and check what came of it against what it was compiled from.

        Raises:
            InvalidModelError: The compiler does not take the file.
            ParityError: The compiled file is not one of the same network.
            UnsupportedError: The compiler is not installed, or does not know the target.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TargetAccuracy:
    """The accuracy of a file, and in words how far it was computed as the target computes it."""

    accuracy: Accuracy
    notes: tuple[str, ...] = ()


class TargetEvaluator(Protocol):
    """Runs exported files as the runtime of a target computes them, which takes longer than `Evaluator`."""

    def supports(self, target: HardwareSpec, model_format: ModelFormat) -> bool:
        """Whether this is the runtime of the target, and loads such files."""
        ...

    def evaluate(self, data: bytes, model_format: ModelFormat, samples: Samples) -> TargetAccuracy:
        """Return the declared metric over the samples.

        Raises:
            InvalidDatasetError: Samples have no labels, or shapes or labels do not fit the model.
        """
        ...


class Packer(Protocol):
    """Makes files for download, which the client restores bit by bit."""

    def __call__(self, data: bytes, model_format: ModelFormat) -> bytes:
        """Return the packed form of an exported file; deterministic.

        Raises:
            ResourceExhaustedError: Larger than clients unpack.
            IntegrityError: Unpacking did not give the file back.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """What the weight of one layer takes up in a packed file.

    Attributes:
        packed_bytes: About how many bytes, with its share of the tables.
        zeros: Share of its values that are zero, in [0, 1].
    """

    packed_bytes: float
    zeros: float


class LayerSizes(Protocol):
    """Estimates what single layers take up in packed files."""

    def __call__(self, data: bytes, model_format: ModelFormat) -> Mapping[str, LayerSize]:
        """Return the size of each layer's weight by the node that reads it; weights too small to code are missing.

        Raises:
            InvalidModelError: The file is not what it is said to be.
            UnsupportedError: Layers of this format cannot be told apart.
        """
        ...
