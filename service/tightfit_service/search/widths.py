"""Widths as the solver sees them: sums of group levels ("axes") and the values these can take.

Many widths of a network are the same sum in disguise: the input of a dense layer behind a flatten is
49 times the channels of the convolution before it, a padded shortcut is a constant plus them. Dividing
the multipliers by their greatest common divisor and splitting off the constant leaves the *axis*;
widths on one axis share the solver's variables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightfit_service.domain.network import Width

MAX_EXACT_VALUES = 40
"""Axes with more reachable sums than this are interpolated on a grid instead."""
GRID_POINTS = 17


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A weighted sum of kept units, multipliers coprime and ordered by group id."""

    terms: tuple[tuple[str, int], ...]

    @property
    def single_group(self) -> str | None:
        """The group whose units the axis counts, or None when it sums several."""
        return self.terms[0][0] if len(self.terms) == 1 else None

    def value(self, kept: Mapping[str, int]) -> int:
        """Return the sum when `kept[group_id]` units of each group remain."""
        return sum(multiplier * kept[group_id] for group_id, multiplier in self.terms)


@dataclass(frozen=True, kw_only=True)
class ScaledWidth:
    """A width as `fixed + scale * axis value`; `axis` is None for a constant."""

    fixed: int
    scale: int
    axis: Axis | None

    def channels(self, value: int) -> int:
        """Return the channels at a value of the axis."""
        return self.fixed + self.scale * value


def on_axis(width: Width) -> ScaledWidth:
    """Return a width split into constant, scale and axis; terms of one group are added up."""
    merged: dict[str, int] = {}
    for term in width.terms:
        merged[term.group_id] = merged.get(term.group_id, 0) + term.multiplier
    terms = sorted((group, multiplier) for group, multiplier in merged.items() if multiplier)
    if not terms:
        return ScaledWidth(fixed=width.fixed, scale=0, axis=None)
    scale = math.gcd(*(multiplier for _, multiplier in terms))
    axis = Axis(terms=tuple((group, multiplier // scale) for group, multiplier in terms))
    return ScaledWidth(fixed=width.fixed, scale=scale, axis=axis)


@dataclass(frozen=True, kw_only=True)
class AxisValues:
    """The values at which costs on an axis are tabulated, ascending.

    `exact` tells that these are all values the axis can take. Otherwise they are an even grid from
    the least to the greatest, and what lies between is interpolated.
    """

    values: tuple[int, ...]
    exact: bool


def reachable_values(
    axis: Axis, levels: Mapping[str, Sequence[int]], *, at_most: int
) -> tuple[int, ...] | None:
    """Return all values an axis can take, ascending; None where they are more than `at_most`."""
    reachable = {0}
    for group, multiplier in axis.terms:
        reachable = {have + multiplier * level for have in reachable for level in levels[group]}
        if len(reachable) > at_most:
            return None
    return tuple(sorted(reachable))


def axis_values(axis: Axis, levels: Mapping[str, Sequence[int]]) -> AxisValues:
    """Return where to tabulate an axis whose groups can keep the given numbers of units."""
    single = axis.single_group
    # a single group is always exact: its level variables exist anyway
    at_most = MAX_EXACT_VALUES if single is None else len(levels[single])
    values = reachable_values(axis, levels, at_most=at_most)
    if values is not None:
        return AxisValues(values=values, exact=True)
    low = sum(multiplier * min(levels[group]) for group, multiplier in axis.terms)
    high = sum(multiplier * max(levels[group]) for group, multiplier in axis.terms)
    steps = GRID_POINTS - 1
    grid = {low + round((high - low) * step / steps) for step in range(GRID_POINTS)}
    return AxisValues(values=tuple(sorted(grid)), exact=False)
