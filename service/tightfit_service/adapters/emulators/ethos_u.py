"""The emulator of Arm's Ethos-U processors without their compiler; Vela knows more where it is installed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest

from tightfit_service.adapters.emulators import memory_plan
from tightfit_service.adapters.emulators.accelerated import AcceleratedEmulator, PeakRam, Rates
from tightfit_service.adapters.emulators.ethos_u_cycles import busy_cycles, unit_of
from tightfit_service.adapters.emulators.partitions import partitions
from tightfit_service.adapters.emulators.vela import DEFAULT_FLASH_MB_S, DEFAULT_RAM_MB_S
from tightfit_service.domain.cost import MemoryPoint
from tightfit_service.domain.hardware import Accelerator, AcceleratorKind, HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.domain.quantities import Interval

RATES = Rates(
    # Of Ethos-U85; for U55 and U65 see `ethos_u_cycles`. Arm's technical overviews: utilisation of 0.6 to 0.8
    # in large convolutions; depthwise convolutions use one product of each dot product, a fifth of which
    # Vela's estimates show to be reached at best.
    efficiency={
        OperatorKind.CONV: 0.6,
        OperatorKind.TRANSPOSED_CONV: 0.3,
        OperatorKind.DEPTHWISE_CONV: 0.12,
        OperatorKind.DENSE: 0.3,
        OperatorKind.MATMUL: 0.3,
    },
    default=0.1,
    # Vela counts neither the core's call nor the commands between operators.
    overhead_us=0.0,
    run_us=0.0,
    log_half_width=1.1,
    bandwidth_mb_s=DEFAULT_RAM_MB_S,
    flash_mb_s=DEFAULT_FLASH_MB_S,
    # Vela's `architecture_features.py`: blocks of the input are 8 channels deep.
    input_multiple=8,
    scored_on="a factor of three either way: no measurements of such boards were at hand",
)

# Vela's `scheduler.py` stores feature maps as bricks of 16 channels (NHCWB16) where only Ethos-U reads and
# writes them, and lets element by element operators write over what they read.
STYLE = memory_plan.ArenaStyle(in_place=frozenset({"elementwise"}), channel_multiple=16)

BUFFERED_KINDS = frozenset(
    {OperatorKind.CONV, OperatorKind.DEPTHWISE_CONV, OperatorKind.TRANSPOSED_CONV}
)
"""Operators whose weights Vela fetches into RAM ahead of time; dense layers use each weight only once."""
BLOCK_PIXELS = 128
"""Pixels of output computed at a time, about: of more, the weights are read again for each block
(`architecture_allocator.py`: 16 channels of accumulators of 32 bits, twice, in half of 24 KiB)."""
LEAST_SHARE, MOST_SHARE = 0.85, 1.2
"""Of the memory that is counted: allocators leave gaps, and Vela fuses more than is known here."""
CASCADED_SHARE = 0.4
"""Of the feature maps where they do not fit: Vela then computes them in stripes (`cascade_builder.py`)."""


@dataclass(frozen=True, kw_only=True)
class EthosUEmulator(AcceleratedEmulator):
    """A roofline with the arena that Vela plans (port `Emulator`). Stateless.

    Weights stream from flash through the bandwidth that the target states.
    """

    def busy_ms(self, operator: Operator, target: HardwareSpec) -> float:
        """Return the milliseconds of an operator: as Vela counts its cycles, but for Ethos-U85 a roofline.

        Weights are fetched from flash meanwhile.
        """
        accelerator = target.accelerator
        unit = None if accelerator is None else unit_of(accelerator)
        if accelerator is None or unit is None:
            return super().busy_ms(operator, target)
        cycles_per_ms = (accelerator.clock_mhz or target.clock_mhz) * 1e3
        moved_ms = self.moved_ms(operator, target)
        cycles = busy_cycles(operator, unit, moved_ms * cycles_per_ms)
        return max(cycles / cycles_per_ms, moved_ms, self.weights_ms(operator, target))

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        """Return the feature maps in use per operator; on microcontrollers as Vela stores them.

        Weights fetched ahead are left out: Vela does without where memory is short. A brick of each
        tensor is counted as fixed, for no number of channels takes less.
        """
        accelerator = target.accelerator
        if accelerator is None or not target.core.startswith("cortex-m"):
            return super().memory_points(network, target)
        style = replace(STYLE, unrounded=_linear_tensors(network, accelerator))
        points = memory_plan.memory_points(_joined_in_place(network), style)
        bricks = {
            name: -(-shape[1] // style.channel_multiple)
            for name, shape in network.tensors.items()
            if len(shape) > 1 and shape[1] and name not in style.unrounded
        }
        return tuple(_with_fixed_bricks(point, bricks) for point in points)

    def peak_ram(self, network: NetworkProfile, target: HardwareSpec) -> PeakRam:
        """Return what Vela's arena takes when it compiles for speed within the target's RAM.

        From below it is bounded by the feature maps alone, from above by these with all weights of an
        operator and of the next one; between both by how much there is time to fetch
        (`Scheduler.propose_weight_buffering`).
        """
        if not target.core.startswith("cortex-m"):
            return super().peak_ram(network, target)
        points = self.memory_points(network, target)
        operators = {operator.node: operator for operator in network.operators}
        run = [operators[point.node] for point in points]
        runs_ms = [self.operator_cost(operator, target).latency_ms for operator in run]
        rate = target.memory.flash_bandwidth_mb_s or self.rates.flash_mb_s
        # nothing runs before the first operator
        fetched = [
            _fetched(operator, after_ms=before_ms, runs_ms=own_ms, bytes_per_ms=rate * 1e3)
            for operator, before_ms, own_ms in zip(run, (0.0, *runs_ms), runs_ms, strict=False)
        ]
        counted = [point.bytes_in_use for point in points]
        weights = [_weight_bytes(operator) for operator in run]
        likely = [
            size + own.held + (following.ahead if following else 0.0)
            for size, own, following in zip_longest(counted, fetched, fetched[1:])
        ]
        most = [
            size + own + following
            for size, own, following in zip_longest(counted, weights, weights[1:], fillvalue=0.0)
        ]
        peak = max(range(len(points)), key=likely.__getitem__)
        return PeakRam(
            node=points[peak].node,
            in_use=_within(target.memory.ram_bytes, max(counted), likely[peak], max(most)),
        )


@dataclass(frozen=True)
class _Fetched:
    """Bytes of weights in RAM: while the operator before runs, and while the operator itself does."""

    ahead: float
    held: float


def _fetched(
    operator: Operator, *, after_ms: float, runs_ms: float, bytes_per_ms: float
) -> _Fetched:
    """Return what of an operator's weights is in RAM.

    Args:
        operator: Any operator.
        after_ms: How long the one before runs.
        runs_ms: How long it runs itself.
        bytes_per_ms: At which weights are fetched.
    """
    size = _weight_bytes(operator)
    if not size:
        return _Fetched(ahead=0.0, held=0.0)
    fetch_ms = size / bytes_per_ms
    # weights that are read once, and take longer than what is computed with them, stay in flash
    if math.prod(operator.out_size) <= BLOCK_PIXELS and runs_ms < 2 * fetch_ms:
        return _Fetched(ahead=0.0, held=0.0)
    share = min(1.0, after_ms / fetch_ms)
    # what is not there in time comes in slices: one is computed with while the next is fetched
    return _Fetched(ahead=share * size, held=min(1.0, 2 * share) * size)


def _weight_bytes(operator: Operator) -> float:
    """Return the bytes of weights that may be fetched ahead; compression hardly changes them in int8."""
    if operator.kind not in BUFFERED_KINDS or operator.weight_bits > 8:
        return 0.0
    return operator.weight_bytes


def _within(ram_bytes: float, least: float, likely: float, most: float) -> Interval:
    """Return the interval of an arena that keeps within the RAM as far as its feature maps do."""
    room = max(least, min(most, ram_bytes))
    low = least * (LEAST_SHARE if least <= ram_bytes else CASCADED_SHARE)
    return Interval(value=min(likely, room), low=low, high=MOST_SHARE * room)


def _with_fixed_bricks(point: MemoryPoint, bricks: Mapping[str, int]) -> MemoryPoint:
    """Return a point with a brick of each tensor as fixed; `bricks` is how many a tensor has by now."""
    fixed = {
        name: size / bricks[name] for name, size in point.tensor_bytes.items() if name in bricks
    }
    return replace(
        point,
        fixed_bytes=point.fixed_bytes + sum(fixed.values()),
        tensor_bytes={
            name: size - fixed.get(name, 0.0) for name, size in point.tensor_bytes.items()
        },
    )


def _linear_tensors(network: NetworkProfile, accelerator: Accelerator) -> frozenset[str]:
    """Return the names of tensors that are not stored in bricks (Vela's `Scheduler`, linear formats).

    Those are inputs and outputs of the network, what the core reads or writes, what changes its shape, and
    parts joined at channels that begin no brick.
    """
    found = {*network.inputs, *network.outputs}
    for part in partitions(network, accelerator):
        for operator in part.operators:
            names = (*operator.inputs, *operator.outputs)
            if not part.on_accelerator or operator.kind is OperatorKind.RESHAPE:
                found.update(names)
            elif operator.kind is OperatorKind.CONCAT and any(
                channels % STYLE.channel_multiple
                for name in operator.inputs
                for channels in network.tensors.get(name, ())[1:2]
            ):
                found.update(operator.outputs)
    return frozenset(found)


def _joined_in_place(network: NetworkProfile) -> NetworkProfile:
    """Return the network without joins whose parts can be written where the whole is.

    Vela has the operators before a concatenation write into its output, unless something else reads them.
    """
    readers = Counter(name for operator in network.operators for name in operator.inputs)
    readers.update(network.outputs)
    readers.update(network.inputs)
    whole: dict[str, str] = {}
    kept = []
    for operator in network.operators:
        parts = operator.inputs
        if operator.kind is OperatorKind.CONCAT and all(readers[name] == 1 for name in parts):
            whole.update(dict.fromkeys(parts, operator.outputs[0]))
        else:
            kept.append(operator)
    if not whole:
        return network

    def name_of(tensor: str) -> str:
        while tensor in whole:
            tensor = whole[tensor]
        return tensor

    return replace(
        network,
        operators=tuple(
            replace(
                operator,
                inputs=tuple(map(name_of, operator.inputs)),
                outputs=tuple(map(name_of, operator.outputs)),
            )
            for operator in kept
        ),
    )


ETHOS_U_EMULATOR = EthosUEmulator(
    name="ethos-u",
    kinds=frozenset(
        {AcceleratorKind.ETHOS_U55, AcceleratorKind.ETHOS_U65, AcceleratorKind.ETHOS_U85}
    ),
    rates=RATES,
    # Vela compresses weights, and makes one operator of a network: MLPerf Tiny's keyword spotter takes 0.7.
    flash_range=(0.6, 1.25),
)
