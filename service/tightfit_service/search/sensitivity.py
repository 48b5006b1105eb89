"""What removing units is predicted to cost in accuracy, learnt from importances and corrected by trials.

The prediction is a sum over groups, so that the solver can use it:

    loss(kept) = recovery * sum_g factor_g * curve_g(kept_g)

1. `curve_g` comes from importance scores alone (see `domain.network.ImportanceCriterion`): the
   scores of the units removed, least first, which makes the curve convex, times 1 / share kept,
   because the scores describe the full network and know nothing of what its last units must carry.
2. `factor_g` is 1 at first. Probes (one group pruned, nothing retrained) correct it relative to the
   other groups; observed trials correct it further, each group by as much as the trials can tell.
3. `recovery` is what recovery training leaves of the loss, one number for the network; trials teach it.

Factors are fitted by ridge regression towards what was believed before, so that a few noisy trials
move them a little and many move them far; they never turn negative, so curves stay monotone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import lsq_linear

from tightfit_service.search.problem import GroupChoice

LOSS_AT_HALF = 0.05
"""Loss assumed, until a trial tells, when every group is halved and retrained.

An assumption that sets the scale only: which widths are proposed does not depend on it unless a loss is
limited, and the first trials correct it.
"""
IMPORTANCE_EXPONENT = 0.25
"""Between groups, means of scores are compared by their fourth roots.

Scores rank units well within a group and hardly between groups: over random widths, retrained, the rank
correlation of predicted with measured loss was 0.90 on the digits example (40 trials) and 0.88 on a
ResNet-8 for CIFAR-10 (11 trials) with this exponent, 0.77 and 0.89 with 1
(`benchmarks/sensitivity_ranking.py`).
"""
_LEAST_KEPT_SHARE = 0.03
"""Added to the share kept, so that a group of hundreds does not become infinitely dear near its end."""
_LEAST_UNIT_SHARE = 1e-3
"""Every unit counts at least this share of its group's mean: units without gradient are not worthless."""

_PROBE_TRUST = 0.5
"""Exponent on what probes say: losses without retraining overstate the differences between groups."""
_PROBE_RANGE = (0.25, 4.0)
_PROBE_RESOLUTION = 0.005
"""Losses below this are within the noise of a few hundred samples."""
_RECOVERY_PRIOR_WEIGHT = 0.25
"""The assumed recovery weighs as much as this many trials."""
_FACTOR_PRIOR = 1.5
"""Ridge: the square of a trial's relative misfit (some 40 %) over the spread of factors (some 30 %).

A tenth of it fits six trials better and ranks the others worse (`benchmarks/sensitivity_ranking.py`).
"""
_FACTOR_RANGE = (0.2, 5.0)
_LEAST_RECOVERY = 0.02


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Loss of accuracy (fraction) measured with one group pruned to `kept` units, nothing retrained."""

    group_id: str
    kept: int
    accuracy_loss: float


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Loss of accuracy (fraction) measured on a trial; groups not in `kept` were whole."""

    kept: Mapping[str, int]
    accuracy_loss: float


