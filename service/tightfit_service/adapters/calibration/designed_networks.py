"""The designed set: chains of one kind of layer, families that edge teams use, and other operators.

Chains tell the kinds of layers apart; networks tell what layers cost among others: fused into one
another, with caches that somebody else filled. Widths and sizes follow Sobol sequences, so that a short
set covers the space evenly and a longer one contains the shorter.
"""

from __future__ import annotations

from tightfit_service.adapters.calibration import (
    attention,
    blocks,
    chains,
    dense_outputs,
    families,
    image_networks,
    image_steps,
    series_networks,
    single_operators,
    varied,
)
from tightfit_service.adapters.calibration.chains import Maker
from tightfit_service.adapters.calibration.points import Point
from tightfit_service.application.ports import DesignedNetwork

MOST_MACS = 60e6
"""Of one network; wider ones are narrowed. A Cortex-A core takes about 10 ms for them."""
SHRINK_STEP = 0.8
"""Factor on the coordinates of a point whose network is too large, until it is not."""
LEAST_SHRINK = 0.05
"""Where the sizes are the smallest that there are, and no smaller network can follow."""


class DesignedNetworks:
    """Implements `CalibrationNetworks`; graphs are seeded: an index always means the same one."""

    def graph(self, index: int) -> DesignedNetwork:
        """Return the network of an index from 0 on."""
        cycle, place = divmod(index, len(CYCLE))
        label = CYCLE[place]
        number = cycle * CYCLE.count(label) + CYCLE[:place].count(label)
        point, shrink = Point.of(number, label), 1.0
        while True:
            builder = _MAKERS[label](point.shrunk(shrink), index)
            if builder.macs <= MOST_MACS or shrink < LEAST_SHRINK:
                break
            shrink *= SHRINK_STEP
        return DesignedNetwork(label=label, graph=builder.build())


_MAKERS: dict[str, Maker] = {
    "conv 3x3": chains.conv_chain(3, 1),
    "conv 1x1": chains.conv_chain(1, 1),
    "conv 3x3 stride 2": chains.conv_chain(3, 2),
    "wide conv": chains.wide_conv_chain,
    "grouped conv": chains.grouped_chain,
    "dilated conv": chains.dilated_chain,
    "transposed conv": chains.transposed_chain,
    "depthwise 3x3": chains.depthwise_chain(3, 1),
    "wide depthwise": chains.wide_depthwise_chain,
    "dense": chains.dense_chain,
    "pooling": chains.pool_chain,
    "concatenation": chains.concat_chain,
    "plain network": families.plain,
    "residual network": families.residual_network,
    "separable network": families.separable_network,
    "channels last": families.channels_last,
    "inverted residuals": families.inverted_network,
    "joined branches": families.of_blocks(blocks.JOINED),
    "gated network": families.of_blocks(blocks.GATED),
    "normalized network": families.of_blocks(blocks.NORMED),
    "patch network": families.of_blocks((blocks.patch_block,)),
    "convolutions and tokens": families.of_blocks((blocks.token_block,)),
    "mixed network": families.of_mixed_blocks(blocks.MIXED),
    "detector": dense_outputs.detector,
    "encoder and decoder": dense_outputs.encoder_decoder,
    "sequence network": families.sequence,
    "transformer": families.transformer,
    "recurrent network": families.recurrent,
    "causal network": families.causal,
    "read lines": families.read_lines,
    "hard activations": chains.activation_chain(
        "HardSwish", "SpelledHardSwish", "HardSigmoid", "GatedHardSigmoid", "Relu6"
    ),
    "smooth activations": chains.activation_chain("Sigmoid", "Tanh", "Silu", "Mish"),
    "gelu": chains.activation_chain("SpelledGelu", "Gelu", "SpelledTanhGelu", "Erf"),
    "leaky activations": chains.activation_chain("LeakyRelu", "PRelu", "Elu"),
    "rarer activations": chains.activation_chain("Softplus", "Selu", "Celu", "Softsign"),
    "arithmetic": image_steps.in_turn(
        *(image_steps.two_operands(kind) for kind in ("Mul", "Div", "Sub", "Max", "Min"))
    ),
    "functions": image_steps.in_turn(
        *(image_steps.one_operand(kind) for kind in ("Pow", "Sqrt", "Exp", "Abs", "Log", "Neg"))
    ),
    "normalization": image_steps.in_turn(
        image_steps.last_axis_norm,
        image_steps.instance_norm,
        image_steps.local_response_norm,
        image_steps.group_norm,
        side=32,
        most=4,
    ),
    "spelled normalization": image_steps.in_turn(
        image_steps.spelled_norm(1), image_steps.spelled_norm(3), side=32, most=4
    ),
    "reductions": image_steps.in_turn(
        image_steps.reduced("ReduceMean", (2, 3)),
        image_steps.reduced("ReduceMax", (1,)),
        image_steps.reduced("ReduceL2", (1,)),
        image_steps.reduced("ReduceMean", (1,)),
        image_steps.reduced("ReduceMax", (2, 3)),
        image_steps.reduced("ReduceSum", (2, 3)),
        image_steps.reduced("GlobalMaxPool", (2, 3)),
        image_steps.reduced("ReduceSum", (1,)),
    ),
    "movement": image_steps.in_turn(
        *image_steps.MOVEMENTS,
        image_steps.expanded,
        image_steps.chosen,
    ),
    "resizing": image_steps.in_turn(
        image_steps.resized("nearest"), image_steps.resized("linear"), side=32
    ),
    "grid sampling": single_operators.sampled,
    "greatest values": single_operators.top_values,
    "long softmax": single_operators.long_softmax,
    "token products": single_operators.token_products,
    "packed transformer": attention.packed_transformer,
    "windowed transformer": attention.windowed_transformer,
    "mixed tokens": attention.mixed_tokens,
    "embedded words": attention.embedded_words,
    "older network": image_networks.older,
    "squeezed network": image_networks.squeezed_network,
    "grouped network": image_networks.grouped_network,
    "lined kernels": image_networks.lined,
    "pyramid": image_networks.pyramid,
    "enlarged image": image_networks.enlarged,
    "autoencoder": image_networks.autoencoder,
    "bordered network": image_networks.bordered,
    "attended image": image_networks.attended,
    "gated series": series_networks.gated_series,
    "residual series": series_networks.residual_series,
    "joined series": series_networks.joined_series,
    "separable series": series_networks.separable_series,
    "sound": series_networks.heard,
    "recurrent encoder": series_networks.recurrent_encoder,
    "recurrent frames": series_networks.recurrent_frames,
    "varied steps": varied.steps,
    "varied blocks": varied.blocks,
}

