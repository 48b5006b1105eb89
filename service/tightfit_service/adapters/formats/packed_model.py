"""What the entropy coder of packed files expects: contexts, and tables shared by similar ones.

The statistics are gathered from the constants, so a packed file carries its tables; contexts and
constants with similar statistics share one where that costs less than a table of their own.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tightfit.packed_file import (
    CONTEXT_COUNT,
    CONTEXT_SHIFT,
    MAGNITUDE_STEP,
    MOST_TABLES,
)

Counts = npt.NDArray[np.int64]
Symbols = npt.NDArray[np.uint8]

SHIFTS = (2, 3, 4, 5)
"""Windows of the running means, from the shortest to the longest, as powers of two."""
_TABLE_BITS = 16.0
_LEVEL_BITS = 4.0
"""Bits of a level after LZMA, as seen on int8 weights."""
_LARGEST_LEVEL = 61


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamModel:
    """How a sequence of symbols will be coded.

    Attributes:
        symbols: The sequence, shape (n,).
        symbol_count: Symbols that may occur.
        magnitudes: Magnitude of each symbol, 0 to 8.
        groups: Contexts that share their statistics, from 0 on, shape (33,).
        counts: How often each symbol occurs in each group, shape (groups, symbol_count).
    """

    symbols: Symbols
    symbol_count: int
    magnitudes: bytes
    period: int
    shift: int
    start: int
    groups: npt.NDArray[np.int64]
    counts: Counts

    @property
    def bits(self) -> float:
        """Expected size, with tables of its own."""
        return float(_costs(self.counts).sum())

    def contexts(self) -> npt.NDArray[np.int64]:
        """Return the context of each symbol, shape (n,)."""
        if len(self.counts) == 1:
            return np.zeros(len(self.symbols), dtype=np.int64)
        return _contexts(self.symbols, self.magnitudes, self.period, self.shift, self.start)


def plain_stream(symbols: Symbols, symbol_count: int, magnitudes: bytes) -> StreamModel:
    """Return the model without contexts."""
    counts = np.bincount(symbols, minlength=symbol_count)[None]
    return StreamModel(
        symbols=symbols,
        symbol_count=symbol_count,
        magnitudes=magnitudes,
        period=len(symbols),
        shift=0,
        start=0,
        groups=np.zeros(CONTEXT_COUNT, dtype=np.int64),
        counts=counts.astype(np.int64),
    )


def best_stream(
    symbols: Symbols,
    symbol_count: int,
    magnitudes: bytes,
    row_lengths: Sequence[int],
    shifts: Sequence[int] = SHIFTS,
) -> StreamModel:
    """Return the model that promises the fewest bits, of those with one of the given shifts."""
    best = plain_stream(symbols, symbol_count, magnitudes)
    sizes = np.frombuffer(magnitudes, dtype=np.uint8)
    start = round(float(sizes[symbols].mean()) * MAGNITUDE_STEP) if len(symbols) else 0
    for period in row_lengths:
        for shift in shifts:
            contexts = _contexts(symbols, magnitudes, period, shift, start)
            counts = np.zeros((CONTEXT_COUNT, symbol_count), dtype=np.int64)
            np.add.at(counts, (contexts, symbols), 1)
            groups, merged = _merged(counts)
            candidate = StreamModel(
                symbols=symbols,
                symbol_count=symbol_count,
                magnitudes=magnitudes,
                period=period,
                shift=shift,
                start=start,
                groups=groups,
                counts=merged,
            )
            if candidate.bits < best.bits:
                best = candidate
    return best


@dataclass(kw_only=True, eq=False)
class SharedTables:
    """Tables of a file; streams join those that suit them."""

    counts: list[Counts] = field(default_factory=list)

    def join(self, model: StreamModel) -> npt.NDArray[np.int64]:
        """Return the table of each context, shape (33,), adding tables where none suits."""
        chosen = np.array([self._place(counts) for counts in model.counts], dtype=np.int64)
        return chosen[model.groups]

    def levels(self) -> list[bytes]:
        """Return the levels of each table's symbols; see `tightfit.packed_file.frequencies`."""
        return [_levels(counts) for counts in self.counts]

    def _place(self, counts: Counts) -> int:
        alike = [i for i, table in enumerate(self.counts) if len(table) == len(counts)]
        if alike:
            tables = np.stack([self.counts[index] for index in alike])
            gains = _costs(tables) + _costs(counts[None]) - _costs(tables + counts)
            best = int(np.argmax(gains))
            # A full set is joined whatever it costs.
            if gains[best] > 0 or len(self.counts) >= MOST_TABLES - 1:
                self.counts[alike[best]] = tables[best] + counts
                return alike[best]
        self.counts.append(counts)
        return len(self.counts) - 1


