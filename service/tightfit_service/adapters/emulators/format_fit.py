"""What networks in one number format take on a device, learned from those that it measured."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from tightfit_service.adapters.emulators.operator_process import (
    Observed,
    OperatorProcess,
    Parameters,
    Term,
)
from tightfit_service.adapters.emulators.operator_work import (
    PRODUCTS,
    Kind,
    Work,
    family_of,
    is_operator,
)
from tightfit_service.adapters.emulators.process_tuning import tuned

CONFIDENCE = 0.9
"""Share of measurements that intervals are to hold."""
Z = 1.645
"""Normal quantile of a two-sided 90 % interval."""
LEAST_PRIOR_MS = 1e-6
"""Of a piece of work: a nanosecond, so that its logarithm is finite."""
LABEL_FOLDS = 24
"""Into which labels are parted, whose networks are left out together."""
FOLDS = 8
"""Into which networks are parted whose kinds of work no network of another label has."""
RATIO_FIT_DEVIATION = 0.1
"""Of the logarithm of a network's latency, from what ratios per kind alone can say."""
KIND_DEVIATION = 0.6
"""Of the logarithm of a kind's ratio around that of its family."""
FAMILY_DEVIATION = 2.0
"""Of the logarithm of a family's ratio around the typical one: data that is moved may take ten times what an
emulator says where products take as long as it says."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network takes: the part in kinds that were measured, and the rest.

    Attributes:
        measured_ms: Of the kinds that were measured.
        deviation: Of the logarithm of that.
        other_ms: Of the kinds that were not.
        other_low_ms: Lower bound of it.
        other_high_ms: Upper bound.
    """

    measured_ms: float = 0.0
    deviation: float = 0.0
    other_ms: float = 0.0
    other_low_ms: float = 0.0
    other_high_ms: float = 0.0

    @property
    def value_ms(self) -> float:
        """The whole."""
        return self.measured_ms + self.other_ms

    def bounds(self, stretch: float) -> tuple[float, float]:
        """Return the ends of the 90 % interval of the whole, the deviation stretched.

        The bounds of the parts are added: kinds of which nothing is known may be off together.
        """
        bound = math.exp(Z * stretch * self.deviation)
        return (
            self.measured_ms / bound + self.other_low_ms,
            self.measured_ms * bound + self.other_high_ms,
        )

    def score(self, latency_ms: float) -> float:
        """Return by how many deviations the measured part misses a measurement."""
        return abs(math.log(self.measured_ms / latency_ms)) / self.deviation


@dataclass(frozen=True)
class Unmeasured:
    """What operators take whose kind was never measured, over another emulator's figures.

    Attributes:
        ratios: Typical ratio per family.
        ratio: Typical ratio of all kinds, for families without any.
        low: Lower bound of what kinds of one name take over the typical ratio.
        high: Upper bound.
    """

    ratios: Mapping[Kind, float]
    ratio: float
    low: float
    high: float

    def typical(self, kind: Kind) -> float:
        """Return the ratio that is expected of a kind."""
        return self.ratios.get(family_of(kind), self.ratio)


@dataclass(frozen=True)
class ProfiledWork:
    """What a profiler says of a part of a measured network.

    Attributes:
        place: Of the network.
        works: The part: an operator, and beginning it.
        latency_ms: That it took.
        deviation: Of the logarithm of that, besides the noise that all measurements have.
    """

    place: int
    works: Sequence[Work]
    latency_ms: float
    deviation: float


@dataclass(frozen=True)
class _Learned:
    """What measurements say: ratios of kinds to first guesses, and how operators deviate from these."""

    ratios: Mapping[Kind, float]
    process: OperatorProcess

    def measured(self, works: Sequence[Work]) -> tuple[float, float]:
        """Return what the work of measured kinds takes together in ms, and the deviation of its logarithm."""
        terms = [_term(work, self.ratios) for work in works if work.kind in self.ratios]
        return self.process.network(terms) if terms else (0.0, 0.0)

    def without(
        self, rows: Sequence[int], ratios: Mapping[Kind, float], works: Sequence[Work]
    ) -> _Learned:
        """Return what other measurements say, whose ratios are given; `works` are those of the process's terms."""
        shifts = np.array(
            [
                math.log(_term(work, ratios).prior_ms / term.prior_ms)
                if work.kind in ratios
                else 0.0
                for work, term in zip(works, self.process.terms, strict=True)
            ]
        )
        return _Learned(ratios, self.process.without(rows, shifts))


