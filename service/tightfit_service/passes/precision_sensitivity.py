"""What the number format of each single layer costs, measured: which ones to keep in float, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto

from tightfit_service.application.data.activation_ranges import TensorRange
from tightfit_service.application.ports import (
    AccuracyOf,
    LayerPrecision,
    PrecisionSensitivity,
    ProgressCallback,
    QuantizationSettings,
)
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidDatasetError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.graph.fusion import FusedOperator, fused_graph
from tightfit_service.graph.model_file import load_model, save_model
from tightfit_service.graph.structure import consumers
from tightfit_service.passes.activation_values import Observer, input_batches
from tightfit_service.passes.number_formats import formats_by_node, quantizable_nodes
from tightfit_service.passes.qdq import prepared_for_qdq, with_qdq
from tightfit_service.passes.quantization import calibrated_ranges, in_16_bit_floats

_OBSERVED_SAMPLES = 32
_CLEANEST_DB = 150.0
"""Given where there is no error at all; float32 by itself has about 140 dB."""


def precision_sensitivity(
    graph: bytes,
    *,
    calibration: Samples,
    score: AccuracyOf,
    settings: QuantizationSettings,
    nodes: Sequence[str] | None = None,
    on_progress: ProgressCallback | None = None,
) -> PrecisionSensitivity:
    """Measure what each layer's format costs, by itself and among the others.

    Costs one calibration, then `2 * layers + 2` calls of `score` and half as many quantizations of
    the graph (tens of milliseconds each). With n samples behind `score`, differences under
    1 / sqrt(n) are noise: layers are better ranked by `sqnr_db` there.

    Args:
        graph: A working graph.
        calibration: Samples that ranges and ratios are found on.
        score: Evaluates a graph on samples of the caller's choice.
        settings: Formats and calibration; biases are not corrected here.
        nodes: Layers to measure; all with constant weights whose format is not float32 by default.
        on_progress: Told about progress.

    Raises:
        InvalidDatasetError: No calibration samples.
        InvalidRequestError: Settings as for `StaticQuantizationPass.quantize`.
    """
    if not len(calibration):
        raise InvalidDatasetError(
            "there are no calibration samples", field="calibration", remedy="give some hundred"
        )
    study = _Study(graph, calibration, settings)
    layers = [
        name
        for name in study.layers
        if (nodes is None or name in nodes) and study.formats[name] is not NumberFormat.FLOAT32
    ]
    results = []
    for done, name in enumerate(layers):
        if on_progress is not None:
            on_progress(done / len(layers), f"precision of {name}")
        alone = study.model_with({name})
        results.append(
            LayerPrecision(
                node=name,
                number_format=study.formats[name],
                sqnr_db=study.sqnr_db(name, alone),
                accuracy_alone=score(save_model(alone)),
                accuracy_without=score(save_model(study.model_without(name))),
            )
        )
    return PrecisionSensitivity(
        float_accuracy=score(graph),
        quantized_accuracy=score(save_model(study.model_with(None))),
        layers=tuple(results),
    )


class _Study:
    """A graph with its ranges, calibrated once, and the variants of its precision."""

    def __init__(self, graph: bytes, calibration: Samples, settings: QuantizationSettings) -> None:
        given = load_model(graph)
        self.formats: Mapping[str, NumberFormat] = formats_by_node(given, settings)
        self._model = prepared_for_qdq(given, self.formats)
        self._settings = settings
        self._ranges: Mapping[str, TensorRange] = calibrated_ranges(
            self._model, self.formats, calibration, settings, {}
        )
        self._operators: Mapping[str, FusedOperator] = {
            item.node.name: item for item in fused_graph(self._model).operators
        }
        self.layers = quantizable_nodes(self._model)
        count = min(_OBSERVED_SAMPLES, len(calibration))
        self._samples = calibration.take(range(count))

    def model_with(self, names: set[str] | None) -> ModelProto:
        """Return the model with only the named layers, and what is fused into them, in their formats."""
        if names is None:
            return self._realised(self.formats)
        inside = {part for name in names for part in (name, *self._operators[name].fused)}
        return self._realised({key: own for key, own in self.formats.items() if key in inside})

    def model_without(self, name: str) -> ModelProto:
        """Return the model with all but one layer in their formats."""
        outside = {name, *self._operators[name].fused}
        return self._realised({key: own for key, own in self.formats.items() if key not in outside})

    def sqnr_db(self, name: str, variant: ModelProto) -> float:
        """Return the ratio of the layer's output to its error in a variant of the model."""
        output = self._operators[name].outputs[0]
        rounded = _behind_rounding(variant, output)
        reference, other = Observer(self._model, [output]), Observer(variant, [rounded])
        signal = noise = 0.0
        for feeds in input_batches(self._model, self._samples, values_per_sample=1):
            expected = reference.run(feeds)[output].astype(np.float64)
            found = other.run(feeds)[rounded].astype(np.float64)
            signal += float((expected**2).sum())
            noise += float(((found - expected) ** 2).sum())
        if not noise:
            return _CLEANEST_DB
        return min(_CLEANEST_DB, 10 * math.log10(max(signal, 1e-300) / noise))

    def _realised(self, formats: Mapping[str, NumberFormat]) -> ModelProto:
        model = with_qdq(self._model, formats, self._ranges, per_channel=self._settings.per_channel)
        return in_16_bit_floats(model, formats)


def _behind_rounding(model: ModelProto, name: str) -> str:
    """Return the tensor that readers of a quantized tensor see: the output of its QDQ pair."""
    readers = consumers(model.graph)
    current = name
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        following = [node for node in readers.get(current, []) if node.op_type == kind]
        if not following:
            return name
        current = following[0].output[0]
    return current
