"""Index propagation: which channels, over all tensors of a graph, only make sense together.

Every output channel of a convolution or matrix product gets a label. The graph's operators are run
on labels instead of values: data movement permutes them, elementwise arithmetic unites them,
products consume and create them. What ends up in one class must be removed together; an operator
without a rule freezes the classes that touch it.

A tensor's labels are an integer array of the tensor's rank in which an axis has size 1 where the
labels do not vary along it, so images carry one label per channel, not per pixel. At most one axis
varies: where an operator makes two vary (a channel shuffle between its reshape and transpose), the
labels along the shorter one are united, so that a removal always is a slice along one axis.

Attention: where channels are split into heads, the labels within a head are united, over queries,
keys and values alike, so that a unit is one head (Michel et al., NeurIPS 2019); with a single head,
it is one channel of queries and keys, or of values. A hidden unit of a recurrent layer is a row of
all its gates and a column of its recurrent weights, in both directions. Normalisation over channels
(LayerNorm, GroupNorm, a mean) passes them on: its statistics are then over those that remain, so that
such a removal changes values even where nothing reads the channel.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto

from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.graph import rules_contractions as contractions
from tightfit_service.graph import rules_movement as movement
from tightfit_service.graph import rules_products as products
from tightfit_service.graph import rules_values as values
from tightfit_service.graph.attention_heads import head_axes
from tightfit_service.graph.channel_classes import ChannelClasses
from tightfit_service.graph.propagation_state import (
    NoRuleError,
    ParameterSlice,
    Propagation,
    Rule,
)
from tightfit_service.graph.structure import (
    default_opset,
    graph_inputs,
    graph_outputs,
    initializers,
    names_read,
    sorted_model_nodes,
    tensor_shapes,
)

_UNARY = [
    "Abs",
    "Acos",
    "Asin",
    "Atan",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
_ELEMENTWISE = [
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "PRelu",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]
_POOLS = [
    "AveragePool",
    "MaxPool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
    "Resize",
    "Upsample",
]
_REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]
_AXIS_MIXING = [
    "Softmax",
    "LogSoftmax",
    "Hardmax",
    "CumSum",
]

_PICKING = frozenset({"Slice", "Gather", "Split", "Concat", "Pad", "Tile", "Expand", *_REDUCTIONS})

# Inputs of rank 3 hold (channels, time) or (time, features): which, the first layer will tell.
_CHANNELS_SECOND = (2, 4, 5)

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_UNARY, values.unary),
    **dict.fromkeys(_ELEMENTWISE, values.elementwise),
    **dict.fromkeys(_POOLS, values.per_channel),
    **dict.fromkeys(_REDUCTIONS, values.reduction),
    **dict.fromkeys(_AXIS_MIXING, values.axis_mixing),
    "BatchNormalization": values.normalization,
    "InstanceNormalization": values.normalization,
    "GroupNormalization": values.group_normalization,
    "LayerNormalization": values.layer_normalization,
    "Conv": products.conv,
    "ConvTranspose": products.conv_transpose,
    "Gemm": products.gemm,
    "MatMul": products.matmul,
    "Einsum": contractions.einsum,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), contractions.recurrent),
    **dict.fromkeys(("ArgMax", "ArgMin"), contractions.arg_position),
    **dict.fromkeys(("Shape", "Size"), values.size),
    "Reshape": movement.reshape,
    "Flatten": movement.reshape,
    "Squeeze": movement.reshape,
    "Unsqueeze": movement.reshape,
    "Transpose": movement.transpose,
    "Slice": movement.slice_,
    "Pad": movement.pad,
    "Concat": movement.concat,
    "Split": movement.split,
    "Gather": movement.gather,
    "Expand": movement.expand,
    "Tile": movement.tile,
    "DepthToSpace": movement.depth_to_space,
    "SpaceToDepth": movement.space_to_depth,
}


def propagate(model: ModelProto) -> Propagation:
    """Run index propagation over a working graph.

    Raises:
        InvalidModelError: The graph has a cycle or contradicting shapes.
    """
    try:
        batched_shapes = tensor_shapes(model, batch=2)
    except InvalidModelError:
        batched_shapes = {}
    nodes, shapes, constants = sorted_model_nodes(model), tensor_shapes(model), initializers(model)
    state = Propagation(
        classes=ChannelClasses(),
        nodes=nodes,
        opset=default_opset(model),
        shapes=shapes,
        batched_shapes=batched_shapes,
        constants=constants,
        head_axes=head_axes(nodes, shapes, constants),
    )
    for name in graph_inputs(model):
        state.assign_frozen(name, "its channels are the model's input")
        if len(state.shapes.get(name, ())) in _CHANNELS_SECOND:
            state.axes[name] = 1
    for node in state.nodes:
        _visit(state, node, RULES.get(node.op_type) if node.domain in {"", "ai.onnx"} else None)
    for name in graph_outputs(model):
        if name in state.labels:
            state.classes.freeze(
                state.labels[name], "its channels are the model's output", overrule=True
            )
    _tie_shared_parameters(state)
    return state


def _visit(state: Propagation, node: NodeProto, rule: Rule | None) -> None:
    if rule is None:
        state.freeze_node(node, f"{node.op_type} has no pruning rule")
        return
    if not any(name in state.labels for name in node.input):
        state.freeze_node(node, f"{node.op_type} computes on constants only")
        return
    mark = len(state.slices)
    try:
        for name in (*node.input, *node.output):
            if name:
                state.shape(name)
        rule(state, node)
        _keep_batch_apart(state, node)
    except NoRuleError as error:
        del state.slices[mark:]
        state.freeze_node(node, str(error))


def _keep_batch_apart(state: Propagation, node: NodeProto) -> None:
    """Freeze channels that share an axis with the batch where the node picks positions along it."""
    if node.op_type not in _PICKING:
        return
    for name in (*node.input, *node.output):
        if name in state.labels and state.is_folded(name):
            state.classes.freeze(
                state.labels[name], "its channels are folded into the batch dimension"
            )


def _tie_shared_parameters(state: Propagation) -> None:
    """Unite the classes of a parameter's users, and freeze where one of them has no rule for it."""
    by_parameter: dict[str, list[ParameterSlice]] = {}
    for item in state.slices:
        by_parameter.setdefault(item.parameter, []).append(item)
    users: dict[str, list[str]] = {}
    for node in state.nodes:
        for name in names_read(node):
            if name in by_parameter:
                users.setdefault(name, []).append(node.name)
    for parameter, items in by_parameter.items():
        first: dict[int, ParameterSlice] = {}
        for item in items:
            state.classes.unite(first.setdefault(item.axis, item).labels, item.labels)
        for axis, shared in first.items():
            ruled = sorted(item.node for item in items if item.axis == axis)
            if ruled != sorted(users[parameter]):
                state.classes.freeze(
                    shared.labels, f'its parameter "{parameter}" is used elsewhere as a whole'
                )
