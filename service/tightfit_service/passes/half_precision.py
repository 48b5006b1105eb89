"""Nodes in float16, with casts where the rest of the graph begins; weights stored in bfloat16."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from tightfit_service.graph.model_file import copy_model
from tightfit_service.graph.structure import (
    consumers,
    default_opset,
    graph_outputs,
    initializers,
    names_read,
    remove_dead_code,
    replace_nodes,
    sorted_model_nodes,
)

_HALF = "tensor(float16)"
_FLOAT = "tensor(float)"
_SUFFIX = ".float16"
_LARGEST_HALF = float(np.finfo(np.float16).max)
_STORED_ELEMENTS = 16
"""Smaller constants are not worth the Cast that widens them."""


def to_float16(model: ModelProto, nodes: Collection[str]) -> ModelProto:
    """Return the model with the named nodes computing in float16; all else stays as it is.

    Inputs and outputs of the model keep float32. Nodes whose operator ONNX does not define for
    float16 stay in float32, as do inputs that it defines for float32 only (the scales of Resize).
    Weights beyond the largest float16 are clipped to it. A Mul or Div by one number in front of a
    MatMul stays in float32: onnxruntime 1.31 fuses float16 ones with a Transpose, and dies of it.

    Args:
        model: The model; it is not changed.
        nodes: Names of nodes; names that the model does not have are ignored.
    """
    result = ModelProto()
    result.CopyFrom(onnx.shape_inference.infer_shapes(model))
    conversion = _Conversion(result)
    kept = _scalings_of_products(result)
    for node in sorted_model_nodes(result):
        if node.name in nodes and node.name not in kept:
            conversion.convert(node)
        else:
            conversion.leave(node)
    conversion.finish()
    return result


def with_bfloat16_weights(model: ModelProto, nodes: Collection[str]) -> ModelProto:
    """Return the model with the weights of the named nodes stored in bfloat16, and computed in float32.

    A Cast widens them: onnxruntime has bfloat16 kernels for the CPU for a few operators only (in
    1.31 for Conv, not for Gemm, Relu or Add), and refuses files that need others.
    """
    result = copy_model(model)
    constants = initializers(result)
    wide: dict[str, str] = {}
    casts: list[NodeProto] = []
    for node in result.graph.node:
        if node.name not in nodes:
            continue
        for index, name in enumerate(node.input):
            value = constants.get(name)
            if value is None or value.dtype != np.float32 or value.size < _STORED_ELEMENTS:
                continue
            if name not in wide:
                wide[name] = f"{name}.float32"
                stored = numpy_helper.from_array(
                    value.astype(ml_dtypes.bfloat16), f"{name}.bfloat16"
                )
                result.graph.initializer.append(stored)
                casts.append(
                    onnx.helper.make_node("Cast", [stored.name], [wide[name]], to=TensorProto.FLOAT)
                )
            node.input[index] = wide[name]
    for index, cast in enumerate(casts):
        cast.name = f"widen.{index}"
    replace_nodes(result.graph, [*casts, *result.graph.node])
    remove_dead_code(result)
    return result


@dataclass(kw_only=True)
class _Ports:
    """Positions of a node's inputs and outputs that change their type."""

    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


class _Conversion:
    """State of one conversion: which tensors exist in which type."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._constants = initializers(model)
        self._floats = _float_tensors(model)
        self._opset = default_opset(model)
        self._outputs = set(graph_outputs(model))
        self._halves: dict[str, str] = {}
        self._only_half: set[str] = set()
        self._nodes: list[NodeProto] = []

    def convert(self, node: NodeProto) -> None:
        """Take a node over in float16, if its operator is defined for it."""
        ports = self._ports(node)
        if ports is None:
            self.leave(node)
            return
        copy = NodeProto()
        copy.CopyFrom(node)
        for index in ports.inputs:
            copy.input[index] = self._half_of(node.input[index])
        for index in ports.outputs:
            name = node.output[index]
            copy.output[index] = self._halves[name] = name + _SUFFIX
            self._only_half.add(name)
        self._nodes.append(copy)
        for index in ports.outputs:
            if node.output[index] in self._outputs:
                self._restore(node.output[index])

    def leave(self, node: NodeProto) -> None:
        """Take a node over as it is."""
        for name in sorted(set(names_read(node)) & self._only_half):
            self._restore(name)
        self._nodes.append(node)

    def finish(self) -> None:
        """Put the nodes into the model and drop weights that nothing reads any more."""
        replace_nodes(self._model.graph, self._nodes)
        del self._model.graph.value_info[:]
        remove_dead_code(self._model)

    def _ports(self, node: NodeProto) -> _Ports | None:
        """Return what to convert, or None where the operator is not defined for float16."""
        if node.domain not in {"", "ai.onnx"} or any(
            item.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
            for item in node.attribute
        ):
            return None
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset)
        except onnx.defs.SchemaError:
            return None
        allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
        ports = _Ports()
        for names, formals, found in (
            (node.input, schema.inputs, ports.inputs),
            (node.output, schema.outputs, ports.outputs),
        ):
            for index, name in enumerate(names):
                formal = formals[min(index, len(formals) - 1)]
                if not name or name not in self._floats or formal.type_str == _FLOAT:
                    continue
                if _HALF not in allowed.get(formal.type_str, ()):
                    return None
                found.append(index)
        return ports if ports.outputs else None

    def _half_of(self, name: str) -> str:
        """Return the name of a tensor's float16 form, made where it is missing."""
        if name in self._halves:
            return self._halves[name]
        half = self._halves[name] = name + _SUFFIX
        if name in self._constants:
            value = np.clip(self._constants[name], -_LARGEST_HALF, _LARGEST_HALF)
            stored = numpy_helper.from_array(value.astype(np.float16), half)
            self._model.graph.initializer.append(stored)
        else:
            self._nodes.append(
                onnx.helper.make_node(
                    "Cast", [name], [half], to=TensorProto.FLOAT16, name=f"{half}.cast"
                )
            )
        return half

    def _restore(self, name: str) -> None:
        """Make the float32 form of a tensor that a converted node computed."""
        if name in self._only_half:
            self._only_half.discard(name)
            self._nodes.append(
                onnx.helper.make_node(
                    "Cast", [self._halves[name]], [name], to=TensorProto.FLOAT, name=f"{name}.cast"
                )
            )


def _scalings_of_products(model: ModelProto) -> set[str]:
    """Return the nodes that multiply or divide by one number what a MatMul reads."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    readers = consumers(model.graph)
    return {
        node.name
        for node in model.graph.node
        if node.op_type in {"Mul", "Div"}
        and any(sizes.get(name) == 1 for name in node.input)
        and any(reader.op_type == "MatMul" for reader in readers.get(node.output[0], []))
    }


def _float_tensors(model: ModelProto) -> set[str]:
    graph = model.graph
    values = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    return values | {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}
