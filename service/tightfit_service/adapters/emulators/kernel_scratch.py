"""The scratch memory that a runtime's kernels need beside the tensors, in bytes per operator."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tightfit_service.domain.network import Operator, OperatorKind

FLOAT_BITS = 32


@dataclass(frozen=True, kw_only=True)
class ScratchRule:
    """Bytes of scratch by kind of kernel; every figure is zero where a runtime needs none.

    Attributes:
        patch_ratio: Per element of a filter's patch, in convolutions of integers.
        pointwise_ratio: Per input channel, in convolutions of 1x1.
        float_patch_ratio: Per element of a filter's patch, in convolutions in floating point.
        weight_ratio: Per weight of a convolution larger than 1x1, up to `weight_limit` bytes.
        conv_channel_bytes: Per output channel of a convolution larger than 1x1.
        pointwise_channel_bytes: Per output channel of a convolution of 1x1.
        depthwise_tap_bytes: Per weight of a depthwise convolution.
        depthwise_channel_bytes: Per channel of a depthwise convolution.
        dense_ratio: Per input of a dense layer.
    """

    patch_ratio: float = 0.0
    pointwise_ratio: float = 0.0
    float_patch_ratio: float = 0.0
    weight_ratio: float = 0.0
    weight_limit: float = math.inf
    conv_channel_bytes: float = 0.0
    pointwise_channel_bytes: float = 0.0
    depthwise_tap_bytes: float = 0.0
    depthwise_channel_bytes: float = 0.0
    dense_ratio: float = 0.0


CMSIS_NN_SCRATCH = ScratchRule(patch_ratio=4.0, depthwise_tap_bytes=2.0)
"""CMSIS-NN on cores with DSP instructions: two patches widened to int16
(`arm_convolve_s8_get_buffer_size`), nothing for convolutions of 1x1, one widened patch of all channels
for depthwise ones (`arm_depthwise_conv_s8_opt_get_buffer_size_dsp`: channels x taps x 2 bytes)."""

X_CUBE_AI_SCRATCH = ScratchRule(
    patch_ratio=4.0,
    pointwise_ratio=4.0,
    float_patch_ratio=4.0,
    weight_ratio=2.0,
    weight_limit=5120.0,
    conv_channel_bytes=14.0,
    pointwise_channel_bytes=10.0,
    depthwise_tap_bytes=3.0,
    depthwise_channel_bytes=10.0,
    dense_ratio=2.0,
)
"""X-CUBE-AI, as the network.c that it generates declares its scratch arrays for int8 with scales per
channel. `forward_conv2d_sssa8_ch` takes 4 x patch + min(2 x weights, 5120) + 14 x outputs: 652 bytes for
3x3x3 to 8, 2816 for 3x3x8 to 16, 6144 for 3x3x16 to 32, 7232 for 3x1x64 to 96 (10 rather than 14 per
output in releases up to 7.3). 1x1 takes 4 x inputs + 10 x outputs: 448 for 32 to 32. Depthwise takes
3 x weights + 10 x channels + 1: 1185 for 3x3 on 32. `forward_dense_integer_SSSA` widens its inputs to
int16. Convolutions in floating point keep one patch."""


@dataclass(frozen=True)
class Scratch:
    """Scratch bytes by what they grow with: the channels of the input, of the output, or neither."""

    of_input: float = 0.0
    of_output: float = 0.0
    fixed: float = 0.0


def scratch_of(operator: Operator, rule: ScratchRule) -> Scratch:
    """Return the scratch of one operator; all zero for kinds whose kernels work in place."""
    is_float = operator.activation_bits >= FLOAT_BITS
    if operator.kind is OperatorKind.CONV:
        return _of_convolution(operator, rule, is_float=is_float)
    if operator.kind is OperatorKind.DEPTHWISE_CONV and not is_float:
        taps = math.prod(operator.kernel) * operator.out_channels
        return Scratch(
            of_input=rule.depthwise_tap_bytes * taps
            + rule.depthwise_channel_bytes * operator.out_channels
        )
    if operator.kind is OperatorKind.DENSE and not is_float:
        return Scratch(of_input=rule.dense_ratio * operator.in_channels)
    return Scratch()


def _of_convolution(operator: Operator, rule: ScratchRule, *, is_float: bool) -> Scratch:
    patch = math.prod(operator.kernel) * operator.in_channels // max(operator.groups, 1)
    if is_float:
        return Scratch(of_input=rule.float_patch_ratio * patch)
    if math.prod(operator.kernel) == 1:
        return Scratch(
            of_input=rule.pointwise_ratio * patch,
            of_output=rule.pointwise_channel_bytes * operator.out_channels,
        )
    of_output = rule.conv_channel_bytes * operator.out_channels
    weights = rule.weight_ratio * patch * operator.out_channels
    if weights > rule.weight_limit:
        return Scratch(rule.patch_ratio * patch, of_output, rule.weight_limit)
    return Scratch(rule.patch_ratio * patch, of_output + weights)
