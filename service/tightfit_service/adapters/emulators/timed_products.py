"""What profiles say that the products of measured networks took."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tightfit_service.adapters.emulators.operator_work import Work, WorkOf
from tightfit_service.adapters.emulators.profiled_operators import profiled_products
from tightfit_service.domain.calibration import Observation
from tightfit_service.domain.network import Operator

LEAST_PROFILED_MS = 2e-3
"""Of an operator that a profiler tells; what takes a tick or less is hardly told."""
TICK_DEVIATION_MS = 1e-3
"""Of what a profiler says that counts whole microseconds, cut off. A uniform number in one would deviate by 0.3,
and left-out networks of the designed set were predicted worse by it: a kernel ends in the same part of a
microsecond run after run."""
OWN_DEVIATION = 0.5
"""Of what profiling itself takes per operator, which is known of all of them together only. Some profilers take
microseconds, as long as many operators do; what takes less than its own profiling is not believed."""
OTHER_STATE = 0.3
"""Of a network's latency, that the sum of its profile may be off it besides the profiler's own time. Profiles are
runs of their own, and a process may be slower than the one before by half, whatever it runs."""


@dataclass(frozen=True)
class TimedProduct:
    """What a profile says of a product, or of several alike in one network.

    Attributes:
        place: Of the network.
        operator: The product.
        latency_ms: That it took.
        doubt_ms: Deviation of that, besides the ticks that profilers count in.
    """

    place: int
    operator: Operator
    latency_ms: float
    doubt_ms: float

    @property
    def deviation(self) -> float:
        """Of the logarithm of the latency."""
        return math.hypot(TICK_DEVIATION_MS, self.doubt_ms) / self.latency_ms


def timed_products(observations: Sequence[Observation], work_of: WorkOf) -> list[TimedProduct]:
    """Return what profiles of networks say of their products, leaving out what was another state of the device.

    Args:
        observations: Measured networks; places are theirs.
        work_of: Tells which products are alike.
    """
    return [
        product
        for place, item in believed(observations)
        for product in _of_network(place, item, work_of)
    ]


def believed(observations: Sequence[Observation]) -> Iterator[tuple[int, Observation]]:
    """Yield the networks with a profile in the state of the device that the network was measured in."""
    own_ms = {
        place: _beyond_ms(item) / len(item.operators)
        for place, item in enumerate(observations)
        if item.operators
    }
    typical_ms = max(float(np.median(list(own_ms.values()))), 0.0) if own_ms else 0.0
    for place in own_ms:
        item = observations[place]
        strange_ms = _beyond_ms(item) - typical_ms * len(item.operators)
        if abs(strange_ms) <= OTHER_STATE * item.latency_ms:
            yield place, item


def profiling_ms(item: Observation) -> float:
    """Return what profiling takes per operator: what the profile says beyond the network in other runs."""
    return max(_beyond_ms(item), 0.0) / len(item.operators)


def _beyond_ms(item: Observation) -> float:
    """Return what all operators take by the profile beyond the network in other runs."""
    return sum(found.latency_ms for found in item.operators) - item.latency_ms


def _of_network(place: int, item: Observation, work_of: WorkOf) -> list[TimedProduct]:
    """Return what the profile of a network says of its products: of those alike the mean.

    What the profile says beyond the network in other runs is the profiler's own time, which is taken off
    each operator evenly, and leaves each in doubt.
    """
    own_ms = profiling_ms(item)
    alike: defaultdict[tuple[Work, ...], list[tuple[Operator, float]]] = defaultdict(list)
    for operator, latency_ms in profiled_products(item.profile, item.operators):
        alike[work_of.operator(operator)].append((operator, latency_ms - own_ms))
    means = [(own[0][0], float(np.mean([ms for _, ms in own]))) for own in alike.values()]
    return [
        TimedProduct(place, operator, latency_ms, OWN_DEVIATION * own_ms)
        for operator, latency_ms in means
        if latency_ms >= max(LEAST_PROFILED_MS, own_ms)
    ]
