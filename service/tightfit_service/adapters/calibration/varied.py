"""Networks each of whose steps is of another kind and width: the most that one measurement can tell."""

from __future__ import annotations

from collections.abc import Sequence

from tightfit_service.adapters.calibration import image_steps
from tightfit_service.adapters.calibration.blocks import GATED, JOINED, NORMED, Form, plain
from tightfit_service.adapters.calibration.families import ACTIVATIONS, classified
from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.image_steps import GROUPS, Step
from tightfit_service.adapters.calibration.points import Point

WIDTHS = (5, 2, 8, 3, 12, 1, 6, 16)
"""Of images one after another, in groups of channels."""
STEPS: Sequence[Step] = (
    *(image_steps.two_operands(kind) for kind in ("Mul", "Div", "Sub", "Max", "Min")),
    *(image_steps.one_operand(kind) for kind in ("Pow", "Sqrt", "Exp", "Abs", "Log", "Neg")),
    image_steps.last_axis_norm,
    image_steps.instance_norm,
    image_steps.local_response_norm,
    image_steps.group_norm,
    image_steps.spelled_norm(1),
    *(
        image_steps.reduced(kind, axes)
        for kind in ("ReduceMean", "ReduceMax", "ReduceSum")
        for axes in ((1,), (2, 3))
    ),
    *image_steps.MOVEMENTS,
    image_steps.resized("nearest"),
    image_steps.resized("linear"),
)
STRIDE = 7
"""From one step to the next among all; no divisor of their number."""
APPLIED = 5
"""Steps of a network."""


def steps(point: Point, seed: int) -> GraphBuilder:
    """Return steps of several kinds with pointwise layers between them, each at another width."""
    side = 4 * point.size(0, 2, 12)
    width = GROUPS * point.size(1, 1, 8)
    builder = GraphBuilder((width, side, side), seed=seed)
    activation = point.turn(ACTIVATIONS)
    for place in range(APPLIED):
        step = STEPS[(point.number + STRIDE * place) % len(STEPS)]
        step(builder, builder.top)
        wide = WIDTHS[(point.number + place) % len(WIDTHS)]
        inner = builder.conv(builder.top, GROUPS * wide, kernel=1)
        builder.activation(inner, activation)
        if place == APPLIED // 2 and side > 2 * GROUPS:
            builder.pool(builder.top, is_max=point.number % 2 == 0)
    return classified(builder, point)


def blocks(point: Point, seed: int) -> GraphBuilder:
    """Return blocks of several kinds, each at another width, and an image that becomes smaller on the way."""
    kinds = (plain, *JOINED, *GATED, *NORMED)
    side = 4 * point.size(0, 3, 14)
    builder = GraphBuilder((3, side, side), seed=seed)
    activation = point.turn(ACTIVATIONS)
    plain(builder, builder.top, Form(width=GROUPS * point.size(1, 2, 8), activation=activation))
    for place in range(point.choice(3, (3, 4, 5))):
        block = kinds[(point.number + (2 + point.number // len(kinds)) * place) % len(kinds)]
        form = Form(
            width=GROUPS * max(2, WIDTHS[(point.number + 3 * place) % len(WIDTHS)]),
            stride=2 if place % 2 else 1,
            activation=activation,
            kernel=point.choice(4, (3, 5)),
        )
        block(builder, builder.top, form)
    return classified(builder, point)
