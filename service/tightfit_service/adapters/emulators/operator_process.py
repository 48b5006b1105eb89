"""What operators take beside an emulator's word, learned from whole networks by a Gaussian process.

A device measures networks, never operators. The time of a network is the sum over its operators of
`prior * exp(g)`, where `g` is a smooth function of the operator's kind, number format and shape. With
`g` a Gaussian process, the logarithm of a network's time is, to first order, a weighted sum of values
of `g`, the weights being the shares of the operators in the time; so networks are linear observations
of the process, and the posterior follows in closed form (C. E. Rasmussen, C. K. I. Williams, "Gaussian
Processes for Machine Learning", MIT Press 2006, sections 2.2 and 9.4). Shares follow from `g`: a few
rounds settle them (Gauss-Newton).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import cho_solve, cholesky
from scipy.spatial.distance import cdist

FloatArray = npt.NDArray[np.float64]

ROUNDS = 8
"""Of Gauss-Newton at most: as many settle the shares."""
SETTLED = 1e-3
"""Change of the logarithm of any factor, below which the shares have settled."""
FIRST_STEP, STEP_RATIO = 1.5, 0.7
"""Most that the logarithm of a factor may change by in the first round, and from a round to the next. Where one
kind of operator goes two ways through a runtime, one of them fifty times as slow, whole steps overshoot from
round to round and never settle."""
JITTER = 1e-8
"""Added to the variance of the noise, so that the covariance can always be factored."""
FAR_OFF = 2.5
"""Deviations of a measurement from what the others say of it, beyond which it is believed less. Some processes
are slower than others by half, and some networks meet such a one in all of their rounds."""
AGAIN_ROUNDS = 3
"""Of Gauss-Newton, once measurements far off are believed less."""
FAMILY_SHARE = 0.6
"""Of their variance that terms of one family have in common."""
LENGTHS = (3.0, 1.5, 1.5, 2.0, 1.0, 1.0, 0.6, 0.6)
"""Typical distances, in octaves, over which efficiency changes: the amount of work, input and output channels,
pixels, kernel area, stride, and the waste of channels that vectors leave empty. Fitting scales them in four
groups."""
GROUPS = (3, 0, 0, 1, 2, 2, 2, 2)
"""Of the coordinates: products have all four, all else the last two."""
START = (
    *(math.log(0.5), math.log(0.1), 0.0, 0.0, 0.0, 0.0),
    *(math.log(0.5), math.log(0.1), 0.0, 0.0),
    math.log(0.03),
)
"""Logarithms of: of products, the deviation per operator, that common to a kind, and length scales; the same
of all else, whose positions have fewer coordinates; and the noise."""
PRODUCTS, OTHERS = slice(0, 6), slice(6, 10)
"""Where those of products and of all else are."""


@dataclass(frozen=True)
class Term:
    """One operator (or the call itself, or a border of the network) as the process sees it.

    Attributes:
        kind: Terms of one kind share everything.
        family: Terms of one family share `FAMILY_SHARE` of their variance; others nothing.
        position: Shape in octaves, as long as `LENGTHS`.
        prior_ms: Expected time before anything was measured.
        is_product: Whether it multiplies and accumulates, as all of its family then do.
    """

    kind: Hashable
    family: Hashable
    position: tuple[float, ...]
    prior_ms: float
    is_product: bool = False


@dataclass(frozen=True)
class Parameters:
    """Of a process.

    Attributes:
        shared: Logarithms, in the order of `START`.
        scales: Logarithms of factors on the deviations of a kind; none where absent. What a runtime has one
            way for is predicted within a few per cent by its first guess, what goes several ways is not (R. M.
            Neal, "Bayesian Learning for Neural Networks", Springer 1996, section 1.2.2: automatic relevance).
    """

    shared: FloatArray
    scales: Mapping[Hashable, float] = field(default_factory=dict)

    @property
    def noise(self) -> float:
        """Variance of the logarithm of any measurement."""
        return math.exp(2 * self.shared[-1]) + JITTER


class OperatorProcess:
    """A fitted process: predicts terms and networks.

    Args:
        observed: Measured networks, or parts of some.
        parameters: Of the process.
        state: The posterior, from someone who has it.
    """

    def __init__(
        self, observed: Observed, parameters: Parameters, *, state: State | None = None
    ) -> None:
        self._observed = observed
        self._parameters = parameters
        if state is None:
            kernel = covariance_of(self.terms, self.terms, parameters)
            state = observed.settled(kernel, parameters)
            state = observed.doubted(state).settled(kernel, parameters, state.gain(kernel))
        self._state = state

    @property
    def parameters(self) -> Parameters:
        """Deviations, length scales and noise."""
        return self._parameters

    @property
    def terms(self) -> Sequence[Term]:
        """The distinct ones that were measured."""
        return self._observed.terms

    def without(self, rows: Sequence[int], shifts: FloatArray) -> OperatorProcess:
        """Return what the other measurements say, at the shares that all of them give.

        Args:
            rows: Numbers of measurements.
            shifts: Of the logarithm of each term's prior, for priors that the others alone give.
        """
        state = self._state.without(rows, shifts)
        return OperatorProcess(self._observed, self._parameters, state=state)

    def gains(self, terms: Sequence[Term]) -> FloatArray:
        """Return the factors on the prior times of terms."""
        return np.exp(self._across(terms) @ self._state.weights)

    def network(self, terms: Sequence[Term]) -> tuple[float, float]:
        """Return the predicted time of a network in ms, and the deviation of its logarithm.

        The deviation is that of a measurement of the network, noise included.
        """
        one = Observed.of([terms], [1.0])
        across = self._across(one.terms)
        own = covariance_of(one.terms, one.terms, self._parameters)
        totals, shares = one.shares(across @ self._state.weights)
        known = shares @ across
        variance = (shares @ own @ shares.T).item()
        variance -= (known @ cho_solve((self._state.factor, True), known.T)).item()
        variance += self._parameters.noise
        return float(totals[0]), math.sqrt(max(variance, 0.0))

    def _across(self, terms: Sequence[Term]) -> FloatArray:
        """Return the covariance of terms with the logarithms of the measured networks."""
        across: FloatArray = (
            covariance_of(terms, self.terms, self._parameters) @ self._state.shares.T
        )
        return across


@dataclass(frozen=True)
class Observed:
    """Measured networks as sums of terms.

    Attributes:
        terms: The distinct ones.
        members: How often each network (row) has each term (column).
        prior_ms: Of each term.
        logs: Logarithms of the measurements in ms.
        variances: Of each of them, besides the noise that all have.
    """

    terms: list[Term]
    members: Any
    prior_ms: FloatArray
    logs: FloatArray
    variances: FloatArray

    @classmethod
    def of(
        cls,
        networks: Sequence[Sequence[Term]],
        latencies_ms: Sequence[float],
        deviations: Sequence[float] | None = None,
    ) -> Observed:
        """Return networks with their measurements.

        Args:
            networks: Terms of each measured network, or of a part of one.
            latencies_ms: Their measurements.
            deviations: Of the logarithm of each measurement, besides the noise that all have; none where
                absent.
        """
        numbers: dict[Term, int] = {}
        for network in networks:
            for term in network:
                numbers.setdefault(term, len(numbers))
        rows = [row for row, network in enumerate(networks) for _ in network]
        columns = [numbers[term] for network in networks for term in network]
        # those that a network has several times are summed up
        members = sparse.csr_array(
            (np.ones(len(rows)), (rows, columns)), shape=(len(networks), len(numbers))
        )
        terms = list(numbers)
        return cls(
            terms=terms,
            members=members,
            prior_ms=np.array([term.prior_ms for term in terms]),
            logs=np.log(np.asarray(latencies_ms, dtype=np.float64)),
            variances=np.square(np.zeros(len(networks)) if deviations is None else deviations),
        )

    def some(self, count: int) -> Observed:
        """Return as many of these, drawn at random but always the same; all where there are no more."""
        total = len(self.logs)
        if count >= total:
            return self
        rows = np.sort(np.random.default_rng(0).permutation(total)[:count])
        members = self.members[rows]
        columns = np.unique(members.indices)
        return Observed(
            terms=[self.terms[column] for column in columns],
            members=members[:, columns],
            prior_ms=self.prior_ms[columns],
            logs=self.logs[rows],
            variances=self.variances[rows],
        )

    def shares(self, gain: FloatArray) -> tuple[FloatArray, Any]:
        """Return the times of the networks in ms by factors of their terms, and the shares of these."""
        times = self.members.multiply(self.prior_ms * np.exp(gain))
        totals = np.asarray(times.sum(axis=1)).ravel()
        return totals, sparse.csr_array(times.multiply((1 / totals)[:, None]))

    def settled(
        self, kernel: FloatArray, parameters: Parameters, start: FloatArray | None = None
    ) -> State:
        """Return the posterior whose shares agree with its own factors, which may be known nearly."""
        gain, most = np.zeros(len(self.terms)), FIRST_STEP
        if start is not None:
            gain = start
        for _ in range(ROUNDS if start is None else AGAIN_ROUNDS):
            state = self.posterior(kernel, parameters, gain)
            step = state.gain(kernel) - gain
            if np.abs(step).max() < SETTLED:
                return state
            gain = gain + np.clip(step, -most, most)
            most *= STEP_RATIO
        return self.posterior(kernel, parameters, gain)

    def posterior(self, kernel: FloatArray, parameters: Parameters, gain: FloatArray) -> State:
        """Return the posterior by the shares that some factors give.

        Raises:
            numpy.linalg.LinAlgError: The parameters give no covariance that can be factored.
        """
        totals, shares = self.shares(gain)
        # linear around the present gain: log t = log total + shares (g - gain)
        residual = self.logs - np.log(totals) + shares @ gain
        covariance = shares @ kernel @ shares.T + np.diag(parameters.noise + self.variances)
        return State.of(shares, residual, covariance)

    def doubted(self, state: State) -> Observed:
        """Return these networks, those believed less that the others predict otherwise.

        Their variance becomes what makes them likely, as that of a measurement from another state of the
        device would (A. Gelman et al., "Bayesian Data Analysis", 3rd edition, section 17.2).
        """
        missed, variances = state.left_out()
        is_far = np.abs(missed) > FAR_OFF * np.sqrt(variances)
        return replace(
            self, variances=self.variances + np.where(is_far, missed**2 - variances, 0.0)
        )


@dataclass(frozen=True)
class State:
    """A posterior.

    Attributes:
        shares: Of terms in measurements.
        residual: What the logarithms of measurements are beyond their priors.
        factor: Lower, of the covariance of measurements.
        weights: The residual over the covariance.
    """

    shares: Any
    residual: FloatArray
    factor: FloatArray
    weights: FloatArray

    @classmethod
    def of(cls, shares: Any, residual: FloatArray, covariance: FloatArray) -> State:
        """Return the posterior of measurements.

        Raises:
            numpy.linalg.LinAlgError: The covariance cannot be factored.
        """
        factor = cholesky(covariance, lower=True)
        return cls(shares, residual, factor, cho_solve((factor, True), residual))

    @cached_property
    def covariance(self) -> FloatArray:
        """Of measurements; as large as the factor, and only wanted to leave some out."""
        covariance: FloatArray = self.factor @ self.factor.T
        return covariance

    @property
    def evidence(self) -> float:
        """Logarithm of the probability of the measurements, but for a constant."""
        fit = -0.5 * float(self.residual @ self.weights)
        return fit - float(np.log(np.diag(self.factor)).sum())

    def without(self, rows: Sequence[int], shifts: FloatArray) -> State:
        """Return the posterior without some measurements; see `OperatorProcess.without`."""
        kept = np.setdiff1d(np.arange(len(self.residual)), rows)
        residual = self.residual - self.shares @ shifts
        return State.of(self.shares[kept], residual[kept], self.covariance[np.ix_(kept, kept)])

    def gain(self, kernel: FloatArray) -> FloatArray:
        """Return the logarithms of the factors of the terms."""
        gain: FloatArray = kernel @ (self.shares.T @ self.weights)
        return gain

    def inverse(self) -> FloatArray:
        """Return the inverse of the covariance of the measurements."""
        inverse: FloatArray = cho_solve((self.factor, True), np.eye(len(self.weights)))
        return inverse

    def left_out(self) -> tuple[FloatArray, FloatArray]:
        """Return by how much the others miss the logarithm of each measurement, and the variance of that.

        See Rasmussen and Williams, section 5.4.2.
        """
        precisions = np.diag(self.inverse())
        return self.weights / precisions, 1 / precisions


def covariance_of(
    terms: Sequence[Term], others: Sequence[Term], parameters: Parameters
) -> FloatArray:
    """Return what terms (rows) and others (columns) have in common; nothing across families."""
    covariance = np.zeros((len(terms), len(others)))
    columns = by_family(others)
    for family, rows in by_family(terms).items():
        if family not in columns:
            continue
        single, common, lengths = of_family(parameters.shared, is_product=terms[rows[0]].is_product)
        left = np.array([terms[row].position for row in rows]) / lengths
        right = np.array([others[column].position for column in columns[family]]) / lengths
        rough, _ = rough_covariance(left, right, single)
        kinds = [terms[row].kind for row in rows]
        other_kinds = [others[column].kind for column in columns[family]]
        shared = shared_of(kinds, other_kinds, parameters.scales)
        covariance[np.ix_(rows, columns[family])] = shared * (rough + math.exp(2 * common))
    return covariance


def rough_covariance(
    left: FloatArray, right: FloatArray, single: float
) -> tuple[FloatArray, FloatArray]:
    """Return Matern's covariance with nu = 3/2 of positions in lengths, and its decay with the distance.

    Kernels of a runtime change with a step, not smoothly.
    """
    distances = math.sqrt(3.0) * cdist(left, right)
    decay = np.exp(2 * single - distances)
    return (1.0 + distances) * decay, decay


def shared_of(
    kinds: Sequence[Hashable], others: Sequence[Hashable], scales: Mapping[Hashable, float]
) -> FloatArray:
    """Return the share of their covariance that kinds of one family have in common, by their scales."""
    shared = FAMILY_SHARE + (1 - FAMILY_SHARE) * _equal(kinds, others)
    left = np.exp([scales.get(kind, 0.0) for kind in kinds])
    right = np.exp([scales.get(kind, 0.0) for kind in others])
    found: FloatArray = left[:, None] * shared * right[None, :]
    return found


def of_family(shared: FloatArray, *, is_product: bool) -> tuple[float, float, FloatArray]:
    """Return a family's logarithms of deviations, per operator and common to a kind, and its lengths."""
    single, common, *scales = shared[PRODUCTS if is_product else OTHERS]
    if not is_product:
        # what is touched once has no channels and pixels of its own
        scales = [0.0, 0.0, *scales]
    return single, common, np.array(LENGTHS) * np.exp([scales[group] for group in GROUPS])


def by_family(terms: Sequence[Term]) -> dict[Hashable, list[int]]:
    """Return the numbers of terms by family."""
    found: defaultdict[Hashable, list[int]] = defaultdict(list)
    for number, term in enumerate(terms):
        found[term.family].append(number)
    return found


def _equal(kinds: Sequence[Hashable], others: Sequence[Hashable]) -> npt.NDArray[np.bool_]:
    """Return where kinds agree."""
    numbers: dict[Hashable, int] = {}
    for kind in (*kinds, *others):
        numbers.setdefault(kind, len(numbers))
    own = np.array([numbers[kind] for kind in kinds])
    other = np.array([numbers[kind] for kind in others])
    is_equal: npt.NDArray[np.bool_] = own[:, None] == other[None, :]
    return is_equal
