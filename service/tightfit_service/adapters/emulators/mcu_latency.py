"""The latency model of microcontrollers: cycles are a sum of work terms whose prices multiply up from core, runtime and board."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tightfit_service.adapters.emulators.mcu_work import FLASH, TERM_GROUPS, work_of
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import Operator

FloatArray = npt.NDArray[np.float64]

FLOAT_BITS = 32


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What decides the price of a cycle's work besides the operator itself.

    Attributes:
        core: Core class, such as `cortex-m7`.
        board: Board name, or "" where the board is not named.
        runtime: The runtime from general to special: ("x-cube-ai", "x-cube-ai/8.1", "x-cube-ai/8.1/time").
    """

    core: str
    board: str
    runtime: tuple[str, ...]


def parameters_of(setup: Setup, term: str, *, is_float: bool) -> tuple[str, ...]:
    """Return the names of the log factors whose sum is the log price (cycles per unit) of a term."""
    group = TERM_GROUPS[term]
    if group == FLASH:
        names = [f"base:{term}", f"core:{setup.core}:{group}"]
        return (*names, f"board:{setup.board}:{group}") if setup.board else tuple(names)
    names = [f"base:{term}", f"core:{setup.core}", f"core:{setup.core}:{group}"]
    for level in setup.runtime:
        names += [f"runtime:{level}", f"runtime:{level}:{group}"]
    if setup.board:
        place = f"{setup.board}+{setup.runtime[-1]}" if setup.runtime else setup.board
        names += [f"board:{setup.board}", f"board:{setup.board}:{group}"]
        names += [f"setup:{place}", f"setup:{place}:{group}"]
    if is_float:
        names += [f"float:{group}", f"float:{setup.core}:*"]
    return tuple(names)


@dataclass(frozen=True, kw_only=True)
class LogPrices:
    """Fitted log factors with their joint uncertainty.

    Attributes:
        means: Value of each fitted parameter; parameters not named are zero.
        prior_sd: Prior standard deviation of a parameter, by its kind.
        learned: Per parameter, what the rows have told about it: the prior-whitened posterior
            covariance is the identity minus the Gram matrix of these vectors. All of one length.
        noise_sd: Standard deviation of log latency that the factors do not explain.
    """

    means: Mapping[str, float]
    prior_sd: Mapping[str, float]
    learned: Mapping[str, FloatArray] = field(default_factory=dict)
    noise_sd: float = 0.05

    def prices(self, setup: Setup, *, is_float: bool) -> dict[str, float]:
        """Return cycles per unit of every term."""
        return {
            term: math.exp(
                sum(
                    self.means.get(name, 0.0)
                    for name in parameters_of(setup, term, is_float=is_float)
                )
            )
            for term in TERM_GROUPS
        }

    def log_sd(self, setup: Setup, cycles: Mapping[tuple[str, bool], float]) -> float:
        """Return the standard deviation of the log of the total.

        Args:
            setup: Where the network runs.
            cycles: Predicted cycles by (term, is_float); their shares weigh the parameters.
        """
        total = sum(cycles.values())
        if total <= 0:
            return self.noise_sd
        weights: dict[str, float] = {}
        for (term, is_float), count in cycles.items():
            for name in parameters_of(setup, term, is_float=is_float):
                weights[name] = weights.get(name, 0.0) + count / total
        variance = self.noise_sd**2
        explained: FloatArray | float = 0.0
        for name, weight in weights.items():
            deviation = weight * self.prior_sd.get(prior_kind(name), 0.0)
            variance += deviation**2
            if name in self.learned:
                explained = explained + deviation * self.learned[name]
        return math.sqrt(max(variance - float(np.sum(np.square(explained))), self.noise_sd**2))


def prior_kind(name: str) -> str:
    """Return the kind of a parameter, whose members share a prior: `runtime:tflm:gemm` is `runtime:*`."""
    parts = name.split(":")
    kind = parts[0]
    if kind == "runtime":
        # The family of a runtime may be anything; a release differs from its family by less.
        kind = ("runtime", "release", "mode")[min(parts[1].count("/"), 2)]
    if len(parts) == 2:
        return kind
    # Runtimes differ more in their depthwise kernels than in anything else.
    is_apart = parts[-1] == "depthwise" and parts[0] == "runtime"
    return f"{kind}:depthwise" if is_apart else f"{kind}:*"


ST_EDGE_AI_OFFSET = 8.0

_VERSION = re.compile(r"\d+(?:\.\d+)*")


