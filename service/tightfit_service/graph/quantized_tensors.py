"""Which tensors of a graph are rounded to integers in an exported file, and which share a scale.

Training that simulates integers rounds these tensors and no others: what runtimes fuse into an
operator (BatchNormalization, bias, activation) passes on unrounded sums of 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from tightfit_service.graph.fusion import FusedOperator, fused_graph
from tightfit_service.graph.gelu import spelled_gelus
from tightfit_service.graph.rounding import IntegerScale
from tightfit_service.graph.structure import attribute, graph_inputs

FIXED_SCALES: Mapping[str, Mapping[int, IntegerScale]] = {
    "unit": {
        8: IntegerScale(scale=1 / 256, zero_point=-128),
        16: IntegerScale(scale=1 / 32768, zero_point=0),
    },
    "signed_unit": {
        8: IntegerScale(scale=1 / 128, zero_point=0),
        16: IntegerScale(scale=1 / 32768, zero_point=0),
    },
}
"""Scales that kernels insist on for what is between 0 and 1, or -1 and 1, by bits of the activation
(quantization specification of LiteRT)."""

_FIXED = {"Sigmoid": "unit", "Softmax": "unit", "Tanh": "signed_unit"}

_ONE_IN = frozenset(
    {
        "AveragePool", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherND",
        "GlobalMaxPool", "Identity", "MaxPool", "Pad", "ReduceMax", "ReduceMin", "Reshape", "Resize",
        "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample",
    }
)  # fmt: skip
"""Kernels of these pass integers on; input and output share a scale."""
_MANY_IN = frozenset({"Concat", "Max", "Min", "Where"})
"""So do these, and all of their inputs share it."""
_NO_VALUES = frozenset({"Shape", "Size", "ArgMax", "ArgMin", "Equal", "Greater", "Less", "NonZero"})


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """One tensor that an integer file holds as integers.

    Attributes:
        name: In the graph.
        group: Tensors of one group share scale and zero point; the name of its first member. Its
            range is the union of the members' ranges.
        fixed: Key in `FIXED_SCALES` where the kernel leaves no choice, empty elsewhere.
        is_centred: Whether 8 bits have zero point 0 (`rounding.centred`): XNNPACK multiplies two
            activations only where the second's is, and leaves others to a plain loop.
    """

    name: str
    group: str
    fixed: str = ""
    is_centred: bool = False


def quantized_tensors(model: ModelProto) -> dict[str, QuantizedTensor]:
    """Return the tensors that carry an activation scale in an integer file, in schedule order.

    They are the inputs of the graph and the outputs of its operators after fusion
    (`graph.fusion`), without those that hold no numbers to compute with. Operators that the format
    spells out as several (LayerNormalization, GRU, ...) round within themselves, too; those tensors have no name in the graph and are not listed.

    Raises:
        InvalidModelError: The graph has a cycle or contradicting shapes.
    """
    fused = fused_graph(model)
    groups = _Groups()
    for name in graph_inputs(model):
        groups.add(name, "")
    inner = {name for gelu in spelled_gelus(model) for name in gelu.inner}
    for operator in fused.operators:
        if inner & set(operator.outputs):
            continue
        if operator.node.op_type in _NO_VALUES or not operator.inputs:
            continue
        fixed = "" if operator.followers else _FIXED.get(operator.node.op_type, "")
        for name in operator.outputs:
            groups.add(name, fixed)
        _tie(groups, operator)
        if operator.node.op_type == "MatMul":
            groups.centre(operator.node.input[1])
    return groups.tensors()


def _tie(groups: _Groups, operator: FusedOperator) -> None:
    node = operator.node
    inputs = [name for name in operator.inputs if groups.knows(name)]
    if node.op_type in _ONE_IN and inputs and not _rescales(node):
        for name in operator.outputs:
            groups.unite(inputs[0], name)
    elif node.op_type in _MANY_IN or (node.op_type == "Clip" and inputs):
        for name in inputs:
            # What has a scale of its own is rescaled before it is joined with others.
            if len(inputs) == 1 or not groups.fixed(name):
                groups.unite(name, operator.outputs[0])


def _rescales(node: NodeProto) -> bool:
    """Whether a kernel of TFLite that takes the node's place chooses its output's scale itself."""
    return node.op_type == "Pad" and attribute(node, "mode", "constant") == "edge"


class _Groups:
    """Disjoint sets of tensors."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._fixed: dict[str, str] = {}
        self._centred: set[str] = set()

    def add(self, name: str, fixed: str) -> None:
        self._parent.setdefault(name, name)
        if fixed:
            self._fixed[name] = fixed

    def centre(self, name: str) -> None:
        """Note that the group of a tensor wants zero point 0, where it is one of activations."""
        if self.knows(name):
            self._centred.add(name)

    def knows(self, name: str) -> bool:
        return name in self._parent

    def root(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def fixed(self, name: str) -> str:
        return self._fixed.get(self.root(name), "")

    def unite(self, first: str, second: str) -> None:
        one, other = self.root(first), self.root(second)
        if one != other and not (self._fixed.get(one) and self._fixed.get(other)):
            if self._fixed.get(other):
                one, other = other, one
            self._parent[other] = one

    def tensors(self) -> dict[str, QuantizedTensor]:
        first: dict[str, str] = {}
        for name in self._parent:
            first.setdefault(self.root(name), name)
        centred = {self.root(name) for name in self._centred}
        return {
            name: QuantizedTensor(
                name=name,
                group=first[self.root(name)],
                fixed=self.fixed(name),
                is_centred=self.root(name) in centred and not self.fixed(name),
            )
            for name in self._parent
        }
