"""Images of another size: finding a network's image input, and rebuilding the network for other sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper

from tightfit_service.graph.axis_runs import matching_axes
from tightfit_service.graph.model_file import copy_model, shown
from tightfit_service.graph.rebuilding import FreshNames
from tightfit_service.graph.structure import (
    Array,
    Shape,
    attribute,
    consumers,
    declared_shape,
    graph_inputs,
    graph_outputs,
    initializers,
    replace_nodes,
    set_attribute,
    set_initializer,
    sorted_model_nodes,
    tensor_shapes,
)

_POOLS = {"AveragePool": "GlobalAveragePool", "MaxPool": "GlobalMaxPool"}
_REGULAR = frozenset({"ConvTranspose", "SpaceToDepth", "DepthToSpace", "Resize", "Upsample"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where", "PRelu", "Max", "Min"})


Sizes = dict[int, set[tuple[int, int]]]
"""Per old size of an axis, what it became: (0 for heights and 1 for widths, new size)."""


class FixedSizeError(Exception):
    """The network is tied to the size of its input; the text is the reason told to the user."""


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The input that takes images, its spatial axes and its size in pixels."""

    name: str
    axes: tuple[int, int]
    height: int
    width: int


def image_input(model: ModelProto) -> ImageInput:
    """Return the network's image input; NHWC is known by the Transpose that follows.

    Raises:
        FixedSizeError: It has several inputs, or the one it has is no image.
    """
    names = graph_inputs(model)
    if len(names) != 1:
        raise FixedSizeError(f"the network has {len(names)} inputs")
    value = next(item for item in model.graph.input if item.name == names[0])
    shape = declared_shape(value) or ()
    readers = consumers(model.graph).get(names[0], [])
    to_nchw = [attribute(node, "perm") == [0, 3, 1, 2] for node in readers]
    axes = (1, 2) if to_nchw and all(to_nchw) else (2, 3)
    if len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        raise FixedSizeError(f"input {shown(names[0])} is no image: it has no height and width")
    height, width = (shape[axis] for axis in axes)
    assert isinstance(height, int)
    assert isinstance(width, int)
    return ImageInput(name=names[0], axes=axes, height=height, width=width)


def total_stride(model: ModelProto) -> tuple[int, int]:
    """Return how many input pixels, down and across, one position of the coarsest map stands for.

    Pooling over the whole map is no stride.

    Raises:
        InvalidModelError: The graph has a cycle or contradicting shapes.
    """
    shapes = tensor_shapes(model)
    values = initializers(model)
    strides: dict[str, Array] = {}
    largest = np.ones(2)
    for node in sorted_model_nodes(model):
        reads = [strides[name] for name in node.input if name in strides]
        stride = np.max([np.ones(2), *reads], axis=0) * _steps(node, shapes, values)
        largest = np.maximum(largest, stride)
        for name in node.output:
            strides[name] = stride
    return int(largest[0]), int(largest[1])


def at_input_size(model: ModelProto, height: int, width: int) -> ModelProto:
    """Return the network for images of another size; shapes of its outputs stay.

    Pools over a whole map follow the map (they become global pools), spelt-out sizes of Reshape and
    Resize are rewritten. Nodes keep their names and come in topological order; inferred shapes are
    dropped.

    Raises:
        FixedSizeError: A layer, a constant or an output is tied to the size of the input.
        InvalidModelError: The graph has a cycle or contradicting shapes.
    """
    result = copy_model(model)
    replace_nodes(result.graph, sorted_model_nodes(result))
    found = image_input(result)
    before = tensor_shapes(result)
    value = next(item for item in result.graph.input if item.name == found.name)
    for axis, size in zip(found.axes, (height, width), strict=True):
        value.type.tensor_type.shape.dim[axis].dim_value = size
    del result.graph.value_info[:]
    names = FreshNames(result)
    # Each rewriting makes the shapes behind it known, so there are at most as many rounds as nodes.
    for _ in range(len(result.graph.node) + 1):
        after = tensor_shapes(result)
        if not _rewrite_next(result, names, before, after):
            break
    for name in graph_outputs(result):
        if after.get(name) != before.get(name):
            raise FixedSizeError(
                f"output {shown(name)} has the shape {_said(before.get(name))}, which would be "
                f"{_said(after.get(name))}: it follows the size of the input"
            )
    return result


