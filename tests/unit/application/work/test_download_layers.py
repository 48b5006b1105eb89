"""Ways by layer: what they are made of, and which are chosen for all layers within a size."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.application.work.download_layers import (
    NOT_MEASURED,
    LayerFigures,
    LayerStudy,
    LevelFigures,
    choose_ways,
)


def level(number: int, *, error: float, loss: float, size: float, zeros: float = 0) -> LevelFigures:
    return LevelFigures(level=number, error=error, loss=loss, packed_bytes=size, zeros=zeros)


LAYER = LayerFigures(
    node="a",
    packed_bytes=1000.0,
    zeros=0.0,
    levels={
        "sparsity": (level(3, error=0.1, loss=0.02, size=625.0, zeros=0.5),),
        "clustering": (
            level(1, error=0.01, loss=0.001, size=500.0),
            level(5, error=0.05, loss=0.03, size=300.0),
        ),
    },
)


def test_a_pair_keeps_the_places_of_zeros_and_codes_the_rest_by_clusters() -> None:
    sizes = {tuple(sorted(way.levels.items())): way.packed_bytes for way in LAYER.ways()}
    # 1000 values, half of them zero: 125 bytes for where, and half of 500 for what
    assert sizes[("clustering", 1), ("sparsity", 3)] == pytest.approx(375.0)


def test_ways_come_from_the_smallest_and_none_is_worse_in_both() -> None:
    ways = LAYER.ways()
    assert ways[-1].levels == {}
    assert [way.packed_bytes for way in ways] == sorted(way.packed_bytes for way in ways)
    assert [way.loss for way in ways] == sorted((way.loss for way in ways), reverse=True)
    # zeros alone take up more than 16 values do, and lose more
    assert {"sparsity": 3} not in [way.levels for way in ways]


def test_losses_between_levels_and_beyond_are_in_proportion_to_the_error_of_the_weight() -> None:
    assert LAYER.loss_at("clustering", 0.0) == 0
    assert LAYER.loss_at("clustering", 0.005) == pytest.approx(0.0005)
    assert LAYER.loss_at("clustering", 0.03) == pytest.approx((0.001 + 0.03) / 2)
    assert LAYER.loss_at("clustering", 0.1) == pytest.approx(0.06)
    assert LAYER.loss_at("low_rank", 0.1) == 0


def test_a_stronger_level_never_loses_less() -> None:
    noisy = LayerFigures(
        node="a",
        packed_bytes=1.0,
        zeros=0.0,
        levels={
            "clustering": (
                level(0, error=0.1, loss=0.02, size=0.5),
                level(1, error=0.2, loss=0.01, size=0.2),
            )
        },
    )
    assert noisy.loss_at("clustering", 0.2) == 0.02


def random_layers(seed: int, count: int) -> list[LayerFigures]:
    rng = np.random.default_rng(seed)
    return [
        LayerFigures(
            node=f"layer{number}",
            packed_bytes=size,
            zeros=0.0,
            levels={
                "sparsity": tuple(
                    level(i, error=e, loss=float(rng.random()) * e, size=size * (1 - e), zeros=e)
                    for i, e in enumerate((0.3, 0.6, 0.9))
                ),
                "clustering": tuple(
                    level(i, error=e, loss=float(rng.random()) * e, size=size * share)
                    for i, (e, share) in enumerate(((0.02, 0.6), (0.1, 0.4)))
                ),
            },
        )
        for number, size in enumerate(rng.integers(100, 2000, count).astype(float).tolist())
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_the_choice_is_the_best_of_all_assignments(seed: int, share: float) -> None:
    layers = random_layers(seed, 3)
    room = share * sum(layer.packed_bytes for layer in layers)
    chosen = choose_ways(layers, room)
    best = min(
        math.fsum(way.loss for way in ways)
        for ways in itertools.product(*(layer.ways() for layer in layers))
        if sum(way.packed_bytes for way in ways) <= room
    )
    assert chosen is not None
    assert chosen.packed_bytes <= room
    assert chosen.loss == pytest.approx(best, rel=2e-3)
    assert set(chosen.ways) == {layer.node for layer in layers}


def test_a_room_that_nothing_packs_into_has_no_choice() -> None:
    layers = random_layers(0, 3)
    least = sum(layer.ways()[0].packed_bytes for layer in layers)
    assert choose_ways(layers, 0.99 * least) is None
    assert choose_ways(layers, 0.0) is None
    assert choose_ways((), 100.0) is None
    roomy = choose_ways(layers, 1e9)
    assert roomy is not None
    assert roomy.loss == 0


def test_a_study_travels_as_plain_data() -> None:
    study = LayerStudy(layers=(LAYER, *random_layers(1, 2)), is_cut_short=True)
    assert from_plain(LayerStudy, to_plain(study)) == study
    assert from_plain(LayerStudy, {}) == NOT_MEASURED
