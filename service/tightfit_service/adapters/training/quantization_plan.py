"""What of a network is rounded when its exported file computes in integers, and how finely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from tightfit_service.adapters.training.conditioning import EPSILON
from tightfit_service.adapters.training.preparation import Student
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.graph.batch_norm import foldable_batch_norms
from tightfit_service.graph.fusion import PRODUCTS, fused_graph
from tightfit_service.graph.logarithms import logarithms
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.quantized_tensors import quantized_tensors
from tightfit_service.graph.structure import attribute, graph_inputs, graph_outputs

_WEIGHT_BITS = {NumberFormat.INT8: 8, NumberFormat.INT16X8: 8, NumberFormat.INT4: 4}
_ACTIVATION_BITS = {NumberFormat.INT8: 8, NumberFormat.INT16X8: 16, NumberFormat.INT4: 8}


@dataclass(frozen=True, kw_only=True)
class FoldedNorm:
    """A BatchNorm behind a product, as the exported file folds it into the product's weight."""

    scale: str
    variance: str
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class RoundedWeight:
    """How the weight of a product is rounded.

    Attributes:
        channel_axis: Axis of the output channels, which `norm` scales.
        is_per_channel: Whether each channel has a scale of its own.
    """

    bits: int
    channel_axis: int
    is_per_channel: bool
    norm: FoldedNorm | None


@dataclass(frozen=True, kw_only=True)
class RoundedActivation:
    """How a tensor is rounded; those of one group share their range."""

    bits: int
    group: str
    fixed: str
    """Key of `FIXED_SCALES`, or empty."""
    is_centred: bool
    """Whether its range is `rounding.centred`."""


@dataclass(frozen=True, kw_only=True)
class QuantizationPlan:
    """All roundings of a network.

    Attributes:
        weights: By the node that reads the weight.
        activations: By tensor.
        reads: Names of the inputs of every node in the student's graph.
        inputs: Inputs of the graph.
    """

    weights: Mapping[str, RoundedWeight]
    activations: Mapping[str, RoundedActivation]
    reads: Mapping[str, tuple[str, ...]]
    inputs: tuple[str, ...]


def plan_quantization(student: Student, settings: QuantizationSettings) -> QuantizationPlan:
    """Return what the exported file of a student will round.

    Weights of GRU, LSTM and of products with two activations stay as they are, and so do biases,
    whose 32 bits lose nothing to speak of. Grids of transposed convolutions with groups are those
    before a BatchNorm is folded in: channels of different groups share an index of the weight.

    Raises:
        InvalidRequestError: A format for a node that the graph does not have.
    """
    given, trained = load_model(student.given), load_model(student.graph)
    formats = _formats(given, settings)
    norms = _folded_norms(given, student)
    constants = {tensor.name for tensor in given.graph.initializer}
    weights = {
        node.name: RoundedWeight(
            bits=_WEIGHT_BITS[formats[node.name]],
            channel_axis=_channel_axis(node),
            is_per_channel=settings.per_channel,
            norm=norms.get(node.name) if _has_channel_axis(node) else None,
        )
        for node in given.graph.node
        if node.op_type in PRODUCTS
        and formats[node.name] in _WEIGHT_BITS
        and len(node.input) > 1
        and node.input[1] in constants
    }
    return QuantizationPlan(
        weights=weights,
        activations=_activations(given, formats),
        reads={node.name or node.output[0]: tuple(node.input) for node in trained.graph.node},
        inputs=graph_inputs(given),
    )


def _formats(model: ModelProto, settings: QuantizationSettings) -> Mapping[str, NumberFormat]:
    """Return the format of every node: its own, that of the operator it is fused into, or the default.

    Logarithms and what only they read stay in float where the default is an integer format.
    """
    formats = {node.name: settings.number_format for node in model.graph.node}
    if settings.number_format in _ACTIVATION_BITS:
        formats.update(dict.fromkeys(logarithms(model), NumberFormat.FLOAT32))
    unknown = [name for name in settings.node_formats if name not in formats]
    if unknown:
        raise InvalidRequestError(
            f"there is no node {unknown[0]!r} to compute in {settings.node_formats[unknown[0]]}",
            field="quantization.node_formats",
            remedy="use node names of the working graph",
        )
    for operator in fused_graph(model).operators:
        own = settings.node_formats.get(operator.node.name)
        if own is not None:
            formats.update(dict.fromkeys((operator.node.name, *operator.fused), own))
    return {**formats, **settings.node_formats}


def _folded_norms(model: ModelProto, student: Student) -> dict[str, FoldedNorm]:
    """Return by product the BatchNorm behind it, be it the network's own or inserted for training."""
    by_name = {node.name: node for node in model.graph.node}
    norms = {
        source: FoldedNorm(
            scale=by_name[norm].input[1],
            variance=by_name[norm].input[4],
            epsilon=float(attribute(by_name[norm], "epsilon", 1e-5)),
        )
        for norm, source in foldable_batch_norms(model).items()
    }
    for inserted in student.norms:
        scale, _, _, variance = inserted.parameters
        norms[inserted.producer] = FoldedNorm(scale=scale, variance=variance, epsilon=EPSILON)
    return norms


def _activations(
    model: ModelProto, formats: Mapping[str, NumberFormat]
) -> dict[str, RoundedActivation]:
    """Return the rounded tensors: written or read by an operator that computes in integers."""
    bits: dict[str, int] = {}
    for operator in reversed(fused_graph(model).operators):
        own = _ACTIVATION_BITS.get(formats[operator.node.name])
        if own is not None:
            # the writer, which comes later in this order, decides over the readers
            bits.update(dict.fromkeys((*operator.inputs, *operator.outputs), own))
    return {
        name: RoundedActivation(
            bits=bits[name],
            group=tensor.group,
            fixed=tensor.fixed,
            is_centred=tensor.is_centred and bits[name] == 8,
        )
        for name, tensor in quantized_tensors(model).items()
        if name in bits and not _is_softmax_output(model, name)
    }


def _is_softmax_output(model: ModelProto, name: str) -> bool:
    """Whether a tensor is the graph's last normalisation, which formats may leave in float."""
    return name in graph_outputs(model) and any(
        node.op_type in {"Softmax", "LogSoftmax"} and name in node.output
        for node in model.graph.node
    )


def _has_channel_axis(node: NodeProto) -> bool:
    """Whether every output channel has an index of its own along one axis of the weight."""
    return node.op_type != "ConvTranspose" or attribute(node, "group", 1) == 1


def _channel_axis(node: NodeProto) -> int:
    """Return the axis of the output channels in a product's weight (of a group's, if transposed)."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else -1