@lru_cache(maxsize=1024)
def runtime_path(name: str, version: str) -> tuple[str, ...]:
    """Return a runtime from general to special, with spellings of the same runtime brought together.

    `X-CUBE-AI` and `STEdgeAI` are one product under two names. A word after its version (`time`,
    `balanced`, `ram`) is the optimisation that the network was compiled with: it makes a difference of a few
    per cent, which the rows of one release do not tell from other causes.
    """
    text = name.lower().strip()
    number = _VERSION.search(version)
    short = ".".join(number.group().split(".")[:2]) if number else ""
    words = re.findall(r"[a-z_]{3,}", version.lower())
    if "cube" in text or "stedge" in text:
        if "stedge" in text and short:
            # ST Edge AI Core 1.0 is the engine of X-CUBE-AI 9.0, 2.0 that of 10.0.
            short = f"{_number(short) + ST_EDGE_AI_OFFSET:.1f}"
        return ("x-cube-ai", f"x-cube-ai/{short}") if short else ("x-cube-ai",)
    if "microtvm" in text:
        return ("microtvm", "microtvm/" + ("cmsis-nn" if "cmsis" in text else "native"))
    if "tinyengine" in text:
        return ("tinyengine",)
    if text.startswith(
        ("tflm", "tflite micro", "tensorflow lite micro", "tensorflow lite for micro")
    ):
        kernels = "reference" if "reference" in text else "cmsis-nn" if "cmsis" in text else "other"
        if "mvp" in text:
            kernels = "mvp"
        path = ["tflm", f"tflm/{kernels}"]
        revision = version.lower().strip()
        if revision:
            path.append(f"tflm/{kernels}/{revision}")
        return tuple(path)
    family = re.sub(r"[^a-z0-9]+", "-", text.split("(")[0]).strip("-") or "unknown"
    path = [family]
    if version.strip():
        path.append(f"{family}/{number.group() if number else version.lower().strip()}")
        if words and number:
            path.append(f"{path[-1]}/{'-'.join(words)}")
    elif family == "plumerai":
        # Releases before 2023.05 were submitted without a version.
        path.append(f"{family}/unstated")
    return tuple(path)


def release_of(path: tuple[str, ...]) -> float:
    """Return the release in a runtime's path, such as 8.1; 0 where it has none."""
    return _number(path[1].split("/")[1]) if len(path) > 1 else 0.0


def nearest_known(path: tuple[str, ...], known: Iterable[str]) -> tuple[str, ...]:
    """Return the path with an unknown release replaced by the known one nearest in version number."""
    known_levels = set(known)
    if len(path) < 2 or path[1] in known_levels:
        return path
    family, release = path[1].split("/", 1)
    wanted = _number(release)
    siblings = [
        level
        for level in sorted(known_levels)
        if level.startswith(f"{family}/") and level.count("/") == 1
    ]
    numbered = [(level, number) for level in siblings if (number := _number(level.split("/")[1]))]
    if not wanted or not numbered:
        return path
    nearest = min(numbered, key=lambda item: abs(item[1] - wanted))[0]
    return (path[0], nearest, *path[2:])


def _number(release: str) -> float:
    match = re.match(r"\d+(?:\.\d+)?", release)
    return float(match.group()) if match else 0.0


def setup_of(target: HardwareSpec, known_levels: Iterable[str] = ()) -> Setup:
    """Return the setup of a target; its board is the target's name without a runtime's suffix."""
    path = runtime_path(target.runtime.name, target.runtime.version)
    if known_levels:
        path = nearest_known(path, known_levels)
    return Setup(core=target.core, board=board_of(target.display_name), runtime=path)


def board_of(display_name: str) -> str:
    """Return the key of a board: its printed name in lower case, what follows a comma or bracket cut off.

    ST's boards come with and without the step-down converter (`-P`, `-Q`), which changes power only.
    """
    text = re.split(r"[,(]", display_name)[0]
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-").removesuffix("-p")


def network_work(
    operators: Iterable[Operator], channel_multiple: int
) -> dict[tuple[str, bool], float]:
    """Return the summed work of operators by term and by whether it is done in floating point."""
    total: dict[tuple[str, bool], float] = {}
    for operator in operators:
        is_float = operator.activation_bits >= FLOAT_BITS
        for term, amount in work_of(operator, channel_multiple).items():
            total[term, is_float] = total.get((term, is_float), 0.0) + amount
    return total


def known_levels_of(names: Iterable[str]) -> frozenset[str]:
    """Return the runtimes, releases and modes among parameter names."""
    return frozenset(
        n.split(":", 1)[1] for n in names if n.startswith("runtime:") and n.count(":") == 1
    )
