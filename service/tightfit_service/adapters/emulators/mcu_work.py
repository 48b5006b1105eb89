"""The work that one operator is for a microcontroller's kernels, as amounts per kind of instruction loop."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tightfit_service.adapters.emulators.multiples import next_multiple
from tightfit_service.domain.network import Operator, OperatorKind

FLASH = "flash"
TERM_GROUPS: Mapping[str, str] = {
    "conv_mac": "gemm",
    "pointwise_mac": "gemm",
    "patch_element": "gemm",
    "conv_row": "gemm",
    "conv_output": "gemm",
    "depthwise_mac": "depthwise",
    "depthwise_output": "depthwise",
    "dense_mac": "dense",
    "weight_byte": FLASH,
    "elementwise": "data",
    "pool": "data",
    "reduce": "data",
    "copy": "data",
    "nonlinear": "data",
    "resize": "data",
    "layer": "layer",
}
"""Every term, and the group in which cores and runtimes speed terms up or down together.

What comes from flash takes as long as its wait states and lines say: no runtime changes that.
"""

_FREE = frozenset({OperatorKind.RESHAPE})
_COPIES = frozenset(
    {
        OperatorKind.PAD,
        OperatorKind.CONCAT,
        OperatorKind.SLICE,
        OperatorKind.TRANSPOSE,
        OperatorKind.OTHER,
    }
)
_NONLINEAR_OPS = frozenset(
    {
        "Sigmoid",
        "Tanh",
        "HardSigmoid",
        "HardSwish",
        "Elu",
        "Gelu",
        "Erf",
        "Softplus",
        "Mish",
        "Swish",
    }
)
SIMD_TAPS = 4
"""Products per inner step of the int8 dot-product loops (CMSIS-NN unrolls the patch by four)."""


def work_of(operator: Operator, channel_multiple: int = 1) -> dict[str, float]:
    """Return the amounts of each term of TERM_GROUPS that the operator needs; zero terms are left out.

    Convolutions follow the matrix-multiplication scheme of CMSIS-NN (L. Lai, N. Suda and V. Chandra,
    "CMSIS-NN: Efficient Neural Network Kernels for Arm Cortex-M CPUs", arXiv:1801.06601): patches are
    gathered and widened (`patch_element`, not for 1x1), each row of a filter starts a loop (`conv_row`),
    products run over the patch in fours (`conv_mac`, `pointwise_mac`), each output is requantised once
    (`conv_output`), and each weight is fetched from flash at least once (`weight_byte`). Widths are rounded
    up to `channel_multiple`.
    """
    kind = operator.kind
    if kind in _FREE:
        return {}
    pixels = math.prod(operator.out_size)
    amounts: dict[str, float]
    if kind in (OperatorKind.CONV, OperatorKind.TRANSPOSED_CONV):
        amounts = _convolution(operator, pixels, channel_multiple)
    elif kind is OperatorKind.DEPTHWISE_CONV:
        outputs = float(pixels * next_multiple(operator.out_channels, channel_multiple))
        amounts = {
            "depthwise_mac": outputs * math.prod(operator.kernel),
            "depthwise_output": outputs,
            "weight_byte": operator.weight_bytes,
        }
    elif kind in (OperatorKind.DENSE, OperatorKind.MATMUL, OperatorKind.RECURRENT):
        amounts = _dense(operator, channel_multiple)
    elif kind is OperatorKind.OTHER and operator.macs:
        # a Fourier transform: products that share nothing, as those of a dense layer
        amounts = {"dense_mac": float(operator.macs)}
    elif kind is OperatorKind.POOL and pixels > 1:
        amounts = {"pool": float(operator.out_channels * pixels * math.prod(operator.kernel))}
    elif kind in (OperatorKind.POOL, OperatorKind.GLOBAL_POOL):
        amounts = {"reduce": float(max(operator.in_channels * math.prod(operator.in_size), 1))}
    else:
        amounts = {_elementwise_term(operator): float(max(operator.out_channels, 1) * pixels)}
    amounts["layer"] = 1.0
    return amounts


def _convolution(operator: Operator, pixels: int, channel_multiple: int) -> dict[str, float]:
    groups = max(operator.groups, 1)
    taps = max(math.prod(operator.kernel), 1) * max(operator.in_channels // groups, 1)
    outputs = float(pixels * next_multiple(operator.out_channels, channel_multiple))
    products = outputs * next_multiple(taps, SIMD_TAPS)
    if operator.kind is OperatorKind.TRANSPOSED_CONV:
        products = max(products, float(operator.macs))
    amounts = {"conv_output": outputs, "weight_byte": operator.weight_bytes}
    if math.prod(operator.kernel) == 1 and max(operator.stride, default=1) == 1:
        amounts["pointwise_mac"] = products
    else:
        amounts["conv_mac"] = products
        amounts["patch_element"] = float(pixels * taps * groups)
        amounts["conv_row"] = outputs * math.prod(operator.kernel[:-1])
    return amounts


def _dense(operator: Operator, channel_multiple: int) -> dict[str, float]:
    rounding = 1.0
    if operator.out_channels:
        rounding = next_multiple(operator.out_channels, channel_multiple) / operator.out_channels
    return {"dense_mac": operator.macs * rounding, "weight_byte": operator.weight_bytes}


def _elementwise_term(operator: Operator) -> str:
    if operator.kind is OperatorKind.SOFTMAX or operator.op_type in _NONLINEAR_OPS:
        return "nonlinear"
    if operator.kind is OperatorKind.RESIZE:
        return "resize"
    if operator.kind in _COPIES:
        return "copy"
    return "elementwise"
