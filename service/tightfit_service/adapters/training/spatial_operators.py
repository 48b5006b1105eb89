"""Rules of convolution, pooling and resizing, with ONNX's padding in all its forms."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def max_pool(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Max pooling; padding never wins."""
    x = tensor(args, 0)
    if node.output_count > 1:
        raise node.unsupported("its indices are used")
    kernel, stride, dilation, before, after, extra = _window(node, x)
    after = [a + e for a, e in zip(after, extra, strict=True)]
    if before == after and all(2 * b <= k for b, k in zip(before, kernel, strict=True)):
        return _MAX_POOL[x.ndim - 2](x, kernel, stride, before, dilation)
    padded = _pad(x, before, after, value=-math.inf)
    return _MAX_POOL[x.ndim - 2](padded, kernel, stride, 0, dilation)


def average_pool(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Average pooling; where padding does not count, by dividing through the average of ones."""
    x = tensor(args, 0)
    kernel, stride, dilation, before, after, extra = _window(node, x)
    if any(d != 1 for d in dilation):
        raise node.unsupported("average over a dilated window")
    pool, rank = _AVERAGE_POOL[x.ndim - 2], x.ndim - 2
    counts_padding = bool(node.attribute("count_include_pad", 0))
    small = all(2 * b <= k for b, k in zip(before, kernel, strict=True))
    if before == after and not any(extra) and small:
        return pool(x, kernel, stride, before, ceil_mode=False, count_include_pad=counts_padding)
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


def _coordinates(node: NodeView, mode: str, old: int, new: int, scale: float) -> np.ndarray:
    """Return the position in the input of each output position along one axis."""
    x = np.arange(new, dtype=np.float64)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * (old - 1) / (new - 1) if new > 1 else np.zeros(1)
    if mode == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if new > 1 else np.zeros(1)
    raise node.unsupported(f"coordinate mode '{mode}'")


def _round(node: NodeView, x: np.ndarray) -> np.ndarray:
    mode = node.attribute("nearest_mode", "round_prefer_floor")
    return {
        "round_prefer_floor": lambda: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda: np.floor(x + 0.5),
        "floor": lambda: np.floor(x + 1e-9),
        "ceil": lambda: np.ceil(x - 1e-9),
    }[mode]()


def resize(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Nearest and linear resizing, exact for every coordinate mode but tf_crop_and_resize."""
    x = tensor(args, 0)
    upsample = node.op_type == "Upsample"
    scales = node.attribute("scales") if upsample else None
    given = node.static(args, 1 if upsample else 2)
    if given is not None and given.size:
        scales = [float(s) for s in given]
    sizes = None if upsample else node.integers(args, 3)
    axes = node.attribute("axes", list(range(x.ndim)))
    kind = node.attribute("mode", "nearest")
    mode = node.attribute(
        "coordinate_transformation_mode", "asymmetric" if upsample else "half_pixel"
    )
    if node.attribute("antialias", 0) or node.attribute("keep_aspect_ratio_policy", "stretch") != (
        "stretch"
    ):
        raise node.unsupported("antialiasing or a kept aspect ratio")
    plan: dict[int, tuple[int, float]] = {}
    for i, axis in enumerate(axes):
        old = int(x.shape[axis])
        new = int(sizes[i]) if sizes else math.floor(old * scales[i] + 1e-6) if scales else old
        if new != old:
            plan[axis] = (new, new / old if sizes or scales is None else float(scales[i]))
    if not plan:
        return x
    if min(plan) >= 2 and x.ndim == 4:
        fast = _interpolate(node, x, plan, kind, mode)
        if fast is not None:
            return fast
    for axis, (new, scale) in plan.items():
        old = int(x.shape[axis])
        where = _coordinates(node, mode, old, new, scale)
        if kind == "nearest":
            index = np.clip(_round(node, where), 0, old - 1).astype(np.int64)
            x = x.index_select(axis, torch.from_numpy(index).to(x.device))
        elif kind == "linear":
            where = np.clip(where, 0, old - 1)
            low = np.floor(where).astype(np.int64)
            high = np.minimum(low + 1, old - 1)
            shape = [1] * x.ndim
            shape[axis] = new
            share = torch.from_numpy((where - low).astype(np.float32)).to(x).reshape(shape)
            left = x.index_select(axis, torch.from_numpy(low).to(x.device))
            right = x.index_select(axis, torch.from_numpy(high).to(x.device))
            x = left + (right - left) * share
        else:
            raise node.unsupported(f"mode '{kind}'")
    return x


def _interpolate(
    node: NodeView, x: torch.Tensor, plan: dict[int, tuple[int, float]], kind: str, mode: str
) -> torch.Tensor | None:
    """Use torch's own resizing where it computes the same: exporters know it by name."""
    size = [plan.get(axis, (int(x.shape[axis]), 1.0))[0] for axis in (2, 3)]
    whole = all(float(scale).is_integer() for _, scale in plan.values())
    floors = node.op_type == "Upsample" or node.attribute("nearest_mode") == "floor"
    if kind == "nearest" and whole and mode == "asymmetric" and floors:
        return functional.interpolate(x, size=size, mode="nearest")
    exact = all(abs(x.shape[a] * s - n) < 1e-6 for a, (n, s) in plan.items())
    if kind == "linear" and exact and mode in {"half_pixel", "pytorch_half_pixel"}:
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    if kind == "linear" and mode == "align_corners" and len(plan) == 2:
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)
    return None


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
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
    "Resize": resize,
    "SpaceToDepth": space_to_depth,
    "Upsample": resize,
}
