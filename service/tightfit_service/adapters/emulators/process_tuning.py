"""Parameters of a process of operators, of greatest evidence.

Climbed by the gradient, which is known in closed form (C. E. Rasmussen, C. K. I. Williams, "Gaussian
Processes for Machine Learning", MIT Press 2006, section 5.4.1), so that each kind of operator can have a
parameter of its own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from tightfit_service.adapters.emulators.operator_process import (
    GROUPS,
    JITTER,
    OTHERS,
    PRODUCTS,
    START,
    FloatArray,
    Observed,
    Parameters,
    Term,
    by_family,
    covariance_of,
    of_family,
    rough_covariance,
    shared_of,
)

MOST_MEASUREMENTS = 1_600
"""That parameters are tuned to: a step takes as long as their cube, and a few dozen numbers gain little from more."""
CLIMBS = 2
"""The second without measurements far off, which would be taken for deviations of what they measure."""
MOST_STEPS = 30
"""Of a climb."""
PARAMETER_DEVIATION = 0.5
"""Of the shared logarithms around `START`: what few networks cannot tell stays there."""
SCALE_DEVIATION = 1.0
"""Of the logarithms of kinds' scales around none."""
FARTHEST = 3.0
"""That a logarithm may be from where it starts."""


def tuned(observed: Observed) -> Parameters:
    """Return the parameters of greatest evidence, at the shares that those before them give.

    Takes a minute or two.
    """
    observed = observed.some(MOST_MEASUREMENTS)
    tuning = Tuning.of(observed.terms)
    found = Parameters(np.array(START))
    for climb in range(CLIMBS):
        kernel = covariance_of(observed.terms, observed.terms, found)
        state = observed.settled(kernel, found)
        if climb:
            observed = observed.doubted(state)
            state = observed.settled(kernel, found, state.gain(kernel))
        found = tuning.climbed(observed, found, state.gain(kernel))
    return found


@dataclass(frozen=True)
class _Family:
    """Terms of one family: their numbers, kinds (names and numbers) and positions."""

    numbers: npt.NDArray[np.int64]
    kinds: list[Hashable]
    kind_numbers: npt.NDArray[np.int64]
    positions: FloatArray
    is_product: bool


@dataclass(frozen=True)
class Tuning:
    """The terms of measured networks by family, and their kinds."""

    families: list[_Family]
    kinds: list[Hashable]

    @classmethod
    def of(cls, terms: Sequence[Term]) -> Tuning:
        """Return distinct terms by family."""
        kinds = list(dict.fromkeys(term.kind for term in terms))
        numbers = {kind: number for number, kind in enumerate(kinds)}
        families = [
            _Family(
                numbers=np.array(own),
                kinds=[terms[n].kind for n in own],
                kind_numbers=np.array([numbers[terms[n].kind] for n in own]),
                positions=np.array([terms[n].position for n in own]),
                is_product=terms[own[0]].is_product,
            )
            for own in by_family(terms).values()
        ]
        return cls(families, kinds)

    def climbed(self, observed: Observed, start: Parameters, gain: FloatArray) -> Parameters:
        """Return the parameters of greatest evidence by the shares that some factors give."""
        origin = np.concatenate([start.shared, [start.scales.get(k, 0.0) for k in self.kinds]])
        middle = np.concatenate([START, np.zeros(len(self.kinds))])
        spread = np.repeat([PARAMETER_DEVIATION, SCALE_DEVIATION], [len(START), len(self.kinds)])

        def loss(values: FloatArray) -> tuple[float, FloatArray]:
            evidence, slopes = self.evidence(observed, self.parameters(values), gain)
            strangeness = (values - middle) / spread
            return 0.5 * float(strangeness @ strangeness) - evidence, strangeness / spread - slopes

        found = minimize(
            loss,
            origin,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(middle - FARTHEST, middle + FARTHEST, strict=True)),
            options={"maxiter": MOST_STEPS},
        )
        return self.parameters(np.asarray(found.x, dtype=np.float64))

    def evidence(
        self, observed: Observed, parameters: Parameters, gain: FloatArray
    ) -> tuple[float, FloatArray]:
        """Return the logarithm of the evidence, and its slopes by the shared values and the kinds' scales."""
        blocks = [_Block.of(family, parameters) for family in self.families]
        kernel = np.zeros((len(observed.terms),) * 2)
        for block in blocks:
            kernel[np.ix_(block.family.numbers, block.family.numbers)] = block.covariance
        state = observed.posterior(kernel, parameters, gain)
        # what the evidence gains from each entry of the covariance of measurements, then of terms
        gains = 0.5 * (np.outer(state.weights, state.weights) - state.inverse())
        of_terms = np.asarray(state.shares.T @ (state.shares.T @ gains).T)
        slopes = np.zeros(len(START) + len(self.kinds))
        slopes[len(START) - 1] = 2 * (parameters.noise - JITTER) * np.trace(gains)
        for block in blocks:
            numbers = block.family.numbers
            own = of_terms[np.ix_(numbers, numbers)]
            where = PRODUCTS if block.family.is_product else OTHERS
            slopes[where] += block.shared_slopes(own)
            by_term = 2 * (own * block.covariance).sum(axis=1)
            np.add.at(slopes, len(START) + block.family.kind_numbers, by_term)
        return state.evidence, slopes

    def parameters(self, values: FloatArray) -> Parameters:
        """Return the shared values and the kinds' scales, given one behind the other."""
        scales = zip(self.kinds, values[len(START) :].tolist(), strict=True)
        return Parameters(values[: len(START)], dict(scales))


@dataclass(frozen=True)
class _Block:
    """The covariance of a family's terms, in the factors that it is made of.

    Attributes:
        family: The family.
        positions: Of its terms, in lengths.
        shared: The share of the covariance that kinds have in common.
        rough: The part by position.
        decay: Of that part with the distance.
        common: The part that is the same for all.
    """

    family: _Family
    positions: FloatArray
    shared: FloatArray
    rough: FloatArray
    decay: FloatArray
    common: float

    @classmethod
    def of(cls, family: _Family, parameters: Parameters) -> _Block:
        single, common, lengths = of_family(parameters.shared, is_product=family.is_product)
        positions = family.positions / lengths
        rough, decay = rough_covariance(positions, positions, single)
        shared = shared_of(family.kinds, family.kinds, parameters.scales)
        return cls(family, positions, shared, rough, decay, math.exp(2 * common))

    @property
    def covariance(self) -> FloatArray:
        """The product of the factors."""
        return self.shared * (self.rough + self.common)

    def shared_slopes(self, gains: FloatArray) -> FloatArray:
        """Return the slopes by the logarithms of the family's deviations and length scales.

        Args:
            gains: What the evidence gains from each entry of the covariance.
        """
        shared = gains * self.shared
        # d rough / d log(length) = 3 * decay * difference ** 2, the difference in lengths
        pulls = 3.0 * shared * self.decay
        sums = pulls.sum(axis=1)
        by_axis = 2 * (sums @ self.positions**2) - 2 * np.einsum(
            "ia,ij,ja->a", self.positions, pulls, self.positions, optimize=True
        )
        by_group = np.zeros(len(set(GROUPS)))
        np.add.at(by_group, np.array(GROUPS), by_axis)
        deviations = [2 * float((shared * self.rough).sum()), 2 * self.common * float(shared.sum())]
        own = by_group if self.family.is_product else by_group[2:]
        return np.array([*deviations, *own])
