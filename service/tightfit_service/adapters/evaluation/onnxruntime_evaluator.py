"""Evaluator of ONNX files in onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from tightfit_service.adapters.evaluation.top1 import evaluate_top1
from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.domain.errors import InvalidDatasetError, InvalidModelError
from tightfit_service.domain.quantities import Accuracy

_ERRORS_ONLY = 3
EXACT_INT8 = ("session.x64quantprecision", "1")
"""Session option: on x86 without VNNI the fast kernels add products of int8 in 16 bits, which saturate
and cost up to a hundred times the error of rounding; no other processor computes so."""
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
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(*EXACT_INT8)
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _RUNTIME_ERRORS as error:
        raise InvalidModelError(
            "onnxruntime cannot load the file", field="model", remedy="check it with onnx.checker"
        ) from error


def run_session(session: Any, inputs: FloatArray) -> list[npt.NDArray[np.float32]]:
    """Return all outputs of a loaded file with one input for one batch.

    Raises:
        InvalidModelError: The file does not run.
    """
    try:
        outputs = session.run(None, {session.get_inputs()[0].name: inputs})
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

    def outputs(self, data: bytes, inputs: FloatArray) -> npt.NDArray[np.float32]:
        """Return the first output for a batch of float inputs, shape (n, ...).

        Raises:
            InvalidModelError: The file does not load or does not run.
            InvalidDatasetError: The inputs' shape is not the model's.
        """
        return _Runner(data, self._threads, self._batch_size).run(inputs)

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        """Return top-1 accuracy over the samples."""
        runner = _Runner(data, self._threads, self._batch_size)
        return evaluate_top1(runner.run, samples, batch_size=self._batch_size)


class _Runner:
    """One loaded file."""

    def __init__(self, data: bytes, threads: int, batch_size: int) -> None:
        self._session = load_session(data, threads=threads)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise InvalidModelError(
                f"the model has {len(inputs)} inputs; evaluation feeds exactly one",
                field="model",
                remedy="export it with a single input",
            )
        self._input = inputs[0]
        batch = self._input.shape[0] if self._input.shape else None
        self._fixed_batch = batch if isinstance(batch, int) and batch > 0 else None
        self._batch_size = self._fixed_batch or batch_size

    def run(self, inputs: FloatArray) -> npt.NDArray[np.float32]:
        """Return the first output for all inputs."""
        wanted = self._input.shape
        fits = inputs.ndim == len(wanted) and all(
            not isinstance(size, int) or size <= 0 or size == given
            for given, size in zip(inputs.shape[1:], wanted[1:], strict=True)
        )
        if not fits:
            raise InvalidDatasetError(
                f"inputs have shape {inputs.shape[1:]}, the model's {self._input.name!r} {wanted[1:]}",
                field="dataset",
                remedy="check layout and array shapes",
            )
        parts = [
            self._run_batch(inputs[start : start + self._batch_size])
            for start in range(0, len(inputs), self._batch_size)
        ]
        return np.concatenate(parts)

    def _run_batch(self, batch: FloatArray) -> npt.NDArray[np.float32]:
        count = len(batch)
        if self._fixed_batch and count < self._fixed_batch:
            batch = np.concatenate([batch, np.repeat(batch[:1], self._fixed_batch - count, axis=0)])
        output = run_session(self._session, batch)[0]
        if output.ndim == 0 or len(output) != len(batch):
            raise InvalidModelError(
                f"the first output has shape {output.shape} for {len(batch)} samples",
                field="model",
                remedy="its first axis must be the batch",
            )
        return output[:count]
