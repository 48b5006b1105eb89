"""The emulator of graphics processors: Jetson boards, mobile GPUs."""

from __future__ import annotations

from tightfit_service.adapters.emulators.accelerated import AcceleratedEmulator, Rates
from tightfit_service.domain.hardware import AcceleratorKind
from tightfit_service.domain.network import OperatorKind

RATES = Rates(
    # Shares of the peak in half precision: TensorRT on Jetson Nano reaches 0.6 in ResNets (torch2trt
    # benchmarks); depthwise convolutions read as much as they compute.
    efficiency={
        OperatorKind.CONV: 0.55,
        OperatorKind.TRANSPOSED_CONV: 0.3,
        OperatorKind.DEPTHWISE_CONV: 0.05,
        OperatorKind.DENSE: 0.2,
        OperatorKind.MATMUL: 0.4,
    },
    default=0.1,
    # A launch of a kernel, as profilers of Jetson boards and of Adreno GPUs show it.
    overhead_us=20.0,
    run_us=200.0,
    log_half_width=1.3,
    # Of ncnn's Vulkan kernels, PyTorch and TensorFlow over TensorRT, on the networks that tables of
    # Jetson boards have in common.
    runtime_factors={"ncnn": 2.5, "pytorch": 1.8, "tensorflow lite": 1.3, "tensorflow": 4.0},
    scored_on="the residuals on TensorRT and TensorFlow Lite GPU tables",
)

GPU_EMULATOR = AcceleratedEmulator(name="gpu", kinds=frozenset({AcceleratorKind.GPU}), rates=RATES)
"""Graphics processors, from the peak of their half-precision units."""
