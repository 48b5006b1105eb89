"""Channels of a measured network that some compilers do not compute, because all their weights are zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.layer_tables import MLPERF_TASK_MODELS

from tightfit_service.domain.layer_table import LayerTable
from tightfit_service.domain.network import Operator, OperatorKind

VISUAL_WAKE_WORDS = MLPERF_TASK_MODELS["vww"]
VISUAL_WAKE_WORDS_CHANNELS = (8, 16, 32, 32, 64, 60, 107, 57, 30, 19, 19, 27, 32, 22)
"""Output channels with a weight other than zero, by convolution that is not depthwise, of vww_96_int8.tflite
(mlcommons/tiny): the other 971 of 1496 are constant, and what they feed can be folded into biases. The
rest of the network is 3.7 of 7.5 million products."""

_FIRST_RELEASES = {"x-cube-ai": 8.1, "plumerai": 2023.05}
"""Releases from which compilers drop such channels. Nobody states it; of two neighbouring releases on one board
the later takes half as long for this network, as it does half the products, and as long as before for the
other networks, depthwise ones of public model zoos included."""


def drops_zero_channels(path: Sequence[str]) -> bool:
    """Whether a runtime, from general to special, drops channels whose weights are all zero."""
    first = _FIRST_RELEASES.get(path[0])
    if first is None or len(path) < 2:
        return False
    release = path[1].split("/")[1]
    return release.replace(".", "", 1).isdigit() and float(release) >= first


def without_zero_channels(
    table: LayerTable, live: Sequence[int] = VISUAL_WAKE_WORDS_CHANNELS
) -> LayerTable:
    """Return a chain of layers at the widths that are left; the classifier keeps its outputs.

    Args:
        table: The network, a chain.
        live: Output channels left, by convolution that is not depthwise, in order.
    """
    left = iter(live)
    operators: list[Operator] = []
    tensors = dict(table.profile.tensors)
    channels = 0
    for operator in table.profile.operators:
        before = channels if operators else operator.in_channels
        if operator.kind is OperatorKind.CONV:
            channels = next(left)
        elif operator.weight_count and operator.kind is not OperatorKind.DEPTHWISE_CONV:
            channels = operator.out_channels
        operators.append(operator.resized(before, channels))
        for name in operator.outputs:
            batch, _, *size = tensors[name]
            tensors[name] = (batch, channels, *size)
    return LayerTable(
        profile=replace(table.profile, operators=tuple(operators), tensors=tensors),
        const_bytes=sum(op.weight_count + 4 * op.bias_count for op in operators),
    )
