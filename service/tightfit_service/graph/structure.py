"""Facts about the structure of an ONNX graph: constants, edges, order, attributes and shapes."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from tightfit_service.graph.model_file import invalid, shown, subgraphs

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

# Constants of at most this many elements are kept for shape inference, which reads the values of
# shapes, pads and axes; larger ones are weights, of which it needs the shape only.
_SHAPE_CONSTANT_ELEMENTS = 256


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute as Python data (strings decoded), or the default."""
    for candidate in node.attribute:
        if candidate.name == name:
            value = onnx.helper.get_attribute_value(candidate)
            if isinstance(value, bytes):
                return value.decode("utf-8", errors="replace")
            if candidate.type in {onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS}:
                return list(value)
            return value
    return default


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Set an attribute of a node in place, replacing one of the same name."""
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def initializers(model: ModelProto) -> dict[str, Array]:
    """Return all initializers by name as arrays; the arrays are read-only views or copies."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def set_initializer(model: ModelProto, name: str, value: Array) -> None:
    """Replace or add an initializer in place."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
    for existing in model.graph.initializer:
        if existing.name == name:
            existing.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def graph_inputs(model: ModelProto) -> tuple[str, ...]:
    """Return the names of the inputs that a caller feeds; initializers are not among them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return tuple(value.name for value in model.graph.input if value.name not in constants)


def graph_outputs(model: ModelProto) -> tuple[str, ...]:
    """Return the names of the outputs."""
    return tuple(value.name for value in model.graph.output)


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Return the node that computes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Return the nodes that read each tensor, in order; one entry per node, not per use."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(names_read(node)):
            readers.setdefault(name, []).append(node)
    return readers


def names_read(node: NodeProto) -> list[str]:
    """Return the tensors that a node reads, those captured by its subgraphs included."""
    names = [name for name in node.input if name]
    for body in subgraphs(node):
        inside = {value.name for value in body.input} | {t.name for t in body.initializer}
        for inner in body.node:
            names.extend(name for name in names_read(inner) if name not in inside)
            inside.update(inner.output)
        names.extend(value.name for value in body.output if value.name not in inside)
    return names


def topological_order(nodes: Iterable[NodeProto], known: Iterable[str]) -> list[NodeProto]:
    """Return the nodes so that each follows those it reads; ties keep the given order.

    Args:
        nodes: Nodes in any order.
        known: Tensors that are there from the start (inputs and initializers).

    Raises:
        InvalidModelError: A cycle, a tensor computed twice, or one that nothing computes.
    """
    pending = list(nodes)
    available = set(known) | {""}
    maker: dict[str, int] = {}
    for index, node in enumerate(pending):
        for name in node.output:
            if name and (name in maker or name in available):
                raise invalid(
                    f"tensor {shown(name)} is computed more than once",
                    remedy="give every tensor a name of its own",
                )
            maker[name] = index
    waiting: dict[int, set[int]] = {}
    unlocks: dict[int, list[int]] = {}
    for index, node in enumerate(pending):
        needs = set()
        for name in names_read(node):
            if name in available:
                continue
            if name not in maker:
                raise invalid(
                    f"node {shown(node.name)} ({node.op_type}) reads tensor {shown(name)}, "
                    "which nothing computes",
                    remedy="the graph is damaged: export the model again",
                )
            needs.add(maker[name])
        waiting[index] = needs
        for other in needs:
            unlocks.setdefault(other, []).append(index)
    ready = [index for index, needs in waiting.items() if not needs]
    heapq.heapify(ready)
    order: list[NodeProto] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(pending[index])
        for other in unlocks.get(index, ()):
            waiting[other].discard(index)
            if not waiting[other]:
                heapq.heappush(ready, other)
    if len(order) != len(pending):
        stuck = next(i for i, needs in waiting.items() if needs)
        raise invalid(
            f"the graph has a cycle through node {shown(pending[stuck].name)}",
            remedy="export the model again; ONNX graphs are free of cycles",
        )
    return order


