"""Evaluator of ExecuTorch programs in ExecuTorch's own runtime, with XNNPACK on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tightfit_service.adapters.evaluation.metrics import evaluate_metric
from tightfit_service.application.samples import FloatArray, ModelInputs, Samples
from tightfit_service.domain.errors import (
    InvalidDatasetError,
    InvalidModelError,
    UnsupportedError,
)
from tightfit_service.domain.quantities import Accuracy

FORWARD = "forward"
INPUT_NAMES = "tightfit_input_names"
"""Method of a program that returns the names of its inputs, one a line."""

_BATCH = 256
_RUNTIME_ERRORS = (RuntimeError, ValueError, TypeError)


def executorch_runtime() -> Any:
    """Return the class `executorch.runtime.Runtime`; ExecuTorch is an extra.

    Raises:
        UnsupportedError: It is not installed.
    """
    try:
        # torch and ExecuTorch warn about each other
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # kernels of integers that no backend took
            import executorch.kernels.quantized  # noqa: F401
            from executorch.runtime import Runtime
    except ImportError as error:
        raise UnsupportedError(
            "ExecuTorch is not installed where this service runs",
            field="output_format",
            remedy="install it with `pip install tightfit-service[executorch]`, or export as TFLite",
        ) from error
    return Runtime


class ExecutorchRunner:
    """One loaded program, which takes one sample at a time; not for several threads at once."""

    def __init__(self, data: bytes) -> None:
        """Load the program.

        Raises:
            InvalidModelError: ExecuTorch refuses it.
            UnsupportedError: ExecuTorch is not installed.
        """
        runtime = executorch_runtime()
        try:
            self._program = runtime.get().load_program(data)
            self._forward = self._program.load_method(FORWARD)
            names = str(self.value_of(INPUT_NAMES) or "")
        except _RUNTIME_ERRORS as error:
            raise InvalidModelError(
                "ExecuTorch cannot load the file", field="model", remedy="check its operators"
            ) from error
        self._names = names.split("\n")

    def value_of(self, method: str) -> Any:
        """Return what a method without inputs gives, or None where the program has none so called."""
        if method not in self._program.method_names:
            return None
        return self._program.load_method(method).execute([])[0]

    def run(self, inputs: ModelInputs) -> list[npt.NDArray[np.float32]]:
        """Return all outputs for float inputs in working layout.

        Args:
            inputs: The array of the only input, or arrays by the names of the inputs.

        Raises:
            InvalidDatasetError: The inputs' names are not the model's.
            InvalidModelError: The program does not run on them.
        """
        arrays = self._arrays(inputs)
        parts = [
            self._run_one([values[place : place + 1] for values in arrays])
            for place in range(len(arrays[0]))
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _arrays(self, inputs: ModelInputs) -> list[FloatArray]:
        given = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        if len(self._names) == 1 and len(given) == 1:
            return list(given.values())
        if set(given) != set(self._names):
            raise InvalidDatasetError(
                f"the given inputs are {sorted(given)}, the model's {sorted(self._names)}",
                field="dataset",
                remedy="name an array for each of the model's inputs",
            )
        return [given[name] for name in self._names]

    def _run_one(self, arrays: list[FloatArray]) -> list[npt.NDArray[np.float32]]:
        try:
            found = self._forward.execute(
                [torch.from_numpy(np.array(values, dtype=np.float32)) for values in arrays]
            )
        except _RUNTIME_ERRORS as error:
            raise InvalidModelError(
                "ExecuTorch cannot run the file", field="model", remedy="check its operators"
            ) from error
        return [np.array(output.numpy(), dtype=np.float32) for output in found]


class ExecutorchEvaluator:
    """Runs programs on the CPU (`ports.Evaluator`). Results depend on nothing but the arguments."""

    def outputs(self, data: bytes, inputs: ModelInputs) -> npt.NDArray[np.float32]:
        """Return the first output for a batch of float inputs, shape (n, ...).

        Raises:
            InvalidModelError: The file does not load or does not run.
            InvalidDatasetError: The inputs' names are not the model's.
        """
        return ExecutorchRunner(data).run(inputs)[0]

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        """Return the metric that the samples declare."""
        runner = ExecutorchRunner(data)
        return evaluate_metric(lambda inputs: runner.run(inputs)[0], samples, batch_size=_BATCH)
