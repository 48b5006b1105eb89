"""The table of operator rules, with those of arithmetic, activations, reductions and normalisation."""

from __future__ import annotations

from collections.abc import Callable

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
from tightfit_service.adapters.training.shape_operators import SHAPE_RULES
from tightfit_service.adapters.training.spatial_operators import SPATIAL_RULES


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Rule:
    def rule(_node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
        return function(tensor(args, 0))

    return rule


def _pairwise(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Rule:
    """Rule of an operator with two or more inputs, taken from left to right."""

    def rule(_node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
        like = next(a for a in args if isinstance(a, torch.Tensor))
        result = tensor(args, 0, like)
        for position in range(1, len(args)):
            result = function(result, tensor(args, position, like))
        return result

    return rule


def _mean(_node: NodeView, args: Arguments, run: RunState) -> torch.Tensor:
    total = _pairwise(torch.add)(_node, args, run)
    assert isinstance(total, torch.Tensor)
    return total / len(args)


def _reduction(function: Callable[..., torch.Tensor]) -> Rule:
    def rule(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
        x, axes = tensor(args, 0), node.axes(args, 1)
        if not axes:
            if node.attribute("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, dim=axes, keepdim=bool(node.attribute("keepdims", 1)))

    return rule


def _clip(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    low, high = node.static(args, 1), node.static(args, 2)
    least = float(low.reshape(-1)[0]) if low is not None else node.attribute("min")
    most = float(high.reshape(-1)[0]) if high is not None else node.attribute("max")
    x = tensor(args, 0)
    if least is None and most is None:
        return x
    if least == 0.0 and most == 6.0:
        return functional.relu6(x)
    return torch.clamp(x, least, most)


def _hard_sigmoid(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    x = tensor(args, 0)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _prelu(_node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    x = tensor(args, 0)
    slope = tensor(args, 1, x)
    return torch.clamp(x, min=0) + slope * torch.clamp(x, max=0)


def _gelu(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    return functional.gelu(tensor(args, 0), approximate=node.attribute("approximate", "none"))


def _softmax(function: Callable[..., torch.Tensor]) -> Rule:
    def rule(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
        x = tensor(args, 0)
        if node.opset >= 13:
            return function(x, dim=int(node.attribute("axis", -1)))
        # before opset 13 all axes from `axis` on were one
        axis = int(node.attribute("axis", 1)) % x.ndim
        if axis == x.ndim - 1:
            return function(x, dim=axis)
        return function(x.flatten(axis), dim=axis).reshape(x.shape)

    return rule


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


def _batch_norm(node: NodeView, args: Arguments, run: RunState) -> torch.Tensor:
    x = tensor(args, 0)
    return functional.batch_norm(
        x,
        tensor(args, 3),
        tensor(args, 4),
        tensor(args, 1),
        tensor(args, 2),
        training=run.training,
        momentum=run.momentum,
        eps=float(node.attribute("epsilon", 1e-5)),
    )


def _instance_norm(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    return functional.instance_norm(
        tensor(args, 0),
        weight=tensor(args, 1),
        bias=tensor(args, 2),
        eps=float(node.attribute("epsilon", 1e-5)),
    )


def _layer_norm(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    x, scale = tensor(args, 0), tensor(args, 1)
    bias = optional_tensor(args, 2, x)
    if node.output_count > 1:
        raise node.unsupported("its statistics are used")
    axis = int(node.attribute("axis", -1)) % x.ndim
    shape = [int(n) for n in x.shape[axis:]]
    normal = functional.layer_norm(x, shape, eps=float(node.attribute("epsilon", 1e-5)))
    return normal * scale if bias is None else normal * scale + bias


def _group_norm(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    x, groups = tensor(args, 0), int(node.attribute("num_groups"))
    scale, bias = tensor(args, 1, x), tensor(args, 2, x)
    if node.opset < 21:  # one scale per group until then
        each = int(x.shape[1]) // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, groups, scale, bias, float(node.attribute("epsilon", 1e-5)))


def _lrn(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    size = int(node.attribute("size"))
    if size % 2 == 0:
        raise node.unsupported("an even window")
    return functional.local_response_norm(
        tensor(args, 0),
        size,
        float(node.attribute("alpha", 1e-4)),
        float(node.attribute("beta", 0.75)),
        float(node.attribute("bias", 1.0)),
    )


def _where(_node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    like = next((a for a in args[1:] if isinstance(a, torch.Tensor)), None)
    return torch.where(tensor(args, 0, like).bool(), tensor(args, 1, like), tensor(args, 2, like))


def _activation(name: str, default: float, function: Callable[..., torch.Tensor]) -> Rule:
    """Rule of an activation with one parameter."""

    def rule(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
        return function(tensor(args, 0), float(node.attribute(name, default)))

    return rule


RULES: dict[str, Rule] = {
    **SPATIAL_RULES,
    **SHAPE_RULES,
    "Abs": _unary(torch.abs),
    "Add": _pairwise(torch.add),
    "BatchNormalization": _batch_norm,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "Div": _pairwise(torch.div),
    "Elu": _activation("alpha", 1.0, functional.elu),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _activation("alpha", 0.01, functional.leaky_relu),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(functional.log_softmax),
    "MatMul": _matmul,
    "Max": _pairwise(torch.maximum),
    "Mean": _mean,
    "Min": _pairwise(torch.minimum),
    "Mish": _unary(functional.mish),
    "Mul": _pairwise(torch.mul),
    "Neg": _unary(torch.neg),
    "PRelu": _prelu,
    "Pow": _pairwise(torch.pow),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": _reduction(torch.linalg.vector_norm),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "Relu": _unary(functional.relu),
    "Selu": _unary(functional.selu),
    "Sigmoid": _unary(torch.sigmoid),
    "Sin": _unary(torch.sin),
    "Softmax": _softmax(functional.softmax),
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _pairwise(torch.sub),
    "Sum": _pairwise(torch.add),
    "Tanh": _unary(torch.tanh),
    "Where": _where,
}
"""ONNX operator type to rule; what is missing cannot be trained."""

TRAINED_INPUTS: dict[str, tuple[int, ...]] = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
}
"""Inputs that are weights when they are float initializers; other constants are left as they came.

A single number in Add is part of a formula (`x + 3` in a hard swish), not a bias, and stays too.
"""
