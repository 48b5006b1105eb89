"""What takes long to find of a fit, as numbers that are stored with the measurements."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np

from tightfit_service.adapters.emulators.kernel_tiles import Tile, Tiles
from tightfit_service.adapters.emulators.operator_process import START, Parameters
from tightfit_service.adapters.emulators.operator_work import TILED, Kind, Work

_TILE_SIZE = len(fields(Tile))


@dataclass(frozen=True)
class LearnedFit:
    """Of one number format.

    Attributes:
        tiles: Of matrix kernels.
        parameters: Of the process.
        stretch: Of the intervals.
    """

    tiles: Tiles
    parameters: Parameters
    stretch: float

    def values(self, kinds: Sequence[Kind]) -> list[float]:
        """Return it as numbers.

        Args:
            kinds: Of the measured networks, in the order of `kinds_of`.
        """
        tiles = [float(value) for name in TILED for value in astuple(self.tiles[name])]
        scales = [self.parameters.scales.get(kind, 0.0) for kind in kinds]
        return [*tiles, *self.parameters.shared.tolist(), *scales, self.stretch]

    @classmethod
    def size(cls, kinds: Sequence[Kind]) -> int:
        """Return how many numbers it is."""
        return len(TILED) * _TILE_SIZE + len(START) + len(kinds) + 1

    @classmethod
    def of(cls, values: Sequence[float], kinds: Sequence[Kind]) -> LearnedFit:
        """Return it from its numbers."""
        numbers = iter(values)
        tiles = {name: Tile(*(round(next(numbers)) for _ in range(_TILE_SIZE))) for name in TILED}
        shared = np.array([next(numbers) for _ in START])
        scales: dict[Hashable, float] = {kind: next(numbers) for kind in kinds}
        return cls(tiles, Parameters(shared, scales), next(numbers))


def kinds_of(works: Sequence[Sequence[Work]]) -> list[Kind]:
    """Return the kinds of measured networks in an order that does not change."""
    return sorted({work.kind for network in works for work in network}, key=str)
