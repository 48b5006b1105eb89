"""Evaluator of TFLite files in LiteRT, with the quantization and layout that the file states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tightfit_service.adapters.evaluation.top1 import evaluate_top1
from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.domain.errors import InvalidDatasetError, InvalidModelError
from tightfit_service.domain.quantities import Accuracy

METADATA_NAME = "tightfit"
"""Entry of a file's metadata that holds tightfit's facts as JSON."""
INPUT_LAYOUT_KEY = "input_layout"
"""Key in it: `NHWC` where the file wants channels last, `as-is` where it wants what the graph wants."""

_BATCH = 256
_TO_NHWC = (0, 2, 3, 1)
_RUNTIME_ERRORS = (RuntimeError, ValueError)


class LitertEvaluator:
    """Runs TFLite files with XNNPACK on the CPU (`ports.Evaluator`), one sample at a time.

    Files for microcontrollers have a fixed batch of 1, and one sample takes no longer alone than in
    a batch. Results depend on nothing but the arguments.
    """

    def __init__(self, *, threads: int = 1) -> None:
        """Keep the number of threads that the runtime may use for one call."""
        self._threads = threads

    def outputs(self, data: bytes, inputs: FloatArray) -> npt.NDArray[np.float32]:
        """Return the first output for float inputs in working layout, dequantized, shape (n, ...).

        Raises:
            InvalidModelError: The file does not load or does not run.
            InvalidDatasetError: The inputs' shape is not the model's.
        """
        return LitertRunner(data, threads=self._threads).run(inputs)[0]

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        """Return top-1 accuracy over the samples."""
        runner = LitertRunner(data, threads=self._threads)
        return evaluate_top1(lambda inputs: runner.run(inputs)[0], samples, batch_size=_BATCH)


class LitertRunner:
    """One loaded file; not for several threads at once."""

    def __init__(self, data: bytes, *, threads: int) -> None:
        """Load the file.

        Raises:
            InvalidModelError: LiteRT refuses it, or it has several inputs.
        """
        try:
            self._interpreter = Interpreter(model_content=data, num_threads=max(1, threads))
            self._interpreter.allocate_tensors()
        except _RUNTIME_ERRORS as error:
            raise InvalidModelError(
                "LiteRT cannot load the file", field="model", remedy="check its operators"
            ) from error
        inputs = self._interpreter.get_input_details()
        if len(inputs) != 1:
            raise InvalidModelError(
                f"the model has {len(inputs)} inputs; evaluation feeds exactly one",
                field="model",
                remedy="export it with a single input",
            )
        self._input = inputs[0]
        self._outputs = self._interpreter.get_output_details()
        self._shape = tuple(int(size) for size in self._input["shape"])
        self._layout = str(read_metadata(data).get(INPUT_LAYOUT_KEY, ""))

    def run(self, inputs: FloatArray) -> list[npt.NDArray[np.float32]]:
        """Return all outputs for float inputs in working layout, dequantized.

        Raises:
            InvalidDatasetError: The inputs' shape is not the model's.
            InvalidModelError: The file does not run.
        """
        arranged = self._arranged(inputs)
        batch = self._shape[0]
        parts: list[list[npt.NDArray[np.float32]]] = [[] for _ in self._outputs]
        for start in range(0, len(arranged), batch):
            chunk = arranged[start : start + batch]
            count = len(chunk)
            if count < batch:
                chunk = np.concatenate([chunk, np.repeat(chunk[:1], batch - count, axis=0)])
            for part, output in zip(parts, self._invoke(chunk), strict=True):
                part.append(output[:count])
        return [np.concatenate(part) for part in parts]

    def _invoke(self, batch: FloatArray) -> list[npt.NDArray[np.float32]]:
        try:
            self._interpreter.set_tensor(self._input["index"], quantized(batch, self._input))
            self._interpreter.invoke()
            return [
                dequantized(self._interpreter.get_tensor(item["index"]), item)
                for item in self._outputs
            ]
        except _RUNTIME_ERRORS as error:
            raise InvalidModelError(
                "LiteRT cannot run the file", field="model", remedy="check its operators"
            ) from error

    def _arranged(self, inputs: FloatArray) -> FloatArray:
        given, wanted = inputs.shape[1:], self._shape[1:]
        fits = given == wanted
        if inputs.ndim == 4 and len(wanted) == 3:
            channels_last = (given[1], given[2], given[0])
            # Cubes fit both ways; then the file's own word counts, or the usual layout of TFLite.
            if channels_last == wanted and not (fits and self._layout == "as-is"):
                return np.ascontiguousarray(inputs.transpose(_TO_NHWC))
        if fits:
            return inputs
        raise InvalidDatasetError(
            f"inputs have shape {given}, the model's {self._input['name']!r} {wanted}",
            field="dataset",
            remedy="check layout and array shapes",
        )


def quantized(values: FloatArray, detail: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return float values in the type of a tensor, by its own scale and zero point."""
    dtype = np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return values.astype(dtype)
    scale, zero_point = detail["quantization"]
    if scale == 0:
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    steps = np.clip(np.round(values / scale) + zero_point, limits.min, limits.max)
    return np.asarray(steps, dtype=dtype)


def dequantized(values: npt.NDArray[Any], detail: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Return a tensor's values as floats, by its own scale and zero point."""
    scale, zero_point = detail["quantization"]
    result = values.astype(np.float32)
    if values.dtype.kind != "f" and scale != 0:
        result = (result - np.float32(zero_point)) * np.float32(scale)
    return result


def read_metadata(data: bytes) -> Mapping[str, Any]:
    """Return what tightfit wrote into the file's metadata, empty for files of other origin."""
    model = schema.Model.GetRootAs(data, 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == METADATA_NAME.encode():
            raw = model.Buffers(entry.Buffer()).DataAsNumpy()
            try:
                found = json.loads(bytes(raw))
            except ValueError:
                return {}
            return found if isinstance(found, dict) else {}
    return {}
