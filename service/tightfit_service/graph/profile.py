"""The profile of a graph: its operators as work to be done, free of ONNX."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnx import NodeProto

from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.graph.architecture import architecture
from tightfit_service.graph.fusion import FusedGraph, FusedOperator, fused_graph
from tightfit_service.graph.index_propagation import propagate
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.operator_forms import form_of, line_of
from tightfit_service.graph.products import (
    dense_widths,
    einsum_widths,
    macs_of,
    matrices_of,
    weight_of,
)
from tightfit_service.graph.propagation_state import Propagation
from tightfit_service.graph.structure import Shape, attribute, graph_inputs, graph_outputs

_KINDS: Mapping[str, OperatorKind] = {
    **dict.fromkeys(("Conv", "ConvInteger", "DeformConv", "QLinearConv"), OperatorKind.CONV),
    "ConvTranspose": OperatorKind.TRANSPOSED_CONV,
    "Gemm": OperatorKind.DENSE,
    **dict.fromkeys(("Attention", "MatMul", "MatMulInteger", "QLinearMatMul"), OperatorKind.MATMUL),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), OperatorKind.POOL),
    **dict.fromkeys(
        ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), OperatorKind.GLOBAL_POOL
    ),
    **dict.fromkeys(
        [
            "Add",
            "And",
            "Div",
            "Equal",
            "Greater",
            "Less",
            "Max",
            "Mean",
            "Min",
            "Mod",
            "Mul",
            "Not",
            "Or",
            "Pow",
            "Sub",
            "Sum",
            "Where",
            "Xor",
        ],
        OperatorKind.ELEMENTWISE,
    ),
    **dict.fromkeys(
        [
            "Abs",
            "Celu",
            "Clip",
            "Elu",
            "Erf",
            "Exp",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
            "Log",
            "Mish",
            "Neg",
            "PRelu",
            "Reciprocal",
            "Relu",
            "Selu",
            "Sigmoid",
            "Softplus",
            "Softsign",
            "Sqrt",
            "Swish",
            "Tanh",
            "ThresholdedRelu",
        ],
        OperatorKind.ACTIVATION,
    ),
    **dict.fromkeys(
        [
            "BatchNormalization",
            "InstanceNormalization",
            "LayerNormalization",
            "GroupNormalization",
            "LRN",
            "LpNormalization",
            "RMSNormalization",
            "MeanVarianceNormalization",
        ],
        OperatorKind.NORMALIZATION,
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), OperatorKind.SOFTMAX),
    "Pad": OperatorKind.PAD,
    "Concat": OperatorKind.CONCAT,
    **dict.fromkeys(("Slice", "Split", "Gather"), OperatorKind.SLICE),
    **dict.fromkeys(("Transpose", "DepthToSpace", "SpaceToDepth"), OperatorKind.TRANSPOSE),
    **dict.fromkeys(
        ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"), OperatorKind.RESHAPE
    ),
    **dict.fromkeys(("Resize", "Upsample"), OperatorKind.RESIZE),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), OperatorKind.RECURRENT),
}
_QLINEAR_BIAS = 8
"""Which input of a QLinearConv is its bias."""
_CONVOLUTIONS = frozenset(
    {OperatorKind.CONV, OperatorKind.DEPTHWISE_CONV, OperatorKind.TRANSPOSED_CONV}
)
_WITH_BATCH = _CONVOLUTIONS | {OperatorKind.POOL, OperatorKind.RECURRENT}
"""Kinds whose first axis is the batch, or steps that their products tell."""
_WEIGHTED = frozenset(
    {
        OperatorKind.CONV,
        OperatorKind.DEPTHWISE_CONV,
        OperatorKind.TRANSPOSED_CONV,
        OperatorKind.DENSE,
        OperatorKind.RECURRENT,
    }
)


class OnnxGraphInspector:
    """Implements `application.ports.GraphInspector` for working graphs; stateless and thread-safe."""

    def architecture(self, graph: bytes) -> tuple[str, ...]:
        """Return one line per node; graphs with equal lines take the same recipe."""
        return architecture(graph)

    def profile(self, graph: bytes) -> NetworkProfile:
        """Return the work of the graph as a runtime would execute it: BN folded, activations fused.

        Raises:
            InvalidModelError: Not a working graph.
        """
        model = load_model(graph)
        return profile_of(
            fused_graph(model),
            propagate(model),
            inputs=graph_inputs(model),
            outputs=graph_outputs(model),
        )


def profile_of(
    fused: FusedGraph, state: Propagation, *, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> NetworkProfile:
    """Return the profile of a fused graph; `state` tells which axis of a tensor its channels are."""
    counted: set[str] = set()
    operators = tuple(_operator(item, fused, state, counted) for item in fused.operators)
    named = dict.fromkeys(
        name for name in (*inputs, *(n for op in operators for n in (*op.inputs, *op.outputs)))
    )
    return NetworkProfile(
        operators=operators,
        tensors={name: _nchw(name, fused, state) for name in named if name in fused.shapes},
        inputs=inputs,
        outputs=outputs,
        constant_count=sum(
            value.size for name, value in fused.constants.items() if name not in counted
        ),
    )


def channel_axis(name: str, rank: int, state: Propagation) -> int:
    """Return the axis that holds a tensor's channels; axis 1 where propagation does not know."""
    return min(state.axes.get(name, 1), rank - 1)


