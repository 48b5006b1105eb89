"""Rules of data movement: what changes shape, order or place of values and computes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from onnx import TensorProto
from torch.nn import functional

from tightfit_service.adapters.training.node_view import (
    Arguments,
    NodeView,
    Rule,
    RunState,
    StaticArray,
    Value,
    tensor,
)
from tightfit_service.application.samples import IntArray


def identity(_node: NodeView, args: Arguments, _run: RunState) -> Value:
    """Return the input; Dropout counts as identity, since recovery trains small networks."""
    value = args[0]
    assert value is not None
    return value


_KINDS = {
    TensorProto.FLOAT: torch.float32,
    # everything is trained in float32, whatever the file computes in
    TensorProto.DOUBLE: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT16: torch.int16,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


def cast(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Cast between number types; all floats are float32."""
    kind = node.attribute("to")
    if kind not in _KINDS:
        raise node.unsupported(f"type {kind}")
    return tensor(args, 0).to(_KINDS[kind])


def cast_like(_node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Cast to the type of another tensor."""
    return tensor(args, 0).to(tensor(args, 1).dtype)


def shape(node: NodeView, args: Arguments, _run: RunState) -> StaticArray:
    """Return the shape, or a part of it, as a static value."""
    sizes = [int(n) for n in tensor(args, 0).shape]
    return np.asarray(sizes[node.attribute("start", 0) : node.attribute("end")], dtype=np.int64)


def reshape(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Reshape; 0 copies the input's dimension unless `allowzero` is set."""
    x = tensor(args, 0)
    goal = node.attribute("shape") or node.integers(args, 1)
    assert goal is not None
    if not node.attribute("allowzero", 0):
        goal = [x.shape[i] if n == 0 else n for i, n in enumerate(goal)]
    return x.reshape(goal)


def flatten(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Flatten to a matrix around an axis."""
    x, axis = tensor(args, 0), int(node.attribute("axis", 1))
    axis += x.ndim if axis < 0 else 0
    if axis == 1:
        return x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
    head = 1
    for n in x.shape[:axis]:
        head *= n
    return x.reshape(head, -1)


def transpose(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Permute the axes."""
    x = tensor(args, 0)
    order = node.attribute("perm") or list(range(x.ndim))[::-1]
    return x.permute(list(order))


def squeeze(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Drop axes of length 1."""
    x, axes = tensor(args, 0), node.axes(args, 1)
    return x.squeeze() if axes is None else x.squeeze(axes)


def unsqueeze(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Insert axes of length 1; positions count in the result."""
    x, axes = tensor(args, 0), node.axes(args, 1) or []
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def slice_(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Slice; steps below zero go through a flip."""
    x = tensor(args, 0)
    starts = node.attribute("starts") or node.integers(args, 1)
    ends = node.attribute("ends") or node.integers(args, 2)
    assert starts is not None
    assert ends is not None
    axes = node.axes(args, 3) or list(range(len(starts)))
    steps = node.integers(args, 4) or [1] * len(starts)
    index: list[slice] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            order = torch.arange(int(x.shape[axis]), device=x.device)
            picked = np.arange(int(x.shape[axis]))[slice(start, _end_below(end), step)]
            x = x.index_select(axis % x.ndim, order[torch.from_numpy(picked.copy())])
        else:
            index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _end_below(end: int) -> int | None:
    """ONNX says "past the beginning" by a very low number, Python by None."""
    return None if end < -(2**30) else end


def pad(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Pad; negative amounts crop."""
    x = tensor(args, 0)
    amounts = node.attribute("pads") or node.integers(args, 1)
    assert amounts is not None
    axes = node.integers(args, 3) or list(range(x.ndim))
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(axes):
        before[axis], after[axis] = int(amounts[i]), int(amounts[i + len(axes)])
    flat = [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair]
    mode = node.attribute("mode", "constant")
    if mode == "constant":
        fill = node.static(args, 2)
        value = float(fill.reshape(-1)[0]) if fill is not None else node.attribute("value", 0.0)
        while len(flat) > 2 and flat[-1] == 0 and flat[-2] == 0:
            flat = flat[:-2]
        return functional.pad(x, flat, value=float(value))
    kinds = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    is_growing = all(n >= 0 for n in flat)
    if mode in kinds and is_growing and 3 <= x.ndim <= 5 and not any((*before[:2], *after[:2])):
        return functional.pad(x, flat[: 2 * (x.ndim - 2)], mode=kinds[mode])
    for axis in range(x.ndim):
        if before[axis] or after[axis]:
            index = _padded_index(node, int(x.shape[axis]), before[axis], after[axis], mode)
            x = x.index_select(axis, torch.from_numpy(index).to(x.device))
    return x


def _padded_index(node: NodeView, length: int, before: int, after: int, mode: str) -> IntArray:
    """Return which entry of an axis stands at each place after padding."""
    start, stop = max(0, -before), length + min(0, after)
    inner = np.arange(start, stop)
    kinds = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in kinds:
        raise node.unsupported(f"padding mode '{mode}'")
    # only names that numpy knows get here
    index: IntArray = np.pad(inner, (max(0, before), max(0, after)), mode=kinds[mode])  # type: ignore[call-overload]
    return index


def concat(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Concatenate along an axis."""
    like = next(a for a in args if isinstance(a, torch.Tensor))
    parts = [tensor(args, i, like) for i in range(len(args))]
    return torch.cat(parts, dim=int(node.attribute("axis")))


def split(node: NodeView, args: Arguments, _run: RunState) -> tuple[torch.Tensor, ...]:
    """Split along an axis into given or equal parts."""
    x, axis = tensor(args, 0), int(node.attribute("axis", 0))
    sizes = node.attribute("split") or node.integers(args, 1)
    if sizes is None:
        count = int(node.attribute("num_outputs", node.output_count))
        length = int(x.shape[axis])
        each = -(-length // count)
        sizes = [min(each, length - i * each) for i in range(count)]
    return tuple(torch.split(x, [int(n) for n in sizes], dim=axis))


def gather(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Take entries along an axis."""
    x = tensor(args, 0)
    axis = int(node.attribute("axis", 0)) % x.ndim
    if isinstance(args[1], np.ndarray):
        where = np.where(args[1] < 0, args[1] + int(x.shape[axis]), args[1])
        if where.ndim == 0:
            return x.select(axis, int(where))
        flat = torch.from_numpy(where.reshape(-1).astype(np.int64)).to(x.device)
        picked = x.index_select(axis, flat)
        return picked if where.ndim == 1 else _unflatten(picked, axis, where.shape)
    index = tensor(args, 1).long()
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _unflatten(x: torch.Tensor, axis: int, shape: Sequence[int]) -> torch.Tensor:
    return x.reshape(*x.shape[:axis], *shape, *x.shape[axis + 1 :])


def expand(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Broadcast to a shape, in both directions."""
    x, goal = tensor(args, 0), node.integers(args, 1)
    assert goal is not None
    return x.expand(np.broadcast_shapes(tuple(int(n) for n in x.shape), tuple(goal)))


def tile(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Repeat along each axis."""
    repeats = node.integers(args, 1)
    assert repeats is not None
    return tensor(args, 0).repeat(repeats)


SHAPE_RULES: dict[str, Rule] = {
    "Cast": cast,
    "CastLike": cast_like,
    "Concat": concat,
    "Dropout": identity,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Identity": identity,
    "Pad": pad,
    "Reshape": reshape,
    "Shape": shape,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
