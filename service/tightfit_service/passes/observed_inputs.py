"""Moments of what layers read, observed on calibration samples in onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto

from tightfit_service.application.samples import Samples
from tightfit_service.graph.structure import Array, attribute, graph_inputs
from tightfit_service.passes.low_rank_factors import InputMoments, Matrix, input_moments

LARGEST_PATCH = 2304
"""Inputs per output beyond which moments are not collected: a square matrix of them would not pay."""

_SAMPLES = 128
_BATCH = 16
_PATCHES = 8192
"""Patches seen per layer: several times as many as most layers have inputs per output."""
_ERRORS_ONLY = 3


def observed(
    model: ModelProto, tensors: Sequence[str], samples: Samples
) -> Iterator[Mapping[str, npt.NDArray[np.float32]]]:
    """Yield the values of the named tensors for up to 128 samples, a few at a time.

    The model must have one input.
    """
    watched = ModelProto()
    watched.CopyFrom(model)
    have = {output.name for output in watched.graph.output}
    inputs = graph_inputs(model)
    wanted = [name for name in dict.fromkeys(tensors) if name not in inputs]
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in wanted
        if name not in have
    )
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    spread = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), _SAMPLES)).astype(int))
    for batch, _ in samples.take(spread).batches(_BATCH):
        values = session.run(wanted, {inputs[0]: batch}) if wanted else []
        yield {inputs[0]: batch, **dict(zip(wanted, values, strict=True))}


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A convolution or dense layer whose patches are to be observed.

    Attributes:
        weight: (out, in, *kernel).
        centred: Whether the layer has a bias that can take the mean's part.
    """

    node: NodeProto
    weight: Array
    centred: bool


@dataclass(kw_only=True, eq=False)
class _Sums:
    size: int
    count: int = 0
    total: Matrix = field(init=False)
    products: Matrix = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.size)
        self.products = np.zeros((self.size, self.size))

    def add(self, rows: Matrix) -> None:
        self.count += len(rows)
        self.total += rows.sum(axis=0)
        self.products += rows.T @ rows


def observed_moments(
    model: ModelProto, layers: Sequence[Layer], samples: Samples, *, seed: int
) -> dict[str, InputMoments]:
    """Return the moments of the patches that each layer reads, by node name.

    Positions are drawn at random. Layers with more than LARGEST_PATCH inputs per output are left out,
    and so is everything where the model has several inputs or there are no samples.
    """
    if len(graph_inputs(model)) != 1 or not len(samples):
        return {}
    sums = {
        layer.node.name: _Sums(size=math.prod(layer.weight.shape[1:]))
        for layer in layers
        if math.prod(layer.weight.shape[1:]) <= LARGEST_PATCH
    }
    chosen = [layer for layer in layers if layer.node.name in sums]
    per_batch = max(1, _PATCHES * _BATCH // min(len(samples), _SAMPLES))
    rng = np.random.default_rng(seed)
    for values in observed(model, [layer.node.input[0] for layer in chosen], samples):
        for layer in chosen:
            rows = patches(layer.node, layer.weight, values[layer.node.input[0]], per_batch, rng)
            sums[layer.node.name].add(rows)
    return {
        layer.node.name: input_moments(
            found.count, found.total, found.products, centred=layer.centred
        )
        for layer in chosen
        if (found := sums[layer.node.name]).count
    }


def patches(
    node: NodeProto,
    weight: Array,
    values: npt.NDArray[np.float32],
    most: int,
    rng: np.random.Generator,
) -> Matrix:
    """Return up to `most` random patches (count, in * taps) of what a layer multiplies."""
    kernel = weight.shape[2:]
    if not kernel:
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        return rows if len(rows) <= most else rows[rng.choice(len(rows), most, replace=False)]
    strides = attribute(node, "strides") or [1] * len(kernel)
    dilations = attribute(node, "dilations") or [1] * len(kernel)
    begins, ends = explicit_pads(node, values.shape[2:], kernel)
    padded = np.pad(values, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
    sizes = [
        (whole - dilation * (taps - 1) - 1) // stride + 1
        for whole, dilation, taps, stride in zip(
            padded.shape[2:], dilations, kernel, strides, strict=True
        )
    ]
    positions = len(values) * math.prod(sizes)
    flat = np.arange(positions) if positions <= most else rng.choice(positions, most, replace=False)
    sample, *corner = np.unravel_index(flat, (len(values), *sizes))
    index: list[npt.NDArray[np.intp]] = []
    for axis, (start, stride, dilation) in enumerate(zip(corner, strides, dilations, strict=True)):
        shape = [1] * len(kernel)
        shape[axis] = kernel[axis]
        taps_at = (np.arange(kernel[axis]) * dilation).reshape(1, *shape)
        index.append((start * stride).reshape(-1, *[1] * len(kernel)) + taps_at)
    last = np.moveaxis(padded, 1, -1)
    found = last[(sample.reshape(-1, *[1] * len(kernel)), *index)]
    return np.asarray(np.moveaxis(found, -1, 1).reshape(len(flat), -1), dtype=np.float64)


def explicit_pads(
    node: NodeProto, sizes: Sequence[int], kernel: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return what a convolution pads before and after each spatial axis, auto_pad resolved."""
    rank = len(kernel)
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode not in {"SAME_UPPER", "SAME_LOWER"}:
        pads = [0] * 2 * rank if mode == "VALID" else attribute(node, "pads") or [0] * 2 * rank
        return pads[:rank], pads[rank:]
    strides = attribute(node, "strides") or [1] * rank
    dilations = attribute(node, "dilations") or [1] * rank
    totals = [
        max(0, (-(-size // stride) - 1) * stride + dilation * (taps - 1) + 1 - size)
        for size, stride, dilation, taps in zip(sizes, strides, dilations, kernel, strict=True)
    ]
    small = [total // 2 for total in totals]
    large = [total - total // 2 for total in totals]
    return (small, large) if mode == "SAME_UPPER" else (large, small)