_FIRST = (
    "conv 3x3",
    "plain network",
    "conv 1x1",
    "residual network",
    "depthwise 3x3",
    "separable network",
    "inverted residuals",
    "dense",
    "sequence network",
    "transformer",
)
"""What most networks are made of; twice in a cycle."""
CYCLE = (
    *_FIRST,
    "mixed network",
    "joined branches",
    "detector",
    "conv 3x3 stride 2",
    "recurrent network",
    "movement",
    "reductions",
    "normalization",
    "hard activations",
    "pooling",
    "gelu",
    "concatenation",
    "gated network",
    "mixed network",
    "wide depthwise",
    "smooth activations",
    "wide conv",
    "spelled normalization",
    "grouped conv",
    "arithmetic",
    "resizing",
    "varied steps",
    "packed transformer",
    "older network",
    "gated series",
    "windowed transformer",
    "varied blocks",
    "residual series",
    "pyramid",
    "recurrent encoder",
    "bordered network",
    "embedded words",
    "squeezed network",
    "joined series",
    *_FIRST,
    "mixed network",
    "joined branches",
    "detector",
    "patch network",
    "encoder and decoder",
    "movement",
    "recurrent network",
    "normalization",
    "reductions",
    "functions",
    "leaky activations",
    "transposed conv",
    "dilated conv",
    "mixed network",
    "normalized network",
    "convolutions and tokens",
    "causal network",
    "read lines",
    "token products",
    "long softmax",
    "rarer activations",
    "channels last",
    "grid sampling",
    "greatest values",
    "varied steps",
    "packed transformer",
    "grouped network",
    "separable series",
    "mixed tokens",
    "enlarged image",
    "varied blocks",
    "sound",
    "lined kernels",
    "recurrent frames",
    "autoencoder",
    "attended image",
)
"""Labels in the order of the indices, over and over."""
