"""Rules of normalisation: over batches, channels, groups and single samples."""

from __future__ import annotations

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


def _epsilon(node: NodeView) -> float:
    return float(node.attribute("epsilon", 1e-5))


def batch_norm(node: NodeView, args: Arguments, run: RunState) -> torch.Tensor:
    """Normalise by running statistics, in training by the batch's, which update them."""
    return functional.batch_norm(
        tensor(args, 0),
        tensor(args, 3),
        tensor(args, 4),
        tensor(args, 1),
        tensor(args, 2),
        training=run.training,
        momentum=run.momentum,
        eps=_epsilon(node),
    )


def instance_norm(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Normalise each channel of each sample."""
    x, weight, bias = tensor(args, 0), tensor(args, 1), tensor(args, 2)
    return functional.instance_norm(x, weight=weight, bias=bias, eps=_epsilon(node))


def layer_norm(
    node: NodeView, args: Arguments, _run: RunState
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Normalise each sample over the last axes; mean and inverse deviation are shown if asked for."""
    x, scale = tensor(args, 0), tensor(args, 1)
    bias = optional_tensor(args, 2, x)
    axis = int(node.attribute("axis", -1)) % x.ndim
    shape = [int(n) for n in x.shape[axis:]]
    normal = functional.layer_norm(x, shape, eps=_epsilon(node))
    result = normal * scale if bias is None else normal * scale + bias
    if node.output_count == 1:
        return result
    axes = list(range(axis, x.ndim))
    variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    return result, mean, torch.rsqrt(variance + _epsilon(node))


def rms_norm(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Divide by the root mean square over the last axes."""
    x = tensor(args, 0)
    axes = list(range(int(node.attribute("axis", -1)) % x.ndim, x.ndim))
    power = x.square().mean(dim=axes, keepdim=True)
    return x * torch.rsqrt(power + _epsilon(node)) * tensor(args, 1, x)


def group_norm(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Normalise groups of channels of each sample."""
    x, groups = tensor(args, 0), int(node.attribute("num_groups"))
    scale, bias = tensor(args, 1, x), tensor(args, 2, x)
    if node.opset < 21:  # one scale per group until then
        each = int(x.shape[1]) // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, groups, scale, bias, _epsilon(node))


def mean_variance_norm(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Bring mean and variance over some axes to 0 and 1; the constant is the operator's own."""
    x, axes = tensor(args, 0), list(node.attribute("axes", [0, 2, 3]))
    variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    return (x - mean) / (torch.sqrt(variance) + 1e-9)


def lp_norm(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Divide by the norm along an axis; what is zero stays zero."""
    x, axis = tensor(args, 0), int(node.attribute("axis", -1))
    length = torch.linalg.vector_norm(x, ord=int(node.attribute("p", 2)), dim=axis, keepdim=True)
    return torch.where(length == 0, torch.zeros_like(x), x / length.clamp(min=1e-30))


def local_response_norm(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Divide by the power of neighbouring channels; an even window reaches further up."""
    x, size = tensor(args, 0), int(node.attribute("size"))
    alpha, beta = float(node.attribute("alpha", 1e-4)), float(node.attribute("beta", 0.75))
    bias = float(node.attribute("bias", 1.0))
    # as sums of shifted squares: torch's own form pools over three axes, which no converter knows
    edges = [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size // 2]
    squares, channels = functional.pad(x.square(), edges), int(x.shape[1])
    power = torch.stack([squares.narrow(1, k, channels) for k in range(size)]).sum(dim=0)
    return x / (bias + alpha / size * power).pow(beta)


NORMALIZATION_RULES: dict[str, Rule] = {
    "BatchNormalization": batch_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": local_response_norm,
    "LayerNormalization": layer_norm,
    "LpNormalization": lp_norm,
    "MeanVarianceNormalization": mean_variance_norm,
    "RMSNormalization": rms_norm,
}
