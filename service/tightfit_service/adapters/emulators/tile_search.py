"""The tiles of a device's matrix kernels, found from what products of many shapes took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from tightfit_service.adapters.emulators.format_fit import misfit
from tightfit_service.adapters.emulators.kernel_tiles import Tile, Tiles
from tightfit_service.adapters.emulators.onnxruntime_graph import symmetric_tile
from tightfit_service.adapters.emulators.operator_work import TILED, WorkOf, kind_of
from tightfit_service.adapters.emulators.timed_products import TimedProduct, timed_products
from tightfit_service.domain.calibration import Observation

LANES = (1, 4, 8, 16, 32)
"""Columns that the tiles of all products begin with, tried in turn: one vector of a device or several."""
DOT_MACS = 4
"""Products of 8 bits that one instruction adds up, in all of its lanes (SDOT of Armv8.2, VPDPBUSD of AVX-512):
the depth that those tiles begin with."""
COLUMNS = (
    *((width, width) for width in (1, 4, 8, 16, 32, 64)),
    *((16, 8), (32, 16), (48, 16), (64, 16), (64, 32)),
)
"""Of a tile, and of its narrow kernel."""
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
DEPTHS = (1, 2, 4, 8, 16, 32)
ROUNDS = 2
"""Through columns, rows and depths: what is best of one depends on the others."""
LEAST_PRODUCTS = 8
"""Of a kind; of fewer no tile is learned."""
KEPT_MISFIT = 0.98
"""Of the misfit, which another tile must fall below: noise prefers one or the other a little."""


def find_tiles(observations: Sequence[Observation], work_of: WorkOf, bits: int) -> Tiles:
    """Return the tiles of all products that explain measurements best.

    Libraries have a kernel of their own for each kind of product. One width for all is found from whole
    networks; what profiles tell of single products then tells the kinds apart.

    Args:
        observations: Measured networks of one number format.
        work_of: Reads work off, by any tiles.
        bits: Of the activations.
    """
    depth = DOT_MACS if bits <= 8 else 1
    latencies_ms = [item.latency_ms for item in observations]

    def misfit_of_lanes(lanes: int) -> float:
        reader = replace(work_of, tiles={bits: _alike(lanes, depth)})
        return misfit([reader.network(item.profile) for item in observations], latencies_ms)

    found = _alike(min(LANES, key=misfit_of_lanes), depth)
    by_name: defaultdict[str, list[TimedProduct]] = defaultdict(list)
    for product in timed_products(observations, work_of):
        if symmetric_tile(product.operator, work_of.target) is None:
            by_name[str(kind_of(product.operator)[0])].append(product)
    for name, products in by_name.items():
        if len(products) >= LEAST_PRODUCTS:
            found[name] = _best_tile(found[name], partial(_misfit, work_of, bits, name, products))
    return found


def _misfit(
    work_of: WorkOf, bits: int, name: str, products: Sequence[TimedProduct], tile: Tile
) -> float:
    """Return how badly products of one kind are explained by a tile."""
    reader = replace(work_of, tiles={bits: {name: tile}})
    return misfit(
        [reader.operator(product.operator) for product in products],
        [product.latency_ms for product in products],
        [product.deviation for product in products],
    )


def _alike(lanes: int, depth: int) -> dict[str, Tile]:
    """Return one tile for all products."""
    return dict.fromkeys(TILED, Tile(columns=lanes, narrow=lanes, depth=depth))


def _best_tile(first: Tile, misfit_of: Callable[[Tile], float]) -> Tile:
    best, least = first, misfit_of(first)
    for _ in range(ROUNDS):
        before = best
        for others in (_other_columns, _other_rows, _other_depths):
            for tile in others(best):
                found = misfit_of(tile)
                if found < KEPT_MISFIT * least:
                    best, least = tile, found
        if best == before:
            break
    return best


def _other_columns(tile: Tile) -> Iterator[Tile]:
    return (replace(tile, columns=wide, narrow=narrow) for wide, narrow in COLUMNS)


def _other_rows(tile: Tile) -> Iterator[Tile]:
    return (replace(tile, rows=rows) for rows in ROWS)


def _other_depths(tile: Tile) -> Iterator[Tile]:
    return (replace(tile, depth=depth) for depth in DEPTHS)
