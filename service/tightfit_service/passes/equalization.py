"""Cross-layer equalization of weights, with which one scale per tensor loses less.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto

from tightfit_service.application.ports import PassContext
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.graph.batch_norm import fold_batch_norms
from tightfit_service.graph.fusion import PRODUCTS
from tightfit_service.graph.model_file import load_model, save_model
from tightfit_service.graph.structure import (
    Array,
    Shape,
    attribute,
    consumers,
    graph_outputs,
    initializers,
    set_initializer,
    tensor_shapes,
)
from tightfit_service.passes.activation_values import activations
from tightfit_service.passes.number_formats import INTEGER_FORMATS

_HOMOGENEOUS = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "PRelu",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "Dropout",
        "Flatten",
    }
)
"""f(s x) = s f(x) for every channel and s > 0, so that a scale passes through. Clip (ReLU6) is not:
chains end there. Reshape and Squeeze are, where the channels stay in front."""
_ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "PRelu"})
_SWEEPS = 30
_SETTLED = 1e-3
_LARGEST_SCALE = 32.0
"""Of a channel, over all sweeps."""
_OBSERVED_SAMPLES = 128
_TINY = 1e-20


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two products in a row, between which nothing but homogeneous functions stand."""

    first: NodeProto
    second: NodeProto
    between: str
    """The first product's output behind its activation."""


