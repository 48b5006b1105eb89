"""Networks that answer for every place of an image: detectors, and those that end as large as they begin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tightfit_service.adapters.calibration.blocks import (
    Form,
    cross_stage,
    inverted,
    plain,
    residual,
    separable,
)
from tightfit_service.adapters.calibration.families import ACTIVATIONS
from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.image_steps import GROUPS, quartered
from tightfit_service.adapters.calibration.points import Point

SCALES = 3
"""Sizes of an image, each half of the one before, that a network is built on."""
BOX = 4
"""Numbers that say where an object is, and how large."""


def detector(point: Point, seed: int) -> GraphBuilder:
    """Return a backbone with heads on two or three scales (W. Liu et al., ECCV 2016).

    By turns scales are joined from the coarsest on (T.-Y. Lin et al., CVPR 2017), and boxes are decoded
    in the network or left to whoever runs it, as one output per head.
    """
    builder, scales = _scales(point, seed, side=32 * point.size(0, 1, 4))
    form = Form(
        width=GROUPS * point.size(2, 3, 16),
        activation=point.turn(ACTIVATIONS),
    )
    scales = scales[-point.choice(3, (2, 3)) :]
    if point.number % 3:
        scales = _joined_downwards(builder, scales, form)
    anchors, classes = point.choice(4, (1, 2, 3)), point.size(5, 2, 20)
    head = point.turn((separable, separable, plain))
    boxes, scores = [], []
    for scale in scales:
        shared = head(builder, scale, form)
        boxes.append(builder.conv(shared, anchors * BOX, kernel=point.turn((1, 1, 3, 3))))
        scores.append(builder.conv(shared, anchors * classes, kernel=point.turn((1, 1, 3, 3))))
    if point.number % 2:
        builder.outputs = [*boxes, *scores]
        return builder
    _decoded(builder, _listed(builder, boxes, BOX), _listed(builder, scores, classes), point)
    return builder


def encoder_decoder(point: Point, seed: int) -> GraphBuilder:
    """Return an image made anew from what is left of it, joined to what it was (O. Ronneberger et al., 2015)."""
    builder, scales = _scales(point, seed, side=16 * point.size(0, 1, 5))
    found = scales[-1]
    for skipped in reversed(scales[:-1]):
        width = builder.shapes[skipped][0]
        if point.number % 2:
            found = builder.activation(builder.transposed_conv(found, width), "Relu")
        else:
            found = builder.upsample(found)
        if point.number % 3:
            found = builder.concat([found, skipped])
        elif builder.shapes[found] == builder.shapes[skipped]:
            found = builder.add(found, skipped)
        found = plain(builder, found, Form(width=width))
    maps = builder.conv(found, point.choice(5, (1, 2, 8)), kernel=1)
    if point.number % 4:
        builder.activation(maps, "Sigmoid")
    return builder


def _scales(point: Point, seed: int, *, side: int) -> tuple[GraphBuilder, list[str]]:
    """Return a backbone and its images, the largest first with half of the side.

    Every fifth begins with slices of every other pixel in place of a convolution with a stride.
    """
    width = GROUPS * point.size(1, 2, 8)
    block = point.turn((separable, residual, inverted, plain, cross_stage))
    activation = point.turn(ACTIVATIONS)
    builder = GraphBuilder((3, side, side), seed=seed)
    if point.number % 5 == 1:
        stem = builder.conv(quartered(builder, builder.top), width)
    else:
        stem = builder.conv(builder.top, width, stride=2)
    builder.activation(stem, activation)
    scales = []
    for stage in range(SCALES):
        form = Form(width=width * (1 + stage), stride=2 if stage else 1, activation=activation)
        scales.append(block(builder, builder.top, form))
    return builder, scales


def _joined_downwards(builder: GraphBuilder, scales: Sequence[str], form: Form) -> list[str]:
    """Return scales to which all coarser ones are added."""
    found = [builder.conv(scales[-1], form.width, kernel=1)]
    for scale in reversed(scales[:-1]):
        beside = builder.conv(scale, form.width, kernel=1)
        found.append(builder.add(beside, builder.upsample(found[-1])))
    return found[::-1]


def _listed(builder: GraphBuilder, maps: Sequence[str], width: int) -> str:
    """Return what maps say as one list of rows of a width."""
    lists = []
    for item in maps:
        turned = builder.channels_last(item)
        height, columns, channels = builder.shapes[turned]
        lists.append(builder.reshape(turned, (height * columns * channels // width, width)))
    count = sum(builder.shapes[item][0] for item in lists)
    return builder.node("Concat", lists, (count, width), axis=1)


def _decoded(builder: GraphBuilder, boxes: str, scores: str, point: Point) -> None:
    """Turn boxes into places of the image around fixed centres, and scores into shares."""
    count = builder.shapes[scores][0]
    centres, sizes = builder.nodes(
        "Split", [boxes, builder.integers(2, 2)], [(count, 2), (count, 2)], axis=2
    )
    grid = np.linspace(0.0, 1.0, 2 * count, dtype=np.float32).reshape(1, count, 2)
    near = builder.node(
        "Mul", [builder.activation(centres, "Sigmoid"), builder.scalar(0.1)], (count, 2)
    )
    where = builder.node("Add", [near, builder.constant(grid)], (count, 2))
    extent = builder.activation(sizes, "Sigmoid")
    extent = builder.node("Mul", [extent, builder.constant(grid + 0.1)], (count, 2))
    shares = builder.softmax(scores) if point.number % 4 else builder.activation(scores, "Sigmoid")
    whole = (count, BOX)
    builder.outputs = [builder.node("Concat", [where, extent], whole, axis=2), shares]
