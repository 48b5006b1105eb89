"""The graph as a runtime executes it: what is folded or fused into which operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from tightfit_service.graph.batch_norm import foldable_batch_norms
from tightfit_service.graph.structure import (
    Array,
    Shape,
    attribute,
    consumers,
    default_opset,
    graph_outputs,
    initializers,
    producers,
    sorted_model_nodes,
    tensor_shapes,
)

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# TFLite's kernels carry RELU, RELU6 and RELU_N1_TO_1 in a field of their own; onnxruntime and CMSIS-NN
# fuse the same ones. HardSwish and Sigmoid are operators of their own there, and so they are here.
_ACTIVATIONS = frozenset({"Relu", "Clip"})
_TAKE_ACTIVATIONS = PRODUCTS | {"Add", "Sub", "Mul", "Div", "MaxPool", "AveragePool"}


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedOperator:
    """A node with those that vanish into it.

    Attributes:
        node: The node that does the work and lends its name.
        inputs: Activations read, a fused Pad looked through.
        outputs: Tensors left by the last fused node.
        pad: The fused Pad, if any.
        followers: Nodes folded behind it: BatchNormalization, bias Add, activation.
        bias: Whether there is a bias, be it from the node, a BatchNormalization or an Add.
    """

    node: NodeProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    pad: NodeProto | None
    followers: tuple[NodeProto, ...]
    bias: bool

    @property
    def fused(self) -> tuple[str, ...]:
        """Names of the nodes executed inside this one."""
        return tuple(node.name for node in (self.pad, *self.followers) if node is not None)


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
    pads = {node.name: pad for node, _ in operators if (pad := view.fusible_pad(node)) is not None}
    hidden = {pad.name for pad in pads.values()}
    return FusedGraph(
        operators=tuple(
            view.operator(node, followers, pads.get(node.name))
            for node, followers in operators
            if node.name not in hidden
        ),
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
        self._makers = producers(model.graph)
        self._readers = consumers(model.graph)
        self._outputs = set(graph_outputs(model))
        self._norms = foldable_batch_norms(model)

    def followers(self, node: NodeProto) -> tuple[NodeProto, ...]:
        found: list[NodeProto] = []
        current = node
        if node.op_type in PRODUCTS and self.has_constant_weight(node):
            following = self._only_reader(current)
            if following is not None and self._norms.get(following.name) == node.name:
                found.append(following)
                current = following
            else:
                while (following := self._only_reader(current)) and self._is_bias(node, following):
                    found.append(following)
                    current = following
        if node.op_type in _TAKE_ACTIVATIONS:
            following = self._only_reader(current)
            if (
                following is not None
                and following.op_type in _ACTIVATIONS
                and all(name in self.constants for name in following.input[1:] if name)
            ):
                found.append(following)
        return tuple(found)

    def operator(
        self, node: NodeProto, followers: tuple[NodeProto, ...], pad: NodeProto | None
    ) -> FusedOperator:
        inputs = [name for name in node.input if name and name not in self.constants]
        if pad is not None:
            inputs[0] = pad.input[0]
        last = followers[-1] if followers else node
        position = 1 if node.op_type == "MatMul" else 2
        own_bias = node.op_type in PRODUCTS and len(node.input) > position
        folded = any(f.op_type in {"BatchNormalization", "Add"} for f in followers)
        return FusedOperator(
            node=node,
            inputs=tuple(dict.fromkeys(inputs)),
            outputs=tuple(name for name in last.output if name),
            pad=pad,
            followers=followers,
            bias=(own_bias and node.op_type != "MatMul") or folded,
        )

    def has_constant_weight(self, node: NodeProto) -> bool:
        return len(node.input) > 1 and node.input[1] in self.constants

    def fusible_pad(self, node: NodeProto) -> NodeProto | None:
        """Return the Pad of zeros over spatial axes that only this convolution reads, or None."""
        if node.op_type != "Conv" or attribute(node, "auto_pad", "NOTSET") not in {
            "NOTSET",
            "VALID",
        }:
            return None
        pad = self._makers.get(node.input[0])
        if pad is None or pad.op_type != "Pad" or len(self._readers[pad.output[0]]) != 1:
            return None
        if pad.output[0] in self._outputs or attribute(pad, "mode", "constant") != "constant":
            return None
        amounts = self._pad_amounts(pad)
        value = self._pad_value(pad)
        rank = len(self.shapes.get(pad.input[0], ()))
        if amounts is None or value != 0.0 or len(amounts) != 2 * rank:
            return None
        if any(amounts[axis] or amounts[rank + axis] for axis in (0, 1)) or min(amounts) < 0:
            return None
        return pad

    def _pad_amounts(self, pad: NodeProto) -> list[int] | None:
        if self.opset < 11:
            return list(attribute(pad, "pads", []))
        if len(pad.input) > 3 and pad.input[3]:
            return None
        found = self.constants.get(pad.input[1])
        return None if found is None else [int(amount) for amount in found.reshape(-1)]

    def _pad_value(self, pad: NodeProto) -> float | None:
        if self.opset < 11:
            return float(attribute(pad, "value", 0.0))
        if len(pad.input) < 3 or not pad.input[2]:
            return 0.0
        found = self.constants.get(pad.input[2])
        return None if found is None else float(found.reshape(-1)[0])

    def _only_reader(self, node: NodeProto) -> NodeProto | None:
        name = node.output[0]
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._outputs else None

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
