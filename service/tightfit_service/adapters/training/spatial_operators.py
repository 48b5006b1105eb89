"""Rules of convolution and pooling, with ONNX's padding in all its forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _pads(
    node: NodeView, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the padding before and after each spatial axis; `kernel` counts dilation."""
    mode = node.attribute("auto_pad", "NOTSET")
    rank = len(size)
    if mode in {"NOTSET", ""}:
        pads = list(node.attribute("pads", [0] * 2 * rank))
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return [0] * rank, [0] * rank
    before, after = [], []
    for length, extent, step in zip(size, kernel, stride, strict=True):
        total = max(0, (math.ceil(length / step) - 1) * step + extent - length)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return before, after


def _pad(
    x: torch.Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0
) -> torch.Tensor:
    """Pad the spatial axes; torch wants the last axis first."""
    pairs = list(zip(before, after, strict=True))
    flat = [amount for pair in reversed(pairs) for amount in pair]
    return functional.pad(x, flat, value=value)


def _extent(kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]


def conv_window(
    node: NodeView, x: torch.Tensor, kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return stride, dilation, and the padding before and after each spatial axis."""
    rank = len(kernel)
    stride = list(node.attribute("strides", [1] * rank))
    dilation = list(node.attribute("dilations", [1] * rank))
    before, after = _pads(node, x.shape[2:], _extent(kernel, dilation), stride)
    return stride, dilation, before, after


def conv(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Convolution of 1 to 3 spatial axes; uneven padding becomes a pad of its own."""
    x, weight = tensor(args, 0), tensor(args, 1)
    rank = x.ndim - 2
    if rank not in _CONV:
        raise node.unsupported(f"{rank} spatial axes")
    stride, dilation, before, after = conv_window(node, x, weight.shape[2:])
    if before != after:
        x, before = _pad(x, before, after), [0] * rank
    bias = optional_tensor(args, 2, x)
    groups = node.attribute("group", 1)
    return _CONV[rank](x, weight, bias, stride, before, dilation, groups)


def conv_transpose(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Transposed convolution; uneven padding is cut from the full result."""
    x, weight = tensor(args, 0), tensor(args, 1)
    rank = x.ndim - 2
    if rank not in _CONV_TRANSPOSE:
        raise node.unsupported(f"{rank} spatial axes")
    stride = list(node.attribute("strides", [1] * rank))
    dilation = list(node.attribute("dilations", [1] * rank))
    output_padding = list(node.attribute("output_padding", [0] * rank))
    extent = _extent(weight.shape[2:], dilation)
    mode = node.attribute("auto_pad", "NOTSET")
    target = node.attribute("output_shape")
    if target is not None or mode.startswith("SAME"):
        goal = (
            list(target)[-rank:]
            if target is not None
            else [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
        )
        before, after = [], []
        for n, s, e, o, g in zip(x.shape[2:], stride, extent, output_padding, goal, strict=True):
            total = max(0, s * (n - 1) + o + e - g)
            small, large = total // 2, total - total // 2
            before.append(large if mode != "SAME_UPPER" else small)
            after.append(small if mode != "SAME_UPPER" else large)
    else:
        pads = list(node.attribute("pads", [0] * 2 * rank))
        before, after = pads[:rank], pads[rank:]
    bias, groups = optional_tensor(args, 2, x), node.attribute("group", 1)
    apply = _CONV_TRANSPOSE[rank]
    if before == after and all(o < max(s, 1) for o, s in zip(output_padding, stride, strict=True)):
        return apply(x, weight, bias, stride, before, output_padding, groups, dilation)
    full = apply(x, weight, bias, stride, 0, 0, groups, dilation)
    full = functional.pad(full, [n for o in reversed(output_padding) for n in (0, o)])
    for axis, (low, high) in enumerate(zip(before, after, strict=True), start=2):
        full = full.narrow(axis, low, full.shape[axis] - low - high)
    return full


def _window(
    node: NodeView, x: torch.Tensor
) -> tuple[list[int], list[int], list[int], list[int], list[int], list[int]]:
    """Return kernel, stride, dilation, padding before and after, and what ceil mode adds after."""
    rank = x.ndim - 2
    kernel = list(node.attribute("kernel_shape"))
    stride = list(node.attribute("strides", [1] * rank))
    dilation = list(node.attribute("dilations", [1] * rank))
    extent = _extent(kernel, dilation)
    before, after = _pads(node, x.shape[2:], extent, stride)
    extra = [0] * rank
    if node.attribute("ceil_mode", 0):
        for i, length in enumerate(x.shape[2:]):
            room = length + before[i] + after[i] - extent[i]
            count = math.ceil(room / stride[i]) + 1
            if (count - 1) * stride[i] >= length + before[i]:
                count -= 1  # a window must start inside the data or its left padding
            extra[i] = max(0, (count - 1) * stride[i] - room)
    return kernel, stride, dilation, before, after, extra


def max_pool(
    node: NodeView, args: Arguments, _run: RunState
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Max pooling; padding never wins. Places, if asked for, count over all samples."""
    x = tensor(args, 0)
    kernel, stride, dilation, before, after, extra = _window(node, x)
    after = [a + e for a, e in zip(after, extra, strict=True)]
    pool = _MAX_POOL[x.ndim - 2]
    is_even = before == after and all(2 * b <= k for b, k in zip(before, kernel, strict=True))
    if node.output_count > 1:
        if not is_even or node.attribute("storage_order", 0):
            raise node.unsupported("places under uneven padding, or in column order")
        values, places = pool(x, kernel, stride, before, dilation, return_indices=True)
        rows = torch.arange(x.shape[0] * x.shape[1], device=x.device) * math.prod(x.shape[2:])
        return values, places + rows.reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    if is_even:
        return pool(x, kernel, stride, before, dilation)
    return pool(_pad(x, before, after, value=-math.inf), kernel, stride, 0, dilation)


def _average(rank: int, dilation: Sequence[int]) -> Callable[..., torch.Tensor]:
    """Return a pooling over windows without padding; dilated ones are a convolution with ones."""
    if all(d == 1 for d in dilation):
        return _AVERAGE_POOL[rank]

    def pool(x: torch.Tensor, kernel: list[int], stride: list[int]) -> torch.Tensor:
        channels = int(x.shape[1])
        share = x.new_full((channels, 1, *kernel), 1.0 / math.prod(kernel))
        return _CONV[rank](x, share, None, stride, 0, list(dilation), channels)

    return pool


def average_pool(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Average pooling; where padding does not count, by dividing through the average of ones."""
    x = tensor(args, 0)
    kernel, stride, dilation, before, after, extra = _window(node, x)
    pool, rank = _average(x.ndim - 2, dilation), x.ndim - 2
    counts_padding = bool(node.attribute("count_include_pad", 0))
    small = all(2 * b <= k for b, k in zip(before, kernel, strict=True))
    is_plain = before == after and not any(extra) and all(d == 1 for d in dilation)
    if is_plain and small:
        return _AVERAGE_POOL[rank](
            x, kernel, stride, before, ceil_mode=False, count_include_pad=counts_padding
        )
    whole = [a + e for a, e in zip(after, extra, strict=True)]
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if counts_padding:
        ones = _pad(_pad(ones, before, after, value=1.0), [0] * rank, extra)
    else:
        ones = _pad(ones, before, whole)
    return pool(_pad(x, before, whole), kernel, stride) / pool(ones, kernel, stride)


def global_average_pool(_node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Mean over all spatial axes."""
    x = tensor(args, 0)
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


def global_max_pool(_node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Maximum over all spatial axes."""
    x = tensor(args, 0)
    return x.amax(dim=list(range(2, x.ndim)), keepdim=True)


def lp_pool(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Norm of each window, or over all spatial axes."""
    x, power = tensor(args, 0), float(node.attribute("p", 2))
    if node.op_type == "GlobalLpPool":
        axes = list(range(2, x.ndim))
        norm: torch.Tensor = torch.linalg.vector_norm(x, ord=power, dim=axes, keepdim=True)
        return norm
    kernel, stride, dilation, before, after, extra = _window(node, x)
    after = [a + e for a, e in zip(after, extra, strict=True)]
    raised = _pad(x.abs().pow(power), before, after)
    mean: torch.Tensor = _average(x.ndim - 2, dilation)(raised, kernel, stride)
    total: torch.Tensor = mean * math.prod(kernel)
    return total.pow(1.0 / power)


def depth_to_space(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Channels to blocks of pixels, in both orders."""
    x, block = tensor(args, 0), int(node.attribute("blocksize"))
    _, c, h, w = x.shape
    if node.attribute("mode", "DCR") == "DCR":
        y = x.reshape(-1, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(-1, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(-1, c // block**2, h * block, w * block)


def space_to_depth(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Blocks of pixels to channels."""
    x, block = tensor(args, 0), int(node.attribute("blocksize"))
    _, c, h, w = x.shape
    y = x.reshape(-1, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(-1, c * block**2, h // block, w // block)


SPATIAL_RULES: dict[str, Rule] = {
    "AveragePool": average_pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_to_space,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "SpaceToDepth": space_to_depth,
}
