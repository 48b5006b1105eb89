"""Constants that a graph repeats over the batch: brought into a form without computed shapes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, helper

from tightfit_service.graph.structure import (
    Array,
    Shape,
    attribute,
    initializers,
    producers,
    remove_dead_code,
    replace_nodes,
    set_initializer,
)

_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_INITIAL_STATES = (5, 6)
_MOVEMENT = frozenset({"Expand", "Slice", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Transpose"})


def drop_zero_states(model: ModelProto) -> None:
    """Remove initial states of recurrent layers that are all zero, in place: zero is the default.

    Exporters spell them out with the batch in their shape, computed or as a constant.
    """
    makers = producers(model.graph)
    values = initializers(model)
    for node in model.graph.node:
        if node.domain or node.op_type not in _RECURRENT:
            continue
        for index in _INITIAL_STATES:
            if index < len(node.input) and _is_zero(node.input[index], makers, values):
                node.input[index] = ""
        while node.input and not node.input[-1]:
            del node.input[-1]
    remove_dead_code(model)


def _is_zero(name: str, makers: dict[str, NodeProto], values: dict[str, Array]) -> bool:
    if name in values:
        return not values[name].any()
    maker = makers.get(name)
    if maker is None or maker.domain:
        return False
    if maker.op_type in _MOVEMENT:
        return _is_zero(maker.input[0], makers, values)
    if maker.op_type != "ConstantOfShape":
        return False
    fill = attribute(maker, "value")
    return fill is None or (not any(fill.raw_data) and not any(fill.float_data))


def absorb_repeated(
    model: ModelProto, repeated: Mapping[str, Array], shapes: Mapping[str, Shape]
) -> bool:
    """Do away with tensors that only repeat a constant over the batch, in place.

    Arithmetic broadcasts by itself. Where the constant is joined to data along another axis (the
    class token of a transformer), zeros are padded there and the constant is added: x + 0 is exact.

    Args:
        model: Nodes in topological order, opset 11 or newer.
        repeated: Per tensor the constant, with one entry along axis 0.
        shapes: Shapes at batch 1; those behind the tensors may be missing.

    Returns:
        Whether anything changed.
    """
    values = initializers(model)
    result: list[NodeProto] = []
    changed = False
    for node in model.graph.node:
        constant = [name in repeated for name in node.input]
        data = [name for name in node.input if name not in repeated and name not in values]
        if node.op_type in _BROADCASTING and any(constant) and data:
            for index, name in enumerate(node.input):
                if name in repeated:
                    node.input[index] = f"{name}.constant"
                    set_initializer(model, node.input[index], repeated[name])
            changed = True
        elif node.op_type == "Concat" and sum(constant) == len(node.input) - 1 and data:
            parts = [repeated.get(name) for name in node.input]
            pad = _padded_sum(model, node, parts, shapes.get(data[0], ()))
            if pad is not None:
                result.append(pad)
                changed = True
        result.append(node)
    if changed:
        replace_nodes(model.graph, result)
        remove_dead_code(model)
    return changed


def _padded_sum(
    model: ModelProto, node: NodeProto, parts: list[Array | None], shape: Shape
) -> NodeProto | None:
    """Turn a Concat of constants around one tensor into an Add, and return the Pad in front of it.

    Args:
        model: Takes the new constants.
        node: The Concat; keeps name and output.
        parts: Per input its constant, None for the tensor.
        shape: Shape of the tensor; where it is not known, nothing changes and None is returned.
    """
    position = next(index for index, part in enumerate(parts) if part is None)
    if not shape or any(part is not None and part.ndim != len(shape) for part in parts):
        return None
    axis = int(attribute(node, "axis", 0)) % len(shape)
    if axis == 0:
        return None
    whole = np.concatenate(
        [np.zeros((1, *shape[1:]), dtype=np.float32) if part is None else part for part in parts],
        axis,
    )
    amounts = np.zeros(2 * len(shape), dtype=np.int64)
    for index, part in enumerate(parts):
        if part is not None:
            amounts[axis + (0 if index < position else len(shape))] += part.shape[axis]
    pads, constant = f"{node.name}.pads", f"{node.name}.constant"
    set_initializer(model, pads, amounts)
    set_initializer(model, constant, whole.astype(np.float32))
    pad = helper.make_node(
        "Pad", [node.input[position], pads], [f"{node.output[0]}.padded"], f"{node.name}.pad"
    )
    node.op_type = "Add"
    del node.attribute[:]
    del node.input[:]
    node.input.extend([pad.output[0], constant])
    return pad
