"""The designed set: chains of one kind of layer, and networks of the families that edge teams use.

Chains tell the kinds of layers apart; networks tell what layers cost among others: fused into one
another, with caches that somebody else filled. Widths and sizes follow a Sobol sequence (I. M. Sobol,
USSR Computational Mathematics 7(4), 1967), so that a short set covers the space evenly and a longer one
contains the shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scipy.stats import qmc

from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.application.ports import DesignedNetwork

SEED = 20
MOST_MACS = 60e6
"""Of one network; wider ones are narrowed. A Cortex-A core takes about 10 ms for them."""
DIMENSIONS = 6
DEPTHS = (1, 2, 4, 7)
"""Layers of a chain: only networks of different depth tell layers from the borders of a network."""


@dataclass(frozen=True)
class _Point:
    """A point of the unit cube, read coordinate by coordinate."""

    values: tuple[float, ...]

    def size(self, axis: int, low: int, high: int) -> int:
        """Return an integer between the bounds, spread evenly over its logarithm."""
        return round(low * float((high / low) ** self.values[axis]))

    def channels(self, axis: int, low: int = 4, high: int = 160) -> int:
        """Return a width; every other one is a multiple of 8, as designers choose them."""
        width = self.size(axis, low, high)
        is_round = int(self.values[axis] * 64) % 2 == 0
        return max(8, -(-width // 8) * 8) if is_round else width

    def choice(self, axis: int, options: tuple[int, ...]) -> int:
        """Return one of the options."""
        return options[min(int(self.values[axis] * len(options)), len(options) - 1)]


class DesignedNetworks:
    """Implements `CalibrationNetworks`; graphs are seeded, so that an index always means the same one."""

    def graph(self, index: int) -> DesignedNetwork:
        """Return the network of an index from 0 on."""
        makers = _MAKERS
        label, make = makers[index % len(makers)]
        values = _sobol(index // len(makers), label)
        shrink = 1.0
        while True:
            point = _Point(tuple(min(value * shrink, 1.0) for value in values))
            builder = make(point, index)
            if builder.macs <= MOST_MACS or shrink < 0.05:
                break
            shrink *= 0.8
        return DesignedNetwork(label=label, graph=builder.build())


def _sobol(number: int, label: str) -> tuple[float, ...]:
    # every kind has a sequence of its own, so that all are covered however many networks are asked for
    seed = SEED + sum(ord(letter) for letter in label)
    engine = qmc.Sobol(d=DIMENSIONS, seed=seed)
    if number:
        engine.fast_forward(number)
    return tuple(float(value) for value in engine.random(1)[0])


def _conv_chain(kernel: int, stride: int) -> Callable[[_Point, int], GraphBuilder]:
    def make(point: _Point, seed: int) -> GraphBuilder:
        side = point.size(0, 4, 64)
        first, second = point.channels(1), point.channels(2)
        builder = GraphBuilder((first, side, side), seed=seed)
        for depth in range(point.choice(5, DEPTHS)):
            width = first if depth % 2 else second
            builder.conv(builder.top, width, kernel=kernel, stride=stride if depth == 0 else 1)
            builder.activation(builder.top, "Relu")
        return builder

    return make


def _depthwise_chain(kernel: int, stride: int) -> Callable[[_Point, int], GraphBuilder]:
    def make(point: _Point, seed: int) -> GraphBuilder:
        side, width = point.size(0, 4, 64), point.channels(1, 8, 320)
        builder = GraphBuilder((width, side, side), seed=seed)
        for depth in range(point.choice(5, DEPTHS)):
            builder.depthwise(builder.top, kernel=kernel, stride=stride if depth == 0 else 1)
            builder.activation(builder.top, "Relu6")
        return builder

    return make


def _dense_chain(point: _Point, seed: int) -> GraphBuilder:
    first, second = point.size(0, 8, 1024), point.size(1, 8, 1024)
    builder = GraphBuilder((first,), seed=seed)
    for depth in range(point.choice(5, DEPTHS)):
        builder.dense(builder.top, first if depth % 2 else second)
        builder.activation(builder.top, "Relu")
    return builder


def _elementwise_chain(*kinds: str) -> Callable[[_Point, int], GraphBuilder]:
    def make(point: _Point, seed: int) -> GraphBuilder:
        side, width = point.size(0, 4, 64), point.channels(1)
        builder = GraphBuilder((width, side, side), seed=seed)
        kind = kinds[point.choice(2, tuple(range(len(kinds))))]
        for _ in range(point.choice(5, DEPTHS)):
            source = builder.top
            builder.add(builder.activation(source, kind), source)
        return builder

    return make


def _pool_chain(point: _Point, seed: int) -> GraphBuilder:
    side, width = point.size(0, 8, 96), point.channels(1)
    builder = GraphBuilder((width, side, side), seed=seed)
    kernel, stride = point.choice(2, (2, 3)), point.choice(3, (1, 2))
    for depth in range(point.choice(5, (1, 2, 3, 4))):
        builder.pool(builder.top, kernel=kernel, stride=stride, is_max=depth % 2 == 0)
    builder.global_pool(builder.top)
    return builder


def _concat_chain(point: _Point, seed: int) -> GraphBuilder:
    side, width = point.size(0, 4, 32), point.channels(1, 4, 64)
    builder = GraphBuilder((width, side, side), seed=seed)
    for _ in range(point.choice(5, (1, 2, 3))):
        source = builder.top
        builder.concat([source, builder.conv(source, width, kernel=1)])
    if side <= 16:
        builder.upsample(builder.top)
    return builder


def _plain(point: _Point, seed: int) -> GraphBuilder:
    side, width = point.size(0, 16, 64), point.channels(1, 6, 48)
    builder = GraphBuilder((point.choice(2, (1, 3)), side, side), seed=seed)
    for depth in range(point.choice(3, (3, 4, 5, 6))):
        builder.conv(
            builder.top, min(width * (1 + depth // 2), 192), kernel=point.choice(4, (3, 5))
        )
        builder.activation(builder.top, "Relu")
        if depth % 2:
            builder.pool(builder.top)
    return _classified(builder, point)


def _residual(point: _Point, seed: int) -> GraphBuilder:
    side, width = point.size(0, 16, 64), point.channels(1, 6, 48)
    builder = GraphBuilder((3, side, side), seed=seed)
    builder.activation(builder.conv(builder.top, width), "Relu")
    for stage in range(point.choice(2, (2, 3))):
        wide = width * 2**stage
        for block in range(point.choice(3, (1, 2, 3))):
            source, stride = builder.top, 2 if stage and not block else 1
            inner = builder.activation(builder.conv(source, wide, stride=stride), "Relu")
            inner = builder.conv(inner, wide)
            if builder.shapes[source] != builder.shapes[inner]:
                source = builder.conv(source, wide, kernel=1, stride=stride)
            builder.activation(builder.add(inner, source), "Relu")
    return _classified(builder, point)


def _separable(point: _Point, seed: int) -> GraphBuilder:
    side, width = point.size(0, 16, 96), point.channels(1, 8, 48)
    builder = GraphBuilder((point.choice(2, (1, 3)), side, side), seed=seed)
    builder.activation(builder.conv(builder.top, width, stride=2), "Relu6")
    for depth in range(point.choice(3, (3, 5, 7))):
        stride = 2 if depth % 2 else 1
        wide = min(width * 2 ** ((depth + 1) // 2), 256)
        builder.activation(builder.depthwise(builder.top, stride=stride), "Relu6")
        builder.activation(builder.conv(builder.top, wide, kernel=1), "Relu6")
    return _classified(builder, point)


def _inverted(point: _Point, seed: int) -> GraphBuilder:
    side, width = point.size(0, 16, 96), point.channels(1, 8, 32)
    activation = ("Relu6", "HardSwish", "Silu")[point.choice(2, (0, 1, 2))]
    gated = point.choice(4, (0, 1)) == 1
    builder = GraphBuilder((3, side, side), seed=seed)
    builder.activation(builder.conv(builder.top, width, stride=2), activation)
    for depth in range(point.choice(3, (3, 5, 7))):
        source = builder.top
        stride = 2 if depth % 2 else 1
        wide = builder.shapes[source][0] * point.choice(5, (3, 4, 6))
        inner = builder.activation(builder.conv(source, wide, kernel=1), activation)
        kernel = 5 if depth % 3 == 2 else 3
        inner = builder.depthwise(inner, kernel=kernel, stride=stride)
        inner = builder.activation(inner, activation)
        if gated:
            inner = builder.squeeze_excite(inner, max(wide // 4, 4))
        narrow = builder.shapes[source][0] if stride == 1 else min(width * (2 + depth // 2), 96)
        out = builder.conv(inner, narrow, kernel=1)
        if builder.shapes[out] == builder.shapes[source]:
            builder.add(out, source)
    return _classified(builder, point)


def _sequence(point: _Point, seed: int) -> GraphBuilder:
    length, width = point.size(0, 32, 512), point.channels(1, 8, 96)
    builder = GraphBuilder((point.size(2, 1, 16), length), seed=seed)
    for depth in range(point.choice(3, (2, 3, 4))):
        builder.conv(builder.top, width * (1 + depth // 2), kernel=point.choice(4, (3, 5, 9)))
        builder.activation(builder.top, "Relu")
        if depth % 2:
            builder.pool(builder.top)
    return _classified(builder, point)


def _transformer(point: _Point, seed: int) -> GraphBuilder:
    side, heads = point.size(0, 16, 48), point.choice(2, (2, 4))
    width = heads * point.size(1, 8, 32)
    builder = GraphBuilder((3, side, side), seed=seed)
    builder.to_tokens(builder.conv(builder.top, width, kernel=4, stride=4))
    for _ in range(point.choice(3, (1, 2, 3))):
        source = builder.top
        mixed = builder.add(source, builder.attention(builder.layer_norm(source), heads=heads))
        inner = builder.tokens_dense(builder.layer_norm(mixed), 2 * width)
        inner = builder.activation(inner, "Relu")
        builder.add(mixed, builder.tokens_dense(inner, width))
    builder.dense(builder.mean_token(builder.top), 10)
    return builder


def _classified(builder: GraphBuilder, point: _Point) -> GraphBuilder:
    builder.dense(builder.global_pool(builder.top), point.size(5, 2, 100))
    builder.softmax(builder.top)
    return builder


_MAKERS: tuple[tuple[str, Callable[[_Point, int], GraphBuilder]], ...] = (
    ("conv 3x3", _conv_chain(3, 1)),
    ("plain network", _plain),
    ("conv 1x1", _conv_chain(1, 1)),
    ("residual network", _residual),
    ("depthwise 3x3", _depthwise_chain(3, 1)),
    ("separable network", _separable),
    ("conv 3x3 stride 2", _conv_chain(3, 2)),
    ("inverted residuals", _inverted),
    ("dense", _dense_chain),
    ("sequence network", _sequence),
    ("hard activations", _elementwise_chain("HardSwish", "HardSigmoid", "Relu6")),
    ("depthwise 5x5 stride 2", _depthwise_chain(5, 2)),
    ("pooling", _pool_chain),
    ("transformer", _transformer),
    ("conv 5x5", _conv_chain(5, 1)),
    ("concatenation", _concat_chain),
    ("smooth activations", _elementwise_chain("Sigmoid", "Tanh", "Silu")),
)
