"""Steps that bring an ONNX graph into working form: constants, names, identities, free batch.

Each step changes the model in place and keeps its function and the names of nodes that had one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    numpy_helper,
)

from tightfit_service.graph.model_file import invalid, shown, subgraphs
from tightfit_service.graph.structure import (
    Array,
    Shape,
    attribute,
    declared_shape,
    graph_inputs,
    graph_outputs,
    initializers,
    replace_nodes,
    set_initializer,
    unique_name,
)

BATCH = "batch"


def use_standard_domain(model: ModelProto) -> None:
    """Spell the standard domain "" everywhere; "ai.onnx" is its other name."""
    versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    del model.opset_import[:]
    for domain, version in versions.items():
        model.opset_import.add(domain=domain, version=version)
    for node in model.graph.node:
        if node.domain == "ai.onnx":
            node.domain = ""


def separate_inputs(model: ModelProto) -> None:
    """Drop initializers from the inputs, where models before IR version 4 list them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    if len(kept) != len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)


def name_nodes(model: ModelProto) -> None:
    """Give every node a unique name; names that are there and unique stay.

    A nameless node is called by its operator and position, a duplicate gets a number.
    """
    taken = {node.name for node in model.graph.node if node.name}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        if name in seen or (not node.name and name in taken):
            stem, suffix = name, 2
            while f"{stem}_{suffix}" in taken:
                suffix += 1
            name = f"{stem}_{suffix}"
            taken.add(name)
        seen.add(name)
        node.name = name


def constants_to_initializers(model: ModelProto) -> None:
    """Turn Constant nodes into initializers; those of strings stay nodes."""
    kept: list[NodeProto] = []
    for node in model.graph.node:
        tensor = _constant_value(node) if node.op_type == "Constant" and not node.domain else None
        if tensor is None:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
    if len(kept) != len(model.graph.node):
        replace_nodes(model.graph, kept)


def _constant_value(node: NodeProto) -> TensorProto | None:
    for item in node.attribute:
        if item.name == "value" and item.type == AttributeProto.TENSOR:
            tensor = TensorProto()
            tensor.CopyFrom(item.t)
            return tensor
        if item.name in {"value_float", "value_floats"}:
            value = item.f if item.name == "value_float" else list(item.floats)
            return numpy_helper.from_array(np.asarray(value, dtype=np.float32))
        if item.name in {"value_int", "value_ints"}:
            number = item.i if item.name == "value_int" else list(item.ints)
            return numpy_helper.from_array(np.asarray(number, dtype=np.int64))
    return None


def remove_identities(model: ModelProto) -> None:
    """Remove Identity nodes and Dropout, which does nothing in inference; nodes must be in order.

    Names of outputs stay: where an identity makes one, its source takes that name. One that joins
    an input or a constant straight to an output stays.
    """
    graph = model.graph
    outputs = set(graph_outputs(model))
    sources = {name for node in graph.node for name in node.output}
    captured = {name for node in graph.node for body in subgraphs(node) for name in _captures(body)}
    renamed: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if not _does_nothing(model, node) or node.output[0] in captured or any(node.output[1:]):
            kept.append(node)
            continue
        source, target = node.input[0], node.output[0]
        if target not in outputs:
            renamed[target] = source
        elif source in sources and source not in outputs and source not in captured:
            for other in kept:
                for names in (other.input, other.output):
                    for index, name in enumerate(names):
                        if name == source:
                            names[index] = target
            renamed[source] = target
        else:
            kept.append(node)
    replace_nodes(graph, kept)


def _does_nothing(model: ModelProto, node: NodeProto) -> bool:
    if node.domain or node.op_type not in {"Identity", "Dropout"}:
        return False
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        mode = next((t for t in model.graph.initializer if t.name == node.input[2]), None)
        return mode is not None and not bool(numpy_helper.to_array(mode).any())
    return True


def _captures(body: GraphProto) -> list[str]:
    names = [name for node in body.node for name in node.input]
    names.extend(value.name for value in body.output)
    for node in body.node:
        for inner in subgraphs(node):
            names.extend(_captures(inner))
    return names


def separate_vectors(model: ModelProto) -> None:
    """Give every layer biases and scales of its own, in place.

    Exporters store equal tensors once: biases that all are zero, scales that all are one. Such
    chance equality must not tie layers together. Layers that share a matrix mean to share.
    """
    values = initializers(model)
    taken = set(values)
    owners: dict[str, dict[tuple[str, ...], str]] = {}
    for node in model.graph.node:
        matrices = tuple(
            name
            for name in node.input
            if name in values and values[name].size > max(values[name].shape, default=1)
        )
        for index, name in enumerate(node.input):
            value = values.get(name)
            if value is None or value.dtype.kind != "f" or not 1 < value.size == max(value.shape):
                continue
            named = owners.setdefault(name, {})
            user = matrices or (node.name,)
            if user not in named:
                named[user] = name
                if len(named) > 1:
                    named[user] = _add_constant(model, taken, f"{node.name}.{name}", value)
            node.input[index] = named[user]


def check_finite_weights(model: ModelProto) -> None:
    """Refuse weights that are not numbers.

    Raises:
        InvalidModelError: Names the tensor.
    """
    for name, value in initializers(model).items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            # Infinity as a single number is a legal bound (of Clip, or a mask's fill value).
            if value.size == 1 and not np.isnan(value).any():
                continue
            what = "NaN" if np.isnan(value).any() else "infinite values"
            raise invalid(
                f"tensor {shown(name)} holds {what}",
                remedy="the training diverged or the file is damaged: export a sound checkpoint",
            )


