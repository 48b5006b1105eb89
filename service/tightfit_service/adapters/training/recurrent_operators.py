"""Rules of RNN, GRU and LSTM, with the order of gates and the options that ONNX gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

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

Activation = Callable[[torch.Tensor], torch.Tensor]
Tensors = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, Tensors], Tensors]
"""One time step: what the input contributes to the gates, and the states before; the states after."""

_ONNX_LSTM_TO_TORCH = (0, 2, 3, 1)
"""ONNX orders gates input, output, forget, cell; torch input, forget, cell, output."""
_ONNX_GRU_TO_TORCH = (1, 0, 2)
"""ONNX orders gates update, reset, hidden; torch reset, update, hidden."""

_DEFAULT_ACTIVATIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}  # fmt: skip
_STATE_COUNTS = {"RNN": 1, "GRU": 1, "LSTM": 2}


@dataclass(frozen=True, kw_only=True)
class _Direction:
    """Weights of one direction: W (gates*H, I), R (gates*H, H), biases (gates*H,), peepholes (3*H,)."""

    weight: torch.Tensor
    recurrence: torch.Tensor
    bias: torch.Tensor | None
    recurrent_bias: torch.Tensor | None
    peephole: torch.Tensor | None
    activations: Sequence[Activation]
    is_reverse: bool


def recurrent(node: NodeView, args: Arguments, _run: RunState) -> Tensors:
    """Run RNN, GRU or LSTM; returns Y (T, directions, N, H), Y_h and for LSTM Y_c (directions, N, H).

    With the usual activations and without lengths, peepholes or clipping torch's own layers
    compute; they are much faster in training. Everything else, and what a converter has to take
    apart, goes step by step.
    """
    x = tensor(args, 0)
    is_batch_first = bool(node.attribute("layout", 0))
    if is_batch_first:
        x = x.transpose(0, 1)
    is_mixed = torch.is_autocast_enabled(x.device.type)
    # the context itself would be a node of its own in an exported program
    with torch.autocast(x.device.type, enabled=False) if is_mixed else nullcontext():
        x = x.to(tensor(args, 1).dtype)
        states = _initial_states(node, args, x, is_batch_first=is_batch_first)
        lengths = _lengths(node, args, x)
        outputs, last = [], []
        for number, direction in enumerate(_directions(node, args)):
            start = tuple(state[number] for state in states)
            is_plain = lengths is None and _is_plain(node, direction)
            if is_plain and not torch.compiler.is_exporting():
                output, end = _by_torch(node.op_type, x, start, direction)
            else:
                output, end = _by_steps(node, x, start, direction, lengths)
            outputs.append(output)
            last.append(end)
        y = torch.stack(outputs, dim=1)
        ends = [torch.stack([end[i] for end in last]) for i in range(len(states))]
    if is_batch_first:
        return y.permute(2, 0, 1, 3), *(end.transpose(0, 1) for end in ends)
    return y, *ends


def _initial_states(
    node: NodeView, args: Arguments, x: torch.Tensor, *, is_batch_first: bool
) -> Tensors:
    recurrence = tensor(args, 2)
    shape = (recurrence.shape[0], x.shape[1], recurrence.shape[2])
    states = []
    for position in range(5, 5 + _STATE_COUNTS[node.op_type]):
        given = optional_tensor(args, position, x)
        if given is None:
            states.append(x.new_zeros(shape))
        else:
            turned = given.transpose(0, 1) if is_batch_first else given
            # a constant state for one sample serves them all
            states.append(turned.to(x.dtype).expand(shape))
    return tuple(states)


def _lengths(node: NodeView, args: Arguments, x: torch.Tensor) -> torch.Tensor | None:
    """Return the valid steps of each sample, or None where all are."""
    given = optional_tensor(args, 4)
    if given is None:
        return None
    known = node.constants.get(4)
    if known is not None and (np.asarray(known) == int(x.shape[0])).all():
        return None
    return given.to(x.device).long().expand(x.shape[1])


def _directions(node: NodeView, args: Arguments) -> list[_Direction]:
    weight, recurrence = tensor(args, 1), tensor(args, 2)
    bias = optional_tensor(args, 3)
    peephole = optional_tensor(args, 7) if node.op_type == "LSTM" else None
    kind = node.attribute("direction", "forward")
    count = int(weight.shape[0])
    each = len(_DEFAULT_ACTIVATIONS[node.op_type])
    names = list(node.attribute("activations", _DEFAULT_ACTIVATIONS[node.op_type] * count))
    functions = _activations(node, names)
    half = int(weight.shape[1])
    return [
        _Direction(
            weight=weight[i],
            recurrence=recurrence[i],
            bias=None if bias is None else bias[i, :half],
            recurrent_bias=None if bias is None else bias[i, half:],
            peephole=None if peephole is None else peephole[i],
            activations=functions[i * each : (i + 1) * each],
            is_reverse=kind == "reverse" or i == 1,
        )
        for i in range(count)
    ]


_FIXED: dict[str, Activation] = {
    "Relu": functional.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Tanh": torch.tanh,
}
_DEFAULT_ALPHA = {"LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "HardSigmoid": 0.2, "Elu": 1.0, "Affine": 1.0, "ScaledTanh": 1.0}  # fmt: skip
_DEFAULT_BETA = {"HardSigmoid": 0.5, "ScaledTanh": 1.0}


def _activations(node: NodeView, names: Sequence[str]) -> list[Activation]:
    """Return the functions; `activation_alpha` and `activation_beta` are used up in order."""
    alphas = list(node.attribute("activation_alpha", []))
    betas = list(node.attribute("activation_beta", []))
    found = []
    for name in names:
        if name in _FIXED:
            found.append(_FIXED[name])
            continue
        if name not in _DEFAULT_ALPHA:
            raise node.unsupported(f"activation '{name}'")
        alpha = float(alphas.pop(0)) if alphas else _DEFAULT_ALPHA[name]
        takes_beta = name in {"HardSigmoid", "ScaledTanh", "Affine"}
        beta = float(betas.pop(0)) if betas and takes_beta else _DEFAULT_BETA.get(name, 0.0)
        found.append(_with_parameters(name, alpha, beta))
    return found


def _with_parameters(name: str, alpha: float, beta: float) -> Activation:
    table: dict[str, Activation] = {
        "Affine": lambda x: alpha * x + beta,
        "Elu": lambda x: functional.elu(x, alpha),
        "HardSigmoid": lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0),
        "LeakyRelu": lambda x: functional.leaky_relu(x, alpha),
        "ScaledTanh": lambda x: alpha * torch.tanh(beta * x),
        "ThresholdedRelu": lambda x: torch.where(x > alpha, x, torch.zeros_like(x)),
    }
    return table[name]


def _is_plain(node: NodeView, direction: _Direction) -> bool:
    """Return whether torch's own layer computes this."""
    usual = [_FIXED[name] for name in _DEFAULT_ACTIVATIONS[node.op_type]]
    is_usual = list(direction.activations) == usual
    if node.op_type == "RNN":
        is_usual = direction.activations[0] in {torch.tanh, functional.relu}
    if node.op_type == "GRU" and not node.attribute("linear_before_reset", 0):
        return False
    return (
        is_usual
        and direction.peephole is None
        and not node.attribute("clip", 0.0)
        and not node.attribute("input_forget", 0)
    )