def _levels(counts: Counts) -> bytes:
    with np.errstate(divide="ignore"):
        octaves = np.log2(counts / counts.max())
    levels = np.maximum(_LARGEST_LEVEL + np.round(4 * np.maximum(octaves, -16)), 1)
    return bytes(np.where(counts > 0, levels, 0).astype(np.uint8))


def _costs(counts: Counts) -> npt.NDArray[np.float64]:
    """Return the bits of the symbols and of the table for each row of counts."""
    total = counts.sum(axis=1, keepdims=True)
    share = np.where(counts > 0, counts, 1) / np.maximum(total, 1)
    bits = -(counts * np.log2(share)).sum(axis=1)
    return np.asarray(bits + _TABLE_BITS + _LEVEL_BITS * (counts > 0).sum(axis=1))


def _merged(counts: Counts) -> tuple[npt.NDArray[np.int64], Counts]:
    """Merge rows, the pair that saves most first; return the group of each row, and the groups.

    Rows without symbols belong to group 0.
    """
    used = [index for index in range(len(counts)) if counts[index].any()]
    rows = [counts[index] for index in used]
    members = [[index] for index in used]
    costs = [float(_costs(row[None])[0]) for row in rows]
    alive = list(range(len(rows)))
    heap: list[tuple[float, int, int]] = []

    def offer(first: int, others: list[int]) -> None:
        if not others:
            return
        joint = _costs(np.stack([rows[index] for index in others]) + rows[first])
        for index, cost in zip(others, joint.tolist(), strict=True):
            gain = costs[first] + costs[index] - cost
            if gain > 0:
                heapq.heappush(heap, (-gain, first, index))

    for position, first in enumerate(alive):
        offer(first, alive[:position])
    while heap:
        _, first, second = heapq.heappop(heap)
        if first not in alive or second not in alive:
            continue
        alive = [index for index in alive if index not in {first, second}]
        rows.append(rows[first] + rows[second])
        members.append(members[first] + members[second])
        costs.append(float(_costs(rows[-1][None])[0]))
        offer(len(rows) - 1, alive)
        alive.append(len(rows) - 1)
    groups = np.zeros(len(counts), dtype=np.int64)
    for group, index in enumerate(alive):
        groups[members[index]] = group
    return groups, np.stack([rows[index] for index in alive])


def _contexts(
    symbols: Symbols, magnitudes: bytes, period: int, shift: int, start: int
) -> npt.NDArray[np.int64]:
    """Return the context of each symbol: running means of the row before it and of the column above."""
    sizes = np.frombuffer(magnitudes, dtype=np.uint8).astype(np.int64) * MAGNITUDE_STEP
    grid = sizes[symbols].reshape(-1, period)
    along = _running(np.ascontiguousarray(grid.T), shift, start).T
    down = _running(grid, shift, start)
    return np.asarray(((along + down) >> CONTEXT_SHIFT).ravel())


def _running(grid: npt.NDArray[np.int64], shift: int, start: int) -> npt.NDArray[Any]:
    """Return the running mean of all rows above each row, shape as `grid`."""
    result = np.empty_like(grid)
    state = np.full(grid.shape[1], start, dtype=np.int64)
    for index, row in enumerate(grid):
        result[index] = state
        state = state + ((row - state) >> shift)
    return result
