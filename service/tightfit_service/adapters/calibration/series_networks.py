"""Networks of series: sounds, motions, measurements."""

from __future__ import annotations

from tightfit_service.adapters.calibration.families import classified
from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.points import Point


def gated_series(point: Point, seed: int) -> GraphBuilder:
    """Return causal convolutions in growing steps, gated by one another (A. van den Oord et al., 2016)."""
    length, width = point.size(0, 24, 320), point.channels(1, 8, 48)
    builder = GraphBuilder((point.size(2, 1, 8), length), seed=seed)
    found = builder.conv(builder.top, width, kernel=point.turn((2, 3)), is_causal=True)
    skipped = []
    for depth in range(point.choice(3, (2, 3, 5))):
        sides = [
            builder.activation(
                builder.conv(found, width, kernel=2, dilation=2**depth, is_causal=True), kind
            )
            for kind in ("Tanh", "Sigmoid")
        ]
        gated = builder.multiply(*sides)
        skipped.append(builder.conv(gated, width, kernel=1))
        found = builder.add(builder.conv(gated, width, kernel=1), found)
    total = skipped[0]
    for own in skipped[1:]:
        total = builder.add(total, own)
    builder.activation(total, "Relu")
    return classified(builder, point)


def residual_series(point: Point, seed: int) -> GraphBuilder:
    """Return residual blocks over a series, with a large stem (A. Hannun et al., Nature Medicine 25, 2019)."""
    length, width = point.size(0, 48, 640), point.channels(1, 8, 64)
    builder = GraphBuilder((point.size(2, 1, 12), length), seed=seed)
    kernel = point.turn((3, 5, 7, 9))
    stem = builder.conv(builder.top, width, kernel=point.turn((7, 15, 31)), stride=2)
    found = builder.pool(builder.activation(stem, "Relu"), kernel=3, stride=2, padding=1)
    for stage in range(point.choice(3, (1, 2, 3))):
        wide, stride = min(width * (1 + stage), 160), 2 if stage else 1
        inner = builder.conv(found, wide, kernel=kernel, stride=stride)
        inner = builder.conv(builder.activation(inner, "Relu"), wide, kernel=kernel)
        if builder.shapes[found] != builder.shapes[inner]:
            found = builder.conv(found, wide, kernel=1, stride=stride)
        found = builder.activation(builder.add(inner, found), "Relu")
    return classified(builder, point)


def joined_series(point: Point, seed: int) -> GraphBuilder:
    """Return kernels of several lengths side by side (H. Ismail Fawaz et al., DMKD 34, 2020)."""
    length, width = point.size(0, 24, 320), point.channels(1, 4, 40)
    builder = GraphBuilder((point.size(2, 1, 12), length), seed=seed)
    found = builder.top
    for _ in range(point.choice(3, (1, 2, 3))):
        narrow = builder.conv(found, width, kernel=1)
        sides = [builder.conv(narrow, width, kernel=own) for own in (9, 19, 39)]
        smooth = builder.pool(found, kernel=3, stride=1, padding=1)
        sides.append(builder.conv(smooth, width, kernel=1))
        found = builder.activation(builder.concat(sides), "Relu")
    return classified(builder, point)


def separable_series(point: Point, seed: int) -> GraphBuilder:
    """Return depthwise separable convolutions over a series, some with steps (S. Kriman et al., ICASSP 2020)."""
    length, width = point.size(0, 32, 640), point.channels(1, 8, 96)
    builder = GraphBuilder((point.size(2, 1, 40), length), seed=seed)
    found = builder.activation(builder.conv(builder.top, width, kernel=5, stride=2), "Relu")
    for depth in range(point.choice(3, (1, 2, 4))):
        inner = builder.depthwise(found, kernel=point.turn((3, 9, 5, 15)), stride=1 + depth % 2)
        inner = builder.conv(inner, width, kernel=1)
        if builder.shapes[inner] == builder.shapes[found] and point.number % 2:
            inner = builder.add(inner, found)
        found = builder.activation(inner, "Relu")
    return classified(builder, point)


def heard(point: Point, seed: int) -> GraphBuilder:
    """Return convolutions over sound as it comes: a long stem with large steps (W. Dai et al., ICASSP 2017)."""
    length, width = point.size(0, 512, 8000), point.channels(1, 8, 48)
    builder = GraphBuilder((1, length), seed=seed)
    stride = point.turn((4, 8, 16))
    stem = builder.conv(builder.top, width, kernel=point.turn((80, 32, 16)), stride=stride)
    found = builder.pool(builder.activation(stem, "Relu"), kernel=4, stride=4)
    for depth in range(point.choice(3, (1, 2, 3))):
        wide = min(width * (1 + depth), 128)
        found = builder.activation(builder.conv(found, wide), "Relu")
        if builder.shapes[found][1] >= 8:
            found = builder.pool(found, kernel=4, stride=4)
    return classified(builder, point)


def recurrent_encoder(point: Point, seed: int) -> GraphBuilder:
    """Return frames from the last state of a recurrent layer (N. Srivastava et al., ICML 2015)."""
    steps, features = point.size(0, 3, 20), point.size(1, 4, 40)
    kind, is_both = point.turn(("LSTM", "GRU", "RNN", "LSTM")), point.number % 3 == 1
    builder = GraphBuilder((steps, features), seed=seed)
    states = builder.recurrent(builder.top, kind, point.size(3, 8, 64), both_ways=is_both)
    width = builder.shapes[states][1]
    last = builder.node("Gather", [states, builder.integer(steps - 1)], (width,), axis=1)
    narrow = builder.dense(last, point.size(4, 4, 48))
    row = builder.reshape(narrow, (1, builder.shapes[narrow][0]))
    wanted = builder.integers(1, steps, 1)
    again = builder.node("Expand", [row, wanted], (steps, builder.shapes[narrow][0]))
    states = builder.recurrent(again, kind, point.size(3, 8, 64), both_ways=is_both)
    builder.tokens_dense(states, features)
    return builder


def recurrent_frames(point: Point, seed: int) -> GraphBuilder:
    """Return recurrent layers over what convolutions make of a series (S. O. Arik et al., 2017)."""
    steps, width = point.size(0, 4, 20), point.channels(1, 8, 48)
    builder = GraphBuilder((point.size(2, 4, 40), 2 * steps), seed=seed)
    found = builder.conv(builder.top, width, kernel=5, stride=2)
    found = builder.activation(found, "Relu")
    states = builder.node("Transpose", [found], (steps, width), perm=[0, 2, 1])
    kind, is_both = point.turn(("GRU", "LSTM", "RNN")), point.number % 2 == 1
    for _ in range(point.choice(4, (1, 2))):
        states = builder.recurrent(states, kind, point.size(3, 8, 72), both_ways=is_both)
    builder.dense(builder.mean_token(states), point.size(5, 2, 40))
    return builder