@dataclass(frozen=True, kw_only=True)
class SensitivityModel:
    """A value: correcting it returns another. The order of corrections does not matter.

    Attributes:
        curves: Per group, the assumed loss when 1, 2, ... all units are kept; the last is 0.
        probed_factors: Per group, what probes said about it; 1 where there was none.
        observations: The trials seen.
        recovery: What recovery training leaves, relative to the assumption.
        factors: Per group, what trials said about it on top.
    """

    curves: Mapping[str, tuple[float, ...]]
    probed_factors: Mapping[str, float] = field(default_factory=dict)
    observations: tuple[Observation, ...] = ()
    recovery: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_importance(
        cls,
        importance: Mapping[str, Sequence[float]],
        *,
        loss_at_half: float = LOSS_AT_HALF,
    ) -> SensitivityModel:
        """Return the model that importances alone suggest.

        Args:
            importance: Per group id, the score of each unit; only ratios matter.
            loss_at_half: Loss assumed when every group keeps half of its units.

        Raises:
            ValueError: A group without units, or a score that is negative or not finite.
        """
        curves = {group: _curve(group, scores) for group, scores in importance.items()}
        present = _loss_at_half(cls(curves=curves))
        # Groups of a single unit have no half; there is nothing to choose in them either.
        scale = loss_at_half / present if present > 0 else 1.0
        return cls(curves={g: tuple(scale * loss for loss in curve) for g, curve in curves.items()})

    def predict(self, kept: Mapping[str, int]) -> float:
        """Return the predicted loss of accuracy (fraction) after recovery training.

        Groups missing in `kept` count as whole; groups unknown to the model count nothing.
        """
        return math.fsum(
            self.loss(group, units) for group, units in kept.items() if group in self.curves
        )

    def loss(self, group_id: str, kept: int) -> float:
        """Return one group's part of the predicted loss.

        Raises:
            ValueError: `kept` is below 1 or above the number of units.
        """
        curve = self.curves[group_id]
        if not 1 <= kept <= len(curve):
            raise ValueError(f"group {group_id!r} cannot keep {kept} of {len(curve)} units")
        factor = self.probed_factors.get(group_id, 1.0) * self.factors.get(group_id, 1.0)
        return self.recovery * factor * curve[kept - 1]

    def choice(self, group_id: str, levels: Sequence[int]) -> GroupChoice:
        """Return the levels of a group with their predicted losses, as the solver takes them."""
        return GroupChoice(
            group_id=group_id,
            levels=tuple(levels),
            accuracy_loss=tuple(self.loss(group_id, level) for level in levels),
        )

    def probe(self, probes: Sequence[Probe]) -> SensitivityModel:
        """Return the model with groups weighed against each other by what probes measured.

        Only ratios between groups are used; the loss at half width stays what it was. Probes replace
        earlier ones; of several of one group the mean counts. Fewer than two groups say nothing.
        """
        plain = self._unobserved()
        logs: dict[str, list[float]] = {}
        for probe in probes:
            expected = plain.loss(probe.group_id, probe.kept)
            seen = max(0.0, probe.accuracy_loss)
            ratio = (seen + _PROBE_RESOLUTION) / (expected + _PROBE_RESOLUTION)
            logs.setdefault(probe.group_id, []).append(math.log(ratio))
        if len(logs) < 2 or _loss_at_half(plain) == 0.0:
            return self
        means = {group: float(np.mean(values)) for group, values in logs.items()}
        centre = float(np.median(list(means.values())))
        low, high = _PROBE_RANGE
        factors = dict.fromkeys(self.curves, 1.0) | {
            group: min(high, max(low, math.exp(_PROBE_TRUST * (mean - centre))))
            for group, mean in means.items()
        }
        scale = _loss_at_half(plain) / _loss_at_half(replace(plain, probed_factors=factors))
        scaled = {group: scale * factor for group, factor in factors.items()}
        return _fitted(replace(self, probed_factors=scaled))

    def share_left(self, probes: Sequence[Probe]) -> float:
        """Return what recovery is assumed to leave of a loss measured without it, in (0, 1].

        It is the ratio of the assumed losses to those that probes measured; 1 without probes.
        """
        plain = self._unobserved()
        measured = math.fsum(max(0.0, probe.accuracy_loss) for probe in probes)
        if measured == 0.0:
            return 1.0
        assumed = math.fsum(plain.loss(probe.group_id, probe.kept) for probe in probes)
        return min(1.0, max(_LEAST_RECOVERY, assumed / measured))

    def untrained_ratio(self, probes: Sequence[Probe]) -> float | None:
        """Return how many times the predicted loss of a cut it costs before recovery, by all probes.

        None where there are none: nothing is known then of losses without recovery.
        """
        predicted = math.fsum(self.loss(probe.group_id, probe.kept) for probe in probes)
        if predicted <= 0.0:
            return None
        return math.fsum(max(0.0, probe.accuracy_loss) for probe in probes) / predicted

    def _unobserved(self) -> SensitivityModel:
        return replace(self, probed_factors={}, observations=(), recovery=1.0, factors={})

    def with_options(self, losses: Mapping[str, Sequence[float]]) -> SensitivityModel:
        """Return the model that also knows the ways to compute nodes.

        Args:
            losses: Per option, the loss of accuracy (fraction) that is left after recovery with that
                way alone, from the strongest to the ordinary one, which loses nothing.
        """
        known = {group: tuple(values) for group, values in losses.items()}
        return _fitted(replace(self, curves={**self.curves, **known}))

    def observe(self, kept: Mapping[str, int], measured_loss: float) -> SensitivityModel:
        """Return the model corrected by one more trial.

        Args:
            kept: Units the trial kept per group.
            measured_loss: Accuracy of the baseline less that of the trial; a gain counts as 0.

        Raises:
            ValueError: The loss is not finite, or `kept` does not fit the groups.
        """
        if not math.isfinite(measured_loss):
            raise ValueError(f"the measured loss is {measured_loss}")
        self.predict(kept)
        seen = Observation(kept=dict(kept), accuracy_loss=max(0.0, measured_loss))
        return _fitted(replace(self, observations=(*self.observations, seen)))


