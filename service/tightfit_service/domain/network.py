"""A network as work to be done: its operators, shapes and memory traffic, free of any framework.

Emulators and the solver speak this language only; the graph room derives it from ONNX.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


class OperatorKind(enum.StrEnum):
    """What an operator costs like, whatever its ONNX name."""

    CONV = "conv"
    DEPTHWISE_CONV = "depthwise_conv"
    TRANSPOSED_CONV = "transposed_conv"
    DENSE = "dense"
    MATMUL = "matmul"
    POOL = "pool"
    GLOBAL_POOL = "global_pool"
    ELEMENTWISE = "elementwise"
    ACTIVATION = "activation"
    NORMALIZATION = "normalization"
    SOFTMAX = "softmax"
    PAD = "pad"
    CONCAT = "concat"
    SLICE = "slice"
    TRANSPOSE = "transpose"
    RESHAPE = "reshape"
    RESIZE = "resize"
    RECURRENT = "recurrent"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of the network in schedule order, for batch size 1.

    Channels are per the working layout NCHW. `macs`, `weight_count` and `bias_count` are exact for
    the operator as it stands. Folded BatchNorm and fused activations do not appear: the profile
    describes what the runtime executes, with `fused` naming what was folded into this operator.
    """

    node: str
    """Name of the ONNX node, unique in the graph and stable through all passes."""
    kind: OperatorKind
    op_type: str
    """ONNX operator type."""
    form: str = ""
    """Which way of that it goes, where runtimes have several: the axis it works along, how it interpolates."""
    line: int = 0
    """How many values it takes as one line, as a softmax those that it adds up; 0 where it has no lines."""
    inputs: tuple[str, ...]
    """Names of the activation tensors read (weights are not listed)."""
    outputs: tuple[str, ...]
    macs: int = 0
    in_channels: int = 0
    out_channels: int = 0
    in_size: tuple[int, ...] = ()
    """Spatial size of the first input: (height, width), (length,) or ()."""
    out_size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    """Distance between the elements of the kernel per axis; empty where there is none."""
    groups: int = 1
    matrices: tuple[int, ...] = ()
    """How many products of two matrices a MatMul is, and the rows and columns of each result; else empty."""
    weight_count: int = 0
    bias_count: int = 0
    weight_bits: int = 8
    activation_bits: int = 8
    fused: tuple[str, ...] = ()
    """Nodes that the runtime executes inside this one (BatchNorm, Relu, Clip)."""

    @property
    def weight_bytes(self) -> float:
        """Bytes of its weights by their bits, without scales and biases; a part where 4 bits fill none."""
        return self.weight_count * self.weight_bits / 8

    def resized(self, in_channels: int, out_channels: int) -> Operator:
        """Return the same operator at other widths, with its work and weights in proportion.

        Exact for convolutions and dense layers, whose weights are in x out per group; other
        operators scale with their output channels.
        """
        if in_channels == self.in_channels and out_channels == self.out_channels:
            return self
        out_ratio = out_channels / self.out_channels if self.out_channels else 1.0
        in_ratio = in_channels / self.in_channels if self.in_channels else 1.0
        groups = self.groups
        if self.kind is OperatorKind.DEPTHWISE_CONV:
            # One filter per channel: the group count follows the width, and work is linear in it.
            groups, in_ratio = in_channels, 1.0
        elif not self.weight_count:
            in_ratio = 1.0
        return replace(
            self,
            in_channels=in_channels,
            out_channels=out_channels,
            groups=groups,
            matrices=self._resized_matrices(out_channels),
            macs=round(self.macs * out_ratio * in_ratio),
            weight_count=round(self.weight_count * out_ratio * in_ratio),
            bias_count=round(self.bias_count * out_ratio),
        )

    def _resized_matrices(self, out_channels: int) -> tuple[int, ...]:
        """Return `matrices` at another width: channels are their columns or, of heads, their number."""
        if not self.matrices:
            return ()
        count, rows, columns = self.matrices
        if columns == self.out_channels:
            return count, rows, out_channels
        return out_channels if count == self.out_channels else count, rows, columns


