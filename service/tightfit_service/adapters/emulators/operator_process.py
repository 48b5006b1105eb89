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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

FloatArray = npt.NDArray[np.float64]
_Kind = tuple[Hashable, Hashable]

ROUNDS = 8
"""Of Gauss-Newton: as many settle the shares."""
JITTER = 1e-8
"""Added to the variance of the noise, so that the covariance can always be factored."""
MOST_EVALUATIONS = 250
SIMPLEX_STEP = 0.5
"""First step of each logarithm in search of the parameters."""
FAMILY_SHARE = 0.6
"""Of their variance that terms of one family have in common."""
LENGTHS = (3.0, 1.5, 1.5, 2.0, 1.0, 1.0, 0.6, 0.6)
"""Typical distances, in octaves, over which efficiency changes: the amount of work, input and output channels,
pixels, kernel area, stride, and the waste of channels that vectors leave empty. Fitting scales them in four
groups."""
_GROUPS = (3, 0, 0, 1, 2, 2, 2, 2)
START = (math.log(0.5), math.log(0.1), 0.0, 0.0, 0.0, 0.0, math.log(0.03))
"""Logarithms of: deviation per operator, deviation common to a kind, length scales, noise."""

PARAMETER_DEVIATION = 0.5
"""Of those logarithms around `START`."""


@dataclass(frozen=True)
class Term:
    """One operator (or the call itself, or a border of the network) as the process sees it.

    Attributes:
        kind: Terms of one kind share everything.
        family: Terms of one family share `FAMILY_SHARE` of their variance; others nothing.
        position: Shape in octaves, as long as `LENGTHS`.
        prior_ms: Expected time before anything was measured.
    """

    kind: Hashable
    family: Hashable
    position: tuple[float, ...]
    prior_ms: float


class OperatorProcess:
    """A fitted process: predicts terms and networks.

    Args:
        networks: Terms of each measured network.
        latencies_ms: Their measurements.
        parameters: Of the process, as `parameters` has them; found by their evidence where absent.
    """

    def __init__(
        self,
        networks: Sequence[Sequence[Term]],
        latencies_ms: Sequence[float],
        *,
        parameters: FloatArray | None = None,
    ) -> None:
        self._terms, self._members = _distinct(networks)
        self._prior = np.array([term.prior_ms for term in self._terms])
        self._logs = np.log(np.asarray(latencies_ms, dtype=np.float64))
        self._kinds, self._positions = _coordinates(self._terms)
        self._related = _relation(self._kinds, self._kinds)
        self._parameters = np.array(START) if parameters is None else parameters
        self._state = self._settled()
        if parameters is None:
            self._parameters = self._tuned()
            self._state = self._settled()

    @property
    def parameters(self) -> FloatArray:
        """Logarithms of deviations, length scales and noise, in the order of `START`."""
        return self._parameters

    def gains(self, terms: Sequence[Term]) -> FloatArray:
        """Return the factors on the prior times of terms."""
        mean, _ = self._posterior(terms, wants_covariance=False)
        return np.exp(mean)

    def network(self, terms: Sequence[Term]) -> tuple[float, float]:
        """Return the predicted time of a network in ms, and the deviation of its logarithm.

        The deviation is that of a measurement of the network, noise included.
        """
        distinct, members = _distinct([terms])
        mean, covariance = self._posterior(distinct, wants_covariance=True)
        counts = members[0]
        times = counts * np.array([term.prior_ms for term in distinct]) * np.exp(mean)
        total = float(times.sum())
        shares = times / total
        assert covariance is not None
        variance = float(shares @ covariance @ shares) + math.exp(2 * self._parameters[-1])
        return total, math.sqrt(max(variance, 0.0))

    def _posterior(
        self, terms: Sequence[Term], *, wants_covariance: bool
    ) -> tuple[FloatArray, FloatArray | None]:
        kinds, positions = _coordinates(terms)
        state = self._state
        relation = _relation(kinds, self._kinds)
        across = self._covariance(positions, self._positions, relation) @ state.shares.T
        mean = across @ state.weights
        if not wants_covariance:
            return mean, None
        own = self._covariance(positions, positions, _relation(kinds, kinds))
        return mean, own - across @ cho_solve((state.factor, True), across.T)

    def _settled(self) -> _State:
        """Return the posterior whose shares agree with its own factors."""
        gain = np.zeros(len(self._terms))
        kernel = self._covariance(self._positions, self._positions, self._related)
        for _ in range(ROUNDS):
            state = self._observed(kernel, gain)
            gain = kernel @ state.shares.T @ state.weights
        return self._observed(kernel, gain)

    def _observed(self, kernel: FloatArray, gain: FloatArray) -> _State:
        times = self._members * (self._prior * np.exp(gain))
        totals = times.sum(axis=1)
        shares = times / totals[:, None]
        # linear around the present gain: log t = log total + shares (g - gain)
        residual = self._logs - np.log(totals) + shares @ gain
        noise = math.exp(2 * self._parameters[-1]) + JITTER
        covariance = shares @ kernel @ shares.T + noise * np.eye(len(totals))
        factor = cholesky(covariance, lower=True)
        weights = cho_solve((factor, True), residual)
        evidence = -0.5 * float(residual @ weights) - float(np.log(np.diag(factor)).sum())
        return _State(shares=shares, factor=factor, weights=weights, evidence=evidence)

    def _tuned(self) -> FloatArray:
        """Return the parameters of greatest evidence, at the shares found so far."""
        kernel = self._covariance(self._positions, self._positions, self._related)
        gain = kernel @ self._state.shares.T @ self._state.weights

        def loss(parameters: FloatArray) -> float:
            self._parameters = parameters
            trial = self._covariance(self._positions, self._positions, self._related)
            try:
                evidence = self._observed(trial, gain).evidence
            except np.linalg.LinAlgError:
                return 1e12
            # a prior keeps what few networks cannot tell where it was
            strangeness = (parameters - np.array(START)) / PARAMETER_DEVIATION
            return -evidence + 0.5 * float(np.sum(strangeness**2))

        corners = np.vstack([START, START + SIMPLEX_STEP * np.eye(len(START))])
        options = {"maxfev": MOST_EVALUATIONS, "initial_simplex": corners}
        found = minimize(loss, np.array(START), method="Nelder-Mead", options=options)
        return np.asarray(found.x, dtype=np.float64)

    def _covariance(
        self, positions: FloatArray, others: FloatArray, relation: FloatArray
    ) -> FloatArray:
        single, common, *scales = self._parameters[:-1]
        lengths = np.array(LENGTHS) * np.exp([scales[group] for group in _GROUPS])
        left, right = positions / lengths, others / lengths
        squares = (
            (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :] - 2 * left @ right.T
        )
        # Matern's covariance with nu = 3/2: kernels of a runtime change with a step, not smoothly
        distances = np.sqrt(3.0 * np.maximum(squares, 0.0))
        rough = (1.0 + distances) * np.exp(2 * single - distances)
        covariance: FloatArray = relation * (rough + math.exp(2 * common))
        return covariance


