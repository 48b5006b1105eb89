"""Removal of channels: slices parameters and mends every constant that spells out a channel count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from tightfit_service.graph.model_file import copy_model
from tightfit_service.graph.propagation_state import Propagation, input_name
from tightfit_service.graph.rules_movement import pad_amounts, slice_ranges
from tightfit_service.graph.structure import (
    Array,
    Shape,
    attribute,
    initializers,
    remove_dead_code,
    set_attribute,
    set_initializer,
    unique_name,
)

Mask = npt.NDArray[np.bool_]


def remove_channels(model: ModelProto, state: Propagation, removed: frozenset[int]) -> ModelProto:
    """Return the model without the channels of the given classes.

    Args:
        model: The working graph that `state` was propagated over.
        state: Its propagation.
        removed: Roots of classes that are not frozen; none of them is a tensor's last.
    """
    result = copy_model(model)
    removal = _Removal(model=result, state=state, removed=np.asarray(sorted(removed)))
    removal.slice_parameters()
    for node in list(result.graph.node):
        mend = _MENDS.get(node.op_type)
        if mend is not None and node.name not in state.unruled:
            mend(removal, node)
    del result.graph.value_info[:]
    remove_dead_code(result)
    return result


@dataclass(kw_only=True, eq=False)
class _Removal:
    """One removal under way on a copy of the model."""

    model: ModelProto
    state: Propagation
    removed: Array
    names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names = {tensor.name for tensor in self.model.graph.initializer}

    def kept(self, labels: Array) -> Mask:
        """Return which positions of a label vector stay."""
        return np.isin(self.state.classes.roots(labels), self.removed, invert=True)

    def kept_of(self, name: str) -> tuple[int, Mask] | None:
        """Return the axis of a tensor that loses positions and which stay, or None if none does."""
        found = self.state.channel_vector(name)
        if found is None:
            return None
        axis, labels = found
        mask = self.kept(labels)
        return None if mask.all() else (axis, mask)

    def shape(self, name: str) -> Shape:
        """Return the shape that a tensor has after the removal, at batch 1."""
        shape = list(self.state.shapes[name])
        change = self.kept_of(name)
        if change is not None:
            shape[change[0]] = int(change[1].sum())
        return tuple(shape)

    def slice_parameters(self) -> None:
        """Take the kept positions along every sliced axis of every parameter."""
        values = initializers(self.model)
        masks: dict[str, dict[int, Mask]] = {}
        for item in self.state.slices:
            mask = self.kept(item.labels)
            if not mask.all():
                masks.setdefault(item.parameter, {})[item.axis] = mask
        for name, axes in masks.items():
            value = values[name]
            for axis, mask in axes.items():
                value = np.compress(mask, value, axis)
            set_initializer(self.model, name, value)

    def set_constant(self, node: NodeProto, index: int, stem: str, value: Array) -> None:
        """Give a node a constant of its own as input `index`."""
        while len(node.input) <= index:
            node.input.append("")
        name = unique_name(f"{node.name}.{stem}", self.names)
        set_initializer(self.model, name, value)
        node.input[index] = name


def _mend_conv(removal: _Removal, node: NodeProto) -> None:
    groups = int(attribute(node, "group", 1))
    weight = removal.state.constants[node.input[1]]
    transposed = node.op_type == "ConvTranspose"
    per_group = weight.shape[0] // groups if transposed else weight.shape[1]
    if groups > 1 and per_group == 1:
        set_attribute(node, "group", removal.shape(node.input[0])[1])


def _mend_reshape(removal: _Removal, node: NodeProto) -> None:
    _mend_shape_constant(removal, node, stem="shape")


def _mend_shape_constant(removal: _Removal, node: NodeProto, *, stem: str) -> None:
    change = removal.kept_of(node.output[0])
    if change is None:
        return
    axis, mask = change
    target = np.array(removal.state.constants[node.input[1]], dtype=np.int64).reshape(-1)
    position = axis - (len(removal.state.shapes[node.output[0]]) - len(target))
    source = removal.shape(node.input[0])
    count = int(mask.sum())
    copies_input = target[position] == 0 and not attribute(node, "allowzero", 0)
    follows = target[position] == -1 or (
        copies_input and position < len(source) and source[position] == count
    )
    if not follows:
        target[position] = count
        removal.set_constant(node, 1, stem, target)


def _mend_expand(removal: _Removal, node: NodeProto) -> None:
    change = removal.kept_of(node.output[0])
    if change is None:
        return
    target = np.array(removal.state.constants[node.input[1]], dtype=np.int64).reshape(-1)
    position = change[0] - (len(removal.state.shapes[node.output[0]]) - len(target))
    if position >= 0 and target[position] != 1:
        target[position] = int(change[1].sum())
        removal.set_constant(node, 1, "shape", target)


def _mend_slice(removal: _Removal, node: NodeProto) -> None:
    source = removal.state.channel_vector(node.input[0])
    if source is None:
        return
    axis, labels = source
    ranges = slice_ranges(removal.state, node)
    mask = removal.kept(labels)
    if axis not in ranges or mask.all():
        return
    chosen = np.arange(len(labels))[ranges[axis]]
    indices = _renumbered(mask, chosen)
    others = {a: span for a, span in ranges.items() if a != axis}
    span = _as_range(indices)
    if span is not None:
        _write_slice(removal, node, {axis: span, **others})
    elif not others:
        _become_gather(removal, node, axis, indices)
    else:
        _become_gather_and_slice(removal, node, axis, indices, others)


def _renumbered(mask: Mask, chosen: Array) -> Array:
    """Return the kept ones among the chosen positions, numbered as after the removal."""
    new_index = np.cumsum(mask) - 1
    return np.asarray(new_index[chosen[mask[chosen]]], dtype=np.int64)


def _as_range(indices: Array) -> slice | None:
    """Return indices as a range with constant step, or None."""
    if len(indices) == 1:
        return slice(int(indices[0]), int(indices[0]) + 1, 1)
    steps = np.unique(np.diff(indices))
    if len(steps) != 1:
        return None
    step = int(steps[0])
    end = int(indices[-1]) + (1 if step > 0 else -1)
    return slice(int(indices[0]), end if end >= 0 else None, step)


def _write_slice(removal: _Removal, node: NodeProto, ranges: Mapping[int, slice]) -> None:
    lowest = np.iinfo(np.int64).min
    starts = [span.start for span in ranges.values()]
    ends = [lowest if span.stop is None else span.stop for span in ranges.values()]
    if removal.state.opset < 10:
        set_attribute(node, "starts", starts)
        set_attribute(node, "ends", ends)
        set_attribute(node, "axes", list(ranges))
        return
    columns = {
        "starts": starts,
        "ends": ends,
        "axes": list(ranges),
        "steps": [span.step for span in ranges.values()],
    }
    for index, (stem, values) in enumerate(columns.items(), start=1):
        removal.set_constant(node, index, stem, np.asarray(values, dtype=np.int64))


def _become_gather(removal: _Removal, node: NodeProto, axis: int, indices: Array) -> None:
    del node.input[1:]
    del node.attribute[:]
    node.op_type = "Gather"
    set_attribute(node, "axis", axis)
    removal.set_constant(node, 1, "indices", indices)


def _become_gather_and_slice(
    removal: _Removal,
    node: NodeProto,
    axis: int,
    indices: Array,
    others: Mapping[int, slice],
) -> None:
    """Let the node pick the channels and a new one behind it slice the other axes."""
    behind = NodeProto(op_type="Slice", name=f"{node.name}.positions")
    behind.input.append(f"{node.name}.channels")
    behind.output.append(node.output[0])
    node.output[0] = behind.input[0]
    _become_gather(removal, node, axis, indices)
    _write_slice(removal, behind, others)
    nodes = removal.model.graph.node
    position = next(i for i, candidate in enumerate(nodes) if candidate.name == node.name)
    nodes.insert(position + 1, behind)


def _mend_gather(removal: _Removal, node: NodeProto) -> None:
    change = removal.kept_of(node.input[0])
    if change is None:
        return
    axis, mask = change
    if int(attribute(node, "axis", 0)) % len(removal.state.shapes[node.input[0]]) != axis:
        return
    indices = removal.state.constants[node.input[1]]
    chosen = np.where(indices < 0, indices + len(mask), indices).reshape(-1)
    renumbered = _renumbered(mask, chosen)
    removal.set_constant(node, 1, "indices", renumbered if indices.ndim else renumbered.reshape(()))


def _mend_pad(removal: _Removal, node: NodeProto) -> None:
    found = removal.state.channel_vector(node.output[0])
    if found is None:
        return
    axis, labels = found
    before, after = pad_amounts(removal.state, node)
    if not before[axis] and not after[axis]:
        return
    mask = removal.kept(labels)
    if mask.all() and removal.kept_of(node.input[0]) is None:
        return
    before[axis] = _padding_left(removal, node, axis, before[axis], mask, at_end=False)
    after[axis] = _padding_left(removal, node, axis, after[axis], mask, at_end=True)
    if removal.state.opset < 11:
        set_attribute(node, "pads", [*before, *after])
        return
    removal.set_constant(node, 1, "pads", np.asarray([*before, *after], dtype=np.int64))
    if input_name(node, 3):
        node.input[3] = ""


def _padding_left(
    removal: _Removal, node: NodeProto, axis: int, amount: int, mask: Mask, *, at_end: bool
) -> int:
    """Return the padding that remains on one side; a negative one removes input positions."""
    if amount >= 0:
        part = mask[len(mask) - amount :] if at_end else mask[:amount]
        return int(part.sum())
    source = removal.kept_of(node.input[0])
    if source is None or source[0] != axis:
        return amount
    part = source[1][amount:] if at_end else source[1][:-amount]
    return -int(part.sum())


def _mend_split(removal: _Removal, node: NodeProto) -> None:
    change = removal.kept_of(node.input[0])
    rank = len(removal.state.shapes[node.input[0]])
    axis = int(attribute(node, "axis", 0)) % rank
    if change is None or change[0] != axis:
        return
    sizes = [removal.shape(name)[axis] for name in node.output]
    for item in [item for item in node.attribute if item.name in {"num_outputs", "split"}]:
        node.attribute.remove(item)
    if removal.state.opset < 13:
        set_attribute(node, "split", sizes)
    else:
        removal.set_constant(node, 1, "split", np.asarray(sizes, dtype=np.int64))


def _mend_resize(removal: _Removal, node: NodeProto) -> None:
    change = removal.kept_of(node.output[0])
    if change is None or not input_name(node, 3):
        return
    sizes = np.array(removal.state.constants[node.input[3]], dtype=np.int64)
    sizes[change[0]] = int(change[1].sum())
    removal.set_constant(node, 3, "sizes", sizes)


def _mend_recurrent(removal: _Removal, node: NodeProto) -> None:
    weight = next(t for t in removal.model.graph.initializer if t.name == node.input[2])
    set_attribute(node, "hidden_size", int(weight.dims[2]))


_MENDS: Mapping[str, Callable[[_Removal, NodeProto], None]] = {
    "Conv": _mend_conv,
    "ConvTranspose": _mend_conv,
    "Reshape": _mend_reshape,
    "Expand": _mend_expand,
    "Slice": _mend_slice,
    "Gather": _mend_gather,
    "Pad": _mend_pad,
    "Split": _mend_split,
    "Resize": _mend_resize,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _mend_recurrent),
}
