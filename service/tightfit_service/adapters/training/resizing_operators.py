"""Rules of resizing and of sampling at given places."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from tightfit_service.adapters.training.node_view import (
    Arguments,
    NodeView,
    Rule,
    RunState,
    tensor,
)

Coordinates = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """How one axis is resized; `region` is the part of it that is looked at, in shares."""

    old: int
    new: int
    scale: float
    region: tuple[float, float] = (0.0, 1.0)


def resize(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Nearest, linear and cubic resizing, in every coordinate mode."""
    x = tensor(args, 0)
    is_old = node.op_type == "Upsample"
    kind = node.attribute("mode", "nearest")
    mode = node.attribute(
        "coordinate_transformation_mode", "asymmetric" if is_old else "half_pixel"
    )
    plan = _plan(node, args, x, is_crop=mode == "tf_crop_and_resize")
    if not plan:
        return x
    if kind == "cubic" or node.attribute("antialias", 0):
        if mode == "tf_crop_and_resize":
            raise node.unsupported(f"mode '{kind}' of a region")
        return _by_matrices(node, x, plan)
    if min(plan) >= 2 and x.ndim == 4:
        fast = _interpolate(node, x, plan, kind, mode)
        if fast is not None:
            return fast
    for axis, item in plan.items():
        x = _resized_axis(node, x, axis, item, kind, mode)
    return x


def _plan(node: NodeView, args: Arguments, x: torch.Tensor, *, is_crop: bool) -> dict[int, _Axis]:
    """Return what is done to each axis that changes."""
    is_old = node.op_type == "Upsample"
    scales = node.attribute("scales") if is_old else None
    given = node.static(args, 1 if is_old else 2)
    if given is not None and given.size:
        scales = [float(s) for s in given]
    sizes = None if is_old else node.integers(args, 3)
    axes = [int(a) % x.ndim for a in node.attribute("axes", list(range(x.ndim)))]
    region = node.static(args, 1) if is_crop else None
    lengths = [int(x.shape[axis]) for axis in axes]
    policy = node.attribute("keep_aspect_ratio_policy", "stretch")
    if sizes and policy != "stretch":
        choose = min if policy == "not_larger" else max
        common = choose(n / old for n, old in zip(sizes, lengths, strict=True))
        scales, sizes = [common] * len(axes), [math.floor(common * n + 0.5) for n in lengths]
    plan = {}
    for i, (axis, old) in enumerate(zip(axes, lengths, strict=True)):
        new = int(sizes[i]) if sizes else math.floor(old * scales[i] + 1e-6) if scales else old
        scale = float(scales[i]) if scales else new / old
        part = (0.0, 1.0)
        if region is not None and region.size:
            part = (float(region[i]), float(region[i + len(axes)]))
        if new != old or part != (0.0, 1.0):
            plan[axis] = _Axis(old=old, new=new, scale=scale, region=part)
    return plan


def _coordinates(node: NodeView, mode: str, axis: _Axis) -> Coordinates:
    """Return the position in the input of each output position along one axis."""
    x, old, new = np.arange(axis.new, dtype=np.float64), axis.old, axis.new
    centred = (x + 0.5) / axis.scale - 0.5
    start, end = axis.region
    single = 0.5 * (start + end) * (old - 1)
    offset = old / 2 * (1 - new / (old * axis.scale))
    table = {
        "align_corners": x * (old - 1) / max(new - 1, 1),
        "asymmetric": x / axis.scale,
        "half_pixel": centred,
        "half_pixel_symmetric": offset + centred,
        "pytorch_half_pixel": centred if new > 1 else np.zeros(1),
        "tf_crop_and_resize": start * (old - 1) + x * (end - start) * (old - 1) / (new - 1)
        if new > 1
        else np.full(1, single),
    }
    if mode not in table:
        raise node.unsupported(f"coordinate mode '{mode}'")
    return table[mode]


def _round(node: NodeView, x: Coordinates) -> Coordinates:
    mode = node.attribute("nearest_mode", "round_prefer_floor")
    rounded: Coordinates = {
        "round_prefer_floor": lambda: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda: np.floor(x + 0.5),
        "floor": lambda: np.floor(x + 1e-9),
        "ceil": lambda: np.ceil(x - 1e-9),
    }[mode]()
    return rounded