@dataclass(frozen=True, kw_only=True)
class NetworkProfile:
    """All operators of a network in schedule order, and the shapes of its activations.

    `tensors` maps the name of each activation to its shape at batch 1 in NCHW order.
    """

    operators: tuple[Operator, ...]
    tensors: Mapping[str, tuple[int, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constant_count: int = 0
    """Elements of constants that belong to no operator above (tables, shapes)."""

    def at_precision(
        self,
        *,
        weight_bits: int,
        activation_bits: int,
        by_node: Mapping[str, tuple[int, int]] | None = None,
    ) -> NetworkProfile:
        """Return the same network computed in other number formats.

        `by_node` names nodes that have their own bits of weights and of activations.
        """
        own = by_node or {}
        plain = (weight_bits, activation_bits)
        return replace(
            self,
            operators=tuple(
                replace(op, weight_bits=bits[0], activation_bits=bits[1])
                for op in self.operators
                for bits in [own.get(op.node, plain)]
            ),
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(op.macs for op in self.operators)

    @property
    def weight_count(self) -> int:
        """Weights of all operators, biases not counted."""
        return sum(op.weight_count for op in self.operators)


class ImportanceCriterion(enum.StrEnum):
    """What the channels to remove are chosen by."""

    TAYLOR = "taylor"
    """The change of the loss to first order, by the data's labels (Molchanov et al., ICLR 2017)."""
    FISHER = "fisher"
    """The rise of the loss by the diagonal of the Fisher information (Theis et al., 2018)."""
    MAGNITUDE = "magnitude"
    """The norm of the weights that make a channel (Li et al., ICLR 2017); looks at no data."""


DEFAULT_IMPORTANCE = ImportanceCriterion.FISHER


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """A set of channels of equal standing: each unit can be removed everywhere at once.

    A unit is one class of index propagation: the channels, over all tensors of the graph, that only
    make sense together. Units whose classes touch the same tensors form one group.
    """

    group_id: str
    """Name of the first node that produces these channels (plus a suffix where it makes several)."""
    unit_count: int
    producers: tuple[str, ...]
    """Nodes whose output channels are sliced when units are removed."""
    consumers: tuple[str, ...]
    """Nodes whose input channels are sliced."""


@dataclass(frozen=True, kw_only=True)
class WidthTerm:
    """`multiplier` channels of a node for each unit kept of a group."""

    group_id: str
    multiplier: int


@dataclass(frozen=True, kw_only=True)
class Width:
    """A number of channels as a linear function of the units kept: fixed + sum(multiplier * kept)."""

    fixed: int = 0
    terms: tuple[WidthTerm, ...] = ()

    def channels(self, kept: Mapping[str, int]) -> int:
        """Return the channels when `kept[group_id]` units of each group remain."""
        return self.fixed + sum(term.multiplier * kept[term.group_id] for term in self.terms)


@dataclass(frozen=True, kw_only=True)
class FrozenChannels:
    """Channels that cannot be removed, and why."""

    node: str
    channel_count: int
    reason: str
    """One sentence for the user, such as "its channels are the model's output"."""


@dataclass(frozen=True, kw_only=True)
class PruningSpace:
    """What can be removed from a graph, and how widths follow from it.

    Every key of `input_widths`, `output_widths` is a node name of the profile; `tensor_widths` has
    the channel dimension of every activation tensor. What is missing there does not change.
    """

    groups: tuple[ChannelGroup, ...]
    input_widths: Mapping[str, Width] = field(default_factory=dict)
    output_widths: Mapping[str, Width] = field(default_factory=dict)
    tensor_widths: Mapping[str, Width] = field(default_factory=dict)
    frozen: tuple[FrozenChannels, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another way to compute one node, which a pass can make: lower precision, a factorised layer.

    Attributes:
        node: Name of the node; it keeps it (for a chain of nodes, the last one does).
        pass_name: The pass that makes it.
        label: A few words for people: `rank 12`, `int4 weights`.
        parameters: What the pass wants for this node; the recipe's step holds it under
            `nodes[node]`.
        operators: What the runtime executes instead of the node's operator, in order, at full
            width: the first reads the node's input channels, the last makes its output channels,
            and widths in between do not follow those of the neighbours.
        error: Relative squared error of the node's output, in [0, 1], on weights alone where no
            data was seen; the first guess of what the alternative costs in accuracy.
    """

    node: str
    pass_name: str
    label: str
    parameters: Mapping[str, Any]
    operators: tuple[Operator, ...]
    error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Another form of the whole network that a pass can make: fewer blocks, smaller inputs.

    Attributes:
        pass_name: The pass that makes it.
        label: A few words for people: `without stage3/block2`, `inputs of 24x24`.
        parameters: The step's parameters.
    """

    pass_name: str
    label: str
    parameters: Mapping[str, Any]
