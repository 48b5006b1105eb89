"""Rounding of weights to integers, symmetric around zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from tightfit_service.graph.structure import Array, attribute

_CLIP_STEPS = 40
"""Candidate scales, from the largest weight down to a third of it."""
_SMALLEST_CLIP = 0.33
_TINY = 1e-30
_WEAKEST_CHANNEL = 2.0**-20
"""Smallest scale, as a share of the largest. Channels that folding has all but switched off would
otherwise have biases of more steps than int32 counts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundedWeight:
    """Weights that integers can hold.

    Attributes:
        values: What the integers stand for, in the shape of the weights.
        scales: Step per channel, shape (channels,), or (1,) for one per tensor.
    """

    values: Array
    scales: npt.NDArray[np.float64]


def weight_axis(node: NodeProto, rank: int) -> int:
    """Return the axis of a product's weights that its output channels lie on.

    For ConvTranspose that is the axis of the channels of one group.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else rank - 1


def round_weight(weight: Array, *, axis: int | None, bits: int) -> RoundedWeight:
    """Round weights to integers of 4 or 8 bits.

    int8 spans the largest weight by 127 steps. Of int4, whose 16 levels are few, each channel has
    the scale with the least squared error of rounding and clipping (-8 to 7), which
    R. Banner et al., "Post training 4-bit quantization of convolutional networks for rapid-deployment"
    (NeurIPS 2019), derive from a model of the distribution and which is searched for here.

    Args:
        weight: Any shape.
        axis: Axis of the channels that have a scale each; None for one scale.
        bits: 4 or 8.
    """
    rows = np.asarray(weight, dtype=np.float64)
    moved = rows.reshape(1, -1) if axis is None else np.moveaxis(rows, axis, 0)
    flat = moved.reshape(len(moved), -1)
    peaks = np.abs(flat).max(axis=1)
    peaks = np.maximum(peaks, max(_WEAKEST_CHANNEL * peaks.max(), _TINY))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scales = peaks / high
    if bits < 8:
        scales = _least_error_scales(flat, scales, low, high)
    rounded = np.clip(np.round(flat / scales[:, None]), low, high) * scales[:, None]
    values = rounded.reshape(moved.shape)
    if axis is not None:
        values = np.moveaxis(values, 0, axis)
    return RoundedWeight(values=values.reshape(rows.shape), scales=scales)


def _least_error_scales(
    flat: Array, widest: npt.NDArray[np.float64], low: int, high: int
) -> npt.NDArray[np.float64]:
    best = widest
    least = np.full(len(flat), np.inf)
    for share in np.linspace(1.0, _SMALLEST_CLIP, _CLIP_STEPS):
        scales = widest * share
        rounded = np.clip(np.round(flat / scales[:, None]), low, high) * scales[:, None]
        error = ((rounded - flat) ** 2).sum(axis=1)
        best = np.where(error < least, scales, best)
        least = np.minimum(error, least)
    return best