def _resized_axis(
    node: NodeView, x: torch.Tensor, axis: int, item: _Axis, kind: str, mode: str
) -> torch.Tensor:
    """Resize along one axis; what a region has outside of the input is a constant."""
    where = _coordinates(node, mode, item)
    shape = [1] * x.ndim
    shape[axis] = item.new
    inside = (where >= 0) & (where <= item.old - 1)
    if kind == "nearest":
        index = np.clip(_round(node, where), 0, item.old - 1).astype(np.int64)
        x = x.index_select(axis, torch.from_numpy(index).to(x.device))
    elif kind == "linear":
        where = np.clip(where, 0, item.old - 1)
        low = np.floor(where).astype(np.int64)
        high = np.minimum(low + 1, item.old - 1)
        share = torch.from_numpy((where - low).astype(np.float32)).to(x).reshape(shape)
        left = x.index_select(axis, torch.from_numpy(low).to(x.device))
        right = x.index_select(axis, torch.from_numpy(high).to(x.device))
        x = left + (right - left) * share
    else:
        raise node.unsupported(f"mode '{kind}'")
    if mode == "tf_crop_and_resize" and not inside.all():
        mask = torch.from_numpy(inside).to(x.device).reshape(shape)
        x = torch.where(mask, x, x.new_tensor(float(node.attribute("extrapolation_value", 0.0))))
    return x


def _by_matrices(node: NodeView, x: torch.Tensor, plan: dict[int, _Axis]) -> torch.Tensor:
    """Resize by a matrix per axis: cubic kernels and antialiasing are linear and separable."""
    names = ("mode", "coordinate_transformation_mode", "antialias", "cubic_coeff_a", "exclude_outside")  # fmt: skip
    attributes = tuple((n, node.attributes[n]) for n in names if n in node.attributes)
    for axis, item in plan.items():
        matrix = torch.from_numpy(_matrix(node.opset, attributes, item)).to(x)
        x = torch.matmul(x.movedim(axis, -1), matrix).movedim(-1, axis)
    return x


@functools.lru_cache(maxsize=64)
def _matrix(
    opset: int, attributes: tuple[tuple[str, Any], ...], axis: _Axis
) -> npt.NDArray[np.float32]:
    """Return what onnxruntime makes of the rows of an identity, shape (old, new)."""
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], **dict(attributes))
    scales = np.asarray([1, 1, 1, axis.scale], dtype=np.float32)
    graph = helper.make_graph(
        [node],
        "axis",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, axis.old, axis.old])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(scales, "scales")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rows = np.eye(axis.old, dtype=np.float32)[None, None]
    matrix: npt.NDArray[np.float32] = session.run(None, {"x": rows})[0][0, 0]
    return matrix


def _interpolate(
    node: NodeView, x: torch.Tensor, plan: dict[int, _Axis], kind: str, mode: str
) -> torch.Tensor | None:
    """Use torch's own resizing where it computes the same: exporters know it by name."""
    size = [plan[axis].new if axis in plan else int(x.shape[axis]) for axis in (2, 3)]
    whole = all(item.scale.is_integer() for item in plan.values())
    floors = node.op_type == "Upsample" or node.attribute("nearest_mode") == "floor"
    if kind == "nearest" and whole and mode == "asymmetric" and floors:
        return functional.interpolate(x, size=size, mode="nearest")
    exact = all(abs(item.old * item.scale - item.new) < 1e-6 for item in plan.values())
    if kind == "linear" and exact and mode in {"half_pixel", "pytorch_half_pixel"}:
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    if kind == "linear" and mode == "align_corners" and len(plan) == 2:
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)
    return None


def grid_sample(node: NodeView, args: Arguments, _run: RunState) -> torch.Tensor:
    """Read values at places that another input gives."""
    kinds = {"linear": "bilinear", "bilinear": "bilinear", "cubic": "bicubic", "bicubic": "bicubic", "nearest": "nearest"}  # fmt: skip
    x = tensor(args, 0)
    return functional.grid_sample(
        x,
        tensor(args, 1, x),
        mode=kinds[node.attribute("mode", "linear")],
        padding_mode=node.attribute("padding_mode", "zeros"),
        align_corners=bool(node.attribute("align_corners", 0)),
    )


RESIZING_RULES: dict[str, Rule] = {
    "GridSample": grid_sample,
    "Resize": resize,
    "Upsample": resize,
}
