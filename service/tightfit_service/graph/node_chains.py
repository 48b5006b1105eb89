"""Look-ups along chains of nodes with constant numbers, which is how exporters spell functions out."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, NodeProto, numpy_helper

from tightfit_service.graph.structure import Array, consumers, graph_outputs, producers

TOLERANCE = 1e-4
"""Relative: exporters round the constants of formulas in various ways."""


class NodeChains:
    """A graph as one follows its tensors; nodes are those of the graph, not copies."""

    def __init__(self, model: ModelProto) -> None:
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = producers(model.graph)
        self._readers = consumers(model.graph)
        self._outputs = frozenset(graph_outputs(model))

    def maker(self, name: str) -> NodeProto | None:
        """Return the node that computes a tensor, None for inputs and constants."""
        return self._makers.get(name)

    def only_reader(self, node: NodeProto) -> NodeProto | None:
        """Return what alone reads a node's first output; None where there are others, outputs of the model among them."""
        readers = self._readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 and node.output[0] not in self._outputs else None

    def is_read_by(self, node: NodeProto, readers: Sequence[NodeProto]) -> bool:
        """Whether these nodes alone read a node's first output, which is no output of the model."""
        found = self._readers.get(node.output[0], [])
        is_inner = node.output[0] not in self._outputs
        return is_inner and all(any(item is known for known in readers) for item in found)

    def times(self, node: NodeProto, factor: float) -> str | None:
        """Return what the node multiplies by a number, None where it does something else."""
        if node.op_type == "Mul" and self.has_number(node, factor):
            return self.variable(node)
        if node.op_type == "Div" and self.is_number(node.input[1], 1 / factor):
            return str(node.input[0])
        return None

    def plus(self, node: NodeProto, number: float) -> str | None:
        """Return what the node adds a number to, None where it does something else."""
        is_sum = node.op_type == "Add" and self.has_number(node, number)
        return self.variable(node) if is_sum else None

    def added(self, node: NodeProto) -> float | None:
        """Return the number that the node adds to what is no constant, None where it does something else."""
        numbers = [self.number(name) for name in node.input if name in self._constants]
        return numbers[0] if node.op_type == "Add" and len(numbers) == 1 else None

    def variable(self, node: NodeProto) -> str:
        """Return the first input that is no constant."""
        return str(next(name for name in node.input if name not in self._constants))

    def has_number(self, node: NodeProto, value: float) -> bool:
        """Whether one input is this number and there is one other, which is no constant."""
        variables = [name for name in node.input if name not in self._constants]
        return len(variables) == 1 == sum(self.is_number(name, value) for name in node.input)

    def is_number(self, name: str, value: float) -> bool:
        """Whether a tensor is a constant of one element, about this one."""
        found = self.number(name)
        return found is not None and abs(found - value) <= TOLERANCE * abs(value)

    def number(self, name: str) -> float | None:
        """Return the value of a constant of one element, None for other tensors."""
        found = self.constant(name)
        return None if found is None or found.size != 1 else float(found.reshape(-1)[0])

    def constant(self, name: str) -> Array | None:
        """Return the value of a constant, None for other tensors."""
        found = self._constants.get(name)
        return None if found is None else numpy_helper.to_array(found)
