"""An emulator corrected by measurements predicts what a made-up device does, and knows how well."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from statistics import NormalDist

import numpy as np
import pytest

from tightfit_service.adapters.calibration.designed_networks import CYCLE, DesignedNetworks
from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.emulators.calibrated import (
    LEARNED_FORM,
    CalibratedEmulator,
    ProcessFitter,
)
from tightfit_service.adapters.emulators.format_fit import FormatFit
from tightfit_service.adapters.emulators.kernel_tiles import Tile
from tightfit_service.adapters.emulators.learned_fit import LearnedFit, kinds_of
from tightfit_service.adapters.emulators.operator_chains import operators_together
from tightfit_service.adapters.emulators.operator_process import LENGTHS, START, Parameters
from tightfit_service.adapters.emulators.operator_work import (
    TILED,
    Kind,
    Work,
    WorkOf,
    kind_of,
)
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.adapters.emulators.tile_search import DOT_MACS
from tightfit_service.bootstrap import catalogue
from tightfit_service.domain.calibration import Observation
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.measurement import OperatorTime
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.graph.profile import OnnxGraphInspector

TARGET = catalogue().complete({"name": "made-up", "core": "cortex-a72", "core_count": 1})
NOISE = 0.01
SEEN = 64
TILES = dict.fromkeys(TILED, Tile(columns=8, narrow=8))


@cache
def profiles() -> tuple[NetworkProfile, ...]:
    networks, inspector = DesignedNetworks(), OnnxGraphInspector()
    return tuple(
        inspector.profile(networks.graph(index).graph).at_precision(
            weight_bits=8, activation_bits=8
        )
        for index in range(2 * len(CYCLE))
    )


def device_ms(operator: Operator) -> float:
    """A device unlike a roofline: slow in narrow layers and in depthwise ones, with steps of eight."""
    if operator.kind is OperatorKind.RESHAPE:
        return 0.0
    waste = -(-max(operator.out_channels, 1) // 8) * 8 / max(operator.out_channels, 1)
    narrow = 1 + 6 / max(operator.in_channels / operator.groups, 1.0)
    written = operator.out_channels * math.prod(operator.out_size or (1,))
    read = operator.in_channels * math.prod(operator.in_size or (1,))
    return 0.004 + operator.macs * waste * narrow / 4e6 + max(read, written) / 8e5


def measured(latency: Callable[[Operator], float] = device_ms) -> list[Observation]:
    rng = np.random.default_rng(3)
    return [
        Observation(
            label=CYCLE[index % len(CYCLE)],
            number_format=NumberFormat.INT8,
            profile=profile,
            latency_ms=(0.02 + sum(map(latency, profile.operators)))
            * math.exp(NOISE * rng.standard_normal()),
        )
        for index, profile in enumerate(profiles())
    ]


def kinds_at_odds_ms(operator: Operator) -> float:
    """A device whose kernels are good or bad by their kind, by a factor of 2.7 either way."""
    told = hashlib.sha256(str(kind_of(operator)[0]).encode()).digest()
    odds = NormalDist().inv_cdf((1 + int.from_bytes(told[:4], "big")) / (2 + 2**32))
    return device_ms(operator) * math.exp(odds)


def without(observations: Sequence[Observation], op_type: str) -> list[Observation]:
    return [
        item
        for item in observations
        if all(operator.op_type != op_type for operator in item.profile.operators)
    ]


def learned(observations: Sequence[Observation]) -> tuple[float, ...]:
    """Return what spares the search: tiles, the parameters that it starts from, and a stretch of intervals."""
    work_of = WorkOf(
        base=RooflineEmulator(), target=TARGET, least_ms=1e-3, mac_ms=1e-7, tiles={8: TILES}
    )
    kinds = kinds_of([work_of.network(item.profile) for item in observations])
    known = LearnedFit(TILES, Parameters(np.array(START)), 1.5)
    return LEARNED_FORM, *known.values(kinds)


@pytest.fixture(scope="module")
def fitted() -> CalibratedEmulator:
    return ProcessFitter().fit(RooflineEmulator(), TARGET, measured()[:SEEN])


def test_networks_that_it_has_not_seen_are_predicted_within_ten_percent(
    fitted: CalibratedEmulator,
) -> None:
    unseen = measured()[SEEN:]
    ratios = [fitted.estimate(o.profile, TARGET).latency_ms.value / o.latency_ms for o in unseen]
    errors = np.abs(np.array(ratios) - 1)
    plain = RooflineEmulator()
    before = [
        abs(plain.estimate(o.profile, TARGET).latency_ms.value / o.latency_ms - 1) for o in unseen
    ]
    assert np.median(errors) < 0.08
    assert np.mean(errors < 0.1) >= 0.6
    assert np.median(before) > 3 * np.median(errors)


def test_intervals_cover_networks_that_it_has_not_seen(fitted: CalibratedEmulator) -> None:
    covered = []
    for observation in measured()[SEEN:]:
        interval = fitted.estimate(observation.profile, TARGET).latency_ms
        covered.append(interval.low <= observation.latency_ms <= interval.high)
    # of 50 networks; at a coverage of 90 % fewer than this are seen once in 100 times
    assert np.mean(covered) >= 0.8


def test_vectors_are_found_to_be_as_wide_as_the_device_has_them(
    fitted: CalibratedEmulator,
) -> None:
    assert set(fitted.tiles[8].values()) == {Tile(columns=8, narrow=8, depth=DOT_MACS)}


def test_operators_add_up_to_the_network(fitted: CalibratedEmulator) -> None:
    for profile in profiles()[:10]:
        cost = fitted.estimate(profile, TARGET)
        layers = sum(layer.latency_ms for layer in cost.layers)
        # the call and the borders of the network belong to no operator
        assert 0.4 * cost.latency_ms.value < layers <= cost.latency_ms.value * 1.001


@pytest.mark.long
def test_quality_tells_the_error_of_left_out_networks() -> None:
    found = ProcessFitter().examine(RooflineEmulator(), TARGET, measured()[:48])
    (quality,) = found.quality
    assert quality.count == 48
    assert quality.median_error < 0.1 < quality.median_error_before
    assert 0.85 <= quality.coverage <= 1.0


def test_what_was_learned_spares_the_search(fitted: CalibratedEmulator) -> None:
    again = ProcessFitter().fit(RooflineEmulator(), TARGET, measured()[:SEEN], fitted.learned)
    assert again.learned == pytest.approx(fitted.learned)
    for profile in profiles()[SEEN : SEEN + 4]:
        first, second = (e.estimate(profile, TARGET).latency_ms for e in (fitted, again))
        assert (second.value, second.high) == pytest.approx((first.value, first.high))


RARE = (
    "GridSample",
    "LRN",
    "ConvTranspose",
    "TopK",
    "Erf",
    "Split",
    "DepthToSpace",
    "Resize",
    "Pow",
)


@pytest.mark.long
def test_intervals_cover_kinds_that_were_never_measured() -> None:
    observations = measured(kinds_at_odds_ms)
    covered: list[bool] = []
    for op_type in RARE:
        known = without(observations, op_type)
        fit = ProcessFitter().fit(RooflineEmulator(), TARGET, known, learned(known))
        strangers = [item for item in observations if item not in known]
        for item in strangers:
            latency = fit.estimate(item.profile, TARGET).latency_ms
            covered.append(latency.low <= item.latency_ms <= latency.high)
    assert len(covered) >= 20
    assert np.mean(covered) >= 0.8


def test_an_estimate_names_the_kinds_that_were_never_measured() -> None:
    observations = measured(kinds_at_odds_ms)
    strange = next(item for item in observations if item.label == "grid sampling")
    everything, others = (
        ProcessFitter().fit(RooflineEmulator(), TARGET, items, learned(items))
        for items in (observations, without(observations, "GridSample"))
    )
    known, unknown = (fit.estimate(strange.profile, TARGET) for fit in (everything, others))
    assert not any("did not measure" in warning for warning in known.warnings)
    (warning,) = (text for text in unknown.warnings if "did not measure" in text)
    assert "GridSample (8 bits)" in warning
    sources = {layer.op_type: layer.provenance for layer in unknown.layers}
    assert sources["GridSample"] == "kind not measured"
    assert sources["Gemm"] == "kind measured"
    assert {layer.provenance for layer in known.layers} <= {"kind measured", ""}
    widths = [cost.latency_ms.high / cost.latency_ms.low for cost in (known, unknown)]
    assert widths[1] > 1.5 * widths[0]
    assert unknown.energy_mj.high / unknown.energy_mj.low > 1.5 * (
        known.energy_mj.high / known.energy_mj.low
    )


def test_kinds_that_were_never_measured_are_as_uncertain_as_measured_kinds_differ() -> None:
    network = next(p for p in profiles() if any(o.op_type == "GridSample" for o in p.operators))
    alone = tuple(op for op in network.operators if op.op_type == "GridSample")
    strange = replace(network, operators=alone)
    widths = []
    for latency in (device_ms, kinds_at_odds_ms):
        known = without(measured(latency), "GridSample")
        fit = ProcessFitter().fit(RooflineEmulator(), TARGET, known, learned(known))
        interval = fit.estimate(strange, TARGET).latency_ms
        widths.append(interval.high / interval.low)
    assert widths[1] > 1.5 * widths[0]


def test_another_way_of_a_measured_operator_is_expected_to_take_what_it_takes() -> None:
    slow, fast, other = (("Slow", "over last", 8, 8), ("Fast", 8, 8), ("Slow", "over others", 8, 8))
    nowhere, sizes = (0.0,) * len(LENGTHS), (1.0, 2.0, 4.0, 8.0)
    works = [[Work(kind, nowhere, size)] for kind in (slow, fast) for size in sizes]
    latencies_ms = [*(10 * size for size in sizes), *sizes]
    fit = FormatFit(works, latencies_ms, parameters=Parameters(np.array(START)))
    found = fit.predict([Work(other, nowhere, 2.0)])
    assert fit.is_measured(other)
    assert found.measured_ms == pytest.approx(20.0, rel=0.2)
    assert found.other_ms == 0.0
    assert fit.work_ms(Work(other, nowhere, 2.0)) == pytest.approx(found.measured_ms)
    strange: Kind = ("Slow", "over last", 4, 8)
    stranger = fit.predict([Work(strange, nowhere, 2.0)])
    assert not fit.is_measured(strange)
    assert stranger.measured_ms == 0.0
    assert stranger.other_ms > 0.0


def test_other_weights_are_another_kind(fitted: CalibratedEmulator) -> None:
    finer = profiles()[1].at_precision(weight_bits=4, activation_bits=8)
    cost = fitted.estimate(finer, TARGET)
    assert any("weights of 4 bits, activations of 8" in text for text in cost.warnings)


def test_a_format_without_measurements_takes_from_the_nearest(fitted: CalibratedEmulator) -> None:
    wide = profiles()[1].at_precision(weight_bits=32, activation_bits=32)
    cost = fitted.estimate(wide, TARGET)
    assert {layer.provenance for layer in cost.layers} <= {"kind not measured", ""}
    assert cost.latency_ms.low < cost.latency_ms.value < cost.latency_ms.high


def test_networks_of_unseen_families_are_what_intervals_are_stretched_for() -> None:
    """Families of like shapes tell of one another what a fit to other families cannot know."""
    rng = np.random.default_rng(2)
    works: list[list[Work]] = []
    latencies: list[float] = []
    labels: list[str] = []
    for family in range(8):
        for _ in range(6):
            place = 10.0 + 0.5 * family + 0.02 * rng.standard_normal()
            works.append([Work(("Add", 8, 8), (place, *(0.0,) * 7), 2**place / 1e6)])
            latencies.append(works[-1][0].base_ms * (1.5 if family % 2 else 1.0))
            labels.append(f"family {family}")
    stretches = []
    for items in (labels, [str(place) for place in range(len(works))]):
        fit = FormatFit(works, latencies, parameters=Parameters(np.array(START)))
        fit.left_out(items)
        stretches.append(fit.stretch)
    assert stretches[0] > 1.3 * stretches[1]


def test_a_kind_may_have_parts_that_it_had_in_no_measured_network() -> None:
    """An Einsum of one network is elementwise, that of another moves its pixels."""
    kind, place = ("Einsum", 8, 8), (10.0, *(0.0,) * 7)
    works = [[Work(kind, place, 1e-3)]] * 12
    fit = FormatFit(works, [2e-3] * 12, parameters=Parameters(np.array(START)))
    found = fit.predict([Work(kind, place, 1e-3, (("pixels", 1e-3),))])
    assert found.measured_ms == pytest.approx(4e-3, rel=0.05)


def test_operators_together_are_one_piece_of_work(fitted: CalibratedEmulator) -> None:
    builder = GraphBuilder((16, 8, 8), seed=0)
    for kind in ("SpelledGelu", "Silu"):
        builder.activation(builder.conv(builder.top, 16), kind)
    profile = OnnxGraphInspector().profile(builder.build())
    found = {item.name: item.operators for item in operators_together(profile)}
    assert list(found) == ["spelled Gelu", "gated Sigmoid"]
    assert [len(operators) for operators in found.values()] == [5, 2]
    cost = fitted.estimate(profile.at_precision(weight_bits=8, activation_bits=8), TARGET)
    assert sum(layer.latency_ms for layer in cost.layers) < cost.latency_ms.value


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="too few"):
        ProcessFitter().fit(RooflineEmulator(), TARGET, measured()[:8])


def test_what_products_take_is_found_where_networks_alone_cannot_tell() -> None:
    """Convolutions and sums of one width in turn: only their total is seen, or what each takes."""
    observations = measured()[:SEEN]
    truth = [
        tuple(
            OperatorTime(kind=op.op_type, latency_ms=device_ms(op)) for op in item.profile.operators
        )
        for item in observations
    ]
    profiled = [
        replace(item, operators=operators)
        for item, operators in zip(observations, truth, strict=True)
    ]
    errors = []
    for items in (observations, profiled):
        fit = ProcessFitter().fit(RooflineEmulator(), TARGET, items, learned(items))
        unseen = [
            operator
            for item in measured()[SEEN:]
            for operator in item.profile.operators
            if operator.macs and kind_of(operator)[0] in ("conv", "pointwise", "depthwise_conv")
        ]
        ratios = [fit.operator_cost(op, TARGET).latency_ms / device_ms(op) for op in unseen]
        errors.append(float(np.median(np.abs(np.log(ratios)))))
    assert errors[1] < 0.7 * errors[0]
