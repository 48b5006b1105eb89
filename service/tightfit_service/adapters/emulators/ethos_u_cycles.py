"""Cycles of operators on Ethos-U55 and U65 as Vela counts them, with blocks of outputs that are not searched for.

After `npu_performance.py`, `architecture_allocator.py` and `architecture_features.py` of Arm's Vela 5.2. Outputs are
computed in blocks: while the products of one are summed up, those of the block before are scaled and written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tightfit_service.adapters.emulators.multiples import next_multiple
from tightfit_service.domain.hardware import Accelerator, AcceleratorKind, NumberFormat
from tightfit_service.domain.network import Operator, OperatorKind

KIB = 1024
STEP_CYCLES = 4
"""Of a micro block of outputs: 8 products per multiplier and cycle, 32 channels at a time."""
DECODE_CYCLES = 4
"""Per channel of a micro block: its weights of one step are decoded at least as long."""
SUB_KERNEL = 8
"""Kernels are computed in parts of at most so many rows and columns."""
ACCUMULATOR_BYTES = 2 * 4
"""Of 32 bits, one being summed up while another is written; half of the shared buffer holds them."""
BIAS_CYCLES = 10 * 64 / 256
"""Per channel, 10 bytes of bias and scale: bursts of 256 bytes from flash with a latency of 64 cycles."""
LATENCY_CYCLES = 64
"""Of the first input read from RAM and the last output written, 32 each."""
ISSUED_AHEAD = 4
"""Blocks take no less than a quarter of all that happens to them: so much is issued at a time."""
OUTPUT_MACS, MULTIPLIED_MACS, ADDED_MACS = 64, 96, 192
"""Multiply-accumulates that could be done while an output is scaled and written, two are multiplied, or added."""
POOLED_CYCLES = 4
"""Per element of a window and micro block."""
SOFTMAX_STEPS, SOFTMAX_PASSES = 28, 6
"""Operators that Vela makes of a softmax, and how many of them go over all its elements (`softmax.py`)."""
BRICK = 16
"""Channels that feature maps are rounded up to."""


@dataclass(frozen=True, kw_only=True)
class EthosUnit:
    """What one configuration computes at a time.

    Attributes:
        macs: Multiply-accumulates per cycle in int8, all cores together.
        height: Of a micro block of outputs, in pixels.
        width: Of a micro block of outputs, in pixels.
        depth: Of a micro block of outputs, in channels.
        shared_bytes: Buffer for inputs and accumulators.
        cores: Each with its own micro blocks.
    """

    macs: int
    height: int
    width: int
    depth: int
    shared_bytes: int
    cores: int = 1

    @property
    def block_elements(self) -> int:
        """Outputs of a block, about."""
        return self.shared_bytes // 2 // ACCUMULATOR_BYTES


UNITS: Mapping[int, EthosUnit] = {
    unit.macs: unit
    for unit in (
        EthosUnit(macs=32, height=1, width=1, depth=4, shared_bytes=16 * KIB),
        EthosUnit(macs=64, height=1, width=1, depth=8, shared_bytes=16 * KIB),
        EthosUnit(macs=128, height=1, width=2, depth=8, shared_bytes=24 * KIB),
        EthosUnit(macs=256, height=2, width=2, depth=8, shared_bytes=48 * KIB),
        EthosUnit(macs=512, height=2, width=2, depth=8, shared_bytes=48 * KIB, cores=2),
    )
}


def unit_of(accelerator: Accelerator) -> EthosUnit | None:
    """Return what an accelerator computes at a time; None for others than those of Ethos-U55 and U65."""
    if accelerator.kind not in (AcceleratorKind.ETHOS_U55, AcceleratorKind.ETHOS_U65):
        return None
    return UNITS.get(round(accelerator.macs_per_cycle.get(NumberFormat.INT8, 0)))


def busy_cycles(operator: Operator, unit: EthosUnit, moved_cycles: float) -> float:
    """Return the cycles of an operator, weights being there in time.

    Args:
        operator: Any that runs on Ethos-U.
        unit: What computes it.
        moved_cycles: For reading its inputs and writing its outputs once.
    """
    if operator.kind is OperatorKind.SOFTMAX:
        return _softmax_cycles(operator, unit)
    products = _product_cycles(operator, unit)
    if not products:
        return max(_elementwise_cycles(operator, unit), moved_cycles) + LATENCY_CYCLES
    outputs = max(
        OUTPUT_MACS / unit.macs * _elements(operator), BIAS_CYCLES * operator.out_channels
    )
    blocks = math.ceil(_elements(operator) / unit.block_elements)
    issued = (products + outputs + moved_cycles) / ISSUED_AHEAD
    alone = max(min(products, outputs), issued) / blocks
    return max(products, outputs, issued) + alone + LATENCY_CYCLES


def by_kernel(operator: Operator) -> bool:
    """Whether sums go over 4 elements of the kernel and 16 channels at a time, not over 32 channels.

    Vela takes what wastes less (`_choose_kernel_method`), and the former where both waste alike, as its
    reports show: 24 channels may take longer than 32. In 16 bits it is two elements, and 16 channels.
    """
    channels = _summed_channels(operator)
    if channels <= BRICK // 2:
        return True
    is_wide = operator.activation_bits > 8
    elements = math.prod(operator.kernel)
    by_elements = next_multiple(channels, 8) * next_multiple(elements, 2 if is_wide else 4)
    return elements * next_multiple(channels, 16 if is_wide else 32) >= by_elements


def _product_cycles(operator: Operator, unit: EthosUnit) -> float:
    """Return the cycles in which products are summed up, 0 for operators without."""
    if operator.kind in (OperatorKind.CONV, OperatorKind.TRANSPOSED_CONV):
        steps = _convolution_steps(operator)
    elif operator.kind is OperatorKind.DEPTHWISE_CONV:
        wide = 2 if operator.activation_bits > 8 else 1
        steps = wide * sum(_over(elements, 4) for elements in _sub_kernels(operator.kernel))
    elif operator.kind is OperatorKind.DENSE:
        steps = _over(_summed_channels(operator), 16 if operator.activation_bits > 8 else 32)
    elif operator.kind in (OperatorKind.POOL, OperatorKind.GLOBAL_POOL):
        window = operator.kernel or operator.in_size
        elements = sum(max(4, elements) for elements in _sub_kernels(window))
        wide = 2 if operator.activation_bits > 8 else 1
        return POOLED_CYCLES * wide * elements * _pixels(operator, unit) * _depths(operator, unit)
    else:
        return 0.0
    at_least = DECODE_CYCLES * unit.depth
    per_step = max(at_least, STEP_CYCLES * _pixels(operator, unit))
    return per_step * steps * _depths(operator, unit) / unit.cores


def _convolution_steps(operator: Operator) -> int:
    """Return how often a micro block adds up products for all its sums."""
    channels, is_wide = _summed_channels(operator), operator.activation_bits > 8
    kernels = _sub_kernels(operator.kernel)
    if not by_kernel(operator):
        return sum(kernels) * _over(channels, 16 if is_wide else 32)
    rounded = next_multiple(channels, 8 if channels <= BRICK // 2 else BRICK)
    return sum(_over(elements, 2 if is_wide else 4) for elements in kernels) * rounded // 8


def _elementwise_cycles(operator: Operator, unit: EthosUnit) -> float:
    macs = OUTPUT_MACS
    if operator.kind is OperatorKind.ELEMENTWISE:
        macs = {"Add": ADDED_MACS, "Sub": ADDED_MACS, "Mul": MULTIPLIED_MACS}.get(
            operator.op_type, OUTPUT_MACS
        )
    per_element = macs / unit.macs
    if operator.kind is OperatorKind.ACTIVATION and operator.op_type not in ("Relu", "Clip"):
        # looked up in a table
        per_element = max(per_element, 1 / unit.cores)
    channels = max(operator.out_channels, 1)
    return per_element * _elements(operator) / channels * next_multiple(channels, BRICK)


def _softmax_cycles(operator: Operator, unit: EthosUnit) -> float:
    per_element = SOFTMAX_PASSES * MULTIPLIED_MACS / unit.macs
    return per_element * _elements(operator) + SOFTMAX_STEPS * LATENCY_CYCLES / 2


def _sub_kernels(kernel: tuple[int, ...]) -> list[int]:
    """Return the elements of each part of a kernel."""
    parts = [1]
    for size in kernel:
        sizes = [min(SUB_KERNEL, size - begin) for begin in range(0, size, SUB_KERNEL)]
        parts = [elements * size for elements in parts for size in sizes]
    return parts


def _pixels(operator: Operator, unit: EthosUnit) -> int:
    """Return the micro blocks that the pixels of the output take."""
    *_, height, width = (1, 1, *operator.out_size)
    rest = math.prod(operator.out_size[:-2])
    *_, kernel_height, _ = (1, 1, *operator.kernel)
    if height == 1 and unit.height > 1 and kernel_height == 1:
        # a micro block is then one row
        return rest * _over(width, unit.height * unit.width)
    return rest * _over(height, unit.height) * _over(width, unit.width)


def _depths(operator: Operator, unit: EthosUnit) -> int:
    """Return the micro blocks that the channels of the output take; groups are computed one by one."""
    groups = 1 if operator.kind is OperatorKind.DEPTHWISE_CONV else max(operator.groups, 1)
    return groups * _over(max(operator.out_channels // groups, 1), unit.depth)


def _summed_channels(operator: Operator) -> int:
    return max(operator.in_channels // max(operator.groups, 1), 1)


def _elements(operator: Operator) -> int:
    return max(operator.out_channels, 1) * math.prod(operator.out_size)


def _over(count: int, size: int) -> int:
    return -(-count // size)