def _nchw(name: str, fused: FusedGraph, state: Propagation) -> Shape:
    shape = fused.shapes[name]
    axis = channel_axis(name, len(shape), state) if shape else 0
    if axis == 0 and state.axes.get(name) == 0:
        # Channels that share an axis with the batch (attention heads), which is 1 here.
        return (1, *shape)
    if axis <= 1:
        return shape
    return (shape[0], shape[axis], *shape[1:axis], *shape[axis + 1 :])


def _operator(
    item: FusedOperator, fused: FusedGraph, state: Propagation, counted: set[str]
) -> Operator:
    node = item.node
    kind = _kind(item, fused, state)
    source: Shape = ()
    if item.inputs[:1] and item.inputs[0] in fused.shapes:
        name = item.inputs[0]
        # Convolutions read NCHW by definition; of other tensors propagation knows, from what made them.
        source = fused.shapes[name] if kind in _CONVOLUTIONS else _nchw(name, fused, state)
    out = _nchw(item.outputs[0], fused, state) if item.outputs[0] in fused.shapes else ()
    parameters = [
        name
        for member in (node, *item.followers)
        for name in member.input
        if name in fused.constants and name not in counted
    ]
    weights, biases = _parameter_counts(item, kind, parameters, fused, out)
    if kind in _WEIGHTED or biases:
        counted.update(parameters)
    in_channels = source[1] if len(source) > 1 else (source[0] if source else 0)
    out_channels = out[1] if len(out) > 1 else (out[0] if out else 0)
    in_size, out_size = (_size(shape, kind) for shape in (source, out))
    if kind is OperatorKind.DENSE:
        in_channels, out_channels = dense_widths(node, fused.shapes)
        # a profile may not know which axis of a network's input has the channels
        rows = math.prod(out) // out_channels
        if math.prod(out_size) != rows:
            in_size = out_size = (rows,) if rows > 1 else ()
    kernel = _kernel(item, kind, fused)
    first = item.inputs[0] if item.inputs else ""
    axis = channel_axis(first, len(fused.shapes.get(first, (1,))), state)
    return Operator(
        node=node.name,
        kind=kind,
        op_type=node.op_type,
        form=form_of(node, fused, axis),
        line=line_of(node, fused),
        inputs=item.inputs,
        outputs=item.outputs,
        macs=macs_of(node, fused.shapes),
        in_channels=in_channels,
        out_channels=out_channels,
        in_size=in_size,
        out_size=out_size,
        kernel=kernel,
        stride=_stride(node, fused) or (1,) * len(kernel),
        dilation=tuple(attribute(node, "dilations", [])),
        groups=int(attribute(node, "group", 1)),
        matrices=matrices_of(node, fused.shapes) if kind is OperatorKind.MATMUL else (),
        weight_count=weights,
        bias_count=biases,
        weight_bits=32,
        activation_bits=32,
        fused=item.fused,
    )


