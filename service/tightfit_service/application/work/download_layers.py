"""Which zeros and how few values each layer gets: chosen for all layers at once, within a size.

Layers differ in what they bear and in what they bring. Each was changed alone, at a few strengths of each
pass, and it was seen what the network loses by it and what its weight packs to (`download_study`).
The pairs of a strength of either pass are the *ways* of a layer; the ways that lose least in all and pack
into a size are a multiple-choice knapsack, which is the problem of the search itself with the ways as its
only choice, so its solver finds them.

That losses of single layers add up is an assumption: it holds for the squared error of the answers while
errors are small and independent (Zhou et al., Adaptive Quantization for Deep Neural Network, AAAI 2018).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tightfit_service.application.recipes.steps import CLUSTERING_STEP, SPARSITY_STEP
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.network import Width
from tightfit_service.search.problem import CompressionProblem, Cost, GroupChoice, NodeChoice
from tightfit_service.search.solver import solve

_TIME_LIMIT_SECONDS = 10.0
_RELATIVE_GAP = 1e-3
_ANY_WIDTH = Width(fixed=1)


@dataclass(frozen=True, kw_only=True)
class LevelFigures:
    """What one strength of a pass does to one layer, the rest of the network left as it is.

    Attributes:
        level: Index among the strengths of the pass, the mildest being 0.
        error: Relative squared error of the weight, in [0, 1].
        loss: What the network loses: a fraction of accuracy, or of its answers where nothing has labels.
        packed_bytes: What the weight then takes up in a packed file.
        zeros: Share of its values that are then zero, in [0, 1].
    """

    level: int
    error: float
    loss: float
    packed_bytes: float
    zeros: float


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to store a layer: the level of each pass that changes it, what it packs to, what it loses."""

    levels: Mapping[str, int]
    packed_bytes: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class LayerFigures:
    """What was measured of one layer.

    Attributes:
        node: Its name.
        packed_bytes: What its weight takes up in the packed file as it is.
        zeros: Share of its values that are zero as it is, in [0, 1].
        levels: By the name of the pass, from the mildest to the strongest that was measured.
    """

    node: str
    packed_bytes: float
    zeros: float
    levels: Mapping[str, tuple[LevelFigures, ...]] = field(default_factory=dict)

    def loss_at(self, pass_name: str, error: float) -> float:
        """Return the loss where a pass makes this error of the weight: in proportion between measured ones."""
        known = self.levels.get(pass_name, ())
        if not known or error <= 0:
            return 0.0
        errors, losses = [0.0], [0.0]
        for figures in sorted(known, key=lambda item: item.error):
            errors.append(figures.error)
            losses.append(max(losses[-1], figures.loss))
        if error > errors[-1] > 0:
            return losses[-1] * error / errors[-1]
        return float(np.interp(error, errors, losses))

    def ways(self) -> tuple[Way, ...]:
        """Return the ways from the smallest to the one that loses least; none is worse in both than another."""
        found = [
            self._way(zeros, clusters)
            for zeros, clusters in itertools.product(
                (None, *self.levels.get(SPARSITY_STEP, ())),
                (None, *self.levels.get(CLUSTERING_STEP, ())),
            )
        ]
        kept: list[Way] = []
        for way in sorted(found, key=lambda item: (item.packed_bytes, item.loss)):
            if not kept or way.loss < kept[-1].loss:
                kept.append(way)
        return tuple(kept)

    def _way(self, zeros: LevelFigures | None, clusters: LevelFigures | None) -> Way:
        chosen = ((SPARSITY_STEP, zeros), (CLUSTERING_STEP, clusters))
        return Way(
            levels={name: figures.level for name, figures in chosen if figures is not None},
            packed_bytes=self._packed_bytes(zeros, clusters),
            loss=math.fsum(
                self.loss_at(name, figures.error) for name, figures in chosen if figures is not None
            ),
        )

    def _packed_bytes(self, zeros: LevelFigures | None, clusters: LevelFigures | None) -> float:
        """Return the size of a pair: where zeros lie costs the same with clusters, and the rest less."""
        if zeros is None or clusters is None:
            only = zeros or clusters
            return self.packed_bytes if only is None else only.packed_bytes
        left = (1 - zeros.zeros) / (1 - self.zeros) if self.zeros < 1 else 1.0
        places = max(0.0, zeros.packed_bytes - left * self.packed_bytes)
        return places + left * clusters.packed_bytes


@dataclass(frozen=True, kw_only=True)
class LayerStudy:
    """What was measured of the layers of one trained network; nothing where no time was left for it."""

    layers: tuple[LayerFigures, ...] = ()
    is_cut_short: bool = False

    @property
    def packed_bytes(self) -> float:
        """What the weights of all these layers take up in the packed file as it is."""
        return math.fsum(layer.packed_bytes for layer in self.layers)


NOT_MEASURED = LayerStudy()


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A way for each layer, by node."""

    ways: Mapping[str, Way]

    @property
    def packed_bytes(self) -> float:
        """What the weights of all layers are predicted to take up."""
        return math.fsum(way.packed_bytes for way in self.ways.values())

    @property
    def loss(self) -> float:
        """What the network is predicted to lose without any training."""
        return math.fsum(way.loss for way in self.ways.values())


def choose_ways(layers: Sequence[LayerFigures], room: float) -> Assignment | None:
    """Return the ways that lose least in all and pack into `room` bytes; None where none do.

    Deterministic unless the solver's time limit cuts it short.
    """
    if room <= 0 or not layers:
        return None
    ways = {layer.node: layer.ways() for layer in layers}
    problem = CompressionProblem(
        groups=tuple(
            GroupChoice(
                group_id=node,
                levels=tuple(range(1, len(known) + 1)),
                accuracy_loss=tuple(way.loss for way in known),
            )
            for node, known in ways.items()
        ),
        nodes=tuple(
            NodeChoice(
                node=node,
                input_width=_ANY_WIDTH,
                output_width=_ANY_WIDTH,
                cost=_size(known[-1]),
                option_id=node,
                alternatives={level: _size(way) for level, way in enumerate(known[:-1], start=1)},
            )
            for node, known in ways.items()
        ),
        limits={Quantity.SIZE: room},
    )
    solution = solve(problem, time_limit_seconds=_TIME_LIMIT_SECONDS, relative_gap=_RELATIVE_GAP)
    if not solution.is_feasible:
        return None
    return Assignment(ways={node: known[solution.kept[node] - 1] for node, known in ways.items()})


def _size(way: Way) -> Cost:
    return lambda _inputs, _outputs: {Quantity.SIZE: way.packed_bytes}
