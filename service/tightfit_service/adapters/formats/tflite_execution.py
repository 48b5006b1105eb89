"""Running TFLite graphs in LiteRT's plain kernels, and comparing them operator by operator.

LiteRT gets a file written anew from what was read and checked, never the bytes that came: its
runtime trusts offsets and sizes in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # ships no types
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from tightfit_service.adapters.evaluation.litert_evaluator import quantized
from tightfit_service.adapters.formats.onnx_execution import (
    LIBRARY_ERRORS,
    open_session,
    relative_difference,
)
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_literal import LiteralGraph
from tightfit_service.adapters.formats.tflite_reader import TfliteGraph, TfliteTensor
from tightfit_service.adapters.formats.tflite_translation import TranslatedOperator, onnx_type
from tightfit_service.application.samples import FloatArray
from tightfit_service.graph.model_file import invalid, save_model
from tightfit_service.graph.structure import Array, first_line

OPERATOR_LIMIT = 1e-4
"""Largest relative difference that one float operator may have, fed with the same values."""
STEP_LIMIT = 3.0
"""Largest difference of one quantized operator, in steps of its output's scale.

Kernels round weights' products, requantize and look up tables: each may cost one step.
"""
RANGE_LIMIT = 0.02
"""The same relative to the largest output, where steps are finer than the kernels' tables, and for
kernels that quantize their float inputs on the way."""


@dataclass(frozen=True, kw_only=True)
class OperatorDifference:
    """The first operator whose translation does not compute what LiteRT does."""

    index: int
    kind: str
    tensor: str
    relative: float


class LitertReference:
    """The graph in LiteRT, one sample at a time; not for several threads at once."""

    def __init__(self, literal: LiteralGraph, *, keep_all: bool = False) -> None:
        """Load it.

        Raises:
            InvalidModelError: LiteRT refuses it.
        """
        self._graph, self._outputs = literal.source, literal.outputs
        self._interpreter = Interpreter(
            model_content=written(literal),
            num_threads=1,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=keep_all,
        )
        try:
            self._interpreter.allocate_tensors()
        except LIBRARY_ERRORS as error:
            raise _does_not_run(error) from error
        self._details = {item["index"]: item for item in self._interpreter.get_input_details()}

    def run(self, inputs: Sequence[FloatArray]) -> list[Array]:
        """Return the outputs, as real numbers, for one sample of each input.

        Raises:
            InvalidModelError: LiteRT refuses to run it on these.
        """
        try:
            self._interpreter.reset_all_variables()
            for index, value in zip(self._graph.inputs, inputs, strict=True):
                self._interpreter.set_tensor(index, quantized(value, self._details[index]))
            self._interpreter.invoke()
        except LIBRARY_ERRORS as error:
            raise _does_not_run(error) from error
        return [self.tensor(index) for index in self._outputs]

    def tensor(self, index: int) -> Array:
        """Return what the last run left in a tensor, as real numbers."""
        value = np.asarray(self._interpreter.get_tensor(index))
        return np.array(self._graph.tensors[index].real(value))

    def run_batch(self, inputs: Sequence[FloatArray]) -> list[Array]:
        """Return the outputs for all samples, one after the other."""
        parts = [self.run([x[i : i + 1] for x in inputs]) for i in range(len(inputs[0]))]
        return [
            np.concatenate(item) if item[0].ndim else np.stack(item)
            for item in zip(*parts, strict=True)
        ]


def _does_not_run(error: Exception) -> Exception:
    return invalid(
        f"LiteRT does not run the model: {first_line(error)}",
        remedy="check that the file runs in ai_edge_litert's Interpreter",
    )


def written(literal: LiteralGraph) -> bytes:
    """Return a TFLite file of what was translated, with the tensor numbers of the original.

    Its inputs keep their names as well.
    """
    graph = literal.source
    model = schema.ModelT()
    model.version, model.description = 3, b"tightfit"
    model.buffers, model.operatorCodes = [schema.BufferT()], []
    subgraph = schema.SubGraphT()
    subgraph.tensors = [_tensor(item, index, model) for index, item in enumerate(graph.tensors)]
    for index in graph.inputs:
        subgraph.tensors[index].name = graph.tensors[index].name.encode()
    subgraph.inputs, subgraph.outputs = list(graph.inputs), list(literal.outputs)
    subgraph.operators = []
    codes: dict[tuple[int, int], int] = {}
    for index in literal.operators:
        source = graph.operators[index]
        key = (source.code, source.version)
        if key not in codes:
            codes[key] = len(codes)
            code = schema.OperatorCodeT()
            code.builtinCode, code.version = key
            code.deprecatedBuiltinCode = min(source.code, 127)
            model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = codes[key]
        operator.inputs, operator.outputs = list(source.inputs), list(source.outputs)
        operator.builtinOptionsType, operator.builtinOptions = source.options_type, source.options
        subgraph.operators.append(operator)
    model.subgraphs = [subgraph]
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    # A round trip aligns the constants, which kernels read in place.
    return TfliteFile(bytes(builder.Output())).to_bytes()


def _tensor(source: TfliteTensor, index: int, model: Any) -> Any:
    tensor = schema.TensorT()
    tensor.name = f"t{index}".encode()
    tensor.shape = np.asarray(source.shape, dtype=np.int32)
    tensor.type, tensor.isVariable, tensor.buffer = source.type, source.is_variable, 0
    if source.data is not None and not source.is_variable:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(source.data, dtype=np.uint8)
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
    if source.quantization is not None:
        quantization = schema.QuantizationParametersT()
        quantization.scale = source.quantization.scales
        quantization.zeroPoint = np.ascontiguousarray(source.quantization.zero_points)
        quantization.quantizedDimension = source.quantization.axis
        tensor.quantization = quantization
    return tensor


def first_difference(
    literal: LiteralGraph, inputs: Sequence[FloatArray]
) -> OperatorDifference | None:
    """Return the first operator that differs when fed with what LiteRT computed before it.

    Errors do not add up on the way: each operator is compared alone, on one sample.
    """
    reference = LitertReference(literal, keep_all=True)
    reference.run(inputs)
    single, reads = _operators_alone(literal)
    values = {
        f"{_GIVEN}{literal.names[index]}": np.ascontiguousarray(reference.tensor(index))
        for index in reads
    }
    results = open_session(save_model(single)).run(None, values)
    by_name = dict(zip((item.name for item in single.graph.output), results, strict=True))
    for item in literal.translated:
        for index in item.outputs:
            name = f"{_OWN}{literal.names[index]}"
            if name not in by_name:
                continue
            tensor = literal.source.tensors[index]
            difference = _excess(
                literal.source, item, tensor, reference.tensor(index), by_name[name]
            )
            if difference is not None:
                return OperatorDifference(
                    index=item.operator.index,
                    kind=item.operator.kind,
                    tensor=tensor.name,
                    relative=difference,
                )
    return None


_GIVEN, _OWN = "given/", "own/"


def _operators_alone(literal: LiteralGraph) -> tuple[ModelProto, list[int]]:
    """Return a graph in which every operator reads inputs of the graph, and the tensors it reads."""
    graph = literal.source
    constants = {item.name for item in literal.model.graph.initializer}
    index_of = {name: index for index, name in literal.names.items()}
    nodes: list[NodeProto] = []
    outputs: list[ValueInfoProto] = []
    reads: dict[int, None] = {}
    for item in literal.translated:
        inside = {name for node in item.nodes for name in node.output}
        for node in item.nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            for place, name in enumerate(node.input):
                if name in inside:
                    copy.input[place] = f"{_OWN}{name}"
                elif name and name not in constants:
                    copy.input[place] = f"{_GIVEN}{name}"
                    reads[index_of[name]] = None
            for place, name in enumerate(node.output):
                copy.output[place] = f"{_OWN}{name}"
            nodes.append(copy)
        outputs.extend(
            helper.make_tensor_value_info(
                f"{_OWN}{literal.names[index]}", onnx_type(graph.tensors[index]), None
            )
            for index in item.outputs
            if literal.names[index] in inside
        )
    inputs = [
        helper.make_tensor_value_info(
            f"{_GIVEN}{literal.names[index]}",
            onnx_type(graph.tensors[index]),
            graph.tensors[index].shape,
        )
        for index in reads
    ]
    model = ModelProto()
    model.CopyFrom(literal.model)
    model.graph.CopyFrom(
        helper.make_graph(
            nodes, "operators", inputs, outputs, list(literal.model.graph.initializer)
        )
    )
    return model, list(reads)


def _excess(
    graph: TfliteGraph,
    item: TranslatedOperator,
    tensor: TfliteTensor,
    expected: Array,
    found: Array,
) -> float | None:
    """Return the relative difference where it is more than rounding explains."""
    quantization = tensor.quantization
    if expected.shape != found.shape:
        return float("inf")
    if tensor.is_integer_code and quantization is not None and len(quantization.scales) == 1:
        low, high = (tensor.real(np.asarray(level)) for level in tensor.levels)
        difference = relative_difference(expected, np.clip(found, low, high))
        largest = float(np.abs(expected).max(initial=0.0))
        allowed = STEP_LIMIT * float(quantization.scales[0]) / max(largest, 1e-12)
        return difference if difference > max(allowed, RANGE_LIMIT) else None
    difference = relative_difference(expected, found)
    edges = (graph.tensors[edge] for edge in item.operator.inputs if edge >= 0)
    limit = RANGE_LIMIT if any(edge.is_integer_code for edge in edges) else OPERATOR_LIMIT
    return difference if difference > limit else None
