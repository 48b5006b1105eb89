"""An emulator corrected by what one device measured of the designed set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tightfit_service.adapters.emulators.operator_process import OperatorProcess, Term
from tightfit_service.application.ports import Emulator
from tightfit_service.domain.calibration import FitQuality, Observation
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
BORDER_MS = 3e-7
"""First guess per element that enters or leaves a network: converted once at 3 elements a nanosecond."""
CALL_MS = 5e-3
"""First guess of what calling the runtime takes."""
FOLDS = 8
PRODUCTS = frozenset(
    {"conv", "pointwise", "depthwise_conv", "transposed_conv", "dense", "matmul", "recurrent"}
)
_FREE = frozenset({OperatorKind.RESHAPE})
_CALL, _INPUT, _OUTPUT = "call", "input", "output"

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
        self._kinds = {work.kind for network in works for work in network}
        terms = [[self.term(work) for work in network] for network in works]
        self.process = OperatorProcess(terms, latencies_ms, parameters=parameters)

    def term(self, work: _Work) -> Term:
        """Return a piece of work with its prior."""
        return Term(
            work.kind,
            _family(work.kind),
            work.position,
            max(work.base_ms * self._ratio, LEAST_PRIOR_MS),
        )

    def predict(self, works: Sequence[_Work]) -> tuple[float, float, float]:
        """Return the time in ms, the deviation of its logarithm, and the share of unseen kinds."""
        terms = [self.term(work) for work in works]
        latency_ms, deviation = self.process.network(terms)
        unseen = sum(t.prior_ms for t in terms if t.kind not in self._kinds) / latency_ms
        return latency_ms, deviation, min(unseen, 1.0)


class CalibratedEmulator:
    """Corrects the latency of another emulator (port `Emulator`); energy follows, memory stays.

    The prior time of an operator is the other emulator's figure, scaled by what networks take at the
    median; a Gaussian process over operators (`operator_process`) corrects it by kind, number format
    and shape, and says how sure it is. Priors with more coefficients, fitted by least squares, were
    tried: on devices of known cost they fitted the measured networks better and others worse.
    """

    def __init__(
        self, *, base: Emulator, target: HardwareSpec, observations: Sequence[Observation]
    ) -> None:
        """Fit; takes seconds.

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
        works = [self._works(item.profile) for item in observations]
        latencies = [item.latency_ms for item in observations]
        self._ratio = self._typical_ratio(observations)
        self._fit = _Fit(works, latencies, ratio=self._ratio)
        self.left_out_errors, deviations = self._cross_validated(works, latencies)
        """Log of prediction over measurement of each network, from a fit without it."""
        scores = np.sort(np.abs(self.left_out_errors / deviations))
        # Intervals are stretched until they cover the left-out networks (V. Vovk, "Cross-conformal
        # predictors", Annals of Mathematics and Artificial Intelligence 74, 2015).
        rank = min(math.ceil(CONFIDENCE * (len(scores) + 1)), len(scores)) - 1
        self._stretch = max(float(scores[rank]) / Z, 1.0)
        self.is_left_out_covered = np.abs(self.left_out_errors) <= Z * self._stretch * deviations
        self._gains: dict[tuple[Hashable, tuple[float, ...]], float] = {}

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
        term = self._fit.term(self._work(operator))
        latency_ms = term.prior_ms * self._gain(term)
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
                f"{self._base.name} corrected by {len(self.left_out_errors)} networks measured on "
                f"{self._target.name}; the 90 % interval is that of left-out networks"
            ),
        )

    def _gain(self, term: Term) -> float:
        key = (term.kind, term.position)
        if key not in self._gains:
            self._gains[key] = float(self._fit.process.gains([term])[0])
        return self._gains[key]

    def _works(self, network: NetworkProfile) -> list[_Work]:
        works = [self._work(op) for op in network.operators if op.kind not in _FREE]
        bits = max((op.activation_bits for op in network.operators), default=32)
        for kind, names in ((_INPUT, network.inputs), (_OUTPUT, network.outputs)):
            count = sum(math.prod(network.tensors[name]) for name in names)
            position = (math.log2(count + 1), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
            works.append(_Work((kind, bits), position, count * BORDER_MS))
        works.append(_Work((_CALL, bits), (0.0,) * 7, CALL_MS))
        return works

    def _work(self, operator: Operator) -> _Work:
        base_ms = self._base.operator_cost(operator, self._target).latency_ms
        pixels = math.prod(operator.out_size or (1,))
        return _Work(_kind(operator), _position(operator, pixels), base_ms)

    def _cross_validated(
        self,
        works: Sequence[Sequence[_Work]],
        latencies_ms: Sequence[float],
    ) -> tuple[FloatArray, FloatArray]:
        """Return log error and deviation of each network, predicted by a fit to the other folds."""
        errors, deviations = np.zeros(len(works)), np.zeros(len(works))
        for fold in range(FOLDS):
            kept = [place for place in range(len(works)) if place % FOLDS != fold]
            fit = _Fit(
                [works[place] for place in kept],
                [latencies_ms[place] for place in kept],
                ratio=self._ratio,
                parameters=self._fit.process.parameters,
            )
            for place in range(fold, len(works), FOLDS):
                predicted, deviation, unseen = fit.predict(works[place])
                errors[place] = math.log(predicted / latencies_ms[place])
                deviations[place] = math.hypot(deviation, unseen * UNSEEN_DEVIATION)
        return errors, deviations

    def _typical_ratio(self, observations: Sequence[Observation]) -> float:
        ratios = [
            item.latency_ms / self._base.estimate(item.profile, self._target).latency_ms.value
            for item in observations
        ]
        return float(np.median(ratios))


class ProcessFitter:
    """Implements `EmulatorFitter` with `CalibratedEmulator`."""

    def fit(
        self, base: Emulator, target: HardwareSpec, observations: Sequence[Observation]
    ) -> CalibratedEmulator:
        """See `EmulatorFitter`."""
        return CalibratedEmulator(base=base, target=target, observations=observations)

    def quality(
        self, base: Emulator, target: HardwareSpec, observations: Sequence[Observation]
    ) -> Sequence[FitQuality]:
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
        return tuple(
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


def _kind(operator: Operator) -> Hashable:
    """Return what an operator shares its prior with: kernels of a runtime are per kind and format."""
    bits = (operator.weight_bits, operator.activation_bits)
    if operator.kind is OperatorKind.CONV:
        area = math.prod(operator.kernel or (1,))
        return ("pointwise" if area == 1 else "conv", len(operator.out_size), *bits)
    if operator.kind in (OperatorKind.ACTIVATION, OperatorKind.ELEMENTWISE):
        return (operator.op_type, *bits)
    return (str(operator.kind), *bits)


def _family(kind: Hashable) -> Hashable:
    """Return what a kind is akin to: products, or data that is moved and touched once, per format."""
    assert isinstance(kind, tuple)
    name, *rest = kind
    if name in (_CALL, _INPUT, _OUTPUT):
        return kind
    return ("products" if name in PRODUCTS else "moved", rest[-1])


def _position(operator: Operator, pixels: int) -> tuple[float, ...]:
    ins, outs = max(operator.in_channels, 1), max(operator.out_channels, 1)
    return (
        math.log2(max(ins / max(operator.groups, 1), 1.0)),
        math.log2(outs),
        math.log2(max(pixels, 1)),
        math.log2(math.prod(operator.kernel or (1,))),
        math.log2(math.prod(operator.stride or (1,))),
        math.log2(-(-ins // 8) * 8 / ins),
        math.log2(-(-outs // 16) * 16 / outs),
    )
