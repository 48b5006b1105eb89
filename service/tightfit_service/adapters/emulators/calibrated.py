"""An emulator corrected by what one device measured of the designed set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from tightfit_service.adapters.emulators.operator_process import LENGTHS, OperatorProcess, Term
from tightfit_service.application.ports import Emulator
from tightfit_service.domain.calibration import FitExamination, FitQuality, Observation
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.domain.quantities import Interval

CONFIDENCE = 0.9
Z = 1.645
"""Normal quantile of a two-sided 90 % interval."""
LEAST_OBSERVATIONS = 24
UNSEEN_DEVIATION = 0.5
"""Of the logarithm, for kinds of operators that the set does not have."""
LEAST_PRIOR_MS = 1e-6
LEAST_WORK_SHARE = 0.05
"""Of an operator's cost, for those that another emulator takes for little more than their beginning."""
BORDER_MS = 3e-7
"""First guess per element that enters or leaves a network: converted once at 3 elements a nanosecond."""
CALL_MS = 5e-3
"""First guess of what calling the runtime takes."""
FOLDS = 8
RATIO_FIT_DEVIATION = 0.2
"""Of the logarithm of a network's latency, from what ratios per kind alone can say."""
RATIO_DEVIATION = 1.5
"""Of the logarithm of a kind's ratio around the typical one."""
PRODUCTS = frozenset(
    {"conv", "pointwise", "depthwise_conv", "transposed_conv", "dense", "matmul", "recurrent"}
)
_FREE = frozenset({OperatorKind.RESHAPE})
_CALL, _BEGIN, _INPUT, _OUTPUT = "call", "begin", "input", "output"
_NOWHERE = (0.0,) * len(LENGTHS)

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Work:
    """An operator, a border of the network or the call itself, with the other emulator's figure."""

    kind: Hashable
    position: tuple[float, ...]
    base_ms: float


class _Fit:
    """Priors and process of a set of measured networks."""

    def __init__(
        self,
        works: Sequence[Sequence[_Work]],
        latencies_ms: Sequence[float],
        *,
        ratio: float,
        parameters: FloatArray | None = None,
    ) -> None:
        self._ratio = ratio
        self._ratios = _ratios(works, latencies_ms, typical=ratio)
        self._kinds = set(self._ratios)
        terms = [[self.term(work) for work in network] for network in works]
        self.process = OperatorProcess(terms, latencies_ms, parameters=parameters)

    def term(self, work: _Work) -> Term:
        """Return a piece of work with its prior."""
        return Term(
            work.kind,
            _family(work.kind),
            work.position,
            max(work.base_ms * self._ratios.get(work.kind, self._ratio), LEAST_PRIOR_MS),
        )

    def predict(self, works: Sequence[_Work]) -> tuple[float, float, float]:
        """Return the time in ms, the deviation of its logarithm, and the share of unseen kinds."""
        terms = [self.term(work) for work in works]
        latency_ms, deviation = self.process.network(terms)
        unseen = sum(t.prior_ms for t in terms if t.kind not in self._kinds) / latency_ms
        return latency_ms, deviation, min(unseen, 1.0)


