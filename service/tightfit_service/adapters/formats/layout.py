"""Moving Transposes out of a graph: images are kept channels first wherever nothing forbids it.

TFLite files hold images channels last, so that in a literal translation each convolution stands
between two Transposes; converters from TensorFlow to ONNX leave the same. Here a tensor of the literal graph is a logical tensor, of which the graph
computes one or several *views*: the view of order p is Transpose(tensor, perm=p). A Transpose then
computes nothing: it names a view. Operators that act position by position, and those whose axes
can be renamed, work on whatever view their input is computed in; all others get the literal one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from onnx import ModelProto, NodeProto, helper

from tightfit_service.graph.model_file import copy_model
from tightfit_service.graph.structure import (
    Array,
    Shape,
    attribute,
    consumers,
    graph_inputs,
    graph_outputs,
    initializers,
    replace_nodes,
    set_attribute,
    set_initializer,
    unique_name,
)

Order = tuple[int, ...]
_TO_NCHW = (0, 3, 1, 2)

# fmt: off
_POSITIONWISE = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Greater", "GreaterOrEqual", "HardSwish", "Identity", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub", "Sum", "Tanh",
    "Where",
})
# fmt: on
_SINGLE_DATA_INPUT = frozenset({"Clip"})


def channels_first(model: ModelProto, shapes: Mapping[str, Shape]) -> ModelProto:
    """Return a graph that computes the same with as few Transposes as its operators allow.

    Inputs and outputs keep their names and layouts.

    Args:
        model: A graph whose nodes are in order; it stays as it is.
        shapes: The shape of every tensor, at batch 1.
    """
    return _Layout(model, shapes).rewritten()


def _compose(outer: Order, inner: Order) -> Order:
    """Return the order of Transpose(Transpose(x, outer), inner)."""
    return tuple(outer[axis] for axis in inner)


def _inverse(order: Order) -> Order:
    return tuple(int(axis) for axis in np.argsort(order))


def _identity(rank: int) -> Order:
    return tuple(range(rank))


class _Layout:
    def __init__(self, model: ModelProto, shapes: Mapping[str, Shape]) -> None:
        self._model = model
        self._shapes = shapes
        self._constants = initializers(model)
        self._outputs = set(graph_outputs(model))
        self._nodes: list[NodeProto] = []
        self._added: dict[str, Array] = {}
        # A logical tensor is Transpose(root, order); views and home are those of the root.
        self._root: dict[str, tuple[str, Order]] = {}
        self._views: dict[str, dict[Order, str]] = {}
        self._home: dict[str, Order] = {}
        self._readers = consumers(model.graph)
        # Tensors flattened from a view: the shape and order that their columns come from.
        self._flattened: dict[str, tuple[Shape, Order]] = {}
        self._taken = {name for node in model.graph.node for name in node.output}
        self._taken |= set(self._constants) | set(graph_inputs(model))
        self._node_names = {node.name for node in model.graph.node}
        has_images = any(
            node.op_type == "Transpose" and attribute(node, "perm") == list(_TO_NCHW)
            for node in model.graph.node
        )
        for name in graph_inputs(model):
            rank = len(shapes[name])
            self._define(name, name, _identity(rank))
            if has_images and rank == 4:
                self._home[name] = _TO_NCHW

    def rewritten(self) -> ModelProto:
        for node in self._model.graph.node:
            self._rewrite(node)
        for name in graph_outputs(self._model):
            if name not in self._constants:
                self._deliver(name)
        result = copy_model(self._model)
        replace_nodes(result.graph, self._nodes)
        for name, value in self._added.items():
            set_initializer(result, name, value)
        return result

    # -- views -------------------------------------------------------------------------------------

    def _define(self, name: str, physical: str, order: Order) -> None:
        """State that `physical` holds the view of the given order of a newly computed tensor."""
        self._root[name] = (name, _identity(len(order)))
        self._views[name] = {order: physical}
        self._home[name] = order

    def _home_of(self, name: str) -> Order | None:
        """Return the order in which a tensor is at hand; None for constants."""
        if name not in self._root:
            return None
        root, order = self._root[name]
        # Transpose(Transpose(root, order), r) is the root's home for this r.
        return _compose(_inverse(order), self._home[root])

    def _view(self, name: str, order: Order) -> str:
        """Return the name of a view, adding a Transpose where nothing computes it yet."""
        if name not in self._root:
            return self._constant_view(name, order)
        root, base = self._root[name]
        wanted = _compose(base, order)
        views = self._views[root]
        if wanted not in views:
            source_order = self._home[root] if self._home[root] in views else next(iter(views))
            step = _compose(_inverse(source_order), wanted)
            added = unique_name(f"{root}{_suffix(wanted)}", self._taken)
            self._add_transpose(views[source_order], step, added)
            views[wanted] = added
        return views[wanted]

    def _constant_view(self, name: str, order: Order) -> str:
        """Return a constant broadcast to the rank of `order` and reordered."""
        value = self._constants[name]
        if value.size == 1 or order == _identity(len(order)):
            return name
        full = value.reshape((1,) * (len(order) - value.ndim) + value.shape)
        added = f"{name}{_suffix(order)}"
        if added not in self._added:
            self._added[added] = np.ascontiguousarray(full.transpose(order))
        return added

    def _add_transpose(self, source: str, order: Order, result: str) -> None:
        name = unique_name(f"{result}/Transpose", self._node_names)
        self._nodes.append(
            helper.make_node("Transpose", [source], [result], name=name, perm=list(order))
        )

    def _deliver(self, name: str) -> None:
        """Let an output be computed in the literal order under its own name."""
        found = self._view(name, _identity(len(self._shapes[name])))
        if found == name:
            return
        last = self._nodes[-1] if self._nodes else None
        is_new = last is not None and last.op_type == "Transpose" and list(last.output) == [found]
        if last is not None and is_new and found not in self._outputs:
            last.output[0] = name
            root, order = self._root[name]
            self._views[root][order] = name
            return
        node = unique_name(f"{name}/Identity", self._node_names)
        self._nodes.append(helper.make_node("Identity", [found], [name], name=node))

    # -- nodes -------------------------------------------------------------------------------------

    def _rewrite(self, node: NodeProto) -> None:
        if node.op_type == "Transpose" and node.input[0] in self._root:
            root, order = self._root[node.input[0]]
            self._root[node.output[0]] = (root, _compose(order, tuple(attribute(node, "perm"))))
            return
        rule = self._RULES.get(node.op_type)
        if rule is None or not rule(self, node):
            self._literal(node)

    def _literal(self, node: NodeProto) -> None:
        """Copy a node as it is."""
        inputs = [
            self._view(name, _identity(len(self._shapes[name]))) if name in self._root else name
            for name in node.input
        ]
        self._emit(node, inputs, [_identity(len(self._shapes[name])) for name in node.output])

    def _emit(self, node: NodeProto, inputs: Sequence[str], orders: Sequence[Order]) -> NodeProto:
        """Copy a node with other inputs; its outputs are views of the given orders."""
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(inputs)
        for place, (name, order) in enumerate(zip(node.output, orders, strict=True)):
            physical = name
            if order != _identity(len(order)):
                physical = unique_name(f"{name}{_suffix(order)}", self._taken)
            copy.output[place] = physical
            self._define(name, physical, order)
        self._nodes.append(copy)
        return copy

    def _foreign_home(self, name: str) -> Order | None:
        """Return a tensor's home where it is another than the literal order."""
        home = self._home_of(name)
        return None if home is None or home == _identity(len(home)) else home

    def _positionwise(self, node: NodeProto) -> bool:
        rank = len(self._shapes[node.output[0]])
        data = node.input[:1] if node.op_type in _SINGLE_DATA_INPUT else node.input
        orders = [
            home
            for name in data
            if (home := self._foreign_home(name)) is not None and len(home) == rank
        ]
        computed = [name for name in data if name in self._root]
        if not orders or any(len(self._shapes[name]) not in {0, rank} for name in computed):
            return False
        order = orders[0]
        # What has no axes has one view only.
        inputs = [
            self._view(name, order if name not in self._root or self._shapes[name] else ())
            for name in data
        ]
        self._emit(node, [*inputs, *node.input[len(data) :]], [order])
        return True

    def _along_axis(self, node: NodeProto) -> bool:
        """Concat, Split and Softmax: one axis, named by an attribute."""
        computed = [name for name in node.input if name in self._root]
        orders = [home for name in computed if (home := self._foreign_home(name)) is not None]
        if not orders:
            return False
        order, rank = orders[0], len(orders[0])
        axis = int(attribute(node, "axis", 0 if node.op_type == "Split" else -1)) % rank
        extra = list(node.input[1:]) if node.op_type == "Split" else []
        data = node.input[:1] if node.op_type == "Split" else node.input
        inputs = [*(self._view(name, order) for name in data), *extra]
        copy = self._emit(node, inputs, [order] * len(node.output))
        set_attribute(copy, "axis", order.index(axis))
        return True

    def _reduction(self, node: NodeProto) -> bool:
        order = self._foreign_home(node.input[0])
        if order is None:
            return False
        in_input = len(node.input) > 1
        single = node.op_type in {"ArgMax", "ArgMin"}
        if in_input:
            axes = [int(axis) for axis in self._constants[node.input[1]]]
        else:
            axes = [int(attribute(node, "axis", 0))] if single else attribute(node, "axes")
        if not axes:
            return False
        axes = [axis % len(order) for axis in axes]
        places = sorted(order.index(axis) for axis in axes)
        kept = bool(attribute(node, "keepdims", 1))
        left = [axis for axis in order if axis not in axes]
        result = order if kept else tuple(sorted(left).index(axis) for axis in left)
        source = self._view(node.input[0], order)
        if node.op_type == "ReduceMean" and kept and places == list(range(2, len(order))):
            copy = self._emit(node, [source], [result])
            copy.op_type = "GlobalAveragePool"
            del copy.attribute[:]
            return True
        inputs = [source]
        if in_input:
            inputs.append(self._sizes(f"{node.name}.axes", places))
        copy = self._emit(node, inputs, [result])
        if single:
            set_attribute(copy, "axis", places[0])
        elif not in_input:
            set_attribute(copy, "axes", places)
        return True

    def _pad(self, node: NodeProto) -> bool:
        order = self._foreign_home(node.input[0])
        if order is None or len(node.input) > 3 or node.input[1] not in self._constants:
            return False
        pads = self._constants[node.input[1]].reshape(2, -1)[:, list(order)]
        amounts = self._sizes(f"{node.name}.pads", pads.reshape(-1))
        inputs = [self._view(node.input[0], order), amounts, *node.input[2:]]
        self._emit(node, inputs, [order])
        return True

    def _slice(self, node: NodeProto) -> bool:
        order = self._foreign_home(node.input[0])
        if order is None or len(node.input) < 4 or node.input[3] not in self._constants:
            return False
        axes = [int(axis) % len(order) for axis in self._constants[node.input[3]]]
        places = [order.index(axis) for axis in axes]
        inputs = [self._view(node.input[0], order), *node.input[1:]]
        inputs[3] = self._sizes(f"{node.name}.axes", places)
        self._emit(node, inputs, [order])
        return True

    def _gather(self, node: NodeProto) -> bool:
        """Positions along one axis, from a constant vector."""
        order = self._foreign_home(node.input[0])
        positions = self._constants.get(node.input[1])
        if order is None or positions is None or positions.ndim != 1:
            return False
        axis = int(attribute(node, "axis", 0)) % len(order)
        copy = self._emit(node, [self._view(node.input[0], order), node.input[1]], [order])
        set_attribute(copy, "axis", order.index(axis))
        return True

    def _reshape(self, node: NodeProto) -> bool:
        """Where only axes of size 1 are out of order, memory is not: no Transpose is needed."""
        name = node.input[0]
        if name not in self._root or node.input[1] not in self._constants:
            return False
        home = self._foreign_home(name)
        order = _identity(len(self._shapes[name]))
        if home is not None and _keeps_memory(self._shapes[name], home):
            order = home
        elif home is not None and home[0] == 0 and self._feeds_dense_layers(node):
            self._flattened[node.output[0]] = (self._shapes[name], home)
            order = home
        target = self._constants[node.input[1]]
        shape = self._shapes[node.output[0]]
        result = _identity(len(shape))
        is_image = len(shape) == 4 and _keeps_memory(shape, _TO_NCHW) and len(target) == 4
        if is_image and _TO_NCHW in self._home.values():
            result = _TO_NCHW
        inputs = [self._view(name, order), node.input[1]]
        if result != _identity(len(shape)):
            inputs[1] = self._sizes(f"{node.name}.shape", target[list(result)])
        self._emit(node, inputs, [result])
        return True

    def _feeds_dense_layers(self, node: NodeProto) -> bool:
        """Whether a tensor is flattened per sample for nothing but dense layers with fixed weights."""
        name, shape = node.output[0], self._shapes[node.output[0]]
        readers = self._readers.get(name, [])
        return (
            len(shape) == 2
            and shape[0] == self._shapes[node.input[0]][0]
            and name not in self._outputs
            and bool(readers)
            and all(
                reader.op_type == "Gemm"
                and reader.input[0] == name
                and attribute(reader, "transB", 0) == 1
                and list(reader.input).count(name) == 1
                and reader.input[1] in self._constants
                for reader in readers
            )
        )

    def _dense(self, node: NodeProto) -> bool:
        """Reorder the weights' columns where the input was flattened in another order."""
        if node.input[0] not in self._flattened:
            return False
        shape, order = self._flattened[node.input[0]]
        weights = self._constants[node.input[1]]
        columns = weights.reshape(-1, *shape[1:]).transpose(order).reshape(weights.shape)
        name = unique_name(f"{node.input[1]}.reordered", self._taken)
        self._added[name] = np.ascontiguousarray(columns)
        source = self._view(node.input[0], _identity(2))
        self._emit(node, [source, name, *node.input[2:]], [_identity(2)])
        return True

    def _sizes(self, stem: str, values: Sequence[int] | Array) -> str:
        name = unique_name(stem, self._taken)
        self._added[name] = np.asarray(values, dtype=np.int64)
        return name

    _RULES: ClassVar[Mapping[str, Callable[[_Layout, NodeProto], bool]]] = {
        **dict.fromkeys(_POSITIONWISE, _positionwise),
        **dict.fromkeys(("Concat", "Split", "Softmax", "LogSoftmax"), _along_axis),
        **dict.fromkeys(
            ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2"),
            _reduction,
        ),
        **dict.fromkeys(("ArgMax", "ArgMin"), _reduction),
        "Gather": _gather,
        "Gemm": _dense,
        "Pad": _pad,
        "Slice": _slice,
        "Reshape": _reshape,
    }


def _keeps_memory(shape: Shape, order: Order) -> bool:
    """Whether a Transpose moves axes of size 1 only; axis 0, the batch, counts as larger."""
    larger = [axis for axis in order if shape[axis] != 1 or axis == 0]
    return larger == sorted(larger)


def _suffix(order: Order) -> str:
    if order == _identity(len(order)):
        return ".as_is"
    return ".nchw" if order == _TO_NCHW else "." + "".join(str(axis) for axis in order)
