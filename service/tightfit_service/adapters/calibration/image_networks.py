"""Networks of images beside those in stages of blocks: older ones, and those with unusual convolutions."""

from __future__ import annotations

import numpy as np

from tightfit_service.adapters.calibration.blocks import (
    Form,
    fire,
    plain,
    residual,
    separable,
    squeezed,
)
from tightfit_service.adapters.calibration.families import ACTIVATIONS, MOST_UNSHRUNK, classified
from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.image_steps import GROUPS, local_response_norm
from tightfit_service.adapters.calibration.points import Point

LONG = 7
"""Of kernels that are a line."""


def older(point: Point, seed: int) -> GraphBuilder:
    """Return a large stem, overlapping pooling, and wide dense layers (A. Krizhevsky et al., NeurIPS 2012)."""
    side, width = point.size(0, 32, 112), point.channels(1, 8, 48)
    builder = GraphBuilder((point.choice(2, (1, 3)), side, side), seed=seed)
    kernel, stride = point.turn(((11, 4), (7, 2), (5, 2), (7, 2)))
    is_padded = point.number % 3 > 0
    stem = builder.conv(builder.top, width, kernel=kernel, stride=stride, is_padded=is_padded)
    found = builder.activation(stem, "Relu")
    if point.number % 2:
        found = local_response_norm(builder, found)
    found = builder.pool(found, kernel=3, stride=2)
    for depth in range(point.choice(3, (1, 2, 3))):
        wide = min(width * (2 + depth), 160)
        found = plain(builder, found, Form(width=wide, kernel=5 if depth == 0 else 3))
    found = builder.flatten(builder.pool(found, kernel=3, stride=2))
    for _ in range(point.choice(4, (1, 2))):
        found = builder.activation(builder.dense(found, point.size(5, 32, 512)), "Relu")
    builder.softmax(builder.dense(found, 10))
    return builder