@dataclass(kw_only=True)
class _Channels:
    """State of the channels between two products.

    Attributes:
        reach: Largest magnitude of each channel, as it is now.
        limit: Largest of them all at the start, which no channel may come to exceed: activations
            share one scale per tensor, and must not lose what weights gain.
        total: What each channel has been divided by so far.
    """

    reach: npt.NDArray[np.float64]
    limit: float
    total: npt.NDArray[np.float64]

    def bounded(self, scales: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the scales so far as they are allowed, and count them in."""
        least = self.reach / self.limit if self.limit > _TINY else np.zeros_like(scales)
        wanted = np.clip(self.total * np.maximum(scales, least), 1 / _LARGEST_SCALE, _LARGEST_SCALE)
        allowed = wanted / self.total
        self.total, self.reach = wanted, self.reach / allowed
        return allowed


class EqualizationPass:
    """Implements `ports.GraphPass`; takes no parameters. The network computes the same as before.

    Output channels of a product are divided, and input channels of the next one multiplied, by the
    scale that gives both the same largest weight; depthwise chains are swept until nothing moves.
    It helps where weights have one scale per tensor. No channel comes to exceed the largest one of
    its tensor, as seen on calibration samples, or else by its bias: where the paper absorbs large
    biases into the next layer, channels are scaled less here. BatchNorm is folded on the way.
    """

    name = "equalization"

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        """Return one sentence for each reason why the pass cannot help there; none when it can."""
        reasons = []
        if not INTEGER_FORMATS & set(target.number_formats):
            reasons.append(f"{target.name} computes in floats, whose precision follows the values")
        model = fold_batch_norms(load_model(graph))
        if not _pairs(model):
            reasons.append(
                "no two layers follow each other with nothing but Relu, PRelu or pooling between"
            )
        return tuple(reasons)

    def check(self, graph: bytes, parameters: Mapping[str, Any]) -> None:
        """Check parameters against a graph.

        Raises:
            InvalidRequestError: Any parameter, for there are none.
        """
        del graph
        for key in parameters:
            raise InvalidRequestError(
                f"equalization has no parameter {key!r}",
                field=f"parameters.{key}",
                remedy="leave parameters empty",
            )

    def apply(self, graph: bytes, parameters: Mapping[str, Any], context: PassContext) -> bytes:
        """Return the graph with equalized weights and BatchNorm folded.

        Raises:
            InvalidRequestError: As `check`.
        """
        self.check(graph, parameters)
        model = onnx.shape_inference.infer_shapes(fold_batch_norms(load_model(graph)))
        constants = initializers(model)
        pairs = _pairs(model)
        values = {
            name: constants[name].astype(np.float64)
            for pair in pairs
            for name in (*_parameters(pair.first), *_parameters(pair.second))
        }
        channels = _channels(model, pairs, context.calibration, values)
        for _ in range(_SWEEPS):
            moved = max(
                (_equalize(pair, values, channels[pair.first.name]) for pair in pairs), default=0.0
            )
            if moved < _SETTLED:
                break
        for name, value in values.items():
            set_initializer(model, name, value.astype(constants[name].dtype))
        return save_model(model)


def _pairs(model: ModelProto) -> list[_Pair]:
    """Return all pairs, in the order of the first node."""
    constants = initializers(model)
    readers = consumers(model.graph)
    shapes = tensor_shapes(model)
    outputs = set(graph_outputs(model))

    def is_free(node: NodeProto) -> bool:
        """Whether weights and bias are constants that nothing else reads."""
        return node.op_type in PRODUCTS and all(
            name in constants and len(readers[name]) == 1 for name in _parameters(node)
        )

    found = []
    for node in model.graph.node:
        if not is_free(node) or constants[node.input[1]].ndim < 2:
            continue
        current, between = node, node.output[0]
        while current.output[0] not in outputs and len(readers.get(current.output[0], ())) == 1:
            current = readers[current.output[0]][0]
            if not _passes_scale(current, shapes, constants):
                break
            if current.op_type in _ACTIVATIONS and between == current.input[0]:
                between = current.output[0]
        if current is not node and is_free(current) and current.input[0] not in constants:
            pair = _Pair(first=node, second=current, between=between)
            if _is_aligned(pair, constants, shapes):
                found.append(pair)
    return found


def _parameters(node: NodeProto) -> tuple[str, ...]:
    return tuple(name for name in node.input[1:3] if name)


def _passes_scale(
    node: NodeProto, shapes: Mapping[str, Shape], constants: Mapping[str, Array]
) -> bool:
    if node.op_type == "PRelu":
        return node.input[1] in constants
    if node.op_type in {"Reshape", "Squeeze"}:
        before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        # Channels in front of positions, or all in one axis: both keep the order of elements.
        return len(after) == 2 and len(before) > 1 and before[0] == after[0]
    if node.op_type == "Flatten":
        return int(attribute(node, "axis", 1)) == 1
    return node.op_type in _HOMOGENEOUS


def _is_aligned(pair: _Pair, constants: Mapping[str, Array], shapes: Mapping[str, Shape]) -> bool:
    """Whether the second product's inputs are the first one's channels, each so many times."""
    channels = len(_by_output(pair.first, constants[pair.first.input[1]]))
    shape = shapes.get(pair.second.input[0], ())
    weight = constants[pair.second.input[1]]
    if pair.second.op_type in {"Conv", "ConvTranspose"}:
        return len(shape) > 2 and shape[1] == channels
    if weight.ndim != 2 or len(shape) != 2 or attribute(pair.second, "transA", 0):
        return False
    return shape[1] % channels == 0


def _channels(
    model: ModelProto,
    pairs: Sequence[_Pair],
    calibration: Samples | None,
    values: Mapping[str, Array],
) -> dict[str, _Channels]:
    """Return the channels behind each first product, with the magnitudes they reach."""
    reaches: dict[str, npt.NDArray[np.float64]] = {}
    for pair in pairs:
        count = len(_by_output(pair.first, values[pair.first.input[1]]))
        bias = np.zeros(1)
        if len(pair.first.input) > 2 and pair.first.input[2]:
            bias = values[pair.first.input[2]].reshape(-1)
        reaches[pair.first.name] = np.abs(np.broadcast_to(bias, count)).astype(np.float64)
    if calibration is not None and len(calibration):
        samples = calibration.take(range(min(_OBSERVED_SAMPLES, len(calibration))))
        seen: dict[str, npt.NDArray[np.float64]] = {}
        names = {pair.between for pair in pairs}
        for batch in activations(model, samples, names=names):
            for name, found in batch.items():
                rows = np.moveaxis(np.abs(found), 1, 0).reshape(found.shape[1], -1)
                seen[name] = np.maximum(seen.get(name, 0.0), rows.max(axis=1))
        reaches.update(
            {pair.first.name: seen[pair.between] for pair in pairs if pair.between in seen}
        )
    return {
        name: _Channels(reach=reach, limit=float(reach.max()), total=np.ones(len(reach)))
        for name, reach in reaches.items()
    }


def _equalize(pair: _Pair, values: dict[str, Array], channels: _Channels) -> float:
    """Scale one pair in `values`; return the largest change as a logarithm."""
    first, second = pair.first, pair.second
    ahead = _by_output(first, values[first.input[1]])
    behind = _by_input(second, values[second.input[1]], len(ahead))
    ranges_ahead = np.abs(ahead).max(axis=1)
    ranges_behind = np.abs(behind).max(axis=1)
    scales = np.ones(len(ahead))
    alive = (ranges_ahead > _TINY) & (ranges_behind > _TINY)
    scales[alive] = np.sqrt(ranges_ahead[alive] / ranges_behind[alive])
    scales = channels.bounded(scales)
    values[first.input[1]] = _output_scaled(first, values[first.input[1]], 1 / scales)
    if len(first.input) > 2 and first.input[2]:
        bias = values[first.input[2]]
        values[first.input[2]] = np.broadcast_to(bias, (*bias.shape[:-1], len(scales))) / scales
    values[second.input[1]] = _input_scaled(second, values[second.input[1]], scales)
    return float(np.abs(np.log(scales)).max())


def _by_output(node: NodeProto, weight: Array) -> Array:
    """Return the weights as one row per output channel."""
    if node.op_type == "Conv":
        return weight.reshape(len(weight), -1)
    if node.op_type == "ConvTranspose":
        groups = int(attribute(node, "group", 1))
        grouped = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        return grouped.transpose(0, 2, 1, 3).reshape(groups * weight.shape[1], -1)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return weight
    return np.moveaxis(weight, -1, 0).reshape(weight.shape[-1], -1)


def _output_scaled(node: NodeProto, weight: Array, scales: npt.NDArray[np.float64]) -> Array:
    if node.op_type == "Conv":
        return weight * scales.reshape(-1, *[1] * (weight.ndim - 1))
    if node.op_type == "ConvTranspose":
        groups = int(attribute(node, "group", 1))
        grouped = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
        factors = scales.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        return np.asarray((grouped * factors).reshape(weight.shape))
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return weight * scales[:, None]
    return weight * scales


def _by_input(node: NodeProto, weight: Array, channels: int) -> Array:
    """Return the weights as one row per channel read."""
    if node.op_type == "Conv":
        groups = int(attribute(node, "group", 1))
        grouped = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        return grouped.transpose(0, 2, 1, 3).reshape(groups * weight.shape[1], -1)
    if node.op_type == "ConvTranspose":
        return weight.reshape(len(weight), -1)
    rows = weight.T if node.op_type == "Gemm" and attribute(node, "transB", 0) else weight
    return rows.reshape(channels, -1)


def _input_scaled(
    node: NodeProto,
    weight: Array,
    scales: npt.NDArray[np.float64],
) -> Array:
    if node.op_type == "Conv":
        groups = int(attribute(node, "group", 1))
        grouped = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
        factors = scales.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        return np.asarray((grouped * factors).reshape(weight.shape))
    if node.op_type == "ConvTranspose":
        return weight * scales.reshape(-1, *[1] * (weight.ndim - 1))
    transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
    rows = weight.shape[1] if transposed else weight.shape[0]
    factors = np.repeat(scales, rows // len(scales))
    return weight * factors if transposed else weight * factors[:, None]
