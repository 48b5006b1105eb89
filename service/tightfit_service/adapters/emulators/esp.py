"""The emulator of Espressif's processors: the microcontroller model with factors for their cores and kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.hardware import HardwareSpec, Power, Runtime
from tightfit_service.domain.network import NetworkProfile, Operator
from tightfit_service.domain.quantities import Interval

CYCLE_FACTORS: Mapping[str, Mapping[str, float]] = {
    # Cycles over those of a Cortex-M7 with TFLM and CMSIS-NN. ESP-NN and reference kernels: person
    # detection (MobileNetV1 0.25, 96 x 96 x 1) in the README of espressif/esp-nn; ESP-DL: MobileNetV2 in
    # the README of espressif/esp-dl. ESP32-C3, C6 and H2 share the RV32IMC row.
    "xtensa-lx6": {"esp-nn": 3.7, "reference": 40.0},
    "xtensa-lx7": {"esp-nn": 0.53, "reference": 22.5, "esp-dl": 0.3},
    "riscv32": {"esp-nn": 2.8, "reference": 22.0},
}
VECTOR_FACTOR = 0.2
"""ESP32-P4, whose RISC-V cores have vector instructions, over those without (esp-nn kernel tables)."""
POWER_MW_PER_MHZ: Mapping[str, float] = {
    # Data sheets, modem off, at 3.3 V: ESP32 68 mA at 240 MHz with both cores, half for one; ESP32-S3
    # 66 mA at 240 MHz with 128-bit accesses; ESP32-C3 28 mA at 160 MHz.
    "xtensa-lx6": 0.55,
    "xtensa-lx7": 0.9,
    "riscv32": 0.58,
}
LOG_HALF_WIDTH = math.log(3.0)
"""Two networks on three chips are not enough to measure a spread; those of ESP-DL lie within a factor of
2.5."""
CONFIDENCE = 0.9


@dataclass(frozen=True, kw_only=True)
class EspEmulator:
    """Emulator of ESP32 chips (port `Emulator`). Stateless but for caches of prices."""

    name: str = "esp"
    _mcu: McuEmulator = field(default_factory=McuEmulator, repr=False)

    def supports(self, target: HardwareSpec) -> bool:
        """Whether the core is one of Espressif's, without an accelerator."""
        return target.core in CYCLE_FACTORS and target.accelerator is None

    def operator_cost(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        """Return the cost of one operator; latency in ms, energy in mJ."""
        cost = self._mcu.operator_cost(operator, _as_cortex(target))
        factor = _factor(target)
        return replace(cost, latency_ms=cost.latency_ms * factor, energy_mj=cost.energy_mj * factor)

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        """Return the arena in use per operator that runs, in bytes (TensorFlow Lite for Microcontrollers)."""
        return self._mcu.memory_points(network, _as_cortex(target))

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        """Return the cost of a network; both runtimes keep the model file in flash."""
        cost = self._mcu.estimate(network, _as_cortex(target), file_bytes=file_bytes)
        factor = _factor(target)
        ratio = math.exp(LOG_HALF_WIDTH)
        latency, energy = (
            Interval.relative(interval.value * factor, low_ratio=1 / ratio, high_ratio=ratio)
            for interval in (cost.latency_ms, cost.energy_mj)
        )
        return replace(
            cost,
            latency_ms=latency,
            energy_mj=energy,
            layers=tuple(
                replace(
                    layer, latency_ms=layer.latency_ms * factor, energy_mj=layer.energy_mj * factor
                )
                for layer in cost.layers
            ),
            provenance=(
                "microcontroller model with one factor per Espressif core and kernel library; 90 % intervals "
                f"are a factor of {ratio:.0f} either way"
            ),
            confidence=CONFIDENCE,
        )


def _factor(target: HardwareSpec) -> float:
    text = f"{target.runtime.name} {target.runtime.version}".lower()
    factors = CYCLE_FACTORS[target.core]
    kernels = "esp-dl" if "esp-dl" in text else "reference" if "reference" in text else "esp-nn"
    factor = factors.get(kernels, factors["esp-nn"])
    vectors = target.core == "riscv32" and "simd" in target.isa_features
    return factor * (VECTOR_FACTOR if vectors and kernels != "reference" else 1.0)


def _as_cortex(target: HardwareSpec) -> HardwareSpec:
    """Return the target as the microcontroller model knows it, with this chip's power."""
    power = target.power.active_mw or POWER_MW_PER_MHZ[target.core] * target.clock_mhz
    return replace(
        target,
        core="cortex-m7",
        display_name="",
        runtime=Runtime(name="TFLM+CMSIS-NN"),
        power=Power(active_mw=power, supply_v=target.power.supply_v),
    )