@dataclass(frozen=True)
class _State:
    """A posterior: shares of terms in networks, the factor of their covariance, weights, evidence."""

    shares: FloatArray
    factor: FloatArray
    weights: FloatArray
    evidence: float


def _distinct(networks: Sequence[Sequence[Term]]) -> tuple[list[Term], FloatArray]:
    """Return the distinct terms of networks, and how often each network has each of them."""
    numbers: dict[Term, int] = {}
    for network in networks:
        for term in network:
            numbers.setdefault(term, len(numbers))
    members = np.zeros((len(networks), len(numbers)))
    for row, network in enumerate(networks):
        for term in network:
            members[row, numbers[term]] += 1
    return list(numbers), members


def _relation(kinds: Sequence[_Kind], others: Sequence[_Kind]) -> FloatArray:
    """Return the share of their variance that terms have in common, by kind and family."""
    shared = FAMILY_SHARE * _equal(kinds, others, 1)
    return shared + (1 - FAMILY_SHARE) * _equal(kinds, others, 0)


def _equal(kinds: Sequence[_Kind], others: Sequence[_Kind], place: int) -> FloatArray:
    """Return 1 where kinds (place 0) or families (place 1) agree, else 0."""
    numbers: dict[Hashable, int] = {}
    for kind in (*kinds, *others):
        numbers.setdefault(kind[place], len(numbers))
    own = np.array([numbers[kind[place]] for kind in kinds])
    other = np.array([numbers[kind[place]] for kind in others])
    is_equal: FloatArray = (own[:, None] == other[None, :]).astype(np.float64)
    return is_equal


def _coordinates(terms: Sequence[Term]) -> tuple[list[_Kind], FloatArray]:
    kinds = [(term.kind, term.family) for term in terms]
    return kinds, np.array([term.position for term in terms]).reshape(len(terms), len(LENGTHS))
