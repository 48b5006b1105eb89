"""Networks around one operator of vectors, of tokens, or of an image and places in it."""

from __future__ import annotations

import numpy as np

from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.points import Point


def sampled(point: Point, seed: int) -> GraphBuilder:
    """Return GridSample at places that the image says (M. Jaderberg et al., NeurIPS 2015).

    Once only, and of an image that has been enlarged: places that are rounded to integers move what is
    sampled.
    """
    small, width = point.size(0, 1, 6), point.channels(1, 3, 48)
    side = 4 * small
    builder = GraphBuilder((width, small, small), seed=seed)
    image = builder.upsample(builder.upsample("input"))
    line = np.linspace(-0.8, 0.8, side)
    grid = np.stack(np.meshgrid(line, line, indexing="xy"), axis=-1)[None].astype(np.float32)
    where = builder.activation(builder.dense(builder.global_pool(image), 2), "Tanh")
    near = builder.node("Mul", [where, builder.scalar(0.1)], (2,))
    moved = builder.node(
        "Add", [builder.reshape(near, (1, 1, 2)), builder.constant(grid)], (side, side, 2)
    )
    builder.node("GridSample", [image, moved], (width, side, side), mode="bilinear")
    return builder


def top_values(point: Point, seed: int) -> GraphBuilder:
    """Return the greatest of a vector, with what another vector has in their places."""
    width = point.size(0, 32, 2048)
    count = max(width // 8, 4)
    builder = GraphBuilder((width,), seed=seed)
    other = builder.activation("input", "Tanh")
    values, places = builder.nodes(
        "TopK", ["input", builder.integers(count)], [(count,), (count,)], axis=1
    )
    found = builder.node("GatherElements", [other, places], (count,), axis=1)
    builder.add(values, found)
    return builder


def long_softmax(point: Point, seed: int) -> GraphBuilder:
    """Return shares of long axes, of one vector or many, and of one vector also their logarithms."""
    ends_in_logarithms = point.number % 2 == 1
    rows = 1 if ends_in_logarithms else point.choice(1, (1, 16, 64))
    width = point.size(0, 32, 1024)
    builder = GraphBuilder((rows, width) if rows > 1 else (width,), seed=seed)
    for _ in range(point.choice(5, (1, 2, 4))):
        source = builder.top
        builder.add(source, builder.softmax(source))
    if ends_in_logarithms:
        builder.node("LogSoftmax", [builder.top], builder.shapes[builder.top], axis=-1)
    return builder


def token_products(point: Point, seed: int) -> GraphBuilder:
    """Return products of activations: tokens mixed by their own likeness."""
    builder = GraphBuilder((point.size(0, 8, 160), point.channels(1, 8, 128)), seed=seed)
    for _ in range(point.choice(5, (1, 2, 3))):
        source = builder.top
        builder.add(source, builder.token_mixing(source, is_einsum=point.number % 2 == 1))
    return builder