class FormatFit:
    """Priors and process of a set of measured networks of one number format.

    Attributes:
        works: Of each network.
        stretch: Of the intervals.
    """

    def __init__(
        self,
        works: Sequence[Sequence[Work]],
        latencies_ms: Sequence[float],
        *,
        profiled: Sequence[ProfiledWork] = (),
        parameters: Parameters | None = None,
        stretch: float = 1.0,
    ) -> None:
        """Fit; takes a few seconds, or a minute without `parameters`.

        Args:
            works: Of each network.
            latencies_ms: Their measurements.
            profiled: Parts of networks that were measured besides.
            parameters: Of the process, from an earlier fit.
            stretch: Of the intervals, from an earlier fit.
        """
        self.works, self._latencies = works, latencies_ms
        self.stretch = stretch
        self._rows = _Rows.of(works, latencies_ms, profiled)
        ratios = self._rows.ratios()
        terms = [[_term(work, ratios) for work in row] for row in self._rows.works]
        observed = Observed.of(terms, self._rows.measured_ms, self._rows.deviations)
        process = OperatorProcess(observed, tuned(observed) if parameters is None else parameters)
        self._learned = _Learned(ratios, process)

    @property
    def process(self) -> OperatorProcess:
        """How operators deviate from the ratios of their kinds."""
        return self._learned.process

    def is_measured(self, kind: Kind) -> bool:
        """Whether a kind was measured, or another way of its operator."""
        return kind in self._learned.ratios or _named(kind) in self._commonest

    @cached_property
    def _commonest(self) -> Mapping[Kind, Kind]:
        """The way of each operator that most works were measured of."""
        counts = Counter(work.kind for network in self.works for work in network)
        return {_named(kind): kind for kind, _ in reversed(counts.most_common())}

    def _as_measured(self, work: Work) -> Work:
        """Return work of a way that was not measured as one of the operator's commonest way."""
        if work.kind in self._learned.ratios:
            return work
        return replace(work, kind=self._commonest.get(_named(work.kind), work.kind))

    def work_ms(self, work: Work) -> float:
        """Return what one piece of work takes."""
        work = self._as_measured(work)
        if work.kind not in self._learned.ratios:
            return work.base_ms * self.unmeasured.typical(work.kind)
        term = _term(work, self._learned.ratios)
        return term.prior_ms * float(self.process.gains([term])[0])

    def predict(self, works: Sequence[Work]) -> Prediction:
        """Return what pieces of work take together."""
        return self._predicted([self._as_measured(work) for work in works], self._learned)

    def _predicted(self, works: Sequence[Work], learned: _Learned) -> Prediction:
        measured_ms, deviation = learned.measured(works)
        others = [work for work in works if work.kind not in learned.ratios]
        if not others:
            return Prediction(measured_ms=measured_ms, deviation=deviation)
        other_ms = sum(work.base_ms * self.unmeasured.typical(work.kind) for work in others)
        return Prediction(
            measured_ms=measured_ms,
            deviation=deviation,
            other_ms=other_ms,
            other_low_ms=other_ms * self.unmeasured.low,
            other_high_ms=other_ms * self.unmeasured.high,
        )

    @cached_property
    def unmeasured(self) -> Unmeasured:
        """What kinds take that were never measured, from leaving out the measured ones in turn.

        Kinds of a name that are left out are expected to take the median ratio of the others in their family.
        What their operators take beyond that, each name counting once, gives the bounds.
        """
        logs = self._log_ratios()
        medians = {name: float(np.median(values)) for name, values in logs.items()}
        residuals, weights = [], []
        for name, values in logs.items():
            others = {other: median for other, median in medians.items() if other != name}
            akin = [m for other, m in others.items() if family_of(other) == family_of(name)]
            expected = np.median(akin or list(others.values()) or [medians[name]])
            residuals.append(values - float(expected))
            weights.append(np.full(len(values), 1.0 / len(values)))
        tail = (1.0 - CONFIDENCE) / 2
        low, high = _weighted_quantiles(
            np.concatenate(residuals), np.concatenate(weights), (tail, 1.0 - tail)
        )
        families: defaultdict[Kind, list[float]] = defaultdict(list)
        for name, median in medians.items():
            families[family_of(name)].append(median)
        return Unmeasured(
            ratios={family: math.exp(np.median(found)) for family, found in families.items()},
            ratio=math.exp(np.median(list(medians.values()))),
            low=math.exp(min(low, 0.0)),
            high=math.exp(max(high, 0.0)),
        )

    def _log_ratios(self) -> dict[Kind, FloatArray]:
        """Return per name of kinds what each distinct operator takes over the other emulator's figure."""
        works = list(
            dict.fromkeys(
                work for network in self.works for work in network if is_operator(work.kind)
            )
        )
        terms = [_term(work, self._learned.ratios) for work in works]
        gains = self.process.gains(terms)
        found: defaultdict[Kind, list[float]] = defaultdict(list)
        for work, term, gain in zip(works, terms, gains, strict=True):
            found[_named(work.kind)].append(math.log(term.prior_ms * gain / work.base_ms))
        return {name: np.array(values) for name, values in found.items()}

    def left_out(self, labels: Sequence[str]) -> list[Prediction]:
        """Predict each network by a fit without it, and stretch intervals until they cover.

        A network is predicted without any network of its label and a few other labels, for those of a user
        are of no label that was measured; where that would leave no measurement of one of its kinds, without an
        eighth of those. Parameters of the process and shares of operators stay those of all networks, which
        hardly know a single one. Conformal: V. Vovk, "Cross-conformal predictors", Annals of Mathematics and
        Artificial Intelligence 74, 2015.
        """
        predictions: dict[int, Prediction] = {}
        by_term = {
            _term(work, self._learned.ratios): work for row in self._rows.works for work in row
        }
        works = [by_term[term] for term in self.process.terms]
        for places, absent in self._folds(labels):
            rows = [row for row, place in enumerate(self._rows.places) if place in absent]
            others = self._learned.without(rows, self._rows.ratios(without=rows), works)
            for place in places:
                predictions[place] = self._predicted(self.works[place], others)
        scores = np.sort(
            [
                found.score(self._latencies[place])
                for place, found in predictions.items()
                if not found.other_ms
            ]
        )
        if len(scores):
            rank = min(math.ceil(CONFIDENCE * (len(scores) + 1)), len(scores)) - 1
            self.stretch = max(float(scores[rank]) / Z, 1.0)
        return [predictions[place] for place in range(len(self.works))]

    def _folds(self, labels: Sequence[str]) -> list[tuple[list[int], frozenset[int]]]:
        """Return which networks are predicted together, and which are left out for that."""
        kinds = [{work.kind for work in network} for network in self.works]
        folds = []
        rest = []
        names = list(dict.fromkeys(labels))
        for first in range(min(LABEL_FOLDS, len(names))):
            absent = set(names[first::LABEL_FOLDS])
            own = [place for place, label in enumerate(labels) if label in absent]
            known: set[Kind] = set()
            known.update(*(kinds[p] for p, label in enumerate(labels) if label not in absent))
            covered = [place for place in own if kinds[place] <= known]
            rest += [place for place in own if place not in covered]
            if covered:
                folds.append((covered, frozenset(own)))
        for first in range(min(FOLDS, len(rest))):
            part = sorted(rest)[first::FOLDS]
            folds.append((part, frozenset(part)))
        return folds