def _fitted(model: SensitivityModel) -> SensitivityModel:
    """Return the model with `recovery` and `factors` fitted to all observations afresh."""
    prior = replace(model, recovery=1.0, factors={})
    groups = sorted(model.curves)
    shares = np.array(
        [
            [prior.loss(g, seen.kept[g]) if g in seen.kept else 0.0 for g in groups]
            for seen in model.observations
        ]
    ).reshape(len(model.observations), len(groups))
    informative = shares.sum(axis=1) > 0
    shares = shares[informative]
    if not len(shares):
        return prior
    measured = np.array([seen.accuracy_loss for seen in model.observations])[informative]
    # Errors count relative to the size of the loss: a point matters more at 2 % than at 30 %.
    totals = shares.sum(axis=1)
    weight = 1.0 / (totals + totals.mean())
    shares, measured, totals = shares * weight[:, None], measured * weight, totals * weight
    typical = float(np.mean(totals**2))
    pull = _RECOVERY_PRIOR_WEIGHT * typical
    recovery = max(_LEAST_RECOVERY, float((measured @ totals + pull) / (totals @ totals + pull)))
    ridge = math.sqrt(_FACTOR_PRIOR * typical) * recovery
    fit = lsq_linear(
        np.vstack([recovery * shares, ridge * np.eye(len(groups))]),
        np.concatenate([measured, np.full(len(groups), ridge)]),
        bounds=_FACTOR_RANGE,
    )
    factors = {group: float(factor) for group, factor in zip(groups, fit.x, strict=True)}
    return replace(prior, recovery=recovery, factors=factors)


def _loss_at_half(model: SensitivityModel) -> float:
    return model.predict({group: -(-len(curve) // 2) for group, curve in model.curves.items()})


def _curve(group_id: str, scores: Sequence[float]) -> tuple[float, ...]:
    """Return the unscaled loss when 1, 2, ... all units of a group are kept."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    if not len(ordered):
        raise ValueError(f"group {group_id!r} has no units")
    if not np.isfinite(ordered).all() or ordered[0] < 0:
        raise ValueError(f"group {group_id!r} has an importance that is negative or not finite")
    count, mean = len(ordered), float(ordered.mean())
    if mean == 0.0:
        ordered, mean = np.ones(count), np.finfo(np.float64).tiny
    else:
        ordered = np.maximum(ordered, _LEAST_UNIT_SHARE * mean)
    removed = np.concatenate([[0.0], np.cumsum(ordered)[:-1]])
    shape = removed / ordered.sum()
    kept_share = 1.0 - np.arange(count) / count
    strain = (1.0 + _LEAST_KEPT_SHARE) / (kept_share + _LEAST_KEPT_SHARE)
    losses = count * mean**IMPORTANCE_EXPONENT * shape * strain
    return tuple(float(loss) for loss in losses[::-1])