def check_inputs(model: ModelProto) -> None:
    """Refuse inputs whose shape or type training and export cannot serve.

    Raises:
        InvalidModelError: An input is no float tensor, has a free axis other than the batch, no
            axis at all, or a fixed batch above 1.
    """
    by_name = {value.name: value for value in model.graph.input}
    for name in graph_inputs(model):
        value = by_name[name]
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type" or value.type.tensor_type.elem_type != TensorProto.FLOAT:
            raise invalid(
                f"input {shown(name)} is {_type_name(value)}, not a tensor of float32",
                remedy="export the model with float32 inputs (cast inside your preprocessing)",
            )
        shape = declared_shape(value)
        if not shape:
            missing = "has no declared shape" if shape is None else "has no batch axis"
            raise invalid(
                f"input {shown(name)} {missing}",
                remedy="export the model with a batch axis first and the other sizes fixed",
            )
        for axis, size in enumerate(shape[1:], start=1):
            if not isinstance(size, int) or size < 1:
                said = "free" if not isinstance(size, int) else str(size)
                raise invalid(
                    f"axis {axis} of input {shown(name)} is {said}; only the batch may be free",
                    remedy="export the model with fixed sizes, or fix them with "
                    "onnx.tools.update_model_dims",
                )
        if isinstance(shape[0], int) and shape[0] != 1:
            raise invalid(
                f"the batch (axis 0) of input {shown(name)} is fixed at {shape[0]}",
                remedy="export the model with a free batch, or with batch 1",
            )


def batch_is_fixed(model: ModelProto) -> bool:
    """Whether axis 0 of every input has a fixed size."""
    names = set(graph_inputs(model))
    return all(
        value.type.tensor_type.shape.dim[0].HasField("dim_value")
        for value in model.graph.input
        if value.name in names
    )


def free_input_batch(model: ModelProto) -> bool:
    """Make axis 0 of every input the free dimension "batch"; return whether one was fixed.

    The inputs must have passed `check_inputs`.
    """
    was_fixed = False
    names = set(graph_inputs(model))
    for value in model.graph.input:
        if value.name in names:
            dim = value.type.tensor_type.shape.dim[0]
            was_fixed |= dim.HasField("dim_value")
            dim.Clear()
            dim.dim_param = BATCH
    return was_fixed


def strip_notes(model: ModelProto) -> None:
    """Remove documentation and metadata, which exporters fill with stack traces."""
    del model.metadata_props[:]
    model.ClearField("doc_string")
    model.graph.ClearField("doc_string")
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]


def drop_allow_zero(model: ModelProto) -> None:
    """Clear `allowzero` of Reshapes, in place, where no constant target makes an empty tensor.

    Current exporters set it although no size is 0; without it, a 0 can stand for the batch.
    """
    constants = initializers(model)
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.domain:
            continue
        if node.input[1] in constants and not constants[node.input[1]].all():
            continue
        kept = [item for item in node.attribute if item.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(kept)


def _type_name(value: ValueInfoProto) -> str:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return f"a {(kind or 'thing without type').removesuffix('_type').replace('_', ' ')}"
    code = value.type.tensor_type.elem_type
    names = {number: text for text, number in TensorProto.DataType.items()}
    return f"of type {names.get(code, str(code)).lower()}"


def free_constant_batch(model: ModelProto, shapes: Mapping[str, Shape]) -> None:
    """Let constants that spell out batch 1 (of Reshape, and sizes of Resize) follow the batch.

    Args:
        model: Changed in place.
        shapes: Shapes at batch 1.
    """
    constants = initializers(model)
    names = set(constants)
    for node in model.graph.node:
        if node.domain or not all(name in shapes for name in (*node.input[:1], *node.output[:1])):
            continue
        if node.op_type == "Reshape" and node.input[1] in constants:
            target = _batched_target(node, constants[node.input[1]], shapes)
            if target is not None:
                node.input[1] = _add_constant(model, names, f"{node.name}.shape", target)
        elif node.op_type == "Resize" and len(node.input) > 3 and node.input[3] in constants:
            scales = _scales_for(node, shapes)
            if scales is not None:
                node.input[3] = ""
                del node.input[3:]
                node.input[2] = _add_constant(model, names, f"{node.name}.scales", scales)


def _batched_target(node: NodeProto, target: Array, shapes: Mapping[str, Shape]) -> Array | None:
    source, result = shapes[node.input[0]], shapes[node.output[0]]
    if not source or not result or source[0] != 1 or result[0] != 1 or target[0] not in {1, -1}:
        return None
    if attribute(node, "allowzero", 0):
        return None
    freed = np.array(target, dtype=np.int64)
    freed[0] = 0
    return freed


def _scales_for(node: NodeProto, shapes: Mapping[str, Shape]) -> Array | None:
    """Return scales that give the same sizes, or None where the axes are chosen or rounding differs."""
    source, result = shapes[node.input[0]], shapes[node.output[0]]
    if attribute(node, "axes") is not None or len(source) != len(result) or source[0] != 1:
        return None
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    scales = np.asarray(result, dtype=np.float32) / np.asarray(source, dtype=np.float32)
    if tuple(int(size) for size in np.floor(np.asarray(source) * scales)) != result:
        return None
    return scales


def _add_constant(model: ModelProto, names: set[str], stem: str, value: Array) -> str:
    name = unique_name(stem, names)
    set_initializer(model, name, value)
    return name
