"""Evaluator of OpenVINO IR in OpenVINO's own runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tightfit_service.adapters.evaluation.metrics import evaluate_metric
from tightfit_service.application.samples import FloatArray, ModelInputs, Samples
from tightfit_service.domain.errors import (
    InvalidDatasetError,
    InvalidModelError,
    UnsupportedError,
)
from tightfit_service.domain.quantities import Accuracy

_BATCH = 128
_AS_WRITTEN = {
    # processors with AMX would otherwise compute float32 in bfloat16
    "INFERENCE_PRECISION_HINT": "f32",
    # on x86 without VNNI the integer kernels add products of int8 in 16 bits, which saturate; without
    # them the roundings that the file states are carried out in float32, as VNNI and ARM do in integers
    "LP_TRANSFORMS_MODE": "NO",
}
_RUNTIME_ERRORS = (RuntimeError, ValueError, TypeError)


def openvino() -> Any:
    """Return the module `openvino`, which is an extra.

    Raises:
        UnsupportedError: It is not installed.
    """
    try:
        import openvino as module
    except ImportError as error:
        raise UnsupportedError(
            "OpenVINO is not installed where this service runs",
            field="output_format",
            remedy="install it with `pip install tightfit-service[openvino]`, or export as ONNX",
        ) from error
    return module


class OpenvinoRunner:
    """One loaded network; not for several threads at once."""

    def __init__(
        self, xml: bytes, weights: bytes, *, threads: int, as_written: bool = True
    ) -> None:
        """Compile the network for the CPU.

        Args:
            xml: The network.
            weights: Its constants.
            threads: Threads of the runtime.
            as_written: Whether it computes exactly as the file says on every processor, or as it
                does for users, with the fastest kernels of this processor.

        Raises:
            InvalidModelError: OpenVINO refuses it.
            UnsupportedError: OpenVINO is not installed.
        """
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": max(1, threads)}
        if as_written:
            settings |= _AS_WRITTEN
        try:
            core = openvino().Core()
            self._model = core.compile_model(core.read_model(xml, weights), "CPU", settings)
        except _RUNTIME_ERRORS as error:
            raise InvalidModelError(
                "OpenVINO cannot load the file", field="model", remedy="check its operators"
            ) from error
        self._names = [item.any_name for item in self._model.inputs]
        first = self._model.inputs[0].partial_shape
        is_fixed = first.rank.get_length() > 0 and first[0].is_static
        self._fixed_batch = int(first[0].get_length()) if is_fixed else None

    def run(self, inputs: ModelInputs) -> list[npt.NDArray[np.float32]]:
        """Return all outputs for float inputs in working layout.

        Args:
            inputs: The array of the only input, or arrays by the names of the inputs.

        Raises:
            InvalidDatasetError: The inputs' names are not the model's.
            InvalidModelError: The network does not run on them.
        """
        feeds = self._feeds(inputs)
        count = len(next(iter(feeds.values())))
        size = self._fixed_batch or _BATCH
        parts = [
            self._run_batch({name: values[start : start + size] for name, values in feeds.items()})
            for start in range(0, count, size)
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _feeds(self, inputs: ModelInputs) -> dict[str, FloatArray]:
        given = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        if len(self._names) == 1 and len(given) == 1:
            given = {self._names[0]: next(iter(given.values()))}
        if set(given) != set(self._names):
            raise InvalidDatasetError(
                f"the given inputs are {sorted(given)}, the model's {sorted(self._names)}",
                field="dataset",
                remedy="name an array for each of the model's inputs",
            )
        return {name: given[name] for name in self._names}

    def _run_batch(self, batch: dict[str, FloatArray]) -> list[npt.NDArray[np.float32]]:
        count = len(next(iter(batch.values())))
        if self._fixed_batch and count < self._fixed_batch:
            missing = self._fixed_batch - count
            batch = {
                name: np.concatenate([values, np.repeat(values[:1], missing, axis=0)])
                for name, values in batch.items()
            }
        try:
            found = self._model(batch)
        except _RUNTIME_ERRORS as error:
            raise InvalidModelError(
                "OpenVINO cannot run the file", field="model", remedy="check its operators"
            ) from error
        return [
            np.array(found[index], dtype=np.float32)[:count]
            for index in range(len(self._model.outputs))
        ]


class OpenvinoEvaluator:
    """Runs IR on the CPU (`ports.Evaluator`); how it is stored is told by `split`."""

    def __init__(self, *, split: Callable[[bytes], tuple[bytes, bytes]], threads: int = 1) -> None:
        """Keep the settings.

        Args:
            split: Returns network and weights of a stored file.
            threads: Threads of the runtime for one call.
        """
        self._split = split
        self._threads = threads

    def outputs(self, data: bytes, inputs: ModelInputs) -> npt.NDArray[np.float32]:
        """Return the first output for a batch of float inputs, shape (n, ...).

        Raises:
            InvalidModelError: The file does not load or does not run.
            InvalidDatasetError: The inputs' names are not the model's.
        """
        return OpenvinoRunner(*self._split(data), threads=self._threads).run(inputs)[0]

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        """Return the metric that the samples declare."""
        runner = OpenvinoRunner(*self._split(data), threads=self._threads)
        return evaluate_metric(lambda inputs: runner.run(inputs)[0], samples, batch_size=_BATCH)
