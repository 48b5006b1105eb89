"""The graph as a runtime executes it: what is folded or fused into which operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from tightfit_service.graph.batch_norm import foldable_batch_norms
from tightfit_service.graph.node_chains import NodeChains
from tightfit_service.graph.structure import (
    Array,
    Shape,
    default_opset,
    initializers,
    sorted_model_nodes,
    tensor_shapes,
)

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# TFLite's kernels carry RELU, RELU6 and RELU_N1_TO_1 in a field of their own; onnxruntime and CMSIS-NN
# fuse the same ones. HardSwish and Sigmoid are operators of their own there, and so they are here.
_ACTIVATIONS = frozenset({"Relu", "Clip"})
_TAKE_ACTIVATIONS = PRODUCTS | {
    "Add", "AveragePool", "BatchNormalization", "Div", "MaxPool", "Mul", "Sub",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedOperator:
    """A node with those that vanish into it.

    Attributes:
        node: The node that does the work and lends its name.
        inputs: Activations read.
        outputs: Tensors left by the last fused node.
        followers: Nodes folded behind it: BatchNormalization, bias Add, activation.
        bias: Whether there is a bias, be it from the node, a BatchNormalization or an Add.
    """

    node: NodeProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    followers: tuple[NodeProto, ...]
    bias: bool

    @property
    def fused(self) -> tuple[str, ...]:
        """Names of the nodes executed inside this one."""
        return tuple(node.name for node in self.followers)


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedGraph:
    """All operators in schedule order with the shapes (batch 1) and constants of the graph."""

    operators: tuple[FusedOperator, ...]
    shapes: Mapping[str, Shape]
    constants: Mapping[str, Array]


def fused_graph(model: ModelProto) -> FusedGraph:
    """Return the operators that remain when everything that a runtime folds is folded.

    Raises:
        InvalidModelError: The graph has a cycle or contradicting shapes.
    """
    view = _View(model)
    operators = []
    taken: set[str] = set()
    for node in view.nodes:
        if node.name in taken:
            continue
        followers = view.followers(node)
        taken.update(follower.name for follower in followers)
        operators.append((node, followers))
    return FusedGraph(
        operators=tuple(view.operator(node, followers) for node, followers in operators),
        shapes=view.shapes,
        constants=view.constants,
    )


class _View:
    """Look-ups shared by the fusing rules."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes = sorted_model_nodes(model)
        self.shapes = tensor_shapes(model)
        self.constants = initializers(model)
        self.opset = default_opset(model)
        self._chains = NodeChains(model)
        self._norms = foldable_batch_norms(model)

    def followers(self, node: NodeProto) -> tuple[NodeProto, ...]:
        found: list[NodeProto] = []
        current = node
        if node.op_type in PRODUCTS and self.has_constant_weight(node):
            following = self._chains.only_reader(current)
            if following is not None and self._norms.get(following.name) == node.name:
                found.append(following)
                current = following
            else:
                while (following := self._chains.only_reader(current)) and self._is_bias(
                    node, following
                ):
                    found.append(following)
                    current = following
        if node.op_type in _TAKE_ACTIVATIONS:
            following = self._chains.only_reader(current)
            if (
                following is not None
                and following.op_type in _ACTIVATIONS
                and all(name in self.constants for name in following.input[1:] if name)
            ):
                found.append(following)
        return tuple(found)

    def operator(self, node: NodeProto, followers: tuple[NodeProto, ...]) -> FusedOperator:
        inputs = [name for name in node.input if name and name not in self.constants]
        last = followers[-1] if followers else node
        position = 1 if node.op_type == "MatMul" else 2
        own_bias = node.op_type in PRODUCTS and len(node.input) > position
        folded = any(f.op_type in {"BatchNormalization", "Add"} for f in followers)
        return FusedOperator(
            node=node,
            inputs=tuple(dict.fromkeys(inputs)),
            outputs=tuple(name for name in last.output if name),
            followers=followers,
            bias=(own_bias and node.op_type != "MatMul") or folded,
        )

    def has_constant_weight(self, node: NodeProto) -> bool:
        return len(node.input) > 1 and node.input[1] in self.constants

    def _is_bias(self, product: NodeProto, node: NodeProto) -> bool:
        """Whether the node adds a constant per channel (or one number) to the product's output."""
        if node.op_type != "Add":
            return False
        values = [self.constants[name] for name in node.input if name in self.constants]
        shape = self.shapes.get(product.output[0])
        if len(values) != 1 or shape is None or self.shapes.get(node.output[0]) != shape:
            return False
        axis = 1 if product.op_type in {"Conv", "ConvTranspose"} else len(shape) - 1
        padded = (1,) * (len(shape) - values[0].ndim) + values[0].shape
        return len(padded) == len(shape) and all(
            size == 1 or position == axis for position, size in enumerate(padded)
        )