def _size(shape: Shape, kind: OperatorKind) -> Shape:
    """Return the axes of a tensor besides its channels; the first is one of them where it is no batch of 1."""
    if kind in _WITH_BATCH or len(shape) < 2 or shape[0] == 1:
        return shape[2:]
    return (shape[0], *shape[2:])


def _stride(node: NodeProto, fused: FusedGraph) -> tuple[int, ...]:
    """Return the steps between what windows begin with, or of what a slice takes; () where it has none."""
    steps = node.input[4] if node.op_type == "Slice" and len(node.input) > 4 else ""
    if steps in fused.constants:
        return tuple(abs(int(step)) for step in fused.constants[steps].ravel())
    return tuple(attribute(node, "strides", []))


def _kind(item: FusedOperator, fused: FusedGraph, state: Propagation) -> OperatorKind:
    node = item.node
    kind = OperatorKind.OTHER
    if node.domain in {"", "ai.onnx"}:
        kind = _KINDS.get(node.op_type, OperatorKind.OTHER)
        if node.op_type.startswith("Reduce"):
            kind = OperatorKind.GLOBAL_POOL
    if node.op_type == "Einsum":
        return _einsum_kind(item, fused)
    weight = fused.constants.get(weight_of(node))
    if kind is OperatorKind.MATMUL and weight is not None:
        last = len(fused.shapes.get(node.input[0], ())) - 1
        # Over positions instead of channels (a token mixer) the channels are rows: a plain product.
        over_channels = state.axes.get(node.input[0], last) == last
        if weight.ndim == 2 and over_channels:
            return OperatorKind.DENSE
    if kind is OperatorKind.CONV and weight is not None:
        groups = int(attribute(node, "group", 1))
        if groups > 1 and weight.shape[1] == 1:
            return OperatorKind.DEPTHWISE_CONV
    return kind


def _einsum_kind(item: FusedOperator, fused: FusedGraph) -> OperatorKind:
    """Return what an Einsum costs like: it is many operators under one name."""
    node = item.node
    if any(name not in fused.shapes for name in node.input):
        return OperatorKind.OTHER
    if macs_of(node, fused.shapes):
        is_dense = weight_of(node) in fused.constants and einsum_widths(node, fused.shapes)
        return OperatorKind.DENSE if is_dense else OperatorKind.MATMUL
    if len(node.input) > 1:
        return OperatorKind.ELEMENTWISE
    given, made = (math.prod(fused.shapes[name]) for name in (node.input[0], node.output[0]))
    return OperatorKind.GLOBAL_POOL if made < given else OperatorKind.TRANSPOSE


def _kernel(item: FusedOperator, kind: OperatorKind, fused: FusedGraph) -> tuple[int, ...]:
    kernel = attribute(item.node, "kernel_shape")
    if kernel is None and kind in _CONVOLUTIONS:
        kernel = fused.shapes[weight_of(item.node)][2:]
    return tuple(kernel or ())


def _parameter_counts(
    item: FusedOperator,
    kind: OperatorKind,
    parameters: list[str],
    fused: FusedGraph,
    out: Shape,
) -> tuple[int, int]:
    """Return the elements of weights (in x out) and of values per channel that a runtime stores."""
    sizes = {name: fused.constants[name].size for name in parameters}
    node = item.node
    channels = out[1] if len(out) > 1 else (out[0] if out else 0)
    if kind is OperatorKind.RECURRENT:
        weights = sum(sizes.get(name, 0) for name in node.input[1:3])
        return weights, sum(sizes.values()) - weights
    if kind in _WEIGHTED:
        if kind is OperatorKind.DENSE:
            channels = dense_widths(node, fused.shapes)[1]
        has_bias = item.bias or (node.op_type == "QLinearConv" and len(node.input) > _QLINEAR_BIAS)
        return sizes.get(weight_of(node), 0), channels if has_bias else 0
    if node.op_type == "BatchNormalization":
        return 0, 2 * channels
    per_channel = [size for size in sizes.values() if size == channels and size > 1]
    return 0, sum(per_channel)
