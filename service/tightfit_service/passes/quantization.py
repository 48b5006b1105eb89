"""Number formats of a graph: a float ONNX graph in, one with QDQ pairs and 16-bit floats out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, TensorProto
from onnxruntime.quantization import QuantType

from tightfit_service.application.data.activation_ranges import (
    TensorRange,
    check_method,
    chosen_range,
    collect,
)
from tightfit_service.application.data.calibration_checks import checked_inputs
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidDatasetError
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.graph.logarithms import logarithms
from tightfit_service.graph.model_file import load_model, save_model
from tightfit_service.graph.structure import graph_inputs
from tightfit_service.passes.activation_values import activations
from tightfit_service.passes.bias_correction import corrected, with_biases
from tightfit_service.passes.half_precision import to_float16, with_bfloat16_weights
from tightfit_service.passes.joined_ranges import joined_with_loss
from tightfit_service.passes.number_formats import (
    FLOAT_OPERATORS,
    INTEGER_FORMATS,
    formats_by_node,
)
from tightfit_service.passes.qdq import (
    QUANTIZABLE,
    activation_types,
    needs_onnxruntime,
    prepared_for_qdq,
    with_qdq,
)

Ranges = Mapping[str, tuple[float, float]]

_NAMED_NODES = 8
"""Nodes that a note lists by name; the rest are counted."""


@dataclass(frozen=True, kw_only=True)
class QuantizedGraph:
    """A graph in its final number formats.

    Attributes:
        graph: Serialized ONNX; inputs and outputs are float32 as before.
        notes: What the user should know about calibration and the file.
        format_notes: Which nodes compute in other numbers than asked for, and why.
    """

    graph: bytes
    notes: tuple[str, ...] = ()
    format_notes: tuple[str, ...] = ()


class StaticQuantizationPass:
    """Brings every node into its number format; nodes keep their names, BatchNorm is folded first.

    int8, int16x8 and int4 become QDQ pairs: weights symmetric, per channel unless told otherwise;
    activations asymmetric per tensor; biases int32. Of these onnxruntime has integer kernels for int8
    only; the others it computes in float between quantizations, which gives the same values. int4 is
    the weights of convolutions and dense layers; everything else of such a node is int8. float16
    nodes compute in it, bfloat16 nodes store their weights in it. Softmax stays in float.
    """

    name = "quantization"

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        """Return the reasons why int8 cannot help here, none when it can."""
        del graph
        if NumberFormat.INT8 in target.number_formats:
            return ()
        return (f"{target.name} does not compute in int8",)

    def quantize(
        self,
        graph: bytes,
        *,
        calibration: Samples | None,
        settings: QuantizationSettings,
        ranges: Ranges | None = None,
    ) -> QuantizedGraph:
        """Return the graph with every node in its format.

        Tensors that `ranges` names take their least and greatest value from there, as training
        fixed them; the others are calibrated. Tensors of 16 bits span all values seen, for clipping
        gains nothing there.

        Raises:
            UnsupportedError: A graph too old for QDQ, or several inputs.
            InvalidRequestError: A node that the graph does not have, an unknown method, or
                activations that are not finite.
            InvalidDatasetError: Integers without calibration samples, or samples that are not finite.
        """
        given = load_model(graph)
        check_method(settings.method, settings.percentile)
        formats = formats_by_node(given, settings)
        model = prepared_for_qdq(given, formats)
        notes: list[str] = []
        format_notes: list[str] = []
        if INTEGER_FORMATS & set(formats.values()):
            kept = [n for n in logarithms(given) if formats[n] not in INTEGER_FORMATS]
            format_notes += _float_notes(model, formats)
            model, apart, notes = _in_integers(model, formats, calibration, settings, ranges or {})
            if apart:
                listed = ", ".join(apart)
                format_notes.append(
                    f"in float32, for they join values of other magnitudes: {listed}"
                )
            if kept:
                listed = ", ".join(kept)
                format_notes.append(f"in float32, for a logarithm needs small values: {listed}")
        model = in_16_bit_floats(model, formats)
        if NumberFormat.BFLOAT16 in formats.values():
            notes.append(
                "bfloat16 is what weights are stored in; onnxruntime widens them to float32, for "
                "it has no bfloat16 kernels for most operators on the CPU"
            )
        return QuantizedGraph(
            graph=save_model(model), notes=tuple(notes), format_notes=tuple(format_notes)
        )


def calibrated_ranges(
    model: ModelProto,
    formats: Mapping[str, NumberFormat],
    calibration: Samples,
    settings: QuantizationSettings,
    ranges: Ranges,
) -> dict[str, TensorRange]:
    """Return the range of every tensor that nodes in integers read or write.

    Args:
        model: As from `prepared_for_qdq`.
        formats: Of every node.
        calibration: Samples to look at.
        settings: Method of calibration.
        ranges: Least and greatest values that are fixed.
    """
    types = activation_types(model, formats)
    histograms = collect(activations(model, calibration, names=types))
    found = {
        name: chosen_range(
            histogram,
            method="minmax" if types[name] is QuantType.QInt16 else settings.method,
            percentile=settings.percentile,
        )
        for name, histogram in histograms.items()
    }
    for name, (low, high) in ranges.items():
        found[name] = TensorRange(low=min(low, 0.0), high=max(high, 0.0))
    return found


def in_16_bit_floats(model: ModelProto, formats: Mapping[str, NumberFormat]) -> ModelProto:
    """Return the model with nodes in float16 and bfloat16 as their formats say."""
    halves = _nodes_in(formats, NumberFormat.FLOAT16)
    if halves:
        model = to_float16(model, halves)
    stored = _nodes_in(formats, NumberFormat.BFLOAT16)
    return with_bfloat16_weights(model, stored) if stored else model


def _in_integers(
    model: ModelProto,
    formats: Mapping[str, NumberFormat],
    calibration: Samples | None,
    settings: QuantizationSettings,
    ranges: Ranges,
) -> tuple[ModelProto, list[str], list[str]]:
    """Return the model with QDQ pairs, the nodes that stay in float32 for what they join, and notes."""
    if calibration is None or len(calibration) == 0:
        raise InvalidDatasetError(
            "integer formats need calibration samples and there are none",
            field="calibration",
            remedy="give some hundred samples, or export in float32",
        )
    notes = [*checked_inputs(calibration, graph_inputs(model))]
    if settings.bias_correction:
        model = with_biases(model)
    spans = calibrated_ranges(model, formats, calibration, settings, ranges)
    apart = [n for n in joined_with_loss(model, formats, spans) if n not in settings.node_formats]
    formats = {**formats, **dict.fromkeys(apart, NumberFormat.FLOAT32)}
    result = with_qdq(model, formats, spans, per_channel=settings.per_channel)
    if needs_onnxruntime(result):
        notes.append(
            "the file needs onnxruntime: QDQ pairs are of its own domain, com.microsoft, for it "
            "refuses the standard ones here"
        )
    if settings.bias_correction:
        result, skipped = corrected(result, model, calibration)
        if skipped:
            notes.append("no bias to correct: " + ", ".join(skipped))
    return result, apart, notes


def _float_notes(model: ModelProto, formats: Mapping[str, NumberFormat]) -> Iterator[str]:
    """Tell which nodes stay in float32 though integers were asked for, and why."""
    computed = {
        info.name
        for info in (*model.graph.value_info, *model.graph.output)
        if info.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    left = [
        node
        for node in model.graph.node
        if formats.get(node.name) in INTEGER_FORMATS
        and (node.op_type in FLOAT_OPERATORS or node.op_type not in QUANTIZABLE)
        and any(name in computed for name in node.output)
    ]
    ties = [node.name for node in left if node.op_type in FLOAT_OPERATORS]
    if ties:
        yield f"in float32, for rounding ties the greatest of its outputs: {_listed(ties)}"
    others = [f"{node.name} ({node.op_type})" for node in left if node.name not in ties]
    if others:
        yield f"in float32 for want of a kernel in integers: {_listed(others)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_NODES} more" if len(names) > _NAMED_NODES else ""
    return ", ".join(names[:_NAMED_NODES]) + more


def _nodes_in(formats: Mapping[str, NumberFormat], number_format: NumberFormat) -> frozenset[str]:
    return frozenset(name for name, own in formats.items() if own is number_format)
