"""The interpreter of TensorFlow Lite for Microcontrollers in a process of its own: outputs and arena as on a device.

`pip install tflite-micro` (Apache-2.0) brings the interpreter with its reference kernels, which CMSIS-NN
matches bit by bit. It aborts the process on what it does not support, so it never runs in the service's.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tightfit_service.adapters.emulators.mcu_latency import runtime_path
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import InvalidModelError, UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.quantities import Interval

Array = npt.NDArray[Any]

TIMEOUT_S = 300.0
ARENA_BYTES = 64 << 20
"""Room for tensors on top of ten times the file; what is used of it is counted."""
EXTRA = "tightfit-service[tflm]"
_MOST_WORDS = 300
_ARENA = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
_PROGRAM = """
import sys
import time
import numpy as np
from tflite_micro.python.tflite_micro import runtime

model, given, wanted, arena_bytes = sys.argv[1:5]
interpreter = runtime.Interpreter.from_file(model, arena_size=int(arena_bytes))
with np.load(given) as archive:
    inputs = [archive[name] for name in archive.files]
results, seconds = [], 0.0
for place in range(len(inputs[0])):
    for index, samples in enumerate(inputs):
        details = interpreter.get_input_details(index)
        sample = samples[place].reshape(details["shape"]).astype(details["dtype"])
        interpreter.set_input(sample, index)
    begin = time.perf_counter()
    interpreter.invoke()
    seconds += time.perf_counter() - begin
    results.append(interpreter.get_output(0).copy())
outputs = np.concatenate(results) if results else np.empty(0)
np.savez(wanted, outputs=outputs, seconds=seconds)
interpreter.print_allocations()
"""


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Bytes of the tensor arena on the machine that ran it.

    Attributes:
        total: Everything.
        activations: What tensors and scratch share ("head"); the same on every device.
        bookkeeping: What stays ("tail"): structures of the interpreter, whose pointers are half as wide
            on 32-bit devices.
    """

    total: int
    activations: int
    bookkeeping: int


@dataclass(frozen=True, kw_only=True)
class MicroRun:
    """Outputs of a file as a device computes them, and its arena.

    Attributes:
        outputs: First output for every sample, in the file's own number format.
        seconds: Time that the inferences took, without loading.
        arena: Memory of the interpreter.
    """

    outputs: Array
    seconds: float
    arena: Arena


@dataclass(frozen=True, kw_only=True)
class TflmInterpreter:
    """Runs TFLite files as microcontrollers do. Stateless."""

    timeout_s: float = TIMEOUT_S

    @staticmethod
    def is_installed() -> bool:
        """Whether the interpreter is there."""
        return importlib.util.find_spec("tflite_micro") is not None

    def arena(self, data: bytes) -> Arena:
        """Return the arena that a file needs; nothing is computed.

        Raises:
            InvalidModelError: The interpreter does not take the file.
            UnsupportedError: The interpreter is not installed.
        """
        return self.run(data, np.empty((0, 1), dtype=np.int8)).arena

    def run(self, data: bytes, *inputs: Array) -> MicroRun:
        """Run a file on samples, one after the other.

        Args:
            data: The file.
            inputs: Per input of the file, in its order, the samples in its number format, shape (n, ...).

        Raises:
            InvalidModelError: The interpreter does not run the file: an operator or a type that it lacks.
            UnsupportedError: The interpreter is not installed.
        """
        if not self.is_installed():
            raise UnsupportedError(
                "the interpreter of TensorFlow Lite for Microcontrollers is not installed",
                field="runtime",
                remedy=f"install {EXTRA} where the service runs",
            )
        with tempfile.TemporaryDirectory(prefix="tightfit-tflm-") as text:
            folder = Path(text)
            (folder / "model.tflite").write_bytes(data)
            np.savez(folder / "given.npz", *inputs)
            names = [str(folder / name) for name in ("model.tflite", "given.npz", "wanted.npz")]
            arena_bytes = str(10 * len(data) + ARENA_BYTES)
            try:
                done = subprocess.run(
                    (sys.executable, "-P", "-c", _PROGRAM, *names, arena_bytes),
                    capture_output=True,
                    text=True,
                    timeout=self.timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise InvalidModelError(
                    f"TensorFlow Lite for Microcontrollers did not finish within {self.timeout_s:g} s",
                    field="model",
                    remedy="give fewer samples",
                ) from error
            wanted = folder / "wanted.npz"
            if done.returncode or not wanted.is_file():
                raise InvalidModelError(
                    f"TensorFlow Lite for Microcontrollers does not run the model: {_reason(done)}",
                    field="model",
                    remedy="export it in int8 with operators of its resolver",
                )
            with np.load(wanted, allow_pickle=False) as found:
                return MicroRun(
                    outputs=found["outputs"],
                    seconds=float(found["seconds"]),
                    arena=_arena(done.stdout + done.stderr),
                )


@dataclass(frozen=True, kw_only=True)
class TflmArena:
    """Peak RAM of TFLM targets from the interpreter itself (port `FileEmulator`). Stateless."""

    interpreter: TflmInterpreter = field(default_factory=TflmInterpreter)
    name: str = "tflm"

    def supports(self, target: HardwareSpec) -> bool:
        """Whether the target runs the file in this interpreter, on its cores."""
        path = runtime_path(target.runtime.name, target.runtime.version)
        return path[0] == "tflm" and target.accelerator is None and self.interpreter.is_installed()

    def refine(self, data: bytes, target: HardwareSpec, cost: CostEstimate) -> CostEstimate:
        """Return the estimate with peak RAM bounded by the arena.

        What tensors share is exact, and the structures of a 32-bit device take half to all of what they
        take here. Scratch of optimised kernels, which the reference kernels do not need, is as planned.

        Raises:
            InvalidModelError: The interpreter does not take the file.
        """
        del target
        arena = self.interpreter.arena(data)
        low = float(arena.activations + arena.bookkeeping / 2)
        high = max(float(arena.total), cost.peak_ram_bytes.value)
        value = min(max(cost.peak_ram_bytes.value, low), high)
        return replace(
            cost,
            peak_ram_bytes=Interval(value=value, low=low, high=high),
            provenance=f"{cost.provenance}; peak RAM from TFLM's own interpreter",
        )


def _arena(log: str) -> Arena:
    sizes = {name: int(size) for name, size in _ARENA.findall(log)}
    return Arena(
        total=sizes.get("total", 0),
        activations=sizes.get("head", 0),
        bookkeeping=sizes.get("tail", 0),
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return what the runtime said, which names the operator, or else how the process ended."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = list(itertools.takewhile(lambda line: not line.startswith("Traceback"), lines))
    if said or lines:
        return "; ".join(said[:2] or lines[-1:])[:_MOST_WORDS]
    if done.returncode < 0:
        return f"it ended with signal {-done.returncode}"
    return f"it ended with code {done.returncode}"
