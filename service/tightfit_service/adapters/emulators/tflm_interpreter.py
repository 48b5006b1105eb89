"""The interpreter of TensorFlow Lite for Microcontrollers in a process of its own: outputs and arena as on a device.

`pip install tflite-micro` (Apache-2.0) brings the interpreter with its reference kernels, which CMSIS-NN
matches bit by bit. It aborts the process on what it does not support, so it never runs in the service's.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tightfit_service.domain.errors import InvalidModelError, UnsupportedError

Array = npt.NDArray[Any]

TIMEOUT_S = 300.0
_ARENA = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
_PROGRAM = """
import sys
import numpy as np
from tflite_micro.python.tflite_micro import runtime

model, given, wanted = sys.argv[1:4]
interpreter = runtime.Interpreter.from_file(model)
samples = np.load(given)
results = []
for sample in samples:
    details = interpreter.get_input_details(0)
    interpreter.set_input(sample.reshape(details["shape"]).astype(details["dtype"]), 0)
    interpreter.invoke()
    results.append(interpreter.get_output(0).copy())
np.save(wanted, np.concatenate(results) if results else np.empty(0))
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
        arena: Memory of the interpreter.
    """

    outputs: Array
    arena: Arena


@dataclass(frozen=True, kw_only=True)
class TflmInterpreter:
    """Runs TFLite files as microcontrollers do. Stateless."""

    timeout_s: float = TIMEOUT_S

    @staticmethod
    def is_installed() -> bool:
        """Whether the interpreter is there."""
        return importlib.util.find_spec("tflite_micro") is not None

    def run(self, data: bytes, samples: Sequence[Array] | Array) -> MicroRun:
        """Run a file on samples, each of the shape and in the number format of its one input.

        Raises:
            InvalidModelError: The interpreter does not run the file: an operator or a type that it lacks.
            UnsupportedError: The interpreter is not installed.
        """
        if not self.is_installed():
            raise UnsupportedError(
                "the interpreter of TensorFlow Lite for Microcontrollers is not there",
                field="runtime",
                remedy="install tflite-micro beside the service",
            )
        with tempfile.TemporaryDirectory(prefix="tightfit-tflm-") as text:
            folder = Path(text)
            (folder / "model.tflite").write_bytes(data)
            np.save(folder / "given.npy", np.asarray(samples))
            names = [str(folder / name) for name in ("model.tflite", "given.npy", "wanted.npy")]
            try:
                done = subprocess.run(
                    (sys.executable, "-c", _PROGRAM, *names),
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
            wanted = folder / "wanted.npy"
            if done.returncode or not wanted.is_file():
                raise InvalidModelError(
                    f"TensorFlow Lite for Microcontrollers does not run the model: {_reason(done)}",
                    field="model",
                    remedy="export it in int8 with operators of its resolver",
                )
            return MicroRun(
                outputs=np.load(wanted, allow_pickle=False), arena=_arena(done.stdout + done.stderr)
            )


def _arena(log: str) -> Arena:
    sizes = {name: int(size) for name, size in _ARENA.findall(log)}
    return Arena(
        total=sizes.get("total", 0),
        activations=sizes.get("head", 0),
        bookkeeping=sizes.get("tail", 0),
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0 and not lines:
        return f"it ended with signal {-done.returncode}"
    return lines[-1][:200] if lines else f"it ended with code {done.returncode}"
