"""Programs exported at batch 1, made free in their batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram

_ATEN = torch.ops.aten
_VIEWS = frozenset({_ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default})  # noqa: SLF001 - an operator's name
_SPREADS = frozenset({_ATEN.expand.default, _ATEN.repeat.default})
_ZEROS: Mapping[Any, int] = {_ATEN.zeros.default: 0, _ATEN.new_zeros.default: 1}
"""Operators that make zeros, and where among their arguments the sizes stand."""
_RECURRENT = frozenset(
    {_ATEN.gru.input, _ATEN.lstm.input, _ATEN.rnn_tanh.input, _ATEN.rnn_relu.input}
)
_SAMPLES = 2
"""Samples that are followed through the graph: the fewest that tell the batch from axes of size 1."""


def with_free_batch(exported: ExportedProgram) -> ExportedProgram:
    """Return a program that was exported at batch 1 as one with a free batch.

    Such a program spells the sizes of its views out in numbers. They are rewritten by following two
    samples through the graph on the meta device, which computes shapes only. torch.export then
    traces the result and sees to it that the batch is free; whether the rewritten sizes are those
    that the network's author meant, only a comparison of outputs can tell.

    Raises:
        Exception: What torch raises where a shape contradicts a second sample.
    """
    module = exported.module(check_guards=False)
    if not isinstance(module, fx.GraphModule):
        raise TypeError(type(module))
    inputs = _follow(module)
    module.recompile()
    return torch.export.export(
        module, tuple(inputs), dynamic_shapes=tuple({0: Dim("batch")} for _ in inputs)
    )


def _follow(module: fx.GraphModule) -> list[torch.Tensor]:
    """Rewrite sizes in the graph of a module, in place; return inputs of two samples for it."""
    values: dict[fx.Node, Any] = {}
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    inputs: list[torch.Tensor] = []
    for node in placeholders:
        shape = (_SAMPLES, *node.meta["val"].shape[1:])
        inputs.append(torch.zeros(shape, dtype=node.meta["val"].dtype))
        values[node] = inputs[-1].to("meta")
    batch: fx.Node | None = None
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            values[node] = _attribute(module, str(node.target)).to("meta")
        elif node.op == "call_function":
            if node.target in _VIEWS:
                _free_view(node, values)
            elif _is_for_one_sample(node, values):
                if batch is None:
                    with module.graph.inserting_after(placeholders[-1]):
                        batch = module.graph.call_function(_ATEN.sym_size.int, (placeholders[0], 0))
                    values[batch] = _SAMPLES
                _spread(node, batch)
            values[node] = _run(node, values)
    return inputs


def _run(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda item: values[item])
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("meta")}
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _attribute(module: fx.GraphModule, path: str) -> torch.Tensor:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    if not isinstance(found, torch.Tensor):
        raise TypeError(path)
    return found


def _free_view(node: fx.Node, values: Mapping[fx.Node, Any]) -> None:
    """Let the size along which the batch lies follow from the others."""
    source = node.args[0]
    if not isinstance(source, fx.Node):
        raise TypeError(source)
    was, now = _shape(source), tuple(values[source].shape)
    changed = [axis for axis, size in enumerate(was) if size != now[axis]]
    if not changed:
        return
    if len(changed) > 1:
        raise ValueError("the batch lies along several axes")
    target: list[Any] = list(_shape(node))
    target[batch_axis(was, changed[0], target)] = -1
    node.update_arg(1, target)


def batch_axis(source: Sequence[int], axis: int, target: Sequence[int]) -> int:
    """Return the axis of a view's result along which the batch lies.

    A view keeps the order of elements, and with it the number of elements outside of the batch (in
    row-major order). That number leads to an axis of size 1, into an axis, or to the border of two.

    Args:
        source: Sizes before the view at batch 1.
        axis: The axis of `source` along which the batch lies, alone or merged with another.
        target: Sizes after the view at batch 1.
    """
    before, inside = math.prod(source[:axis]), source[axis]
    # Within its axis the batch is the outermost part, as in B*T, or the innermost, as in T*B.
    found = [_located(before * part, source[axis:], target) for part in {1: None, inside: None}]
    return max(found, key=lambda item: item[0])[1]


def _located(outside: int, inner: Sequence[int], target: Sequence[int]) -> tuple[int, int]:
    """Return how well a number of elements outside of the batch fits, and the axis it leads to."""
    reached = [math.prod(target[:index]) for index in range(len(target) + 1)]
    for index, size in enumerate(target):
        if reached[index] == outside and size == 1:
            return 2, index
    for index in range(len(target)):
        if reached[index] < outside < reached[index + 1]:
            return 0, index
    index = reached.index(outside)
    is_last = index >= len(target) - 1
    # Features stay whole: a batch at the border joins what is before it, unless heads are split off.
    joins_before = index > 0 and (is_last or tuple(inner[1:]) == tuple(target[index:]))
    return 1, index - 1 if joins_before else index


def _is_for_one_sample(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    """Whether a node repeats a constant for the one sample (a class token), or makes its first state."""
    if node.target in _ZEROS:
        shape = _shape(node)
        return len(shape) == 3 and shape[1] == 1 and _is_state(node)
    if node.target not in _SPREADS or not isinstance(node.args[0], fx.Node):
        return False
    has_batch = tuple(values[node.args[0]].shape) != _shape(node.args[0])
    return not has_batch and _shape(node)[:1] == (1,)


def _is_state(node: fx.Node) -> bool:
    return all(user.target in _RECURRENT for user in node.users)


def _spread(node: fx.Node, batch: fx.Node) -> None:
    where, axis = (_ZEROS[node.target], 1) if node.target in _ZEROS else (1, 0)
    sizes = node.args[where]
    if not isinstance(sizes, list | tuple):
        raise TypeError(sizes)
    freed = [*sizes]
    freed[axis] = batch
    node.update_arg(where, freed)


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of what a node computes at batch 1."""
    return tuple(int(size) for size in node.meta["val"].shape)
