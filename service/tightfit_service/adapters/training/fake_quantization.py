"""Rounding within training: each forward pass computes what the exported file will compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tightfit_service.adapters.training.module import GraphModule
from tightfit_service.adapters.training.node_view import NodeView, Value
from tightfit_service.adapters.training.quantization_plan import QuantizationPlan, RoundedWeight
from tightfit_service.graph.quantized_tensors import FIXED_SCALES
from tightfit_service.graph.rounding import (
    activation_levels,
    activation_scale,
    centred,
    weight_levels,
    weight_scales,
)

_REFRESH_STEPS = 16
"""Passes between two searches for the scales of 4-bit weights: a search costs more than a pass."""

_SMALLEST = 1e-12

Range = tuple[float, float]


class FakeQuantization(torch.nn.Module):
    """Rounds weights and activations of a `GraphModule` on their way; a hook for `run_to`.

    Gradients pass through rounding as if it were not there (straight-through estimator; Bengio et
    al., 2013). The grid of a weight is that of the file's, where the BatchNorm behind it is folded
    in with its running statistics; the BatchNorm itself goes on to use those of the batch
    (Krishnamoorthi, 2018, after Jacob et al., CVPR 2018), which keeps training as stable as it is
    without rounding. With one scale per channel the two do not even interact. Where channels share
    one (`holds_statistics`), statistics must not change: a channel that is rounded to zero has no
    variance, folding would then multiply it by some hundreds, and its scale is that of all others.
    Ends of activation ranges are trained as logarithms, so that their steps are relative (TQT; Jain
    et al., MLSys 2020).

    Attributes:
        ends: Logarithms of the magnitudes of (low, high) per group of tensors, shape (groups, 2).
    """

    _is_free: torch.Tensor
    """Whether an end of a range is not zero, shape (groups, 2)."""

    def __init__(
        self, plan: QuantizationPlan, module: GraphModule, ranges: Mapping[str, Range]
    ) -> None:
        """Start from ranges found by calibration, per tensor of the plan, in the module's units."""
        super().__init__()
        self._plan, self._value_of = plan, module.value_of
        groups = _united(plan, ranges)
        self._numbers = {group: number for number, group in enumerate(groups)}
        self._fixed = {number for group, number in self._numbers.items() if _fixed_of(plan, group)}
        magnitudes = torch.tensor(
            [[max(-low, 0.0), max(high, 0.0)] for low, high in groups.values()]
        ).reshape(-1, 2)
        self.register_buffer("_is_free", magnitudes > _SMALLEST)
        self.ends = torch.nn.Parameter(magnitudes.clamp(min=_SMALLEST).log())
        self._found: dict[str, torch.Tensor] = {}
        self._passes = 0
        self._done: dict[str, torch.Tensor] = {}

    @property
    def holds_statistics(self) -> bool:
        """Whether BatchNorms have to keep their running statistics, and use them in training too."""
        return any(
            weight.norm is not None and not weight.is_per_channel
            for weight in self._plan.weights.values()
        )

    def begin(self) -> None:
        """Forget the tensors of the last forward pass; call it before each one."""
        self._done.clear()
        if self._passes % _REFRESH_STEPS == 0:
            self._found.clear()
        self._passes += int(torch.is_grad_enabled())

    def refresh(self) -> None:
        """Search the scales of all weights anew in the next pass, after they were changed."""
        self._found.clear()

    def before_node(self, node: NodeView, args: list[Value | None]) -> None:
        """Replace inputs of a node by rounded ones."""
        for position, name in enumerate(self._plan.reads.get(node.name, ())):
            value = args[position] if position < len(args) else None
            if isinstance(value, torch.Tensor) and name in self._plan.activations:
                args[position] = self.activation(name, value)
        weight = args[1] if node.name in self._plan.weights else None
        if isinstance(weight, torch.Tensor):
            args[1] = self.weight(node.name, weight)

    def activation(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return a tensor as its integers stand for it; unchanged where it has none."""
        plan = self._plan.activations.get(name)
        if plan is None or plan.group not in self._numbers:
            return value
        if name not in self._done:
            number = self._numbers[plan.group]
            ends = self.ends[number]
            if number in self._fixed:
                ends = ends.detach()
            free = self._is_free[number]
            magnitudes = ends.exp() * free
            low, high = -magnitudes[0], magnitudes[1]
            if plan.is_centred:
                # as `rounding.centred` does, so that gradients reach the end that decides
                least, most = activation_levels(plan.bits)
                reach = torch.maximum(low * most / least, high)
                low, high = reach * least / most, reach
            self._done[name] = _RoundActivation.apply(  # type: ignore[no-untyped-call]  # torch's
                value.float(), low, high, plan.bits
            )
        return self._done[name]

    def weight(self, node: str, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight that, once the BatchNorm behind it is folded in, lies on its grid."""
        steps = self._steps(node, weight.detach())
        levels = weight_levels(self._plan.weights[node].bits)
        rounded = (weight.detach() / steps).round().clamp(-levels, levels) * steps
        return weight + (rounded - weight).detach()

    def ranges(self, input_scale: float) -> dict[str, Range]:
        """Return least and greatest value per tensor, in the units of the graph's own inputs.

        Inputs, and what only moves their values, were divided by `input_scale` for the module.
        """
        magnitudes = (self.ends.exp() * self._is_free).detach().cpu().double().numpy()
        scaled = {
            self._plan.activations[name].group
            for name in self._plan.inputs
            if name in self._plan.activations
        }
        found = {}
        for name, plan in self._plan.activations.items():
            if plan.group in self._numbers:
                below, above = magnitudes[self._numbers[plan.group]]
                unit = input_scale if plan.group in scaled else 1.0
                low, high = -float(below) * unit, float(above) * unit
                found[name] = centred(low, high) if plan.is_centred else (low, high)
        return found

    @torch.no_grad()
    def settle(self) -> None:
        """Replace the module's weights by what they are rounded to."""
        self.refresh()
        for node in self._plan.weights:
            weight = self._value_of(self._plan.reads[node][1])
            if weight is not None:
                weight.copy_(self.weight(node, weight))

    def _steps(self, node: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the distance of neighbours on a weight's grid, ready to broadcast.

        The scales are those of the folded weight, divided by what folding multiplies by.
        """
        plan = self._plan.weights[node]
        axis = plan.channel_axis % weight.ndim if plan.is_per_channel else None
        factor = self._factor(plan, weight)
        folded = weight * factor
        if plan.bits == 8:
            others = [d for d in range(folded.ndim) if d != axis]
            peaks = folded.abs().amax(dim=others, keepdim=True)
            scales = torch.where(peaks < _SMALLEST, peaks.max(), peaks).clamp(min=_SMALLEST) / 127
            return scales / factor
        if node not in self._found:
            found = weight_scales(folded.cpu().numpy(), axis=axis, bits=plan.bits)
            scales = torch.from_numpy(np.asarray(found)).to(folded.device)
            scales = scales if axis is None else _along(scales, axis, folded)
            self._found[node] = scales / factor
        return self._found[node]

    def _factor(self, plan: RoundedWeight, weight: torch.Tensor) -> torch.Tensor:
        """Return by how much a folded BatchNorm scales each output channel, ready to broadcast."""
        if plan.norm is None:
            return torch.ones((), device=weight.device)
        scale, variance = (self._value_of(name) for name in (plan.norm.scale, plan.norm.variance))
        assert scale is not None
        assert variance is not None
        factor = (scale.detach() / torch.sqrt(variance + plan.norm.epsilon)).abs()
        # what is multiplied by zero afterwards may be anything
        factor = torch.where(factor < _SMALLEST, torch.ones_like(factor), factor)
        return _along(factor, plan.channel_axis, weight)


class _RoundActivation(torch.autograd.Function):
    """Rounds to the integers that `graph.rounding.activation_scale` gives a range."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int
    ) -> torch.Tensor:
        scale = activation_scale(float(low), float(high), bits=bits)
        least, most = activation_levels(bits)
        result = torch.fake_quantize_per_tensor_affine(
            value, scale.scale, scale.zero_point, least, most
        )
        ctx.save_for_backward(value, result)
        ctx.span = tuple((end - scale.zero_point) * scale.scale for end in (least, most))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return gradients: of the value inside the range; of its ends by clipping and rounding.

        Inside, the rounding error grows with the step, which the ends share; outside, the result is
        the end itself.
        """
        (gradient,) = gradients
        value, result = ctx.saved_tensors
        low, high = ctx.span
        above, below = value > high, value < low
        inside = gradient * ~(above | below)
        by_step = (inside * (result - value)).sum() / max(high - low, _SMALLEST)
        return inside, (gradient * below).sum() - by_step, (gradient * above).sum() + by_step, None


def _united(plan: QuantizationPlan, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return the range of every group: fixed, or the union of its members'."""
    groups: dict[str, Range] = {}
    for name, activation in plan.activations.items():
        fixed = _fixed_of(plan, activation.group)
        if fixed:
            scale = FIXED_SCALES[fixed][activation.bits]
            least, most = activation_levels(activation.bits)
            groups[activation.group] = (
                (least - scale.zero_point) * scale.scale,
                (most - scale.zero_point) * scale.scale,
            )
        elif name in ranges:
            low, high = groups.get(activation.group, (0.0, 0.0))
            groups[activation.group] = (min(low, ranges[name][0]), max(high, ranges[name][1]))
    return groups


def _fixed_of(plan: QuantizationPlan, group: str) -> str:
    return next((a.fixed for a in plan.activations.values() if a.group == group), "")


def _along(values: torch.Tensor, axis: int, weight: torch.Tensor) -> torch.Tensor:
    """Return per-channel values ready to broadcast against a weight."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return values.reshape(shape)