def _by_torch(
    kind: str, x: torch.Tensor, states: Tensors, d: _Direction
) -> tuple[torch.Tensor, Tensors]:
    order = {"LSTM": _ONNX_LSTM_TO_TORCH, "GRU": _ONNX_GRU_TO_TORCH, "RNN": (0,)}[kind]

    def arranged(value: torch.Tensor) -> torch.Tensor:
        if len(order) == 1:
            return value
        parts = value.chunk(len(order))
        return torch.cat([parts[i] for i in order])

    biases = [b for b in (d.bias, d.recurrent_bias) if b is not None]
    weights = [arranged(value) for value in (d.weight, d.recurrence, *biases)]
    start = [state.unsqueeze(0) for state in states]
    options: tuple[Any, ...] = (bool(biases), 1, 0.0, False, False, False)
    source = x.flip(0) if d.is_reverse else x
    run: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}[kind]
    if kind == "RNN" and d.activations[0] is functional.relu:
        run = torch.rnn_relu
    output, *ends = run(source, start if kind == "LSTM" else start[0], weights, *options)
    if d.is_reverse:
        output = output.flip(0)
    return output, tuple(end[0] for end in ends)


def _by_steps(
    node: NodeView,
    x: torch.Tensor,
    states: Tensors,
    d: _Direction,
    lengths: torch.Tensor | None,
) -> tuple[torch.Tensor, Tensors]:
    step = _STEPS[node.op_type](node, d)
    contributions = functional.linear(x, d.weight, d.bias)
    count = int(x.shape[0])
    outputs: list[torch.Tensor] = [x] * count
    for time in reversed(range(count)) if d.is_reverse else range(count):
        following = step(contributions[time], states)
        shown = following[0]
        if lengths is not None:
            is_valid = (time < lengths).unsqueeze(1)
            following = tuple(
                torch.where(is_valid, new, old) for new, old in zip(following, states, strict=True)
            )
            shown = torch.where(is_valid, shown, torch.zeros_like(shown))
        states = following
        outputs[time] = shown
    return torch.stack(outputs), states


