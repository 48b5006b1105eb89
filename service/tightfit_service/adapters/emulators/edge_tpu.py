"""The emulator of Google's Edge TPU."""

from __future__ import annotations

from tightfit_service.adapters.emulators.accelerated import AcceleratedEmulator, Rates
from tightfit_service.domain.hardware import AcceleratorKind
from tightfit_service.domain.network import OperatorKind

RATES = Rates(
    # A systolic array of 64 x 64 at 480 MHz (A. Yazdanbakhsh et al., "An Evaluation of Edge TPU
    # Accelerators for Convolutional Neural Networks", IISWC 2022): dense convolutions fill it, depthwise
    # ones a row of it.
    efficiency={
        OperatorKind.CONV: 0.45,
        OperatorKind.TRANSPOSED_CONV: 0.2,
        OperatorKind.DEPTHWISE_CONV: 0.05,
        OperatorKind.DENSE: 0.1,
    },
    default=0.05,
    overhead_us=5.0,
    run_us=800.0,
    log_half_width=1.1,
    scored_on="the residuals on Coral's published benchmarks",
)

EDGE_TPU_EMULATOR = AcceleratedEmulator(
    name="edge-tpu", kinds=frozenset({AcceleratorKind.EDGE_TPU}), rates=RATES
)
"""Weights beyond its 8 MB are sent over the link for every inference."""
