"""Precision per node: which number formats a layer could have, and what rounding to them costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto

from tightfit_service.application.costs.costing import BITS
from tightfit_service.application.data.activation_ranges import chosen_range, collect
from tightfit_service.application.data.histogram import Histogram
from tightfit_service.application.ports import PassContext
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.domain.network import Alternative, NetworkProfile
from tightfit_service.graph.batch_norm import fold_batch_norms
from tightfit_service.graph.fusion import fused_graph
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.structure import Array, initializers
from tightfit_service.passes.activation_values import activations
from tightfit_service.passes.number_formats import INTEGER_FORMATS, quantizable_nodes
from tightfit_service.passes.rounding_error import output_errors
from tightfit_service.passes.weight_rounding import round_weight, weight_axis

_MILDEST_FIRST = (
    NumberFormat.FLOAT32,
    NumberFormat.FLOAT16,
    NumberFormat.BFLOAT16,
    NumberFormat.INT16X8,
    NumberFormat.INT8,
    NumberFormat.INT4,
)
_LABELS = {
    NumberFormat.FLOAT32: "float32",
    NumberFormat.FLOAT16: "float16",
    NumberFormat.BFLOAT16: "bfloat16 weights",
    NumberFormat.INT16X8: "int16 activations",
    NumberFormat.INT8: "int8",
    NumberFormat.INT4: "int4 weights",
}
_OBSERVED_SAMPLES = 64
_KEY = "number_format"


class PrecisionPass:
    """Implements `application.ports.NodePass`; stateless and thread-safe.

    Parameters: `{"nodes": {node: {"number_format": "int4"}}}`. Formats are realised on export, by
    `QuantizationSettings.node_formats`, so that `apply` returns the graph as it is.
    """

    name = "precision"

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        """Return one sentence for each reason why the pass cannot help there; none when it can."""
        reasons = []
        if len(set(target.number_formats)) < 2:
            reasons.append(f"{target.name} computes in one number format only")
        if not quantizable_nodes(load_model(graph)):
            reasons.append("the network has no layer with constant weights")
        return tuple(reasons)

    def check(self, graph: bytes, parameters: Mapping[str, Any]) -> None:
        """Check parameters against a graph.

        Raises:
            InvalidRequestError: An unknown key, node or number format; `field` names it as
                `parameters.nodes[<node>].number_format`.
        """
        known = {node.name for node in load_model(graph).graph.node}
        for name in node_formats(parameters):
            if name not in known:
                raise InvalidRequestError(
                    f"there is no node {name!r}",
                    field=f"parameters.nodes[{name}]",
                    remedy="use node names of the working graph",
                )

    def apply(self, graph: bytes, parameters: Mapping[str, Any], context: PassContext) -> bytes:
        """Return the graph as it is, once its parameters have been checked.

        Raises:
            InvalidRequestError: As `check`.
        """
        del context
        self.check(graph, parameters)
        return graph

    def alternatives(
        self,
        graph: bytes,
        profile: NetworkProfile,
        target: HardwareSpec,
        *,
        context: PassContext | None = None,
    ) -> Mapping[str, Sequence[Alternative]]:
        """Return, per layer with weights, the target's formats other than int8, mildest first.

        On targets without int8 the first format that the target has is left out instead.

        Args:
            graph: A working graph.
            profile: Its profile.
            target: The device.
            context: With calibration samples, errors are those of the outputs on up to 64 of them,
                the rounding of outputs included; without, those of the weights.
        """
        formats = [item for item in _MILDEST_FIRST if item in target.number_formats]
        default = NumberFormat.INT8 if NumberFormat.INT8 in formats else formats[0]
        formats.remove(default)
        operators = {op.node: op for op in profile.operators if op.weight_count}
        samples = context.calibration if context is not None else None
        errors = {
            number_format: rounding_errors(graph, number_format, calibration=samples)
            for number_format in formats
        }
        result: dict[str, list[Alternative]] = {}
        for node in quantizable_nodes(load_model(graph)):
            if node not in operators:
                continue
            for number_format in formats:
                weight_bits, activation_bits = BITS[number_format]
                operator = replace(
                    operators[node], weight_bits=weight_bits, activation_bits=activation_bits
                )
                result.setdefault(node, []).append(
                    Alternative(
                        node=node,
                        pass_name=self.name,
                        label=_LABELS[number_format],
                        parameters={_KEY: str(number_format)},
                        operators=(operator,),
                        error=errors[number_format].get(node, 0.0),
                    )
                )
        return result


def node_formats(parameters: Mapping[str, Any]) -> dict[str, NumberFormat]:
    """Return the formats that a step's parameters name, for `QuantizationSettings.node_formats`.

    Raises:
        InvalidRequestError: An unknown key or number format.
    """
    for key in parameters:
        if key != "nodes":
            raise _unknown_key(key, f"parameters.{key}", "nodes")
    nodes = parameters.get("nodes", {})
    if not isinstance(nodes, Mapping):
        raise InvalidRequestError(
            "nodes must map node names to their parameters",
            field="parameters.nodes",
            remedy='write {"nodes": {"conv1": {"number_format": "int4"}}}',
        )
    formats: dict[str, NumberFormat] = {}
    for name, values in nodes.items():
        field = f"parameters.nodes[{name}]"
        if not isinstance(values, Mapping) or _KEY not in values:
            raise InvalidRequestError(
                f"node {name!r} has no number format",
                field=f"{field}.{_KEY}",
                remedy="give one of " + ", ".join(NumberFormat),
            )
        for key in values:
            if key != _KEY:
                raise _unknown_key(key, f"{field}.{key}", _KEY)
        if values[_KEY] not in set(NumberFormat):
            raise InvalidRequestError(
                f"{values[_KEY]!r} is no number format",
                field=f"{field}.{_KEY}",
                remedy="use one of " + ", ".join(NumberFormat),
            )
        formats[str(name)] = NumberFormat(values[_KEY])
    return formats


def rounding_errors(
    graph: bytes, number_format: NumberFormat, *, calibration: Samples | None = None
) -> dict[str, float]:
    """Return, per layer with weights, the relative squared error of its output, in [0, 1].

    With calibration samples it is measured: the output with rounded weights and float inputs
    against that of the float layer, plus the error of rounding the output itself. Without, it is
    that of the weights, which equals it where inputs are uncorrelated and of equal power.

    Args:
        graph: A working graph.
        number_format: Of the layers; weights have a scale per output channel.
        calibration: Up to 64 samples are looked at.
    """
    model = onnx.shape_inference.infer_shapes(fold_batch_norms(load_model(graph)))
    constants = initializers(model)
    names = set(quantizable_nodes(model))
    nodes = {node.name: node for node in model.graph.node if node.name in names}
    if number_format is NumberFormat.FLOAT32:
        return dict.fromkeys(nodes, 0.0)
    rounded: dict[str, Array] = {}
    for name, node in nodes.items():
        weight = constants[node.input[1]]
        rounded[name] = _rounded(weight, weight_axis(node, weight.ndim), number_format)
    if calibration is None or not len(calibration):
        return {
            name: _relative(constants[node.input[1]], rounded[name]) for name, node in nodes.items()
        }
    samples = calibration.take(range(min(_OBSERVED_SAMPLES, len(calibration))))
    measured = output_errors(model, rounded, samples)
    outputs = _output_errors_of_rounding(model, names, samples, number_format)
    return {
        name: min(1.0, measured[name].relative + outputs.get(name, 0.0))
        for name in nodes
        if name in measured
    }


def _rounded(weight: Array, axis: int, number_format: NumberFormat) -> Array:
    if number_format in INTEGER_FORMATS:
        return round_weight(weight, axis=axis, bits=BITS[number_format][0]).values
    narrow = np.float16 if number_format is NumberFormat.FLOAT16 else ml_dtypes.bfloat16
    return weight.astype(narrow).astype(np.float64)


def _relative(weight: Array, rounded: Array) -> float:
    power = float((weight.astype(np.float64) ** 2).sum())
    return min(1.0, float(((rounded - weight) ** 2).sum()) / power) if power else 0.0


def _output_errors_of_rounding(
    model: ModelProto, names: set[str], samples: Samples, number_format: NumberFormat
) -> dict[str, float]:
    """Return the relative squared error that integers of the output, as fused, bring by themselves."""
    if number_format not in INTEGER_FORMATS:
        return {}
    outputs = {
        item.outputs[0]: item.node.name
        for item in fused_graph(model).operators
        if item.node.name in names
    }
    steps = 2.0 ** BITS[number_format][1] - 1
    histograms = collect(activations(model, samples, names=outputs))
    return {outputs[name]: _step_error(found, steps) for name, found in histograms.items()}


def _step_error(histogram: Histogram, steps: float) -> float:
    """Return the power of uniform rounding errors, a twelfth of the squared step, over the values'."""
    if histogram.is_flat:
        return 0.0
    span = chosen_range(histogram, method="minmax")
    power = float((histogram.centres**2 * histogram.counts).sum() / histogram.counts.sum())
    return ((span.high - span.low) / steps) ** 2 / 12 / power if power else 0.0


def _unknown_key(key: object, field: str, known: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"precision has no parameter {key!r}", field=field, remedy=f"the only one is {known}"
    )
