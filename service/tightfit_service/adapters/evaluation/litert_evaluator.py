"""Evaluator of TFLite files in LiteRT, with the quantization and layout that the file states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tightfit_service.adapters.evaluation.metrics import evaluate_metric
from tightfit_service.application.samples import FloatArray, ModelInputs, Samples
from tightfit_service.domain.errors import InvalidDatasetError, InvalidModelError
from tightfit_service.domain.quantities import Accuracy

METADATA_NAME = "tightfit"
"""Entry of a file's metadata that holds tightfit's facts as JSON."""
INPUT_LAYOUT_KEY = "input_layout"
"""Key in it: `NHWC` where the file wants channels last, `as-is` where it wants what the graph wants;
for several inputs one word each, joined by commas."""
OUTPUT_LAYOUT_KEY = "output_layout"
"""The same for outputs: `NHWC` where the graph gives NCHW."""

_BATCH = 256
_TO_NHWC = (0, 2, 3, 1)
_TO_NCHW = (0, 3, 1, 2)
_RUNTIME_ERRORS = (RuntimeError, ValueError)


class LitertEvaluator:
    """Runs TFLite files with XNNPACK on the CPU (`ports.Evaluator`), one sample at a time.

    Files for microcontrollers have a fixed batch of 1, and one sample takes no longer alone than in
    a batch. Results depend on nothing but the arguments.
    """

    def __init__(self, *, threads: int = 1) -> None:
        """Keep the number of threads that the runtime may use for one call."""
        self._threads = threads

    def outputs(self, data: bytes, inputs: ModelInputs) -> npt.NDArray[np.float32]:
        """Return the first output for float inputs in working layout, dequantized, shape (n, ...).

        Raises:
            InvalidModelError: The file does not load or does not run.
            InvalidDatasetError: The inputs are not the model's.
        """
        return LitertRunner(data, threads=self._threads).run(inputs)[0]

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        """Return the metric that the samples declare."""
        runner = LitertRunner(data, threads=self._threads)
        return evaluate_metric(lambda inputs: runner.run(inputs)[0], samples, batch_size=_BATCH)


class LitertRunner:
    """One loaded file; not for several threads at once."""

    def __init__(self, data: bytes, *, threads: int) -> None:
        """Load the file.

        Raises:
            InvalidModelError: LiteRT refuses it.
        """
        try:
            self._interpreter = Interpreter(model_content=data, num_threads=max(1, threads))
            self._interpreter.allocate_tensors()
        except _RUNTIME_ERRORS as error:
            raise InvalidModelError(
                "LiteRT cannot load the file", field="model", remedy="check its operators"
            ) from error
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        facts = read_metadata(data)
        self._input_layouts = _words(facts.get(INPUT_LAYOUT_KEY, ""), len(self._inputs))
        self._output_layouts = _words(facts.get(OUTPUT_LAYOUT_KEY, ""), len(self._outputs))

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs in the file's order."""
        return tuple(str(item["name"]) for item in self._inputs)

    def run(self, inputs: ModelInputs) -> list[npt.NDArray[np.float32]]:
        """Return all outputs for float inputs in working layout, dequantized, in working layout.

        Args:
            inputs: The array of the only input, or arrays by the names of the inputs.

        Raises:
            InvalidDatasetError: The inputs' names or shapes are not the model's.
            InvalidModelError: The file does not run.
        """
        arrays = self._arrays(inputs)
        batch = int(self._inputs[0]["shape"][0]) if len(self._inputs[0]["shape"]) else 1
        parts: list[list[npt.NDArray[np.float32]]] = [[] for _ in self._outputs]
        for start in range(0, len(arrays[0]), batch):
            chunks = [values[start : start + batch] for values in arrays]
            count = len(chunks[0])
            if count < batch:
                chunks = [
                    np.concatenate([chunk, np.repeat(chunk[:1], batch - count, axis=0)])
                    for chunk in chunks
                ]
            for part, output in zip(parts, self._invoke(chunks), strict=True):
                part.append(output[:count])
        return [
            _in_working_layout(np.concatenate(part), layout)
            for part, layout in zip(parts, self._output_layouts, strict=True)
        ]

    def stored(self, inputs: ModelInputs) -> list[npt.NDArray[Any]]:
        """Return inputs as the file takes them: in its order, layout and number formats.

        Raises:
            InvalidDatasetError: The inputs' names or shapes are not the model's.
        """
        arrays = zip(self._arrays(inputs), self._inputs, strict=True)
        return [quantized(values, detail) for values, detail in arrays]

    def restored(self, output: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the first output as `run` does, from what the file's operators left in it."""
        return _in_working_layout(dequantized(output, self._outputs[0]), self._output_layouts[0])

    @property
    def output_step(self) -> float:
        """The least difference between two values of the first output; 0 where it is of floats."""
        detail = self._outputs[0]
        is_float = np.dtype(detail["dtype"]).kind == "f"
        return 0.0 if is_float else float(detail["quantization"][0])

    def _arrays(self, inputs: ModelInputs) -> list[FloatArray]:
        given = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        names = self.input_names
        if len(names) == 1 and len(given) == 1:
            given = {names[0]: next(iter(given.values()))}
        if set(given) != set(names):
            raise InvalidDatasetError(
                f"the given inputs are {sorted(given)}, the model's {sorted(names)}",
                field="dataset",
                remedy="name an array for each of the model's inputs",
            )
        return [
            _arranged(given[name], detail, layout)
            for name, detail, layout in zip(names, self._inputs, self._input_layouts, strict=True)
        ]

    def _invoke(self, batch: list[FloatArray]) -> list[npt.NDArray[np.float32]]:
        try:
            for values, detail in zip(batch, self._inputs, strict=True):
                self._interpreter.set_tensor(detail["index"], quantized(values, detail))
            self._interpreter.invoke()
            return [
                dequantized(self._interpreter.get_tensor(item["index"]), item)
                for item in self._outputs
            ]
        except _RUNTIME_ERRORS as error:
            raise InvalidModelError(
                "LiteRT cannot run the file", field="model", remedy="check its operators"
            ) from error


def _in_working_layout(output: npt.NDArray[np.float32], layout: str) -> npt.NDArray[np.float32]:
    return output.transpose(_TO_NCHW) if layout == "NHWC" and output.ndim == 4 else output


def _words(text: str, count: int) -> list[str]:
    """Return one layout per tensor, empty where the file does not say."""
    words = str(text).split(",")
    return words if len(words) == count else [""] * count


def _arranged(inputs: FloatArray, detail: Mapping[str, Any], layout: str) -> FloatArray:
    given, wanted = inputs.shape[1:], tuple(int(size) for size in detail["shape"][1:])
    fits = given == wanted
    if inputs.ndim == 4 and len(wanted) == 3:
        channels_last = (given[1], given[2], given[0])
        # Cubes fit both ways; then the file's own word counts, or the usual layout of TFLite.
        if channels_last == wanted and not (fits and layout == "as-is"):
            return np.ascontiguousarray(inputs.transpose(_TO_NHWC))
    if fits:
        return inputs
    raise InvalidDatasetError(
        f"inputs have shape {given}, the model's {detail['name']!r} {wanted}",
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


def read_metadata(data: bytes) -> Mapping[str, str]:
    """Return what tightfit wrote into the file's metadata, empty for files of other origin.

    Besides what the exporter was given these are the layouts of inputs and outputs.
    """
    model = schema.Model.GetRootAs(data, 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == METADATA_NAME.encode():
            raw = model.Buffers(entry.Buffer()).DataAsNumpy()
            try:
                found = json.loads(bytes(raw))
            except ValueError:
                return {}
            return {k: str(v) for k, v in found.items()} if isinstance(found, dict) else {}
    return {}
