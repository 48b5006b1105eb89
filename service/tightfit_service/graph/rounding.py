"""Scales and zero points of integer formats, and rounding to them, in numpy.

The files that are exported, and training that simulates them, both take their numbers from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_SMALLEST_SPAN = 1e-12
"""What spans less counts as zero throughout; kernels divide by scales."""
_CLIP_SHARES = np.linspace(1.0, 0.4, 61)
"""Shares of a channel's largest weight that are tried as its range; with 15 levels the best one of
a normal distribution is near 0.6 (Banner et al., NeurIPS 2019), and 1 is among them."""


@dataclass(frozen=True, kw_only=True)
class IntegerScale:
    """How integers stand for numbers: `value = scale * (integer - zero_point)`."""

    scale: float
    zero_point: int


def activation_scale(low: float, high: float, *, bits: int) -> IntegerScale:
    """Return how activations in a range are stored; `low <= 0 <= high` is enforced by widening.

    8 bits are asymmetric, 256 levels from -128 to 127. 16 bits are symmetric (zero point 0, levels
    -32767 to 32767), as TFLite's 16x8 kernels ask. The scale is rounded to float32, in which files
    store it, before the zero point is computed from it. What is zero throughout is stored as if it
    reached 1: XNNPACK fails on a product whose scale is many times its output's, and may end the process.
    """
    low, high = min(0.0, float(low)), max(0.0, float(high))
    if bits == 16:
        reach = max(-low, high)
        scale = float(np.float32((reach if reach > _SMALLEST_SPAN else 1.0) / 32767))
        return IntegerScale(scale=scale, zero_point=0)
    span = high - low
    scale = float(np.float32((span if span > _SMALLEST_SPAN else 1.0) / 255))
    zero_point = int(np.clip(np.rint(-128 - low / scale), -128, 127))
    return IntegerScale(scale=scale, zero_point=zero_point)


def centred(low: float, high: float) -> tuple[float, float]:
    """Return the least range around one whose zero point, with 8 bits, is 0."""
    least, most = activation_levels(8)
    reach = max(float(low) * most / least, float(high))
    return reach * least / most, reach


def activation_levels(bits: int) -> tuple[int, int]:
    """Return the least and the greatest integer of an activation."""
    return (-128, 127) if bits == 8 else (-32768, 32767)


def weight_levels(bits: int) -> int:
    """Return the greatest integer of a weight, 127 or 7; the least is its negative."""
    return int(2 ** (bits - 1)) - 1


def weight_scales(weight: FloatArray, *, axis: int | None, bits: int) -> FloatArray:
    """Return the scales of a weight: one per index of `axis`, shape (n,), or a single one for None.

    Weights are symmetric: zero point 0, levels -127 to 127 or -7 to 7. With 8 bits the largest
    absolute value of a channel becomes 127. With 4 bits the scale is the one, of 61 that clip down
    to 0.4 of the largest value, whose rounding has the least squared error over the channel;
    weights that are on a grid of 4 bits already keep it, for it has no error. Channels that are
    zero throughout, such as pruned ones, take the largest scale of the others.
    """
    rows = (
        weight.reshape(1, -1)
        if axis is None
        else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    ).astype(np.float64)
    levels = weight_levels(bits)
    peaks: npt.NDArray[np.float64] = np.abs(rows).max(axis=1, initial=0.0)
    is_zero = peaks < _SMALLEST_SPAN
    peaks[is_zero] = 1.0 if is_zero.all() else peaks.max()
    widest = peaks / levels
    best: FloatArray = widest.astype(np.float32)
    if bits >= 8:
        return best
    least = np.full(len(rows), np.inf)
    for share in _CLIP_SHARES:
        scale = (widest * share).astype(np.float32)
        grid = scale[:, None].astype(np.float64)
        steps = np.clip(np.rint(rows / grid), -levels, levels)
        error = ((steps * grid - rows) ** 2).sum(axis=1)
        best = np.where(error < least, scale, best).astype(np.float32)
        least = np.minimum(error, least)
    return best


def rounded_weight(
    weight: FloatArray, scales: FloatArray, *, axis: int | None, bits: int
) -> npt.NDArray[np.int8]:
    """Return the integers of a weight: divided by its scales, rounded half to even, clipped."""
    shape: Sequence[int] = [1] * weight.ndim
    if axis is not None:
        shape = [-1 if place == axis % weight.ndim else 1 for place in range(weight.ndim)]
    levels = weight_levels(bits)
    steps = np.rint(weight.astype(np.float64) / scales.astype(np.float64).reshape(shape))
    return np.asarray(np.clip(steps, -levels, levels), dtype=np.int8)


def rounded_activation(
    values: FloatArray, scale: IntegerScale, *, bits: int
) -> npt.NDArray[np.int32]:
    """Return the integers of activations: divided, rounded half to even, shifted, clipped."""
    low, high = activation_levels(bits)
    steps = np.rint(values.astype(np.float64) / scale.scale) + scale.zero_point
    return np.asarray(np.clip(steps, low, high), dtype=np.int32)


def scales_for_bias(scales: FloatArray, bias: FloatArray, input_scale: float) -> FloatArray:
    """Return a weight's scales, raised where the bias would not fit into 32 bits otherwise.

    That happens in channels with next to no weights: their bias is in steps of next to nothing.
    """
    least = np.abs(bias.astype(np.float64)) / (float(input_scale) * 2.0**30)
    if scales.size == 1:
        least = least.max(initial=0.0, keepdims=True)
    return np.maximum(scales, least.astype(np.float32))


def rounded_bias(
    bias: FloatArray, input_scale: float, scales: FloatArray, *, bits: int
) -> npt.NDArray[np.int64]:
    """Return the integers of a bias, whose scale is that of the input times that of the weight.

    They are rounded half to even and clipped to `bits`: 32 behind activations of 8 bits, 64 behind
    those of 16. The product of the scales is taken in float32, as kernels take it.
    """
    product = np.float32(input_scale) * scales.astype(np.float32)
    limit = 2.0 ** (bits - 1) - 2**10
    steps = np.rint(bias.astype(np.float64) / product.astype(np.float64))
    return np.clip(steps, -limit, limit).astype(np.int64)
