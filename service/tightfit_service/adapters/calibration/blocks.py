"""Blocks that networks for edge devices are made of, each as a function of the tensor it stands behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tightfit_service.adapters.calibration.graph_builder import PATCH, GraphBuilder
from tightfit_service.adapters.calibration.image_steps import (
    group_norm,
    instance_norm,
    last_axis_norm,
    shuffled,
)

SQUEEZE = 4
"""By what narrow layers inside a block are narrower than the block."""
LEAST_WIDTH = 4


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a block is to make of an image.

    Attributes:
        width: Channels of its output; a multiple of `image_steps.GROUPS` where the block parts them.
        stride: By which it shrinks the image, 1 or 2.
        activation: As `GraphBuilder.activation` names them.
        kernel: Of its largest convolution, where the block leaves that open.
        expansion: Channels inside over those outside, where a block is wider inside.
    """

    width: int
    stride: int = 1
    activation: str = "Relu"
    kernel: int = 3
    expansion: int = 4

    @property
    def narrow(self) -> int:
        """Channels of narrow layers inside."""
        return squeezed(self.width)

    @property
    def at_rest(self) -> Form:
        """The same without a stride."""
        return replace(self, stride=1)


Block = Callable[[GraphBuilder, str, Form], str]
"""Adds layers behind an image of (channels, height, width) and returns their output."""
Gate = Callable[[GraphBuilder, str], str]
"""Weights the channels or pixels of an image by what it holds."""