def shrinking_inside(model: ModelProto, height: int, width: int) -> ModelProto:
    """Return the network for images of the size it has, which it shrinks itself before its first layer.

    The node that shrinks them interpolates linearly between pixel centres; it is named
    `tightfit.shrink`. All else is as `at_input_size`.

    Raises:
        FixedSizeError: As `at_input_size`.
    """
    before = image_input(model)
    result = at_input_size(model, height, width)
    value = next(item for item in result.graph.input if item.name == before.name)
    for axis, size in zip(before.axes, (before.height, before.width), strict=True):
        value.type.tensor_type.shape.dim[axis].dim_value = size
    names = FreshNames(result)
    # A Resize wants NCHW, so it comes behind the Transposes that NHWC inputs begin with.
    is_last = before.axes == (1, 2)
    sources = (
        [node.output[0] for node in result.graph.node if before.name in node.input]
        if is_last
        else [before.name]
    )
    scales = [1.0, 1.0, height / before.height, width / before.width]
    nodes = list(result.graph.node)
    for source in sources:
        shrunk, factors = names.take("tightfit.shrunk"), names.take("tightfit.shrink.scales")
        for node in nodes:
            node.input[:] = [shrunk if name == source else name for name in node.input]
        set_initializer(result, factors, np.array(scales, dtype=np.float32))
        resize = helper.make_node(
            "Resize",
            [source, "", factors],
            [shrunk],
            name=names.take("tightfit.shrink"),
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
        place = next((i + 1 for i, node in enumerate(nodes) if source in node.output), 0)
        nodes.insert(place, resize)
    replace_nodes(result.graph, nodes)
    return result


def _steps(node: NodeProto, shapes: Mapping[str, Shape], values: Mapping[str, Array]) -> Array:
    """Return by how much a node coarsens its input, down and across."""
    kind = node.op_type
    steps = np.ones(2)
    source, target = (shapes.get(name, ()) for name in (node.input[0], node.output[0]))
    if len(source) != 4 or len(target) != 4:
        return steps
    if kind == "Conv" or (kind in _POOLS and not all(_covered(node, source))):
        steps = np.array(attribute(node, "strides") or [1, 1], dtype=float)
    elif kind == "Slice" and len(node.input) > 4 and {node.input[3], node.input[4]} <= set(values):
        for axis, step in zip(values[node.input[3]], values[node.input[4]], strict=True):
            if int(axis) % 4 > 1:
                steps[int(axis) % 4 - 2] = max(1, int(step))
    elif kind in _REGULAR:
        steps = np.array(source[2:], dtype=float) / np.array(target[2:], dtype=float)
    return steps


def _covered(node: NodeProto, source: Shape) -> list[bool]:
    """Return, per spatial axis, whether a pool's window is the whole map there."""
    kernel = attribute(node, "kernel_shape") or []
    plain = not any(attribute(node, "pads") or []) and set(attribute(node, "dilations") or [1]) == {
        1
    }
    sizes = source[2:]
    return [plain and size == window for size, window in zip(sizes, kernel, strict=False)] or [
        False
    ]


def _rewrite_next(
    model: ModelProto, names: FreshNames, before: Mapping[str, Shape], after: Mapping[str, Shape]
) -> bool:
    """Rewrite the first node whose constants are those of the old size; return whether there was one.

    Raises:
        FixedSizeError: It is tied to that size.
    """
    values = initializers(model)
    sizes: Sizes = {}
    for node in model.graph.node:
        source = node.input[0] if node.input else ""
        if source not in before or source not in after or not node.output:
            continue
        _note_sizes(sizes, before[source], after[source])
        _refuse_tied(node, values, before, after)
        if before[source] == after[source]:
            continue
        if node.op_type in _POOLS and _rewrite_pool(node, before[source], after[source]):
            return True
        if node.op_type == "Reshape" and node.input[1] in values:
            target = _reshape_target(node, values[node.input[1]], before, after[source], sizes)
            if not np.array_equal(target, values[node.input[1]]):
                node.input[1] = names.take(f"{node.name}.shape")
                set_initializer(model, node.input[1], target)
                return True
        if node.op_type == "Resize" and len(node.input) > 3 and node.input[3] in values:
            target = _resize_target(node, values[node.input[3]], before, after[source])
            if not np.array_equal(target, values[node.input[3]]):
                node.input[3] = names.take(f"{node.name}.sizes")
                set_initializer(model, node.input[3], target)
                return True
    return False


def _refuse_tied(
    node: NodeProto,
    values: Mapping[str, Array],
    before: Mapping[str, Shape],
    after: Mapping[str, Shape],
) -> None:
    """Refuse nodes whose weights or constants have an entry per position.

    Raises:
        FixedSizeError: Says which.
    """
    source = node.input[0]
    if node.op_type in {"Gemm", "MatMul"} and node.input[1] in values:
        if after[source][-1:] != before[source][-1:]:
            raise FixedSizeError(
                f"layer {shown(node.name)} has weights for each position of the map it reads"
            )
    elif node.op_type in _ELEMENTWISE:
        for name in node.input:
            other = next((item for item in node.input if item not in values), "")
            if name not in values or other not in after or not values[name].shape:
                continue
            own = values[name].shape
            for size, old, new in zip(
                own[::-1], before[other][::-1], after[other][::-1], strict=False
            ):
                if size == old != new and size != 1:
                    raise FixedSizeError(
                        f"node {shown(node.name)} has a constant with an entry per position"
                    )
    elif node.op_type == "Conv" and node.input[1] in values:
        kernel = values[node.input[1]].shape[2:]
        plain = not any(attribute(node, "pads") or [])
        if plain and any(k > size for k, size in zip(kernel, after[source][2:], strict=False)):
            raise FixedSizeError(
                f"layer {shown(node.name)} has a kernel larger than the map it would read"
            )


def _rewrite_pool(node: NodeProto, before: Shape, after: Shape) -> bool:
    """Let a pool that covers its map cover the new one; return whether it does so."""
    covered = _covered(node, before)
    if not any(covered) or _covered(node, after) == covered:
        return False
    if all(covered):
        node.op_type = _POOLS[node.op_type]
        del node.attribute[:]
        return True
    kernel = attribute(node, "kernel_shape")
    sizes = zip(covered, after[2:], kernel, strict=True)
    set_attribute(node, "kernel_shape", [size if all_ else own for all_, size, own in sizes])
    return True


def _reshape_target(
    node: NodeProto,
    target: Array,
    before: Mapping[str, Shape],
    source: Shape,
    sizes: Sizes,
) -> Array:
    """Return the target shape that divides and merges axes as the old one did.

    Raises:
        FixedSizeError: Which axis of a divided one is spatial cannot be told.
    """
    old_source, old_target = before[node.input[0]], before.get(node.output[0], ())
    literal = [item for item in target.tolist() if item not in {0, -1}]
    if math.prod(old_source) != math.prod(old_target) or not all((*old_source, *old_target)):
        raise FixedSizeError(f"node {shown(node.name)} reshapes to a shape that is not known")
    if not literal:
        return target
    shape = list(old_target)
    for ins, outs in matching_axes(old_source, old_target):
        total = math.prod(source[axis] for axis in ins)
        if total == math.prod(old_source[axis] for axis in ins):
            continue
        fitting = _divisions([shape[axis] for axis in outs], total, sizes)
        if len(fitting) != 1:
            raise FixedSizeError(
                f"node {shown(node.name)} divides positions in a way that is not known"
            )
        for axis, size in zip(outs, fitting.pop(), strict=True):
            shape[axis] = size
    return np.array(
        [own if own in {0, -1} else new for own, new in zip(target.tolist(), shape, strict=True)],
        dtype=np.int64,
    )


def _note_sizes(sizes: Sizes, before: Shape, after: Shape) -> None:
    """Remember which old height became which new one, and so for widths; heights come first."""
    if len(before) != len(after):
        return
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    if len(changed) == 2:
        for axis, (old, new) in enumerate(changed):
            sizes.setdefault(old, set()).add((axis, new))


def _divisions(old: list[int], total: int, sizes: Sizes) -> set[tuple[int, ...]]:
    """Return the ways in which axes of old sizes can now make up `total`, heights before widths."""
    if len(old) == 1:
        return {(total,)}
    choices = [[(-1, size), *sorted(sizes.get(size, ()))] for size in old]
    found = set()
    for pick in itertools.product(*choices):
        spatial = [axis for axis, _ in pick if axis >= 0]
        if spatial in ([0], [1], [0, 1]) and math.prod(size for _, size in pick) == total:
            found.add(tuple(size for _, size in pick))
    return found


def _resize_target(
    node: NodeProto, target: Array, before: Mapping[str, Shape], source: Shape
) -> Array:
    """Return the sizes that keep the old ratio.

    Raises:
        FixedSizeError: They would not be whole, or the node resizes some axes only.
    """
    old_source, old_target = before[node.input[0]], before.get(node.output[0], ())
    if len(old_target) != len(old_source) or len(target) != len(old_source):
        raise FixedSizeError(f"node {shown(node.name)} resizes chosen axes to fixed sizes")
    products = [new * to for new, to in zip(source, old_target, strict=True)]
    if any(product % old for product, old in zip(products, old_source, strict=True)):
        raise FixedSizeError(f"node {shown(node.name)} would resize to sizes that are not whole")
    return np.array([p // o for p, o in zip(products, old_source, strict=True)], dtype=np.int64)


def _said(shape: Shape | None) -> str:
    return "unknown" if shape is None else "x".join(map(str, shape[1:]))
