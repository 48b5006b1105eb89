"""Models brought into working form and read as work to be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tightfit_service.application.samples import FloatArray
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.network import NetworkProfile


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
        source_format: Format of the file it came as.
    """

    graph: bytes
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    opset: int
    node_count: int
    parameter_count: int
    macs: int
    is_quantized: bool = False
    source_format: ModelFormat = ModelFormat.ONNX
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

    def architecture(self, graph: bytes) -> tuple[str, ...]:
        """Return one line per node; graphs with equal lines take the same recipe."""
        ...
