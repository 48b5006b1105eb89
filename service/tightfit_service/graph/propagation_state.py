"""What index propagation knows while it walks a graph: labels per tensor, classes, parameter slices."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from tightfit_service.graph.channel_classes import ChannelClasses, IntArray
from tightfit_service.graph.structure import Array, Shape, names_read


class SliceRole(enum.Enum):
    """What the positions along a sliced axis of a parameter are to its node."""

    OUTPUT = "output"
    """Channels that the node makes."""
    INPUT = "input"
    """Channels that the node reads and sums over."""
    PER_CHANNEL = "per_channel"
    """Both at once: one filter per channel, as in a depthwise convolution."""
    ATTACHED = "attached"
    """A value per channel that follows it: a bias, a scale, a statistic."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ParameterSlice:
    """An axis of an initializer whose positions belong to classes; `labels` has the axis' length."""

    node: str
    parameter: str
    axis: int
    labels: IntArray
    role: SliceRole


class NoRuleError(Exception):
    """A rule does not cover the node at hand; the text is the reason told to the user."""


@dataclass(kw_only=True, eq=False)
class Propagation:
    """The labels of every activation of a graph and the parameters that follow them.

    Attributes:
        nodes: Nodes in topological order.
        shapes: Shape of every tensor at batch 1.
        labels: Per activation tensor, labels in the form told in `index_propagation`.
        axes: Per activation tensor, the axis of its channels, also where no label varies along it.
        slices: Parameters to be sliced with the classes.
        unruled: Nodes without a rule, with the reason.
        head_axes: Per Reshape that splits channels into attention heads, the axis of the heads.
    """

    classes: ChannelClasses
    nodes: list[NodeProto]
    opset: int
    shapes: Mapping[str, Shape]
    batched_shapes: Mapping[str, Shape]
    constants: Mapping[str, Array]
    labels: dict[str, IntArray] = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)
    slices: list[ParameterSlice] = field(default_factory=list)
    unruled: dict[str, str] = field(default_factory=dict)
    head_axes: Mapping[str, int] = field(default_factory=dict)

    def is_constant(self, name: str) -> bool:
        """Whether the tensor is an initializer."""
        return name in self.constants

    def constant(self, node: NodeProto, index: int, what: str) -> Array:
        """Return the constant that a node reads as its input `index`.

        Raises:
            NoRuleError: It is computed, or absent.
        """
        name = input_name(node, index)
        if name not in self.constants:
            raise NoRuleError(f"the {what} of {node.op_type} is computed by the graph")
        return self.constants[name]

    def shape(self, name: str) -> Shape:
        """Return a tensor's shape at batch 1.

        Raises:
            NoRuleError: Shape inference left it open.
        """
        if name not in self.shapes:
            raise NoRuleError("the shape of its tensors is not known beforehand")
        return self.shapes[name]

    def vector(self, name: str, axis: int) -> IntArray:
        """Return one label per position along an axis; labels that vary along others are united."""
        array = self.labels[name]
        front = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        for other in self.varying_axes(array):
            if other != axis:
                along = "the batch dimension" if self.holds_batch(name, other) else "another axis"
                self.classes.freeze(array, f"its channels are folded into {along}")
        if front.shape[1] > 1:
            self.classes.unite(front, front[:, :1])
        return (
            np.broadcast_to(front[:, 0], (self.shape(name)[axis],))
            if len(front) == 1
            else front[:, 0]
        )

    def varying_axes(self, array: IntArray) -> list[int]:
        """Return the axes along which the classes of a label array differ."""
        roots = self.classes.roots(array)
        return [
            axis
            for axis, size in enumerate(array.shape)
            if size > 1 and (roots != roots.take([0], axis)).any()
        ]

    def assign(self, name: str, array: IntArray, *, axis: int | None) -> None:
        """Set the labels of a tensor, in compact form, with one varying axis at most.

        `axis` is where its channels are if no label varies; None where that is not known.
        """
        varying = self.varying_axes(array)
        while len(varying) > 1:
            shortest = min(varying, key=array.shape.__getitem__)
            self.classes.unite(array, array.take([0], shortest))
            varying = self.varying_axes(array)
        for position, size in enumerate(array.shape):
            if size > 1 and position not in varying:
                array = array.take([0], position)
        known = varying[0] if varying else axis
        if known is not None:
            self.axes[name] = known
        self.labels[name] = array

    def assign_vector(self, name: str, axis: int, vector: IntArray) -> None:
        """Set the labels of a tensor from one label per position along an axis."""
        shape = [1] * len(self.shape(name))
        shape[axis] = -1
        self.assign(name, vector.reshape(shape), axis=axis)

    def record(
        self, node: NodeProto, index: int, axis: int, labels: IntArray, role: SliceRole
    ) -> None:
        """Note that an axis of the node's parameter at input `index` follows the labels."""
        name = node.input[index]
        assert self.constants[name].shape[axis] == len(labels)
        self.slices.append(
            ParameterSlice(node=node.name, parameter=name, axis=axis, labels=labels, role=role)
        )

    def freeze_node(self, node: NodeProto, reason: str) -> None:
        """Freeze everything that a node reads, and its outputs."""
        self.unruled[node.name] = reason
        for name in names_read(node):
            if name in self.labels:
                self.classes.freeze(self.labels[name], reason)
        for name in node.output:
            if name:
                self.assign_frozen(name, reason)

    def assign_frozen(self, name: str, reason: str) -> None:
        """Give a tensor one frozen label for all its positions."""
        label = self.classes.fresh(1)
        self.classes.freeze(label, reason)
        self.labels[name] = label.reshape((1,) * len(self.shapes.get(name, ())))

    def channel_vector(self, name: str) -> tuple[int, IntArray] | None:
        """Return the axis along which a tensor's labels vary and the label per position, or None."""
        array = self.labels.get(name)
        if array is None or array.size <= 1:
            return None
        axis = int(np.argmax(array.shape))
        return axis, array.reshape(-1)

    def is_folded(self, name: str) -> bool:
        """Whether the labels of a tensor vary along an axis that also holds the batch."""
        return any(self.holds_batch(name, axis) for axis in self.varying_axes(self.labels[name]))

    def holds_batch(self, name: str, axis: int) -> bool:
        """Whether the size of an axis grows with the batch."""
        batched = self.batched_shapes.get(name)
        if batched is None or len(batched) != len(self.shape(name)):
            return axis == 0
        return batched[axis] != self.shape(name)[axis]


Rule = Callable[[Propagation, NodeProto], None]


def input_name(node: NodeProto, index: int) -> str:
    """Return the name of a node's input, "" where it has none."""
    return node.input[index] if index < len(node.input) else ""
