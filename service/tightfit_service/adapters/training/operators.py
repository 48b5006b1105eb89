"""The table of operator rules, with those of arithmetic, comparison, products and reductions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from tightfit_service.adapters.training.activation_operators import ACTIVATION_RULES
from tightfit_service.adapters.training.indexing_operators import INDEXING_RULES
from tightfit_service.adapters.training.node_view import (
    Arguments,
    NodeView,
    Rule,
    RunState,
    optional_tensor,
    tensor,
)
from tightfit_service.adapters.training.normalization_operators import NORMALIZATION_RULES
from tightfit_service.adapters.training.recurrent_operators import RECURRENT_RULES
from tightfit_service.adapters.training.resizing_operators import RESIZING_RULES
from tightfit_service.adapters.training.shape_operators import SHAPE_RULES
from tightfit_service.adapters.training.spatial_operators import SPATIAL_RULES


def _pairwise(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Rule:
    """Return the rule of an operator with two or more inputs, taken from left to right."""

    def rule(_node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
        like = next((a for a in args if isinstance(a, torch.Tensor)), None)
        result = tensor(args, 0, like)
        for position in range(1, len(args)):
            result = function(result, tensor(args, position, like))
        return result

    return rule


def _mean(_node: NodeView, args: Arguments, run: RunState) -> torch.Tensor:
    total = _pairwise(torch.add)(_node, args, run)
    assert isinstance(total, torch.Tensor)
    return total / len(args)


def _divided(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Divide; whole numbers are cut off towards zero."""
    if a.dtype.is_floating_point or b.dtype.is_floating_point:
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def _power(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Raise to a power; the result has the type of the base."""
    return torch.pow(a, b).to(a.dtype)


def _modulo(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    a = tensor(args, 0)
    b = tensor(args, 1, a)
    return torch.fmod(a, b) if node.attribute("fmod", 0) else torch.remainder(a, b)


def _reduction(function: Callable[..., torch.Tensor]) -> Rule:
    def rule(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
        x, axes = tensor(args, 0), node.axes(args, 1)
        if not axes:
            if node.attribute("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, dim=axes, keepdim=bool(node.attribute("keepdims", 1)))

    return rule


def _absolute_sum(x: torch.Tensor, *, dim: list[int], keepdim: bool) -> torch.Tensor:
    return x.abs().sum(dim=dim, keepdim=keepdim)


def _square_sum(x: torch.Tensor, *, dim: list[int], keepdim: bool) -> torch.Tensor:
    return x.square().sum(dim=dim, keepdim=keepdim)


def _log_sum(x: torch.Tensor, *, dim: list[int], keepdim: bool) -> torch.Tensor:
    return x.sum(dim=dim, keepdim=keepdim).log()


def _product(x: torch.Tensor, *, dim: list[int], keepdim: bool) -> torch.Tensor:
    for axis in sorted((a % x.ndim for a in dim), reverse=True):
        x = x.prod(dim=axis, keepdim=keepdim)
    return x


def _gemm(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    a, b = tensor(args, 0), tensor(args, 1)
    alpha, beta = float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))
    c = optional_tensor(args, 2, a)
    a = a.t() if node.attribute("transA", 0) else a
    if alpha == 1.0 and (c is None or (c.ndim == 1 and beta == 1.0 and c.shape[0] > 1)):
        return functional.linear(a, b if node.attribute("transB", 0) else b.t(), c)
    product = alpha * (a @ (b.t() if node.attribute("transB", 0) else b))
    return product if c is None else product + beta * c


def _matmul(_node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    a = tensor(args, 0)
    return torch.matmul(a, tensor(args, 1, a))


def _einsum(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    like = next((a for a in args if isinstance(a, torch.Tensor)), None)
    operands = [tensor(args, position, like) for position in range(len(args))]
    return torch.einsum(node.attribute("equation").replace(" ", ""), *operands)


def _where(_node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    like = next((a for a in args[1:] if isinstance(a, torch.Tensor)), None)
    return torch.where(tensor(args, 0, like).bool(), tensor(args, 1, like), tensor(args, 2, like))


RULES: dict[str, Rule] = {
    **ACTIVATION_RULES,
    **INDEXING_RULES,
    **NORMALIZATION_RULES,
    **RECURRENT_RULES,
    **RESIZING_RULES,
    **SHAPE_RULES,
    **SPATIAL_RULES,
    "Add": _pairwise(torch.add),
    "And": _pairwise(torch.logical_and),
    "Div": _pairwise(_divided),
    "Einsum": _einsum,
    "Equal": _pairwise(torch.eq),
    "Gemm": _gemm,
    "Greater": _pairwise(torch.gt),
    "GreaterOrEqual": _pairwise(torch.ge),
    "Less": _pairwise(torch.lt),
    "LessOrEqual": _pairwise(torch.le),
    "MatMul": _matmul,
    "Max": _pairwise(torch.maximum),
    "Mean": _mean,
    "Min": _pairwise(torch.minimum),
    "Mod": _modulo,
    "Mul": _pairwise(torch.mul),
    "Or": _pairwise(torch.logical_or),
    "Pow": _pairwise(_power),
    "ReduceL1": _reduction(_absolute_sum),
    "ReduceL2": _reduction(torch.linalg.vector_norm),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(torch.sum),
    "ReduceSumSquare": _reduction(_square_sum),
    "Sub": _pairwise(torch.sub),
    "Sum": _pairwise(torch.add),
    "Where": _where,
    "Xor": _pairwise(torch.logical_xor),
}
"""ONNX operator type to rule; what is missing runs in onnxruntime, and no gradient passes it."""
