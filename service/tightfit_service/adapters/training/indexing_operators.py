"""Rules that pick, place, count or order values by position."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from tightfit_service.adapters.training.node_view import (
    Arguments,
    NodeView,
    Rule,
    RunState,
    optional_tensor,
    tensor,
)

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _positions(index: torch.Tensor, length: int) -> torch.Tensor:
    """Return positions from the start, of those that may count from the end."""
    index = index.long()
    return torch.where(index < 0, index + length, index)


def gather_elements(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Take single entries along an axis."""
    x = tensor(args, 0)
    axis = int(node.attribute("axis", 0)) % x.ndim
    return torch.gather(x, axis, _positions(tensor(args, 1, x), int(x.shape[axis])))


def gather_nd(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Take slices by tuples of positions, after `batch_dims` common axes."""
    x, index = tensor(args, 0), tensor(args, 1).long()
    common = int(node.attribute("batch_dims", 0))
    columns = []
    for axis in range(common):  # the common axes are walked along
        shape = [1] * (index.ndim - 1)
        shape[axis] = -1
        columns.append(torch.arange(int(x.shape[axis]), device=x.device).reshape(shape))
    columns.extend(
        _positions(index[..., i].to(x.device), int(x.shape[common + i]))
        for i in range(int(index.shape[-1]))
    )
    return x[tuple(columns)]


def scatter_elements(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Place single entries along an axis."""
    x = tensor(args, 0)
    axis = int(node.attribute("axis", 0)) % x.ndim
    index = _positions(tensor(args, 1, x), int(x.shape[axis]))
    updates = tensor(args, 2, x)
    reduction = node.attribute("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


def scatter_nd(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Place slices by tuples of positions."""
    x, index = tensor(args, 0), tensor(args, 1).long()
    updates, depth = tensor(args, 2, x), int(index.shape[-1])
    columns = tuple(_positions(index[..., i].to(x.device), int(x.shape[i])) for i in range(depth))
    reduction = node.attribute("reduction", "none")
    if reduction not in {"none", "add"}:
        raise node.unsupported(f"reduction '{reduction}'")
    return x.index_put(columns, updates, accumulate=reduction == "add")


def arg_extreme(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Return where along an axis the greatest or least value is; of equal ones the first or last."""
    x, axis = tensor(args, 0), int(node.attribute("axis", 0))
    find = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    keeps = bool(node.attribute("keepdims", 1))
    if not node.attribute("select_last_index", 0):
        return find(x, dim=axis, keepdim=keeps)
    return int(x.shape[axis]) - 1 - find(x.flip(axis), dim=axis, keepdim=keeps)


def top_k(node: NodeView, args: Arguments, _run: RunState) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the greatest or least values along an axis, and where they are."""
    count = node.attribute("k") or (node.integers(args, 1) or [1])[0]
    values, places = torch.topk(
        tensor(args, 0),
        int(count),
        dim=int(node.attribute("axis", -1)),
        largest=bool(node.attribute("largest", 1)),
        sorted=True,
    )
    return values, places


def cumulative_sum(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Sum up along an axis, from either end, with or without the present value."""
    x = tensor(args, 0)
    axis = (node.integers(args, 1) or [0])[0] % x.ndim
    turned = x.flip(axis) if node.attribute("reverse", 0) else x
    total = turned.cumsum(axis)
    if node.attribute("exclusive", 0):
        first = torch.zeros_like(turned.narrow(axis, 0, 1))
        total = torch.cat([first, total.narrow(axis, 0, int(x.shape[axis]) - 1)], dim=axis)
    return total.flip(axis) if node.attribute("reverse", 0) else total


def one_hot(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Return rows of one value, another one at the given position."""
    index, values = tensor(args, 0), tensor(args, 2)
    depth = (node.integers(args, 1) or [1])[0]
    axis = int(node.attribute("axis", -1))
    is_hot = functional.one_hot(_positions(index, depth).clamp(0, depth - 1), depth).bool()
    inside = ((index >= -depth) & (index < depth)).unsqueeze(-1)
    is_hot = (is_hot & inside).movedim(-1, axis)
    return torch.where(is_hot, values[1], values[0])


def triangle(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Keep the upper or lower triangle of matrices."""
    shift = (node.integers(args, 1) or [0])[0]
    keep = torch.triu if node.attribute("upper", 1) else torch.tril
    return keep(tensor(args, 0), diagonal=shift)


def reverse_sequence(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Turn the first steps of each sample around, as many as its length."""
    x, lengths = tensor(args, 0), tensor(args, 1)
    batch, time = int(node.attribute("batch_axis", 1)), int(node.attribute("time_axis", 0))
    steps = torch.arange(int(x.shape[time]), device=x.device)
    ends = lengths.to(x.device).long().unsqueeze(1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)  # (batch, time)
    shape = [1] * x.ndim
    shape[batch], shape[time] = int(x.shape[batch]), int(x.shape[time])
    index = index if batch < time else index.transpose(0, 1)
    return torch.gather(x, time, index.reshape(shape).expand(x.shape))


def element_count(_node: NodeView, args: Arguments, _run: RunState) -> np.ndarray:
    """Return the number of elements as a static value."""
    return np.asarray(int(np.prod([int(n) for n in tensor(args, 0).shape])), dtype=np.int64)


def max_unpool(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Place values where `MaxPool` found them, zeros elsewhere; positions count over all samples."""
    x, places = tensor(args, 0), tensor(args, 1).long()
    kernel = list(node.attribute("kernel_shape"))
    rank = len(kernel)
    stride = list(node.attribute("strides", [1] * rank))
    pads = list(node.attribute("pads", [0] * 2 * rank))
    size = [
        (int(n) - 1) * stride[i] + kernel[i] - pads[i] - pads[i + rank]
        for i, n in enumerate(x.shape[2:])
    ]
    if optional_tensor(args, 2) is not None:
        goal = (node.integers(args, 2) or [])[-rank:]
        if goal != size:
            raise node.unsupported("an output of another shape")
    area = int(np.prod(size))
    flat = x.new_zeros((*x.shape[:2], area))
    return flat.scatter(2, (places % area).flatten(2), x.flatten(2)).reshape(*x.shape[:2], *size)


INDEXING_RULES: dict[str, Rule] = {
    "ArgMax": arg_extreme,
    "ArgMin": arg_extreme,
    "CumSum": cumulative_sum,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "MaxUnpool": max_unpool,
    "OneHot": one_hot,
    "ReverseSequence": reverse_sequence,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Size": element_count,
    "TopK": top_k,
    "Trilu": triangle,
}