def sorted_model_nodes(model: ModelProto) -> list[NodeProto]:
    """Return the nodes of the main graph in topological order (see `topological_order`)."""
    graph = model.graph
    known = [value.name for value in graph.input] + [t.name for t in graph.initializer]
    return topological_order(graph.node, known)


def remove_dead_code(model: ModelProto) -> None:
    """Remove, in place, nodes and initializers that no output depends on; nodes must be in order."""
    graph = model.graph
    needed = set(graph_outputs(model))
    alive: list[NodeProto] = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            alive.append(node)
            needed.update(names_read(node))
    if len(alive) != len(graph.node):
        replace_nodes(graph, alive[::-1])
    unused = [tensor for tensor in graph.initializer if tensor.name not in needed]
    for tensor in unused:
        graph.initializer.remove(tensor)


def replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Make `nodes` the nodes of the graph, in that order."""
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def declared_shape(value: ValueInfoProto) -> tuple[int | str | None, ...] | None:
    """Return a value's declared shape: sizes, symbols, or None for what is not said."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
        for dim in kind.shape.dim
    )


def tensor_shapes(model: ModelProto, *, batch: int = 1) -> dict[str, Shape]:
    """Return the shape of every tensor with all free dimensions set to `batch`.

    Constants are included. Tensors whose shape inference leaves open are missing.

    Raises:
        InvalidModelError: Shapes contradict each other.
    """
    skeleton = _skeleton(model, batch)
    try:
        inferred = onnx.shape_inference.infer_shapes(
            skeleton, check_type=False, strict_mode=False, data_prop=True
        )
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise invalid(
            f"the shapes in the graph contradict each other: {first_line(error)}",
            remedy="check the model with onnx.shape_inference in strict mode",
        ) from error
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    graph = inferred.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        declared = declared_shape(value)
        if declared is not None and all(isinstance(size, int) for size in declared):
            shapes.setdefault(value.name, tuple(int(size) for size in declared if size is not None))
    return shapes


# What onnxruntime and onnx put before the sentence that helps: codes, source files and functions.
_NOISE = re.compile(
    r"^\[(ONNXRuntimeError|ShapeInferenceError|TypeInferenceError)\]\s*(: \d+ : \w+ : )?"
    r"|(^|(?<= ))/\S+\.(cc|h|cpp):\d+ .*?\) ?"
)


def first_line(error: Exception) -> str:
    """Return the telling first line of a library's error, for messages."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else ""
    return _NOISE.sub("", line).strip()[:300] or type(error).__name__


def default_opset(model: ModelProto) -> int:
    """Return the version of the standard operator set that the model uses."""
    return max(
        (item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), default=0
    )


def _skeleton(model: ModelProto, batch: int) -> ModelProto:
    """Return the model without its weights (their shapes stay as inputs) and with a fixed batch."""
    source = model.graph
    skeleton = ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    graph = skeleton.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    constants = {tensor.name for tensor in source.initializer}
    for value in source.input:
        if value.name in constants:
            continue
        fixed = graph.input.add()
        fixed.CopyFrom(value)
        for dim in fixed.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = batch
    for tensor in source.initializer:
        elements = int(np.prod(tensor.dims, dtype=np.int64))
        is_integer = tensor.data_type in {TensorProto.INT64, TensorProto.INT32}
        if elements <= _SHAPE_CONSTANT_ELEMENTS and (is_integer or elements <= 8):
            graph.initializer.append(tensor)
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    for value in source.output:
        bare = graph.output.add()
        bare.name = value.name
        bare.type.tensor_type.elem_type = value.type.tensor_type.elem_type
    return skeleton


def unique_name(stem: str, taken: set[str]) -> str:
    """Return the stem, with a number behind it where it is taken already, and add it to `taken`."""
    name, suffix = stem, 1
    while name in taken:
        suffix += 1
        name = f"{stem}_{suffix}"
    taken.add(name)
    return name