class CalibratedEmulator:
    """Corrects the latency of another emulator (port `Emulator`); energy follows, memory stays.

    An operator takes what beginning it takes and what its work takes. The prior of its work is the other
    emulator's figure beyond that of the least operator, times a ratio per kind and number format that
    least squares on the networks find; a Gaussian process over operators (`operator_process`) corrects
    it by shape, and says how sure it is.
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
            learned: From an earlier fit to the same observations.

        Raises:
            InvalidRequestError: Too few observations.
        """
        if len(observations) < LEAST_OBSERVATIONS:
            raise InvalidRequestError(
                f"{len(observations)} measured networks are too few to correct an emulator",
                field="observations",
                remedy=f"measure at least {LEAST_OBSERVATIONS}",
            )
        self._base = base
        self._target = target
        self._count = len(observations)
        self._least_ms = self._least_cost(observations)
        self._ratio = self._typical_ratio(observations)
        works = [self._works(item.profile) for item in observations]
        latencies = [item.latency_ms for item in observations]
        if learned:
            *parameters, self._stretch = learned
            self._fit = self._fitted(works, latencies, np.array(parameters))
        else:
            self._fit = self._fitted(works, latencies, None)
            self._cross_validate(works, latencies)
        self._gains: dict[tuple[Hashable, tuple[float, ...]], float] = {}

    @property
    def learned(self) -> tuple[float, ...]:
        """What takes long to find: the parameters of the process, and how far intervals are stretched."""
        return (*self._fit.process.parameters.tolist(), self._stretch)

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
        if operator.kind in _FREE:
            return replace(cost, latency_ms=0.0, energy_mj=0.0)
        terms = [self._fit.term(work) for work in self._parts(operator)]
        latency_ms = sum(term.prior_ms * self._gain(term) for term in terms)
        ratio = latency_ms / cost.latency_ms if cost.latency_ms else 1.0
        return replace(cost, latency_ms=latency_ms, energy_mj=cost.energy_mj * ratio)

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
        latency_ms, deviation, unseen = self._fit.predict(self._works(network))
        deviation = math.hypot(deviation * self._stretch, unseen * UNSEEN_DEVIATION)
        bound = math.exp(Z * deviation)
        ratio = latency_ms / cost.latency_ms.value
        energy = cost.energy_mj.scaled(ratio)
        return replace(
            cost,
            latency_ms=Interval.relative(latency_ms, low_ratio=1 / bound, high_ratio=bound),
            energy_mj=energy,
            layers=tuple(self.operator_cost(op, target) for op in network.operators),
            provenance=(
                f"{self._base.name} corrected by {self._count} networks measured on "
                f"{self._target.name}; the 90 % interval is that of left-out networks"
            ),
        )

    def _gain(self, term: Term) -> float:
        key = (term.kind, term.position)
        if key not in self._gains:
            self._gains[key] = float(self._fit.process.gains([term])[0])
        return self._gains[key]

    def _works(self, network: NetworkProfile) -> list[_Work]:
        works = [
            part for op in network.operators if op.kind not in _FREE for part in self._parts(op)
        ]
        bits = max((op.activation_bits for op in network.operators), default=32)
        for kind, names in ((_INPUT, network.inputs), (_OUTPUT, network.outputs)):
            count = sum(math.prod(network.tensors[name]) for name in names)
            position = _moved_position(count, kernel=1, stride=1)
            works.append(_Work((kind, bits), position, count * BORDER_MS))
        works.append(_Work((_CALL, bits), _NOWHERE, CALL_MS))
        return works

    def _parts(self, operator: Operator) -> tuple[_Work, _Work]:
        """Return the work of an operator, and what beginning it takes whatever it computes."""
        base_ms = self._base.operator_cost(operator, self._target).latency_ms
        work_ms = max(base_ms - self._least_ms, LEAST_WORK_SHARE * base_ms)
        begin = _Work((_BEGIN, operator.activation_bits), _NOWHERE, self._least_ms)
        return _Work(_kind(operator), _position(operator), work_ms), begin

    def _fitted(
        self,
        works: Sequence[Sequence[_Work]],
        latencies_ms: Sequence[float],
        parameters: FloatArray | None,
    ) -> _Fit:
        return _Fit(works, latencies_ms, ratio=self._ratio, parameters=parameters)

    def _cross_validate(
        self, works: Sequence[Sequence[_Work]], latencies_ms: Sequence[float]
    ) -> None:
        """Predict each network by a fit to the other folds, and stretch intervals until they cover.

        V. Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 74, 2015.
        """
        errors, deviations = np.zeros(len(works)), np.zeros(len(works))
        for fold in range(FOLDS):
            kept = [place for place in range(len(works)) if place % FOLDS != fold]
            fit = self._fitted(
                [works[place] for place in kept],
                [latencies_ms[place] for place in kept],
                self._fit.process.parameters,
            )
            for place in range(fold, len(works), FOLDS):
                predicted, deviation, unseen = fit.predict(works[place])
                errors[place] = math.log(predicted / latencies_ms[place])
                deviations[place] = math.hypot(deviation, unseen * UNSEEN_DEVIATION)
        scores = np.sort(np.abs(errors / deviations))
        rank = min(math.ceil(CONFIDENCE * (len(scores) + 1)), len(scores)) - 1
        self._stretch = max(float(scores[rank]) / Z, 1.0)
        self.left_out_errors = errors
        """Log of prediction over measurement of each network, from a fit without it."""
        self.is_left_out_covered = np.abs(errors) <= Z * self._stretch * deviations

    def _least_cost(self, observations: Sequence[Observation]) -> float:
        """Return what the other emulator says of the least operator: most of it is no work."""
        return min(
            self._base.operator_cost(operator, self._target).latency_ms
            for item in observations
            for operator in item.profile.operators
            if operator.kind not in _FREE
        )

    def _typical_ratio(self, observations: Sequence[Observation]) -> float:
        ratios = [
            item.latency_ms / self._base.estimate(item.profile, self._target).latency_ms.value
            for item in observations
        ]
        return float(np.median(ratios))


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
            base=base, target=target, observations=observations, learned=learned
        )

    def examine(
        self, base: Emulator, target: HardwareSpec, observations: Sequence[Observation]
    ) -> FitExamination:
        """See `EmulatorFitter`."""
        fitted = self.fit(base, target, observations)
        after = np.abs(np.expm1(fitted.left_out_errors))
        before = np.array(
            [
                abs(base.estimate(o.profile, target).latency_ms.value / o.latency_ms - 1)
                for o in observations
            ]
        )
        of_format: defaultdict[NumberFormat, list[int]] = defaultdict(list)
        for place, item in enumerate(observations):
            of_format[item.number_format].append(place)
        quality = tuple(
            FitQuality(
                number_format=number_format,
                count=len(places),
                median_error=float(np.median(after[places])),
                p90_error=float(np.percentile(after[places], 90)),
                within_10_percent=float(np.mean(after[places] <= 0.1)),
                median_error_before=float(np.median(before[places])),
                coverage=float(np.mean(fitted.is_left_out_covered[places])),
            )
            for number_format, places in of_format.items()
        )
        return FitExamination(quality=quality, learned=fitted.learned)


