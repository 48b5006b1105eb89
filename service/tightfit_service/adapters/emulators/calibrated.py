"""An emulator corrected by what one device measured of the designed set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tightfit_service.adapters.emulators.correctable import correctable
from tightfit_service.adapters.emulators.format_fit import (
    FormatFit,
    Prediction,
    ProfiledWork,
)
from tightfit_service.adapters.emulators.kernel_tiles import Tile, Tiles
from tightfit_service.adapters.emulators.learned_fit import LearnedFit, kinds_of
from tightfit_service.adapters.emulators.onnxruntime_graph import absorbed
from tightfit_service.adapters.emulators.operator_chains import operators_together
from tightfit_service.adapters.emulators.operator_work import (
    TILED,
    Kind,
    Work,
    WorkOf,
    is_operator,
    is_product,
    kind_name,
    nearest,
    network_bits,
)
from tightfit_service.adapters.emulators.tile_search import find_tiles
from tightfit_service.adapters.emulators.timed_products import timed_products
from tightfit_service.adapters.emulators.timed_units import timed_units
from tightfit_service.application.ports import Emulator
from tightfit_service.domain.calibration import FitExamination, FitQuality, Observation
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.domain.quantities import Interval

LEAST_OBSERVATIONS = 24
"""In all formats together; of fewer nothing is learned at all."""
LEAST_OF_FORMAT = 8
"""Measured networks of a number format; of fewer nothing is learned."""
NAMED_KINDS = 8
"""Of those that were not measured, in a warning; the rest are counted."""
LEARNED_FORM = 11.0
"""Raised when what is learned means something else: then it is found again."""
MEASURED, NOT_MEASURED = "kind measured", "kind not measured"


class CalibratedEmulator:
    """Corrects the latency of another emulator (port `Emulator`); energy follows, memory stays.

    An operator takes what beginning it takes and what its work takes. The prior of a product is a sum over
    what its matrices need, in the tiles that explain the measurements best (`tile_search`); that of other work
    is the other emulator's figure beyond that of the least operator. Least squares on the networks find ratios to
    these first guesses per kind and number format; a Gaussian process over operators (`operator_process`) corrects
    it by shape, and says how sure it is. Kinds that no measured network has take what measured kinds
    typically do, with an interval as wide as leaving out measured kinds shows (`format_fit`).
    """

    def __init__(
        self,
        *,
        base: Emulator,
        target: HardwareSpec,
        observations: Sequence[Observation],
        learned: Sequence[float] = (),
    ) -> None:
        """Fit; takes a second, or a minute without `learned`.

        Args:
            base: The emulator that is corrected.
            target: What was measured.
            observations: What was measured of it.
            learned: From an earlier fit to the same observations; one of another form is not used.

        Raises:
            InvalidRequestError: Too few observations.
        """
        used = _places_by_bits(observations)
        if len(observations) < LEAST_OBSERVATIONS or not used:
            raise InvalidRequestError(
                f"{len(observations)} measured networks are too few to correct an emulator",
                field="observations",
                remedy=f"measure at least {LEAST_OBSERVATIONS}",
            )
        self._base = base
        self._target = target
        self._count = sum(len(places) for places in used.values())
        self._fits: dict[int, FormatFit] = {}
        self.left_out: dict[int, Interval] = {}
        """By place, what a fit without an observation and its like says of it, in ms; none with `learned`."""
        self._times: dict[Work, float] = {}
        grouped = {bits: [observations[place] for place in places] for bits, places in used.items()}
        untiled = WorkOf(
            base=base,
            target=target,
            least_ms=_least_ms(base, target, observations),
            mac_ms=_mac_ms(base, target, observations),
            tiles={bits: dict.fromkeys(TILED, Tile()) for bits in used},
        )
        known = _known(learned, grouped, untiled)
        tiles = {
            bits: known[bits].tiles if known else find_tiles(own, untiled, bits)
            for bits, own in grouped.items()
        }
        self._work_of = replace(untiled, tiles=tiles)
        for bits, own in grouped.items():
            self._fits[bits] = fit = _fit(own, self._work_of, known.get(bits))
            if known:
                continue
            found = fit.left_out([item.label for item in own])
            intervals = [_interval(item, fit.stretch) for item in found]
            self.left_out.update(zip(used[bits], intervals, strict=True))

    @property
    def learned(self) -> tuple[float, ...]:
        """What takes long to find: its form, then per format what `LearnedFit` has."""
        return LEARNED_FORM, *(
            value
            for bits, fit in self._fits.items()
            for value in LearnedFit(
                self._work_of.tiles[bits], fit.process.parameters, fit.stretch
            ).values(kinds_of(fit.works))
        )

    @property
    def tiles(self) -> Mapping[int, Tiles]:
        """What matrix kernels were found to compute at a time, by bits of activations."""
        return self._work_of.tiles

    @property
    def name(self) -> str:
        """Name of the other emulator, marked."""
        return f"{self._base.name}+calibration"

    def supports(self, target: HardwareSpec) -> bool:
        """Whether it is the target that was measured."""
        return target.name == self._target.name

    def operator_cost(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        """Return the cost of one operator; latency in ms, energy in mJ."""
        cost = self._base.operator_cost(operator, target)
        works = self._work_of.operator(operator)
        if not works:
            return replace(cost, latency_ms=0.0, energy_mj=0.0)
        latency_ms = self._work_ms(works)
        source = MEASURED if self._is_measured(self._work_of.kind(operator)) else NOT_MEASURED
        return replace(_at_latency(cost, latency_ms), provenance=source)

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        """Return what the other emulator says: memory was not measured."""
        return self._base.memory_points(network, target)

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        """Return the cost of a network; its latency with the interval that the measurements justify."""
        cost = self._base.estimate(network, target, file_bytes=file_bytes)
        works = self._work_of.network(network)
        found = self._predict(works)
        latency = _interval(found, 1.0)
        energy = cost.energy_mj.scaled(latency.value / cost.latency_ms.value)
        warnings = cost.warnings
        if found.other_ms:
            # energy is as unknown as the latency that it follows
            energy = replace(
                energy,
                low=energy.low * latency.low / latency.value,
                high=energy.high * latency.high / latency.value,
            )
            warnings = (*warnings, self._warning(works, found))
        return replace(
            cost,
            latency_ms=latency,
            energy_mj=energy,
            layers=self._layers(network),
            provenance=(
                f"{self._base.name} corrected by {self._count} networks measured on "
                f"{self._target.name}; the 90 % interval is that of left-out networks"
            ),
            warnings=warnings,
        )

    def _layers(self, network: NetworkProfile) -> tuple[OperatorCost, ...]:
        costs = {op.node: self.operator_cost(op, self._target) for op in network.operators}
        for item in operators_together(network):
            together = self._work_of.together(item)
            members = [costs[op.node] for op in item.operators]
            share = self._work_ms(together) / sum(member.latency_ms for member in members)
            source = MEASURED if self._is_measured(together[0].kind) else NOT_MEASURED
            for member in members:
                own = _at_latency(member, member.latency_ms * share)
                costs[member.node] = replace(own, provenance=source)
        for node in absorbed(network, self._target):
            costs[node] = replace(_at_latency(costs[node], 0.0), provenance=MEASURED)
        return tuple(costs[op.node] for op in network.operators)

    def _predict(self, works: Sequence[Work]) -> Prediction:
        """Return what works take, their deviation stretched as that of left-out networks is."""
        groups: defaultdict[int, list[Work]] = defaultdict(list)
        for work in works:
            groups[int(work.kind[-1])].append(work)
        fits = {bits: self._fit_of(bits) for bits in groups}
        parts = {bits: fits[bits].predict(group) for bits, group in groups.items()}
        measured_ms = sum(part.measured_ms for part in parts.values())
        spread = math.hypot(
            *(part.measured_ms * part.deviation * fits[b].stretch for b, part in parts.items())
        )
        return Prediction(
            measured_ms=measured_ms,
            deviation=spread / measured_ms if measured_ms else 0.0,
            other_ms=sum(part.other_ms for part in parts.values()),
            other_low_ms=sum(part.other_low_ms for part in parts.values()),
            other_high_ms=sum(part.other_high_ms for part in parts.values()),
        )

    def _fit_of(self, bits: int) -> FormatFit:
        """Return the fit of activations of so many bits, or of the nearest number of them."""
        return nearest(self._fits, bits)

    def _is_measured(self, kind: Kind) -> bool:
        return self._fit_of(int(kind[-1])).is_measured(kind)

    def _work_ms(self, works: Sequence[Work]) -> float:
        for work in works:
            if work not in self._times:
                self._times[work] = self._fit_of(int(work.kind[-1])).work_ms(work)
        return sum(self._times[work] for work in works)

    def _warning(self, works: Sequence[Work], found: Prediction) -> str:
        kinds = dict.fromkeys(
            kind_name(work.kind)
            for work in works
            if is_operator(work.kind) and not self._is_measured(work.kind)
        )
        named = ", ".join(list(kinds)[:NAMED_KINDS])
        more = f" and {len(kinds) - NAMED_KINDS} more" if len(kinds) > NAMED_KINDS else ""
        return (
            f"operators of kinds that the calibration did not measure: {named}{more}; their "
            f"{found.other_ms / found.value_ms:.0%} of the latency may be "
            f"{found.other_low_ms / found.other_ms:.2g} to "
            f"{found.other_high_ms / found.other_ms:.2g} times as much"
        )


class ProcessFitter:
    """Implements `EmulatorFitter` with `CalibratedEmulator`."""

    def fit(
        self,
        base: Emulator,
        target: HardwareSpec,
        observations: Sequence[Observation],
        learned: Sequence[float] = (),
    ) -> CalibratedEmulator:
        """See `EmulatorFitter`."""
        return CalibratedEmulator(
            base=correctable(base), target=target, observations=observations, learned=learned
        )

    def examine(
        self, base: Emulator, target: HardwareSpec, observations: Sequence[Observation]
    ) -> FitExamination:
        """See `EmulatorFitter`."""
        fitted = self.fit(base, target, observations)
        of_format: defaultdict[NumberFormat, list[int]] = defaultdict(list)
        for place in sorted(fitted.left_out):
            of_format[observations[place].number_format].append(place)
        quality = tuple(
            _quality(
                number_format,
                measured=[observations[place].latency_ms for place in places],
                predicted=[fitted.left_out[place] for place in places],
                before=[
                    base.estimate(observations[place].profile, target).latency_ms.value
                    for place in places
                ],
            )
            for number_format, places in of_format.items()
        )
        return FitExamination(quality=quality, learned=fitted.learned)


def _places_by_bits(observations: Sequence[Observation]) -> dict[int, list[int]]:
    """Return the places of networks by the bits of their activations, where there are enough."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place, item in enumerate(observations):
        places[network_bits(item.profile)].append(place)
    return {bits: places[bits] for bits in sorted(places) if len(places[bits]) >= LEAST_OF_FORMAT}