@dataclass(frozen=True)
class _Rows:
    """Measurements of networks, and behind them of their parts.

    Attributes:
        places: Of the network of each.
        works: What was measured.
        measured_ms: What it took.
        deviations: Of the logarithm of that, besides the noise that all have.
        typical: Median ratio of measurements of networks to first guesses.
    """

    places: Sequence[int]
    works: Sequence[Sequence[Work]]
    measured_ms: Sequence[float]
    deviations: Sequence[float]
    typical: float

    @classmethod
    def of(
        cls,
        works: Sequence[Sequence[Work]],
        latencies_ms: Sequence[float],
        profiled: Sequence[ProfiledWork],
    ) -> _Rows:
        """Return networks with what profiles tell of their parts."""
        return cls(
            places=[*range(len(works)), *(part.place for part in profiled)],
            works=[*works, *(part.works for part in profiled)],
            measured_ms=[*latencies_ms, *(part.latency_ms for part in profiled)],
            deviations=[0.0] * len(works) + [part.deviation for part in profiled],
            typical=_typical(works, latencies_ms),
        )

    def ratios(self, *, without: Sequence[int] = ()) -> dict[Kind, float]:
        """Return per kind what measurements take over first guesses, some left out."""
        absent = frozenset(without)
        kept = [row for row in range(len(self.works)) if row not in absent]
        return _ratios(
            [self.works[row] for row in kept],
            [self.measured_ms[row] for row in kept],
            [self.deviations[row] for row in kept],
            typical=self.typical,
        )[0]