def _ratios(
    works: Sequence[Sequence[_Work]], latencies_ms: Sequence[float], *, typical: float
) -> dict[Hashable, float]:
    """Return per kind what the measurements take over the other emulator's figures.

    Logarithms of ratios are fitted to those of the latencies, drawn towards the typical one; networks far
    off do not pull (P. J. Huber, "Robust estimation of a location parameter", 1964, in SciPy's soft form).
    """
    kinds = list(dict.fromkeys(work.kind for network in works for work in network))
    places = {kind: place for place, kind in enumerate(kinds)}
    sums = np.zeros((len(works), len(kinds)))
    for row, network in enumerate(works):
        for work in network:
            sums[row, places[work.kind]] += work.base_ms
    logs = np.log(np.asarray(latencies_ms))
    start = np.full(len(kinds), math.log(typical))

    def residuals(ratios: FloatArray) -> FloatArray:
        missed = (np.log(sums @ np.exp(ratios)) - logs) / RATIO_FIT_DEVIATION
        return np.concatenate([missed, (ratios - start) / RATIO_DEVIATION])

    def slopes(ratios: FloatArray) -> FloatArray:
        times = sums * np.exp(ratios)
        shares = times / times.sum(axis=1, keepdims=True) / RATIO_FIT_DEVIATION
        return np.concatenate([shares, np.eye(len(kinds)) / RATIO_DEVIATION])

    found = least_squares(residuals, start, jac=slopes, loss="soft_l1")
    return dict(zip(kinds, np.exp(found.x).tolist(), strict=True))


def _kind(operator: Operator) -> tuple[Hashable, ...]:
    """Return what an operator shares its prior with: kernels of a runtime are per kind and format."""
    bits = (operator.weight_bits, operator.activation_bits)
    if operator.kind is OperatorKind.CONV:
        area = math.prod(operator.kernel or (1,))
        return ("pointwise" if area == 1 else "conv", len(operator.out_size), *bits)
    if operator.kind in (OperatorKind.ACTIVATION, OperatorKind.ELEMENTWISE, OperatorKind.POOL):
        return (operator.op_type, *bits)
    return (str(operator.kind), *bits)


def _family(kind: Hashable) -> Hashable:
    """Return what a kind is akin to: products, or data that is moved and touched once, per format."""
    assert isinstance(kind, tuple)
    name, *rest = kind
    if name in (_CALL, _BEGIN, _INPUT, _OUTPUT):
        return kind
    return ("products" if name in PRODUCTS else "moved", rest[-1])


def _position(operator: Operator) -> tuple[float, ...]:
    """Return the shape of an operator in octaves, as `operator_process.LENGTHS` has it."""
    pixels = max(math.prod(operator.out_size or (1,)), 1)
    kernel = math.prod(operator.kernel or (1,))
    stride = math.prod(operator.stride or (1,))
    ins, outs = max(operator.in_channels, 1), max(operator.out_channels, 1)
    if _kind(operator)[0] not in PRODUCTS:
        return _moved_position(outs * pixels, kernel=kernel, stride=stride)
    return (
        math.log2(max(operator.macs, 1)),
        math.log2(max(ins / max(operator.groups, 1), 1.0)),
        math.log2(outs),
        math.log2(pixels),
        math.log2(kernel),
        math.log2(stride),
        math.log2(-(-ins // 8) * 8 / ins),
        math.log2(-(-outs // 16) * 16 / outs),
    )


def _moved_position(elements: int, *, kernel: int, stride: int) -> tuple[float, ...]:
    """Return the position of what is touched once: only how much it is matters, and in what windows."""
    return (
        math.log2(elements + 1),
        0.0,
        0.0,
        0.0,
        math.log2(kernel),
        math.log2(stride),
        0.0,
        0.0,
    )