def _least_ms(base: Emulator, target: HardwareSpec, observations: Sequence[Observation]) -> float:
    """Return what an emulator says of the least operator: most of it is no work."""
    return min(
        base.operator_cost(operator, target).latency_ms
        for item in observations
        for operator in item.profile.operators
        if operator.kind is not OperatorKind.RESHAPE
    )


def _mac_ms(base: Emulator, target: HardwareSpec, observations: Sequence[Observation]) -> float:
    """Return what an emulator says of a multiply-accumulate where it is cheapest; without any, of the least work."""
    return min(
        (
            base.operator_cost(operator, target).latency_ms / operator.macs
            for item in observations
            for operator in item.profile.operators
            if is_product(operator)
        ),
        default=_least_ms(base, target, observations),
    )


def _fit(
    observations: Sequence[Observation], work_of: WorkOf, known: LearnedFit | None
) -> FormatFit:
    """Return a fit to measured networks of one number format, from what an earlier one has learned if any."""
    return FormatFit(
        [work_of.network(item.profile) for item in observations],
        [item.latency_ms for item in observations],
        profiled=[
            ProfiledWork(
                place=product.place,
                works=work_of.operator(product.operator),
                latency_ms=product.latency_ms,
                deviation=product.deviation,
            )
            for product in timed_products(observations, work_of)
        ]
        + timed_units(observations, work_of),
        parameters=known.parameters if known else None,
        stretch=known.stretch if known else 1.0,
    )


