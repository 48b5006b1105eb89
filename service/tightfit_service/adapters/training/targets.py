"""What a student is held against its teacher on: which tensors, and by which loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from onnx import ModelProto, NodeProto

from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.structure import (
    Shape,
    attribute,
    default_opset,
    graph_inputs,
    graph_outputs,
    producers,
    tensor_shapes,
)

Loss = Literal["softmax", "squared_error"]

_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
_MOVEMENT = frozenset(
    {
        "Cast",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators between a normalisation and the output that only move its values."""

_FROM_LAST = [0, 2, 3, 1]
"""Permutation that shows channels-first results channels last."""


@dataclass(frozen=True, kw_only=True)
class DistilledTensor:
    """One tensor of the student that is held against the teacher's of the same place in the tuple.

    Attributes:
        name: Of the tensor in the graph that `find_targets` was asked about; `GraphModule.run_to`
            takes it.
        loss: `softmax`: the tensor holds scores along `axis`, compared as distributions (softened
            KL divergence, or cross-entropy with labels); `squared_error`: compared by value. Units
            differ between tensors: divide by the variance of the teacher's values before adding.
        axis: Axis of the scores, counted from 0; None for `squared_error`. Every other axis but the
            batch is a place of its own (a pixel, a token).
        output: Graph output that the tensor is or leads to.
    """

    name: str
    loss: Loss
    axis: int | None
    output: str


def find_targets(graph: bytes, *, is_regression: bool = False) -> tuple[DistilledTensor, ...]:
    """Return the tensors to distil, at least one, in the order of the outputs.

    The first one belongs to the first output, which is what labels are about. Rules, by output:

    - behind Softmax or LogSoftmax: what it reads, `softmax` over its axis; behind a final ArgMax:
      the same over the ArgMax's axis;
    - behind Sigmoid: the logits it reads, `squared_error` (logit matching: Ba and Caruana, 2014),
      unless the output has an input's shape, whose values count then;
    - a Concat of parts of which one ends so (boxes and scores of a detector): every part by itself;
    - raw values of an input's shape are a reconstruction: `squared_error`;
    - raw (N, C) of the first output, and raw (N, C, H, W) at an input's resolution, are class
      scores: `softmax` over axis 1 (one channel alone: `squared_error`);
    - everything else (raw boxes, embeddings, sequences): `squared_error`.

    Movement of values behind a normalisation is looked through.

    Args:
        graph: A working graph.
        is_regression: Raw outputs and those of a Sigmoid are values and not scores, as the
            dataset's metric says.

    Raises:
        InvalidModelError: Shapes in the graph contradict each other.
    """
    finder = _Finder(load_model(graph), is_regression=is_regression)
    found: dict[str, DistilledTensor] = {}
    for position, output in enumerate(finder.outputs):
        for target in finder.targets(output, is_first=position == 0):
            found.setdefault(target.name, replace(target, output=output))
    return tuple(found.values())


class _Finder:
    """Walks back from outputs of one graph."""

    def __init__(self, model: ModelProto, *, is_regression: bool) -> None:
        self.outputs = graph_outputs(model)
        self._makers: Mapping[str, NodeProto] = producers(model.graph)
        self._shapes = tensor_shapes(model)
        self._inputs = [self._shapes[name] for name in graph_inputs(model)]
        self._opset = default_opset(model)
        self._is_regression = is_regression

    def targets(self, output: str, *, is_first: bool) -> list[DistilledTensor]:
        """Return the targets of one output."""
        return self._normalised(output) or [self._raw(output, is_first=is_first)]

    def _normalised(self, name: str) -> list[DistilledTensor]:
        """Return the targets of a tensor that ends in a normalisation, in part or whole, else none."""
        current = name
        while (node := self._makers.get(current)) is not None and node.op_type in _MOVEMENT:
            current = node.input[0]
        if node is None:
            return []
        source = node.input[0]
        if node.op_type in _SOFTMAX:
            return [self._scores(source, self._softmax_axis(node))]
        if node.op_type == "ArgMax":
            found = self._normalised(source)
            return found or [self._scores(source, int(attribute(node, "axis", 0)))]
        if node.op_type == "Sigmoid":
            is_value = self._is_regression or self._is_reconstruction(self._shapes.get(name))
            return [_values(name if is_value else source)]
        return self._parts(node) if node.op_type == "Concat" else []

    def _parts(self, concat: NodeProto) -> list[DistilledTensor]:
        """Return the targets of each part where one of them ends in a normalisation, else none."""
        parts = [(part, self._normalised(part)) for part in concat.input]
        if not any(found for _, found in parts):
            return []
        return [target for part, found in parts for target in found or [_values(part)]]

    def _raw(self, name: str, *, is_first: bool) -> DistilledTensor:
        """Return the target of an output that nothing normalises."""
        node = self._makers.get(name)
        if node is not None and attribute(node, "perm") == _FROM_LAST:
            return self._raw(node.input[0], is_first=is_first)
        shape = self._shapes.get(name)
        if shape is None or self._is_regression or self._is_reconstruction(shape):
            return _values(name)
        if len(shape) >= 2 and shape[1] > 1:
            is_row = all(size == 1 for size in shape[2:])
            is_dense = len(shape) == 4 and any(
                len(s) == 4 and shape[2:] in (s[2:], s[1:3]) for s in self._inputs
            )
            if (is_row and is_first) or (is_dense and not is_row):
                return self._scores(name, 1)
        return _values(name)

    def _is_reconstruction(self, shape: Shape | None) -> bool:
        return shape is not None and shape[1:] in [s[1:] for s in self._inputs]

    def _scores(self, name: str, axis: int | None) -> DistilledTensor:
        shape = self._shapes.get(name)
        if axis is None or shape is None:
            return _values(name)
        axis %= len(shape)
        if axis == 0 or shape[axis] == 1:
            return _values(name)
        return DistilledTensor(name=name, loss="softmax", axis=axis, output="")

    def _softmax_axis(self, node: NodeProto) -> int | None:
        """Return the axis, or None where an old Softmax takes several axes as one."""
        if self._opset >= 13:
            return int(attribute(node, "axis", -1))
        shape = self._shapes.get(node.input[0])
        if shape is None:
            return None
        first = int(attribute(node, "axis", 1)) % len(shape)
        longer = [axis for axis in range(first, len(shape)) if shape[axis] > 1]
        return longer[0] if len(longer) == 1 else None


def _values(name: str) -> DistilledTensor:
    return DistilledTensor(name=name, loss="squared_error", axis=None, output="")
