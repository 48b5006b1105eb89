"""The translation of a TFLite graph, operator by operator, into ONNX nodes of the same layout.

The result, called literal here, computes each tensor of the file in the file's own layout at batch
1, so that every tensor can be compared with what LiteRT computes. Quantized tensors are translated
as the real numbers that they stand for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from onnx import NodeProto, TensorProto, helper

from tightfit_service.adapters.formats.tflite_reader import (
    TfliteGraph,
    TfliteOperator,
    TfliteTensor,
    Type,
)
from tightfit_service.graph.model_file import invalid, shown
from tightfit_service.graph.structure import Array, unique_name

TO_NCHW = (0, 3, 1, 2)
TO_NHWC = (0, 2, 3, 1)
_NAME_CHARACTERS = 200
_ONNX_TYPES: Mapping[int, int] = {
    Type.INT8: TensorProto.INT8,
    Type.UINT8: TensorProto.UINT8,
    Type.INT16: TensorProto.INT16,
    Type.UINT16: TensorProto.UINT16,
    Type.INT32: TensorProto.INT32,
    Type.UINT32: TensorProto.UINT32,
    Type.INT64: TensorProto.INT64,
    Type.BOOL: TensorProto.BOOL,
}
_MODULES = re.compile(r"^(?:[a-z_]\w*\.)+(?=[A-Z]\w*$)")
Activation = schema.ActivationFunctionType


class UntranslatableError(Exception):
    """An operator, or a setting of it, that has no counterpart in ONNX; the text says which."""


@dataclass(kw_only=True)
class TranslatedOperator:
    """The nodes that compute the outputs of one operator, or of several that make one node."""

    operator: TfliteOperator
    nodes: list[NodeProto] = field(default_factory=list)
    outputs: tuple[int, ...] = ()


def onnx_type(tensor: TfliteTensor) -> int:
    """Return the ONNX element type that a tensor is translated to."""
    return int(TensorProto.FLOAT if tensor.is_real else _ONNX_TYPES[tensor.type])


class Translation:
    """Collects nodes and constants; one operator is translated at a time."""

    def __init__(self, graph: TfliteGraph) -> None:
        self.graph = graph
        self.constants: dict[str, Array] = {}
        self.translated: list[TranslatedOperator] = []
        self.names: dict[int, str] = {}
        """The ONNX name of each tensor that is there so far."""
        self._tensor_names = _tensor_names(graph)
        self._taken: set[str] = set(self._tensor_names)
        self._taken_nodes: set[str] = set()
        self._current: TranslatedOperator | None = None
        self._batch_axes: dict[int, int] = {}
        self._producers = {edge: item for item in graph.operators for edge in item.outputs}
        for index in graph.inputs:
            self.names[index] = self._tensor_names[index]

    def translate(
        self, operator: TfliteOperator, rule: Callable[[Translation, TfliteOperator], None]
    ) -> None:
        """Translate one operator by its rule; on failure nothing of it stays.

        Raises:
            UntranslatableError: The rule cannot.
        """
        self._current = TranslatedOperator(operator=operator, outputs=operator.outputs)
        known = dict(self.names)
        try:
            rule(self, operator)
        except (IndexError, AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
            self.names = known
            raise UntranslatableError("its inputs or options do not fit together") from error
        except UntranslatableError:
            self.names = known
            raise
        if any(item not in self.names for item in operator.outputs):
            self.names = known
            raise UntranslatableError(f"it has {len(operator.outputs)} outputs")
        self._follow_batch(operator)
        self._name_nodes(self._current)
        self.translated.append(self._current)
        self._current = None

    def batch_axis(self, operator: TfliteOperator, position: int = 0) -> int:
        """Return the axis of an input that holds the samples: 0 but behind some Transposes."""
        return self._batch_axes.get(operator.inputs[position], 0)

    def _follow_batch(self, operator: TfliteOperator) -> None:
        """Note where the samples are in the outputs, as far as sequences with time first need it."""
        computed = [item for item in operator.inputs if item in self._batch_axes]
        if operator.kind == "TRANSPOSE":
            order = self.integers(operator, 1)
            axis = (
                order.index(self.batch_axis(operator)) if self.batch_axis(operator) in order else 0
            )
            self._batch_axes[operator.outputs[0]] = axis
        elif computed and operator.kind not in _OTHER_AXES:
            rank = len(self.graph.tensors[computed[0]].shape)
            for item in operator.outputs:
                if len(self.graph.tensors[item].shape) == rank:
                    self._batch_axes[item] = self._batch_axes[computed[0]]

    # -- what an operator reads --------------------------------------------------------------------

    def tensor(self, operator: TfliteOperator, position: int) -> TfliteTensor:
        """Return the description of an input."""
        if not self.has(operator, position):
            raise UntranslatableError(f"its input {position} is missing")
        return self.graph.tensors[operator.inputs[position]]

    def output(self, operator: TfliteOperator, position: int = 0) -> TfliteTensor:
        """Return the description of an output."""
        return self.graph.tensors[operator.outputs[position]]

    def has(self, operator: TfliteOperator, position: int) -> bool:
        """Whether an optional input is there."""
        return position < len(operator.inputs) and operator.inputs[position] >= 0

    def producer(self, tensor: int) -> TfliteOperator | None:
        """Return the operator that computes a tensor, or None for inputs and constants."""
        return self._producers.get(tensor)

    def shape(self, operator: TfliteOperator, position: int = 0) -> tuple[int, ...]:
        """Return the declared shape of an input."""
        return self.tensor(operator, position).shape

    def read(self, operator: TfliteOperator, position: int = 0) -> str:
        """Return the ONNX name of an input, computed or constant."""
        tensor = self.tensor(operator, position)
        index = operator.inputs[position]
        if index not in self.names:
            value = self.value(operator, position)
            if value is None:
                raise invalid(
                    f"operator {operator.index} ({operator.kind}) reads tensor "
                    f"{shown(tensor.name)}, which nothing computes before it",
                    remedy="the file is damaged, or keeps state between runs: convert it again",
                )
            name = self._tensor_names[index]
            self.constants[name] = value
            self.names[index] = name
        return self.names[index]

    def value(self, operator: TfliteOperator, position: int) -> Array | None:
        """Return the value of a constant input as real numbers or integers; None when computed."""
        tensor = self.tensor(operator, position)
        name = self.names.get(operator.inputs[position])
        if name is not None and name in self.constants:
            return self.constants[name]
        stored = tensor.stored()
        return None if stored is None or tensor.is_variable else tensor.real(stored)

    def integers(self, operator: TfliteOperator, position: int) -> list[int]:
        """Return a constant input that sets sizes, axes or positions.

        Raises:
            UntranslatableError: It is computed at run time.
        """
        value = self.value(operator, position)
        if value is None:
            raise UntranslatableError(f"its input {position} is computed at run time")
        return [int(item) for item in value.reshape(-1)]

    # -- what it becomes ---------------------------------------------------------------------------

    def node(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        return self.nodes(op_type, inputs, 1, **attributes)[0]

    def nodes(
        self, op_type: str, inputs: Sequence[str], count: int, **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs and return their names."""
        assert self._current is not None
        outputs = [self._fresh(op_type.lower()) for _ in range(count)]
        self._current.nodes.append(helper.make_node(op_type, list(inputs), outputs, **attributes))
        return outputs

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Add a constant and return its name."""
        name = self._fresh("constant")
        self.constants[name] = np.asarray(value, dtype=dtype)
        return name

    def sizes(self, values: Sequence[int]) -> str:
        """Add an int64 vector and return its name."""
        return self.constant(list(values), np.int64)

    def reshape(self, name: str, source: Sequence[int], target: Sequence[int]) -> str:
        """Reshape so that the free batch, which lies outermost, stays there."""
        if not target:
            return self.node("Reshape", [name, self.sizes([])])
        first = 0 if source and source[0] == target[0] == 1 else -1
        return self.node("Reshape", [name, self.sizes([first, *target[1:]])])

    def transpose(self, name: str, order: Sequence[int]) -> str:
        """Reorder the axes."""
        return self.node("Transpose", [name], perm=list(order))

    def in_nchw(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node whose first input and whose output are images, which ONNX has as NCHW."""
        image = self.transpose(inputs[0], TO_NCHW)
        return self.transpose(self.node(op_type, [image, *inputs[1:]], **attributes), TO_NHWC)

    def activated(self, name: str, activation: int) -> str:
        """Apply a fused activation."""
        if activation == Activation.NONE:
            return name
        if activation == Activation.RELU:
            return self.node("Relu", [name])
        if activation in _BOUNDS:
            low, high = _BOUNDS[activation]
            bounds = [self.constant(low, np.float32), self.constant(high, np.float32)]
            return self.node("Clip", [name, *bounds])
        if activation == Activation.TANH:
            return self.node("Tanh", [name])
        raise UntranslatableError(f"its fused activation {activation} has no counterpart in ONNX")

    def bind(self, operator: TfliteOperator, name: str, position: int = 0) -> None:
        """Let `name` be an output of the operator; it takes the name that the file gives it."""
        assert self._current is not None
        index = operator.outputs[position]
        wanted = self._tensor_names[index]
        if index in self.names:
            raise invalid(
                f"tensor {shown(self.graph.tensors[index].name)} is computed more than once",
                remedy="the file is damaged: convert or upload it again",
            )
        made_here = any(name in node.output for node in self._current.nodes)
        if not made_here and name not in self.constants:
            name = self.node("Identity", [name])
        for node in self._current.nodes:
            for names in (node.input, node.output):
                for place, item in enumerate(names):
                    if item == name:
                        names[place] = wanted
        if name in self.constants:
            self.constants[wanted] = self.constants[name]
        self.names[index] = wanted

    def absorb(self, first: int) -> None:
        """Let the operators since `first` (an index in the file) count as part of the current one.

        Their outputs are no tensors of the file any more and cannot be compared one by one.
        """
        assert self._current is not None
        earlier = [item for item in self.translated if item.operator.index >= first]
        own = set(self._ancestors(earlier))
        self.translated = [item for item in self.translated if id(item) not in own]
        merged = [node for item in earlier if id(item) in own for node in item.nodes]
        self._current.nodes[:0] = merged

    def _ancestors(self, earlier: Sequence[TranslatedOperator]) -> list[int]:
        assert self._current is not None
        wanted = {name for node in self._current.nodes for name in node.input}
        found = []
        for item in reversed(earlier):
            if any(name in wanted for node in item.nodes for name in node.output):
                found.append(id(item))
                wanted |= {name for node in item.nodes for name in node.input}
        return found

    def _fresh(self, suffix: str) -> str:
        assert self._current is not None
        outputs = self._current.operator.outputs
        stem = self._tensor_names[outputs[0]] if outputs else "operator"
        return unique_name(f"{stem}.{suffix}", self._taken)

    def _name_nodes(self, translated: TranslatedOperator) -> None:
        """Call the node that does the work by the tensor that it computes, the others by what they do."""
        if not translated.operator.outputs:
            return
        tensor = self.graph.tensors[translated.operator.outputs[0]]
        # Converters join the names of all operators that were fused by semicolons.
        first = tensor.name.split(";")[0]
        stem = _short(first)[:_NAME_CHARACTERS] or translated.operator.kind.lower()
        unnamed = [node for node in translated.nodes if not node.name]
        leading = next((node for node in unnamed if node.op_type in _LEADING), None)
        for node in unnamed:
            is_stem = node is (leading or unnamed[-1])
            node.name = unique_name(
                stem if is_stem else f"{stem}/{node.op_type}", self._taken_nodes
            )


_BOUNDS = {Activation.RELU6: (0.0, 6.0), Activation.RELU_N1_TO_1: (-1.0, 1.0)}
_OTHER_AXES = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "PACK", "UNPACK", "GATHER"})
_LEADING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "RNN", "Resize", "PRelu"})


def _tensor_names(graph: TfliteGraph) -> list[str]:
    """Return unique names; those of inputs and outputs stay as they are where they can."""
    names = [""] * len(graph.tensors)
    taken: set[str] = set()
    ends = dict.fromkeys((*graph.inputs, *graph.outputs))
    for index in (*ends, *(i for i in range(len(graph.tensors)) if i not in ends)):
        given = graph.tensors[index].name
        if index not in ends:
            given = _short(given.split(";")[0])
        names[index] = unique_name(given[:_NAME_CHARACTERS] or f"t{index}", taken)
    return names


def _short(name: str) -> str:
    """Return a name without the Python modules that litert-torch puts before each class."""
    parts = [_MODULES.sub("", part) for part in name.split("/")]
    return "/".join(part for part in parts if part != "ChannelLastIOWrapper")
