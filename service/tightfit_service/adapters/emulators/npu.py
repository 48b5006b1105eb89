"""The emulators of processors for neural networks: Rockchip, Neural-ART, MAX78000, Hailo; and Hexagon."""

from __future__ import annotations

from tightfit_service.adapters.emulators.accelerated import AcceleratedEmulator, Rates
from tightfit_service.domain.hardware import AcceleratorKind
from tightfit_service.domain.network import OperatorKind

_EFFICIENCY = {
    # Data sheets count peaks at full arrays. Depthwise convolutions keep one column of them busy.
    OperatorKind.CONV: 0.4,
    OperatorKind.TRANSPOSED_CONV: 0.2,
    OperatorKind.DEPTHWISE_CONV: 0.06,
    OperatorKind.DENSE: 0.1,
    OperatorKind.MATMUL: 0.2,
}

NPU_EMULATOR = AcceleratedEmulator(
    name="npu",
    kinds=frozenset({AcceleratorKind.NPU}),
    rates=Rates(
        efficiency=_EFFICIENCY,
        default=0.1,
        overhead_us=15.0,
        run_us=300.0,
        log_half_width=1.2,
        scored_on="the residuals on the tables of the RKNN and STM32 model zoos",
    ),
)
"""Fixed-function arrays of multipliers."""

HEXAGON_EMULATOR = AcceleratedEmulator(
    name="hexagon",
    kinds=frozenset({AcceleratorKind.HEXAGON}),
    rates=Rates(
        # Qualcomm AI Hub: ResNet-50 reaches a fifth of the stated peak at batch size 1.
        efficiency={kind: share / 2 for kind, share in _EFFICIENCY.items()},
        default=0.05,
        overhead_us=2.0,
        run_us=120.0,
        log_half_width=1.3,
        scored_on="the residuals on the tables of Qualcomm AI Hub",
    ),
)
"""Qualcomm's tensor processor: the same arrays beside vector units, with smaller overheads."""
