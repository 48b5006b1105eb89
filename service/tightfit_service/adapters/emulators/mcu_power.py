"""The power of microcontrollers while they compute: current per MHz behind the board's regulator."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tightfit_service.domain.hardware import HardwareSpec

NORMAL_90 = 1.645
TYPICAL_SUPPLY_V = 3.0
CONVERTED_VOLTS = 1.2 / 0.85
"""A step-down converter draws the power of the core's supply (1.2 V at high clocks) at its efficiency,
whatever its own supply is; a linear regulator draws the current of the core."""
CLASS_MA_PER_MHZ: Mapping[str, float] = {
    # Run mode from flash, peripherals off, from data sheets: STM32G0 0.1; STM32F401 0.137 and STM32F411
    # 0.1, networks drawing about a third more than the loops of data sheets; STM32L552 0.106;
    # STM32F746 0.47 and STM32H743 0.26; RA8M1 0.15.
    "cortex-m0+": 0.1,
    "cortex-m4": 0.16,
    "cortex-m33": 0.11,
    "cortex-m7": 0.35,
    "cortex-m55": 0.12,
    "cortex-m85": 0.15,
}


@dataclass(frozen=True, kw_only=True)
class PowerModel:
    """Logs of milliamperes per MHz behind the regulator, from the most to the least that is known.

    Attributes:
        setups: By board and release of the runtime, `nucleo-l4r5zi+x-cube-ai/9.0`.
        boards: By board.
        cores: By core class.
        supplies: Volts at which a board was measured.
        log_sd: Standard deviation of log power where the board is `known`, and where it is `assumed`.
        width_scale: What the half width of log energy is multiplied by so that 90 % of held-out rows are
            within: misses of latency and of power are not independent.
    """

    setups: Mapping[str, float]
    boards: Mapping[str, float]
    cores: Mapping[str, float]
    supplies: Mapping[str, float]
    log_sd: Mapping[str, float]
    width_scale: Mapping[str, float] = field(default_factory=dict)

    def active_mw(self, target: HardwareSpec, runtime: Sequence[str]) -> float:
        """Return the power while a network runs: the target's own figure where it states one.

        Args:
            target: The board.
            runtime: The runtime from general to special (`mcu_latency.runtime_path`).
        """
        if target.power.active_mw is not None:
            return target.power.active_mw
        board = power_key(target.display_name)
        release = runtime[min(1, len(runtime) - 1)] if runtime else ""
        typical = math.log(CLASS_MA_PER_MHZ.get(target.core, 0.2))
        rate = self.setups.get(
            f"{board}+{release}", self.boards.get(board, self.cores.get(target.core, typical))
        )
        stated = None if "power.supply_v" in target.assumed_fields else target.power.supply_v
        volts = stated or self.supplies.get(board) or target.power.supply_v or TYPICAL_SUPPLY_V
        return math.exp(rate) * target.clock_mhz * effective_volts(target.display_name, volts)

    def deviation(self, target: HardwareSpec) -> float:
        """Return the standard deviation of the log of `active_mw`."""
        return self.log_sd[self._knowledge(target)]

    def energy_width(self, target: HardwareSpec, latency_width: float) -> float:
        """Return the half width of the 90 % interval of log energy, given that of log latency."""
        scale = self.width_scale.get(self._knowledge(target), 1.0)
        return scale * math.hypot(latency_width, NORMAL_90 * self.deviation(target))

    def _knowledge(self, target: HardwareSpec) -> str:
        known = target.power.active_mw is not None or power_key(target.display_name) in self.boards
        return "known" if known else "assumed"


def power_key(display_name: str) -> str:
    """Return the key of a board, with the suffix that tells its regulator."""
    text = re.split(r"[,(]", display_name)[0]
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def effective_volts(display_name: str, supply_v: float) -> float:
    """Return watts per ampere of the core.

    ST's Nucleo boards with a step-down converter end in -P or -Q (UM2179).
    """
    converts = re.search(r"^nucleo-.*-[pq]$", power_key(display_name)) is not None
    return CONVERTED_VOLTS if converts else supply_v