def _named(kind: Kind) -> Kind:
    """Return what kinds have in common that are ways of one operator in one format, or its layouts."""
    if not is_operator(kind):
        return kind
    return (kind[0], *(mark for mark in kind[1:] if isinstance(mark, int)))


def _term(work: Work, ratios: Mapping[Kind, float]) -> Term:
    """Return a piece of work of a measured kind with its prior."""
    # kinds such as Einsum may have parts in one network that they had in none that was measured
    own = ratios[work.kind]
    prior_ms = sum(guess_ms * ratios.get(part, own) for part, guess_ms in work.parts)
    return Term(
        kind=work.kind,
        family=family_of(work.kind),
        position=work.position,
        prior_ms=max(prior_ms, LEAST_PRIOR_MS),
        is_product=work.kind[0] in PRODUCTS,
    )


def misfit(
    works: Sequence[Sequence[Work]],
    latencies_ms: Sequence[float],
    deviations: Sequence[float] | None = None,
) -> float:
    """Return how badly ratios to first guesses alone explain measurements; for comparing first guesses.

    Args:
        works: Of each network, or of a part of one.
        latencies_ms: Their measurements.
        deviations: Of the logarithms of these, besides the noise that all have; none where absent.
    """
    known = np.zeros(len(works)) if deviations is None else deviations
    return _ratios(works, latencies_ms, known, typical=_typical(works, latencies_ms))[1]


def _typical(works: Sequence[Sequence[Work]], latencies_ms: Sequence[float]) -> float:
    """Return the median ratio of measurements to first guesses."""
    sums = [sum(work.base_ms for work in network) for network in works]
    return float(np.median(np.asarray(latencies_ms) / np.asarray(sums)))


def _ratios(
    works: Sequence[Sequence[Work]],
    latencies_ms: Sequence[float],
    deviations: Sequence[float] | FloatArray,
    *,
    typical: float,
) -> tuple[dict[Kind, float], float]:
    """Return per kind what the measurements take over the first guesses, and how badly that explains them.

    Logarithms of ratios are fitted to those of the latencies. Kinds are drawn towards their family and
    families towards the typical ratio (A. Gelman, J. Hill, "Data Analysis Using Regression and
    Multilevel/Hierarchical Models", Cambridge University Press 2006, chapter 12), so that a kind that
    few networks have is not taken for a product where it moves data. Networks far off do not pull
    (P. J. Huber, "Robust estimation of a location parameter", 1964, in SciPy's soft form).
    """
    kinds = list(
        dict.fromkeys(kind for network in works for work in network for kind, _ in work.parts)
    )
    places = {kind: place for place, kind in enumerate(kinds)}
    sums = np.zeros((len(works), len(kinds)))
    for row, network in enumerate(works):
        for work in network:
            for kind, guess_ms in work.parts:
                sums[row, places[kind]] += guess_ms
    logs = np.log(np.asarray(latencies_ms))
    families = list(dict.fromkeys(family_of(kind) for kind in kinds))
    # unknowns: of each kind how far it is from its family, of each family how far from the typical ratio
    combine = np.zeros((len(kinds), len(kinds) + len(families)))
    for place, kind in enumerate(kinds):
        combine[place, place] = combine[place, len(kinds) + families.index(family_of(kind))] = 1
    scale = np.repeat([KIND_DEVIATION, FAMILY_DEVIATION], [len(kinds), len(families)])
    spread = np.hypot(RATIO_FIT_DEVIATION, deviations)

    def ratios_of(unknowns: FloatArray) -> FloatArray:
        return typical * np.exp(combine @ unknowns)

    def residuals(unknowns: FloatArray) -> FloatArray:
        missed = (np.log(sums @ ratios_of(unknowns)) - logs) / spread
        return np.concatenate([missed, unknowns / scale])

    def slopes(unknowns: FloatArray) -> FloatArray:
        times = sums * ratios_of(unknowns)
        shares = times / times.sum(axis=1, keepdims=True) / spread[:, None]
        return np.concatenate([shares @ combine, np.diag(1 / scale)])

    found = least_squares(
        residuals, np.zeros(len(scale)), jac=slopes, loss="soft_l1", tr_solver="lsmr"
    )
    return dict(zip(kinds, ratios_of(found.x).tolist(), strict=True)), float(found.cost)


def _weighted_quantiles(
    values: FloatArray, weights: FloatArray, levels: Sequence[float]
) -> list[float]:
    """Return the least values that the given shares of the weight are at or below."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    places = np.searchsorted(reached, levels)
    return [float(values[order][min(place, len(values) - 1)]) for place in places]