def _clipping(node: NodeView) -> Activation:
    """Return what limits the inputs of activations."""
    limit = float(node.attribute("clip", 0.0))
    return (lambda x: torch.clamp(x, -limit, limit)) if limit > 0 else (lambda x: x)


def _rnn_step(node: NodeView, d: _Direction) -> Step:
    (f,), clip = d.activations, _clipping(node)

    def step(given: torch.Tensor, states: Tensors) -> Tensors:
        again = functional.linear(states[0], d.recurrence, d.recurrent_bias)
        return (f(clip(given + again)),)

    return step


def _gru_step(node: NodeView, d: _Direction) -> Step:
    f, g = d.activations
    clip = _clipping(node)
    hidden = int(d.recurrence.shape[1])
    is_linear_first = bool(node.attribute("linear_before_reset", 0))
    gates, last = d.recurrence[: 2 * hidden], d.recurrence[2 * hidden :]
    bias = d.recurrent_bias
    gate_bias, last_bias = (
        (None, None) if bias is None else (bias[: 2 * hidden], bias[2 * hidden :])
    )

    def step(given: torch.Tensor, states: Tensors) -> Tensors:
        (before,) = states
        both = clip(given[:, : 2 * hidden] + functional.linear(before, gates, gate_bias))
        update, reset = f(both).chunk(2, dim=1)
        if is_linear_first:
            again = reset * functional.linear(before, last, last_bias)
        else:
            again = functional.linear(reset * before, last, last_bias)
        proposed = g(clip(given[:, 2 * hidden :] + again))
        return ((1 - update) * proposed + update * before,)

    return step


def _lstm_step(node: NodeView, d: _Direction) -> Step:
    f, g, h = d.activations
    clip = _clipping(node)
    is_coupled = bool(node.attribute("input_forget", 0))
    holes = None if d.peephole is None else d.peephole.chunk(3)

    def step(given: torch.Tensor, states: Tensors) -> Tensors:
        before, cell = states
        total = given + functional.linear(before, d.recurrence, d.recurrent_bias)
        enter, show, forget, proposed = total.chunk(4, dim=1)
        if holes is not None:
            enter, forget = enter + holes[0] * cell, forget + holes[2] * cell
        opened = f(clip(enter))
        kept = 1 - opened if is_coupled else f(clip(forget))
        cell = kept * cell + opened * g(clip(proposed))
        if holes is not None:
            show = show + holes[1] * cell
        return f(clip(show)) * h(cell), cell

    return step


_STEPS = {"RNN": _rnn_step, "GRU": _gru_step, "LSTM": _lstm_step}

RECURRENT_RULES: dict[str, Rule] = {"GRU": recurrent, "LSTM": recurrent, "RNN": recurrent}