def squeezed(width: int) -> int:
    """Return the channels of a narrow layer beside one of a width."""
    return max(width // SQUEEZE, LEAST_WIDTH)


def plain(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a convolution."""
    made = builder.conv(source, form.width, kernel=form.kernel, stride=form.stride)
    return builder.activation(made, form.activation)


def _pointwise(builder: GraphBuilder, source: str, width: int, activation: str) -> str:
    return builder.activation(builder.conv(source, width, kernel=1), activation)


def separable(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a depthwise separable convolution (A. Howard et al., 2017)."""
    inner = builder.depthwise(source, kernel=form.kernel, stride=form.stride)
    inner = builder.activation(inner, form.activation)
    return _pointwise(builder, inner, form.width, form.activation)


def residual(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a residual block (K. He et al., CVPR 2016)."""
    inner = plain(builder, source, form)
    return _rejoined(builder, source, builder.conv(inner, form.width), form)


def bottleneck(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a residual block whose wide convolution has few channels (the same)."""
    inner = _pointwise(builder, source, form.narrow, form.activation)
    inner = builder.conv(inner, form.narrow, stride=form.stride)
    inner = builder.activation(inner, form.activation)
    return _rejoined(builder, source, builder.conv(inner, form.width, kernel=1), form)


def instance_normed(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a residual block with instance normalization (D. Ulyanov et al., 2016)."""
    inner = instance_norm(builder, builder.conv(source, form.width, stride=form.stride))
    return _rejoined(builder, source, builder.conv(inner, form.width), form)


def group_normed(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a residual block with group normalization (Y. Wu, K. He, ECCV 2018)."""
    inner = group_norm(builder, builder.conv(source, form.width, stride=form.stride))
    inner = builder.activation(inner, form.activation)
    inner = group_norm(builder, builder.conv(inner, form.width))
    return _rejoined(builder, source, inner, form)


def inverted(builder: GraphBuilder, source: str, form: Form, *, gate: Gate | None = None) -> str:
    """Add an inverted residual (M. Sandler et al., CVPR 2018), with a gate inside or none."""
    wide = builder.shapes[source][0] * form.expansion
    inner = _pointwise(builder, source, wide, form.activation)
    inner = builder.depthwise(inner, kernel=form.kernel, stride=form.stride)
    inner = builder.activation(inner, form.activation)
    if gate:
        inner = gate(builder, inner)
    made = builder.conv(inner, form.width, kernel=1)
    if builder.shapes[made] == builder.shapes[source]:
        made = builder.add(made, source)
    return made


def gated_inverted(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add an inverted residual with a gate per channel (A. Howard et al., ICCV 2019)."""
    return inverted(builder, source, form, gate=squeezed_gate)


def fire(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a squeezing layer and two widening ones side by side (F. Iandola et al., 2016)."""
    source = _shrunk(builder, source, form)
    inner = _pointwise(builder, source, form.narrow, form.activation)
    sides = (
        builder.activation(builder.conv(inner, form.width // 2, kernel=kernel), form.activation)
        for kernel in (1, 3)
    )
    return builder.concat(list(sides))


def inception(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add four branches side by side (C. Szegedy et al., CVPR 2015)."""
    source = _shrunk(builder, source, form)
    quarter = form.width // 4

    def pointwise(from_: str) -> str:
        return _pointwise(builder, from_, quarter, form.activation)

    branches = [pointwise(source)]
    for kernel in (3, 5):
        inner = builder.conv(pointwise(source), quarter, kernel=kernel)
        branches.append(builder.activation(inner, form.activation))
    smooth = builder.node(
        "MaxPool",
        [source],
        builder.shapes[source],
        kernel_shape=[3, 3],
        strides=[1, 1],
        pads=[1, 1, 1, 1],
    )
    return builder.concat([*branches, pointwise(smooth)])


def densely_joined(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add layers each of which reads all before it, normalized anew, and a transition (G. Huang et al., CVPR 2017)."""
    found = source
    for _ in range(3):
        inner = builder.activation(builder.batch_norm(found), form.activation)
        found = builder.concat([found, builder.conv(inner, form.narrow)])
    inner = builder.activation(builder.batch_norm(found), form.activation)
    return _shrunk(builder, builder.conv(inner, form.width, kernel=1), form)


def shuffle_unit(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a unit whose halves of channels are shuffled (N. Ma et al., ECCV 2018)."""
    half = form.width // 2

    def worked(from_: str) -> str:
        inner = _pointwise(builder, from_, half, form.activation)
        inner = builder.depthwise(inner, kernel=form.kernel, stride=form.stride)
        return _pointwise(builder, inner, half, form.activation)

    width, *size = builder.shapes[source]
    if form.stride == 1 and width == form.width:
        sizes = builder.integers(half, half)
        kept, own = builder.nodes("Split", [source, sizes], [(half, *size)] * 2, axis=1)
        return shuffled(builder, builder.concat([kept, worked(own)]))
    beside = builder.depthwise(source, kernel=form.kernel, stride=form.stride)
    beside = _pointwise(builder, beside, half, form.activation)
    return shuffled(builder, builder.concat([beside, worked(source)]))


def ghost(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add half of the channels by cheap depthwise layers from the others (K. Han et al., CVPR 2020)."""
    made = builder.conv(source, form.width // 2, kernel=1, stride=form.stride)
    made = builder.activation(made, form.activation)
    return builder.concat([made, builder.activation(builder.depthwise(made), form.activation)])


def cross_stage(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a stage that only half of the channels go through (C.-Y. Wang et al., CVPR Workshops 2020)."""
    source = plain(builder, source, form)
    half = Form(width=form.width // 2, activation=form.activation)
    kept, own = (_pointwise(builder, source, half.width, half.activation) for _ in range(2))
    own = builder.add(plain(builder, plain(builder, own, half), half), own)
    made = builder.conv(builder.concat([own, kept]), form.width, kernel=1)
    return builder.activation(made, form.activation)


def patch_block(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a large depthwise layer and dense ones whose channels come last (Z. Liu et al., CVPR 2022)."""
    source = _widened(builder, source, form)
    width = builder.shapes[source][0]
    turned = builder.channels_last(builder.depthwise(source, kernel=7))
    inner = builder.tokens_dense(builder.layer_norm(turned), form.expansion * width)
    inner = builder.tokens_dense(builder.activation(inner, "SpelledGelu"), width)
    inner = builder.multiply(inner, builder.weight((width,), fan_in=2))
    return builder.add(source, builder.channels_first(inner))


def normed_first(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a residual block that normalizes its channels before its one convolution."""
    source = _widened(builder, source, form)
    return builder.add(source, plain(builder, last_axis_norm(builder, source), form.at_rest))


def token_block(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add self-attention between convolutions (S. Mehta, M. Rastegari, ICLR 2022).

    Images with even sides have patches of two by two, and equal pixels of all patches attend to one another.
    """
    source = _widened(builder, source, form)
    width, *size = builder.shapes[source]
    inner = builder.conv(plain(builder, source, form.at_rest), form.width, kernel=1)
    if any(side % PATCH for side in size):
        tokens = encoder(builder, builder.to_tokens(inner), heads=2, activation=form.activation)
        turned = builder.node("Transpose", [tokens], (width, size[0] * size[1]), perm=[0, 2, 1])
        image = builder.reshape(turned, (width, *size))
    else:
        tokens, before = builder.to_patches(inner), builder.macs
        tokens = encoder(builder, tokens, heads=2, activation=form.activation)
        # the builder does not know that the batch has the pixels of a patch
        builder.macs += (PATCH**2 - 1) * (builder.macs - before)
        image = builder.from_patches(tokens, (width, *size))
    image = builder.conv(image, form.width, kernel=1)
    return plain(builder, builder.concat([source, image]), form.at_rest)


def encoder(builder: GraphBuilder, source: str, *, heads: int, activation: str) -> str:
    """Add a layer of a transformer's encoder over tokens (A. Dosovitskiy et al., ICLR 2021)."""
    width = builder.shapes[source][-1]
    mixed = builder.add(source, builder.attention(builder.layer_norm(source), heads=heads))
    inner = builder.tokens_dense(builder.layer_norm(mixed), 2 * width)
    return builder.add(mixed, builder.tokens_dense(builder.activation(inner, activation), width))


def squeezed_gate(builder: GraphBuilder, source: str) -> str:
    """Add a gate per channel (J. Hu et al., CVPR 2018)."""
    return builder.squeeze_excite(source, squeezed(builder.shapes[source][0]))


def efficient_gate(builder: GraphBuilder, source: str) -> str:
    """Add a gate from neighbouring channels (Q. Wang et al., CVPR 2020)."""
    width = builder.shapes[source][0]
    row = builder.reshape(builder.global_pool(source), (1, width))
    gate = builder.activation(builder.conv(row, 1, kernel=3), "Sigmoid")
    return builder.multiply(source, builder.reshape(gate, (width, 1, 1)))


def channel_gate(builder: GraphBuilder, source: str) -> str:
    """Add a gate per channel from means and maxima (S. Woo et al., ECCV 2018)."""
    width, *size = builder.shapes[source]
    pooled = [
        builder.node(kind, [source], (width, *(1 for _ in size)))
        for kind in ("GlobalAveragePool", "GlobalMaxPool")
    ]
    inner = [
        builder.activation(builder.conv(item, squeezed(width), kernel=1), "Relu") for item in pooled
    ]
    scores = [builder.conv(item, width, kernel=1) for item in inner]
    return builder.multiply(source, builder.activation(builder.add(*scores), "Sigmoid"))


def place_gate(builder: GraphBuilder, source: str) -> str:
    """Add a gate per pixel from means and maxima over channels (the same)."""
    size = builder.shapes[source][1:]
    maps = [
        builder.node(kind, [source], (1, *size), axes=[1], keepdims=1)
        for kind in ("ReduceMean", "ReduceMax")
    ]
    gate = builder.conv(builder.concat(maps), 1, kernel=7)
    return builder.multiply(source, builder.activation(gate, "Sigmoid"))


def gated(*gates: Gate) -> Block:
    """Return a residual block with gates, one behind the other."""

    def block(builder: GraphBuilder, source: str, form: Form) -> str:
        inner = builder.conv(plain(builder, source, form), form.width)
        for gate in gates:
            inner = gate(builder, inner)
        return _rejoined(builder, source, inner, form)

    return block


def _rejoined(builder: GraphBuilder, source: str, inner: str, form: Form) -> str:
    """Add what stood before a block to what it made."""
    if builder.shapes[source] != builder.shapes[inner]:
        source = builder.conv(source, form.width, kernel=1, stride=form.stride)
    return builder.activation(builder.add(inner, source), form.activation)


def _shrunk(builder: GraphBuilder, source: str, form: Form) -> str:
    return builder.pool(source) if form.stride == 2 else source


def _widened(builder: GraphBuilder, source: str, form: Form) -> str:
    """Add a layer without windows that overlap where an image has not yet the form's channels and size."""
    if form.stride == 1 and builder.shapes[source][0] == form.width:
        return source
    return builder.conv(source, form.width, kernel=form.stride, stride=form.stride)


JOINED: Sequence[Block] = (fire, inception, densely_joined, shuffle_unit, ghost, cross_stage)
"""Blocks whose branches are joined."""
GATED: Sequence[Block] = (
    gated(squeezed_gate),
    gated(efficient_gate),
    gated(channel_gate, place_gate),
    gated_inverted,
)
"""Blocks whose channels or places are weighted by what they hold."""
NORMED: Sequence[Block] = (instance_normed, group_normed, normed_first)
"""Blocks that normalize while they run."""
MIXED: Sequence[Block] = (
    residual,
    fire,
    gated_inverted,
    cross_stage,
    plain,
    shuffle_unit,
    bottleneck,
    inception,
    inverted,
    gated(channel_gate, place_gate),
    separable,
    densely_joined,
    ghost,
)
"""Blocks that follow one another in networks of several kinds of them."""