def _known(
    learned: Sequence[float], grouped: Mapping[int, Sequence[Observation]], work_of: WorkOf
) -> dict[int, LearnedFit]:
    """Return `CalibratedEmulator.learned` in its parts, by bits; nothing if it has another form."""
    if not learned or learned[0] != LEARNED_FORM:
        return {}
    found, rest = {}, learned[1:]
    for bits, own in grouped.items():
        kinds = kinds_of([work_of.network(item.profile) for item in own])
        size = LearnedFit.size(kinds)
        if len(rest) < size:
            return {}
        found[bits], rest = LearnedFit.of(rest[:size], kinds), rest[size:]
    return {} if rest else found


def _at_latency(cost: OperatorCost, latency_ms: float) -> OperatorCost:
    """Return a cost at another latency; energy follows."""
    ratio = latency_ms / cost.latency_ms if cost.latency_ms else 1.0
    return replace(cost, latency_ms=latency_ms, energy_mj=cost.energy_mj * ratio)


def _interval(found: Prediction, stretch: float) -> Interval:
    low, high = found.bounds(stretch)
    return Interval(value=found.value_ms, low=low, high=high)


def _quality(
    number_format: NumberFormat,
    *,
    measured: Sequence[float],
    predicted: Sequence[Interval],
    before: Sequence[float],
) -> FitQuality:
    truth = np.array(measured)
    after = np.abs(np.array([item.value for item in predicted]) / truth - 1)
    is_covered = [
        item.low <= latency_ms <= item.high
        for item, latency_ms in zip(predicted, measured, strict=True)
    ]
    return FitQuality(
        number_format=number_format,
        count=len(measured),
        median_error=float(np.median(after)),
        p90_error=float(np.percentile(after, 90)),
        within_10_percent=float(np.mean(after <= 0.1)),
        median_error_before=float(np.median(np.abs(np.array(before) / truth - 1))),
        coverage=float(np.mean(is_covered)),
    )
