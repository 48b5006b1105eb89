"""Points of the space of sizes that the designed set covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy.stats import qmc

T = TypeVar("T")

SEED = 20
DIMENSIONS = 6
"""As many as the makers of networks read coordinates."""
DEPTHS = (1, 2, 4, 7)
"""Layers of a chain: only networks of different depth tell layers from the borders of a network."""


@dataclass(frozen=True)
class Point:
    """A point of the unit cube, read coordinate by coordinate, and its number in its sequence."""

    values: tuple[float, ...]
    number: int

    @classmethod
    def of(cls, number: int, label: str) -> Point:
        """Return a point of the scrambled Sobol sequence of a label.

        A sequence per label covers the sizes of each kind of network, however many are asked for
        (I. M. Sobol, USSR Computational Mathematics and Mathematical Physics 7(4), 1967). Labels
        whose letters add up alike share a sequence, which harms nothing.
        """
        seed = SEED + sum(ord(letter) for letter in label)
        engine = qmc.Sobol(d=DIMENSIONS, seed=seed)
        if number:
            engine.fast_forward(number)
        return cls(tuple(float(value) for value in engine.random(1)[0]), number)

    def shrunk(self, factor: float) -> Point:
        """Return a point nearer to the smallest sizes."""
        return Point(tuple(min(value * factor, 1.0) for value in self.values), self.number)

    def size(self, axis: int, low: int, high: int) -> int:
        """Return an integer between the bounds, spread evenly over its logarithm."""
        return round(low * float((high / low) ** self.values[axis]))

    def channels(self, axis: int, low: int = 4, high: int = 160) -> int:
        """Return a width; every other one is a multiple of 8, as designers choose them."""
        width = self.size(axis, low, high)
        is_round = int(self.values[axis] * 64) % 2 == 0
        return max(8, -(-width // 8) * 8) if is_round else width

    def choice(self, axis: int, options: tuple[int, ...]) -> int:
        """Return one of the options."""
        return options[min(int(self.values[axis] * len(options)), len(options) - 1)]

    def depth(self, axis: int = 5) -> int:
        """Return how many layers a chain has."""
        return self.choice(axis, DEPTHS)

    def turn(self, options: Sequence[T]) -> T:
        """Return the options in turn, so that none is left to chance."""
        return options[self.number % len(options)]

    def layers(self, options: Sequence[T]) -> list[T]:
        """Return three of the options in turn, many times the first, few times the second, the third once.

        Two thirds as many points as there are options have each of them twice.
        """
        step = max(len(options) // 3, 1)
        first, second, third = (
            options[(self.number + place * step) % len(options)] for place in range(3)
        )
        return [first] * self.depth() + [second] * self.choice(4, (1, 2, 3)) + [third]
