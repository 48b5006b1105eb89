"""Rules of activations and of other functions of single values."""

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


def unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Rule:
    """Return the rule of an operator without parameters."""

    def rule(_node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
        return function(tensor(args, 0))

    return rule


def _with(name: str, default: float, function: Callable[..., torch.Tensor]) -> Rule:
    """Return the rule of an activation with one parameter."""

    def rule(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
        return function(tensor(args, 0), float(node.attribute(name, default)))

    return rule


def _clip(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    x = tensor(args, 0)
    least, most = (_bound(node, args, i, name, x) for i, name in ((1, "min"), (2, "max")))
    if least is None and most is None:
        return x
    if isinstance(least, torch.Tensor) or isinstance(most, torch.Tensor):
        low, high = (
            v if v is None or isinstance(v, torch.Tensor) else x.new_tensor(v)
            for v in (least, most)
        )
        return torch.clamp(x, low, high)
    if least == 0.0 and most == 6.0:
        return functional.relu6(x)
    return torch.clamp(x, least, most)


def _bound(
    node: NodeView, args: Arguments, position: int, name: str, x: torch.Tensor
) -> float | torch.Tensor | None:
    """Return a bound of Clip: a number where it is known, else the tensor."""
    given = optional_tensor(args, position, x)
    if given is None:
        value = node.attribute(name)
        return None if value is None else float(value)
    if position in node.constants:
        return float(node.constants[position].reshape(-1)[0])
    return given


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


def _selu(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    x = tensor(args, 0)
    alpha, gamma = node.attribute("alpha"), node.attribute("gamma")
    if alpha is None and gamma is None:
        return functional.selu(x)
    alpha = 1.67326319217681884765625 if alpha is None else alpha
    gamma = 1.05070102214813232421875 if gamma is None else gamma
    return float(gamma) * functional.elu(x, float(alpha))


def _celu(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return functional.celu(x, alpha)


def _swish(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return x * torch.sigmoid(alpha * x)


def _above(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def _shrink(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    x = tensor(args, 0)
    bias, edge = float(node.attribute("bias", 0.0)), float(node.attribute("lambd", 0.5))
    low = torch.where(x < -edge, x + bias, torch.zeros_like(x))
    return torch.where(x > edge, x - bias, low)


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


ACTIVATION_RULES: dict[str, Rule] = {
    "Abs": unary(torch.abs),
    "Acos": unary(torch.acos),
    "Acosh": unary(torch.acosh),
    "Asin": unary(torch.asin),
    "Asinh": unary(torch.asinh),
    "Atan": unary(torch.atan),
    "Atanh": unary(torch.atanh),
    "Ceil": unary(torch.ceil),
    "Celu": _with("alpha", 1.0, _celu),
    "Clip": _clip,
    "Cos": unary(torch.cos),
    "Cosh": unary(torch.cosh),
    "Elu": _with("alpha", 1.0, functional.elu),
    "Erf": unary(torch.erf),
    "Exp": unary(torch.exp),
    "Floor": unary(torch.floor),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": unary(functional.hardswish),
    "IsInf": unary(torch.isinf),
    "IsNaN": unary(torch.isnan),
    "LeakyRelu": _with("alpha", 0.01, functional.leaky_relu),
    "Log": unary(torch.log),
    "LogSoftmax": _softmax(functional.log_softmax),
    "Mish": unary(functional.mish),
    "Neg": unary(torch.neg),
    "Not": unary(torch.logical_not),
    "PRelu": _prelu,
    "Reciprocal": unary(torch.reciprocal),
    "Relu": unary(functional.relu),
    "Round": unary(torch.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": unary(torch.sigmoid),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Sinh": unary(torch.sinh),
    "Softmax": _softmax(functional.softmax),
    "Softplus": unary(functional.softplus),
    "Softsign": unary(functional.softsign),
    "Sqrt": unary(torch.sqrt),
    "Swish": _with("alpha", 1.0, _swish),
    "Tan": unary(torch.tan),
    "Tanh": unary(torch.tanh),
    "ThresholdedRelu": _with("alpha", 1.0, _above),
}