def squeezed_network(point: Point, seed: int) -> GraphBuilder:
    """Return squeezing and widening layers with overlapping pooling (F. Iandola et al., 2016).

    The classifier is a pointwise layer whose maps are averaged.
    """
    side, width = point.size(0, 24, 112), GROUPS * point.size(1, 2, 16)
    builder = GraphBuilder((3, side, side), seed=seed)
    found = builder.conv(builder.top, width, stride=2, is_padded=point.number % 2 == 0)
    found = builder.pool(builder.activation(found, "Relu"), kernel=3, stride=2)
    for depth in range(point.choice(3, (2, 3, 5))):
        if depth and depth % 2 == 0:
            found = builder.pool(found, kernel=3, stride=2)
        found = fire(builder, found, Form(width=width * (1 + depth // 2)))
    maps = builder.conv(found, point.size(5, 2, 100), kernel=1)
    builder.global_pool(builder.activation(maps, "Relu"))
    return builder


def grouped_network(point: Point, seed: int) -> GraphBuilder:
    """Return residual blocks of grouped convolutions (S. Xie et al., CVPR 2017) in two stages."""
    groups = point.turn((4, 2, 8))
    width = groups * point.size(1, 2, 12)
    builder, found = _stem(point, seed, width)
    for stage in range(2):
        for depth in range(point.choice(3, (1, 2))):
            stride = 2 if stage and not depth else 1
            wide = 2 * width * (1 + stage)
            inner = builder.activation(builder.conv(found, wide // 2, kernel=1), "Relu")
            inner = builder.conv(inner, wide // 2, stride=stride, groups=groups)
            inner = builder.conv(builder.activation(inner, "Relu"), wide, kernel=1)
            if builder.shapes[found] != builder.shapes[inner]:
                found = builder.conv(found, wide, kernel=1, stride=stride)
            found = builder.activation(builder.add(inner, found), "Relu")
    return classified(builder, point)


def lined(point: Point, seed: int) -> GraphBuilder:
    """Return convolutions whose kernels are lines, one behind the other (C. Szegedy et al., CVPR 2016)."""
    width = point.channels(1, 8, 64)
    builder, found = _stem(point, seed, width)
    length = point.turn((3, LONG, 5))
    for depth in range(point.choice(3, (1, 2, 3))):
        for kernel in ((1, length), (length, 1)):
            found = builder.activation(builder.conv(found, width, kernel=kernel), "Relu")
        if depth == 0:
            found = builder.pool(found, kernel=3, stride=2, padding=1)
    return classified(builder, point)


def pyramid(point: Point, seed: int) -> GraphBuilder:
    """Return branches of several dilations side by side, enlarged to the whole image (L.-C. Chen et al., 2017)."""
    width = GROUPS * point.size(1, 2, 16)
    builder, found = _stem(point, seed, width)
    found = separable(builder, found, Form(width=2 * width, stride=2))
    branches = [builder.activation(builder.conv(found, width, kernel=1), "Relu")]
    branches += [
        builder.activation(builder.conv(found, width, dilation=dilation), "Relu")
        for dilation in (2, 4, 6)[: point.choice(3, (1, 2, 3))]
    ]
    if point.number % 2:
        shape = builder.shapes[branches[0]]
        mean = builder.node("GlobalAveragePool", [found], (2 * width, 1, 1))
        mean = builder.activation(builder.conv(mean, width, kernel=1), "Relu")
        counts = builder.integers(1, 1, *shape[1:])
        branches.append(builder.node("Expand", [mean, counts], shape))
    joined = builder.conv(builder.concat(branches), width, kernel=1)
    maps = builder.conv(builder.activation(joined, "Relu"), point.size(5, 2, 24), kernel=1)
    channels, height, columns = builder.shapes[maps]
    factor = point.turn((4, 2))
    factors = builder.constant(np.array([1, 1, factor, factor], dtype=np.float32))
    shape = (channels, factor * height, factor * columns)
    mode = point.turn(("linear", "linear", "nearest"))
    builder.node("Resize", [maps, "", factors], shape, mode=mode)
    return builder


def enlarged(point: Point, seed: int) -> GraphBuilder:
    """Return an image made larger: its channels become pixels (W. Shi et al., CVPR 2016)."""
    side, width = point.size(0, 12, 48), point.channels(1, 8, 64)
    factor, colours = point.turn((2, 3, 4, 2)), point.choice(2, (1, 3))
    builder = GraphBuilder((colours, side, side), seed=seed)
    first = plain(builder, builder.top, Form(width=width, kernel=point.choice(4, (3, 5))))
    found = first
    for _ in range(point.choice(3, (1, 2, 4))):
        if point.number % 2:
            inner = builder.conv(plain(builder, found, Form(width=width)), width)
            found = builder.add(inner, found)
        else:
            found = plain(builder, found, Form(width=width))
    if point.number % 3 == 0:
        found = builder.add(builder.conv(found, width), first)
    maps = builder.conv(found, colours * factor**2)
    shape = (colours, factor * side, factor * side)
    mode = point.turn(("CRD", "CRD", "DCR"))
    builder.node("DepthToSpace", [maps], shape, blocksize=factor, mode=mode)
    return builder


def autoencoder(point: Point, seed: int) -> GraphBuilder:
    """Return what is narrowed and widened again: by dense layers, or by convolutions with a stride."""
    if point.number % 2:
        width, narrow = point.size(0, 32, 768), point.size(1, 16, 256)
        builder = GraphBuilder((width,), seed=seed)
        hidden = [narrow] * point.choice(2, (1, 2, 4))
        for own in (*hidden, point.size(3, 4, 32), *hidden):
            builder.activation(builder.dense(builder.top, own), "Relu")
        builder.dense(builder.top, width)
        return builder
    side, width = 8 * point.size(0, 1, 8), point.channels(1, 6, 48)
    builder = GraphBuilder((point.choice(2, (1, 3)), side, side), seed=seed)
    depths = range(point.choice(3, (1, 2, 3)))
    for depth in depths:
        plain(builder, builder.top, Form(width=width * (1 + depth), stride=2))
    for depth in reversed(depths):
        kernel = point.choice(4, (2, 4))
        inner = builder.transposed_conv(builder.top, width * (1 + depth), kernel=kernel)
        builder.activation(inner, "Relu")
    builder.activation(builder.conv(builder.top, builder.shapes["input"][0]), "Sigmoid")
    return builder


def bordered(point: Point, seed: int) -> GraphBuilder:
    """Return convolutions with a stride behind borders of their own, as converted Keras networks have them."""
    width = point.channels(1, 8, 40)
    side = 2 * point.size(0, 8, 48)
    builder = GraphBuilder((3, side, side), seed=seed)
    activation = point.turn(ACTIVATIONS)
    for depth in range(point.choice(3, (2, 3, 4))):
        channels, height, columns = builder.shapes[builder.top]
        wide, kernel = min(width * (1 + depth), 128), point.choice(4, (3, 3, 5))
        amounts = builder.integers(0, 0, 0, 0, 0, 0, kernel - 2, kernel - 2)
        shape = (channels, height + kernel - 2, columns + kernel - 2)
        framed = builder.node("Pad", [builder.top, amounts], shape)
        is_depthwise = depth > 0 and point.number % 2 == 0
        inner = builder.conv(
            framed,
            channels if is_depthwise else wide,
            kernel=kernel,
            stride=2,
            groups=channels if is_depthwise else 1,
            is_padded=False,
        )
        inner = builder.activation(inner, activation)
        if is_depthwise:
            inner = builder.activation(builder.conv(inner, wide, kernel=1), activation)
        if min(builder.shapes[inner][1:]) <= kernel:
            break
    return classified(builder, point)


def attended(point: Point, seed: int) -> GraphBuilder:
    """Return residual blocks between which every pixel looks at every other (X. Wang et al., CVPR 2018)."""
    side, width = 4 * point.size(0, 4, 14), GROUPS * point.size(1, 2, 14)
    builder = GraphBuilder((3, side, side), seed=seed)
    found = plain(builder, builder.top, Form(width=width, stride=2))
    found = residual(builder, found, Form(width=width, stride=2))
    for _ in range(point.choice(3, (1, 2))):
        found = _each_to_each(builder, found)
        found = residual(builder, found, Form(width=width))
    return classified(builder, point)


def _each_to_each(builder: GraphBuilder, source: str) -> str:
    """Add what pixels find in one another, by pointwise convolutions that stay images."""
    width, *size = shape = builder.shapes[source]
    count, narrow = size[0] * size[1], squeezed(width)
    flat = [
        builder.reshape(builder.conv(source, own, kernel=1), (own, count))
        for own in (narrow, narrow, width)
    ]
    builder.macs += count * count * (narrow + width)
    queries = builder.node("Transpose", [flat[0]], (count, narrow), perm=[0, 2, 1])
    scores = builder.node("MatMul", [queries, flat[1]], (count, count))
    turned = builder.node("Transpose", [builder.softmax(scores)], (count, count), perm=[0, 2, 1])
    found = builder.node("MatMul", [flat[2], turned], (width, count))
    return builder.add(source, builder.reshape(found, shape))


def _stem(point: Point, seed: int, width: int) -> tuple[GraphBuilder, str]:
    """Return an image behind a convolution that halves it where it is large."""
    side = 4 * point.size(0, 4, 20)
    builder = GraphBuilder((3, side, side), seed=seed)
    stride = 2 if side > MOST_UNSHRUNK else 1
    stem = builder.conv(builder.top, width, stride=stride)
    return builder, builder.activation(stem, "Relu")
