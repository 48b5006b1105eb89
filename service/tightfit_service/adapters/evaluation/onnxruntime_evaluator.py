"""Evaluator of ONNX files in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from tightfit_service.adapters.evaluation.metrics import evaluate_metric
from tightfit_service.application.samples import FloatArray, ModelInputs, Samples
from tightfit_service.domain.errors import InvalidDatasetError, InvalidModelError
from tightfit_service.domain.quantities import Accuracy

_ERRORS_ONLY = 3
EXACT_INT8 = ("session.x64quantprecision", "1")
"""Session option: on x86 without VNNI the fast kernels add products of int8 in 16 bits, which saturate
and cost up to a hundred times the error of rounding; no other processor computes so."""
_SHARED_WEIGHT = "Attempt to replace the existing tensor"
_STATE = ort.capi.onnxruntime_pybind11_state
_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    _STATE.Fail,
    _STATE.InvalidArgument,
    _STATE.InvalidGraph,
    _STATE.InvalidProtobuf,
    _STATE.NotImplemented,
    _STATE.RuntimeException,
)
"""What onnxruntime raises; its own exceptions have no common base."""


def load_session(data: bytes, *, threads: int) -> Any:
    """Load an ONNX file in onnxruntime, on the CPU.

    Raises:
        InvalidModelError: onnxruntime refuses the file.
    """
    try:
        return exact_session(data, threads=threads, log_level=_ERRORS_ONLY)
    except _RUNTIME_ERRORS as error:
        raise InvalidModelError(
            "onnxruntime cannot load the file", field="model", remedy="check it with onnx.checker"
        ) from error


def exact_session(data: bytes, *, threads: int, log_level: int) -> Any:
    """Load an ONNX file as `load_session` does; errors are onnxruntime's own.

    Where several nodes read one int8 weight, onnxruntime (up to 1.31) fails at replacing it for
    exact products; the file is then run as it is written, without the kernels that need that.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = log_level
    options.add_session_config_entry(*EXACT_INT8)
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _STATE.Fail as error:
        if _SHARED_WEIGHT not in str(error):
            raise
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, inputs: ModelInputs) -> list[npt.NDArray[np.float32]]:
    """Return all outputs of a loaded file for one batch.

    Args:
        session: From `load_session`.
        inputs: The array of the only input, or arrays by the names of the inputs.

    Raises:
        InvalidModelError: The file does not run.
    """
    try:
        feeds = inputs if isinstance(inputs, Mapping) else {session.get_inputs()[0].name: inputs}
        outputs = session.run(None, dict(feeds))
    except _RUNTIME_ERRORS as error:
        raise InvalidModelError(
            "onnxruntime cannot run the file", field="model", remedy="check its operators"
        ) from error
    return [np.asarray(output, dtype=np.float32) for output in outputs]


class OnnxRuntimeEvaluator:
    """Runs ONNX files on the CPU (`ports.Evaluator`). Results depend on nothing but the arguments."""

    def __init__(self, *, threads: int = 1, batch_size: int = 128) -> None:
        """Keep the settings.

        Args:
            threads: Threads of onnxruntime for one call; 0 lets it take all cores.
            batch_size: Samples run at once, where the file's batch is free.
        """
        self._threads = threads
        self._batch_size = batch_size

    def outputs(self, data: bytes, inputs: ModelInputs) -> npt.NDArray[np.float32]:
        """Return the first output for a batch of float inputs, shape (n, ...).

        Raises:
            InvalidModelError: The file does not load or does not run.
            InvalidDatasetError: The inputs' names or shapes are not the model's.
        """
        return _Runner(data, self._threads, self._batch_size).run(inputs)

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        """Return the metric that the samples declare."""
        runner = _Runner(data, self._threads, self._batch_size)
        return evaluate_metric(runner.run, samples, batch_size=self._batch_size)


class _Runner:
    """One loaded file."""

    def __init__(self, data: bytes, threads: int, batch_size: int) -> None:
        self._session = load_session(data, threads=threads)
        self._inputs = self._session.get_inputs()
        sizes = [item.shape[0] if item.shape else None for item in self._inputs]
        fixed = [size for size in sizes if isinstance(size, int) and size > 0]
        self._fixed_batch = fixed[0] if fixed else None
        self._batch_size = self._fixed_batch or batch_size

    def run(self, inputs: ModelInputs) -> npt.NDArray[np.float32]:
        """Return the first output for all samples."""
        feeds = self._feeds(inputs)
        count = len(next(iter(feeds.values())))
        parts = [
            self._run_batch({n: v[start : start + self._batch_size] for n, v in feeds.items()})
            for start in range(0, count, self._batch_size)
        ]
        return np.concatenate(parts)

    def _feeds(self, inputs: ModelInputs) -> dict[str, FloatArray]:
        """Return the inputs by the file's names, checked against its shapes."""
        given = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        names = [item.name for item in self._inputs]
        if len(names) == 1 and len(given) == 1:
            given = {names[0]: next(iter(given.values()))}
        if set(given) != set(names):
            raise InvalidDatasetError(
                f"the given inputs are {sorted(given)}, the model's {sorted(names)}",
                field="dataset",
                remedy="name an array for each of the model's inputs",
            )
        for item in self._inputs:
            _check_shape(given[item.name], item)
        return {name: given[name] for name in names}

    def _run_batch(self, batch: dict[str, FloatArray]) -> npt.NDArray[np.float32]:
        count = len(next(iter(batch.values())))
        if self._fixed_batch and count < self._fixed_batch:
            missing = self._fixed_batch - count
            batch = {
                n: np.concatenate([v, np.repeat(v[:1], missing, axis=0)]) for n, v in batch.items()
            }
        output = run_session(self._session, batch)[0]
        expected = self._fixed_batch or count
        if output.ndim == 0 or len(output) != expected:
            raise InvalidModelError(
                f"the first output has shape {output.shape} for {expected} samples",
                field="model",
                remedy="its first axis must be the batch",
            )
        return output[:count]


def _check_shape(values: FloatArray, item: Any) -> None:
    wanted = item.shape
    fits = values.ndim == len(wanted) and all(
        not isinstance(size, int) or size <= 0 or size == given
        for given, size in zip(values.shape[1:], wanted[1:], strict=True)
    )
    if not fits:
        raise InvalidDatasetError(
            f"inputs have shape {values.shape[1:]}, the model's {item.name!r} {wanted[1:]}",
            field="dataset",
            remedy="check layout and array shapes",
        )
