"""What profiles say that operators took which are no products: all of a kind in a network together.

Runtimes take some operators apart and run others as one. So the runtime's operators of a name are taken
for those of the network only where both are as many, and where the profiler tells the sizes of outputs,
where these agree as well.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tightfit_service.adapters.emulators.format_fit import ProfiledWork
from tightfit_service.adapters.emulators.operator_work import (
    PRODUCTS,
    Unit,
    WorkOf,
    network_bits,
)
from tightfit_service.adapters.emulators.timed_products import (
    OWN_DEVIATION,
    TICK_DEVIATION_MS,
    believed,
    profiling_ms,
)
from tightfit_service.domain.calibration import Observation
from tightfit_service.domain.measurement import OperatorTime

LEAST_SHARE = 0.02
"""Of a network's latency, for a kind to be of interest."""
MOST_DEVIATION = 0.25
"""Of the logarithm of what a kind takes; a profile that says less exactly is not worth a measurement."""
INT8 = 8
"""Bits of activations up to which they are integers."""
Names = frozenset[str]
_SUMS = frozenset({"Add", "Add behind a convolution", "Add and activation behind a convolution"})
_LITERT: Mapping[str, Names] = {
    word: frozenset(names)
    for names, words in (
        (("Sigmoid",), ("sigmoid", "logistic")),
        (("Tanh",), ("tanh",)),
        (("Softmax",), ("softmax",)),
        (("LogSoftmax",), ("log_softmax",)),
        (("HardSwish",), ("hardswish", "hard_swish")),
        (("LeakyRelu",), ("leakyrelu", "leaky_relu")),
        (("PRelu",), ("prelu",)),
        (("Elu",), ("elu",)),
        (("Relu",), ("relu",)),
        (("Clip",), ("relu6",)),
        (("Gelu", "spelled Gelu"), ("gelu",)),
        (("MaxPool",), ("max pooling", "max_pool_2d")),
        (("AveragePool",), ("average pooling", "average_pool_2d")),
        (("Resize",), ("resize bilinear", "resize_bilinear", "resize_nearest_neighbor")),
        (("Concat",), ("concatenation",)),
        (("ReduceMax", "GlobalMaxPool"), ("reduce max", "reduce_max")),
        (("ReduceMean", "GlobalAveragePool"), ("mean",)),
        (("ReduceSum",), ("sum",)),
        (("Abs",), ("abs",)),
        (("Exp",), ("exp",)),
        (("Log",), ("log",)),
        (("Neg",), ("neg", "negate")),
        (("Sqrt",), ("square root", "sqrt")),
        (("Pow",), ("pow",)),
        (("Sub",), ("subtract", "sub")),
        (("Div",), ("divide", "div")),
        (("Min",), ("minimum",)),
        (("Max",), ("maximum",)),
        (("ArgMax",), ("arg_max",)),
        (("TopK",), ("topk_v2",)),
        (("DepthToSpace",), ("depth_to_space",)),
        (("Slice with steps",), ("strided_slice",)),
        (("Gather",), ("gather", "gather_nd")),
        (("Cast",), ("cast",)),
        (("Expand", "Tile"), ("broadcast_to", "tile")),
        (("Pad",), ("constant pad", "pad", "padv2")),
    )
    for word in words
}
"""By the words of XNNPACK (`Sigmoid (NC, F32)`) and of TensorFlow Lite's own kernels, in small letters, what they
compute; without those that other operators are taken apart into as well (sums, products, changes of shape)."""
_ONNXRUNTIME: Mapping[str, Names] = {
    "Add": _SUMS,
    "Gelu": frozenset({"Gelu", "spelled Gelu"}),
    "QuickGelu": frozenset({"gated Sigmoid"}),
    "Upsample": frozenset({"Resize"}),
    "Slice": frozenset({"Slice", "Slice with steps"}),
}
"""Of the names in its graph, those that are not ONNX's."""
_OWN_INT8 = re.compile(r"^(QLinear|Nhwc)")
"""Of operators in int8; all others are computed in float32, between conversions that are told apart from them."""


def timed_units(observations: Sequence[Observation], work_of: WorkOf) -> list[ProfiledWork]:
    """Return what profiles of networks say of kinds of operators that are no products.

    Args:
        observations: Measured networks of one number format; places are theirs.
        work_of: Tells what the networks do.
    """
    return [
        found
        for place, item in believed(observations)
        for found in _of_network(place, item, work_of)
    ]


def _of_network(place: int, item: Observation, work_of: WorkOf) -> Iterator[ProfiledWork]:
    waiting = [
        unit
        for unit in work_of.units(item.profile)
        if unit.works and unit.works[0].kind[0] not in PRODUCTS
    ]
    by_names: defaultdict[Names, list[OperatorTime]] = defaultdict(list)
    is_int8 = network_bits(item.profile) <= INT8
    for operator in item.operators:
        names = _names(operator, is_int8=is_int8)
        if names:
            by_names[names].append(operator)
    own_ms = profiling_ms(item)
    for names, operators in by_names.items():
        units = [
            unit for unit in waiting if unit.name in names and "in float" not in unit.works[0].kind
        ]
        if not _correspond(units, operators):
            continue
        latency_ms = sum(operator.latency_ms for operator in operators) - own_ms * len(operators)
        doubt_ms = len(operators) * math.hypot(TICK_DEVIATION_MS, OWN_DEVIATION * own_ms)
        if latency_ms < max(LEAST_SHARE * item.latency_ms, doubt_ms / MOST_DEVIATION):
            continue
        works = [work for unit in units for work in unit.works]
        yield ProfiledWork(place, works, latency_ms, doubt_ms / latency_ms)


def _names(operator: OperatorTime, *, is_int8: bool) -> Names:
    """Return which operators of a network are run under a name, none where that is not certain."""
    if not operator.output_elements:
        return _LITERT.get(operator.kind.split(" (")[0].lower(), frozenset())
    name, count = _OWN_INT8.subn("", operator.kind)
    if is_int8 and not count:
        return frozenset()
    return _ONNXRUNTIME.get(name, frozenset({name}))


def _correspond(units: Sequence[Unit], operators: Sequence[OperatorTime]) -> bool:
    if len(units) != len(operators):
        return False
    sizes = sorted(operator.output_elements for operator in operators)
    return not any(sizes) or sizes == sorted(unit.elements for unit in units)
