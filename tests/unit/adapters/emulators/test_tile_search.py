"""Tiles of matrix kernels, and how they are found."""

from __future__ import annotations

import numpy as np
import pytest

from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.emulators.kernel_tiles import Tile
from tightfit_service.adapters.emulators.operator_work import TILED, WorkOf
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.adapters.emulators.tile_search import find_tiles
from tightfit_service.bootstrap import catalogue
from tightfit_service.domain.calibration import Observation
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.measurement import OperatorTime
from tightfit_service.graph.profile import OnnxGraphInspector

TILE = Tile(rows=7, columns=32, narrow=16, depth=8)
MAC_MS = 1e-6


def test_a_tile_is_computed_as_a_whole() -> None:
    assert [TILE.whole_rows(rows) for rows in (1, 2, 7, 8)] == [1, 7, 7, 14]
    assert [TILE.whole_columns(columns) for columns in (3, 17, 32, 36)] == [16, 32, 32, 64]
    assert [TILE.whole_depth(depth, 9) for depth in (9 * 3, 9 * 8, 9 * 9)] == [72, 72, 144]


def convolved(tile: Tile, number: int, *, is_profiled: bool) -> Observation:
    """Return a convolution on a device whose kernel has such a tile."""
    rng = np.random.default_rng(number)
    inputs, outputs, side = (int(n) for n in rng.integers((3, 3, 3), (40, 90, 12)))
    builder = GraphBuilder((inputs, side, side), seed=0)
    builder.conv(builder.top, outputs)
    products = (
        tile.whole_rows(side**2) * tile.whole_columns(outputs) * tile.whole_depth(9 * inputs, 9)
    )
    took_ms = 0.003 + MAC_MS * products
    return Observation(
        label="conv",
        number_format=NumberFormat.FLOAT32,
        profile=OnnxGraphInspector().profile(builder.build()),
        latency_ms=took_ms,
        operators=(OperatorTime(kind="Conv", latency_ms=took_ms),) if is_profiled else (),
    )


@pytest.mark.parametrize("tile", [TILE, Tile(rows=4, columns=8, narrow=8, depth=1)])
def test_the_tile_of_a_kernel_is_found_from_what_it_took(tile: Tile) -> None:
    found = tiles_of([convolved(tile, number, is_profiled=True) for number in range(60)])
    assert found["conv"] == tile


def test_without_profiles_all_kernels_have_the_tile_that_explains_networks() -> None:
    tile = Tile(columns=16, narrow=16)
    found = tiles_of([convolved(tile, number, is_profiled=False) for number in range(60)])
    assert set(found.values()) == {tile}


def tiles_of(observations: list[Observation]) -> dict[str, Tile]:
    work_of = WorkOf(
        base=RooflineEmulator(),
        target=catalogue().complete({"name": "made-up", "core": "cortex-a72", "core_count": 1}),
        least_ms=1e-3,
        mac_ms=MAC_MS,
        tiles={32: dict.fromkeys(TILED, Tile())},
    )
    return dict(find_tiles(observations, work_of, 32))
