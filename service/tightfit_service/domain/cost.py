"""What a network costs on a target, as emulators predict it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightfit_service.domain.quantities import Interval


@dataclass(frozen=True, kw_only=True)
class OperatorCost:
    """Predicted cost of one operator on a target (centre of the estimate)."""

    node: str
    op_type: str
    macs: int
    latency_ms: float
    energy_mj: float
    weight_bytes: int
    provenance: str = ""
    """What the latency rests on, where emulators tell operators apart by it."""


@dataclass(frozen=True, kw_only=True)
class MemoryPoint:
    """Memory in use while one operator runs: `fixed_bytes` plus bytes of the live tensors.

    `tensor_bytes` maps a tensor to its bytes at full width (in-place and scratch factors are in it
    already); bytes scale linearly with the tensor's channels.
    """

    node: str
    fixed_bytes: float
    tensor_bytes: Mapping[str, float]

    @property
    def bytes_in_use(self) -> float:
        """All of it, at full width."""
        return self.fixed_bytes + sum(self.tensor_bytes.values())


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """Predicted cost of a whole network on a target, each figure with its interval."""

    latency_ms: Interval
    energy_mj: Interval
    peak_ram_bytes: Interval
    flash_bytes: Interval
    macs: int
    layers: tuple[OperatorCost, ...]
    peak_node: str
    """The node at which peak RAM is reached."""
    provenance: str
    """Which emulator, which coefficients, what coverage was measured for the intervals."""
    confidence: float
    """Nominal coverage of the intervals, such as 0.9."""
    warnings: tuple[str, ...] = ()
    compiler: str = ""
    """Name and version of the compiler that gave the figures for the very file; empty for an emulator's."""
