"""An emulator corrected by measurements predicts what a made-up device does, and knows how well."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from tightfit_service.adapters.calibration.designed_networks import DesignedNetworks
from tightfit_service.adapters.emulators.calibrated import CalibratedEmulator, ProcessFitter
from tightfit_service.adapters.emulators.operator_process import OperatorProcess, Term
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.bootstrap import catalogue
from tightfit_service.domain.calibration import Observation
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.graph.profile import OnnxGraphInspector

TARGET = catalogue().complete({"name": "made-up", "core": "cortex-a72", "core_count": 1})
NOISE = 0.01


@cache
def profiles() -> tuple[NetworkProfile, ...]:
    networks, importer, inspector = DesignedNetworks(), OnnxImporter(), OnnxGraphInspector()
    graphs = [importer.import_model(networks.graph(index).graph).graph for index in range(96)]
    return tuple(
        inspector.profile(graph).at_precision(weight_bits=8, activation_bits=8) for graph in graphs
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
            label="network",
            number_format=NumberFormat.INT8,
            profile=profile,
            latency_ms=(0.02 + sum(map(latency, profile.operators)))
            * math.exp(NOISE * rng.standard_normal()),
        )
        for profile in profiles()
    ]


@pytest.fixture(scope="module")
def fitted() -> CalibratedEmulator:
    return ProcessFitter().fit(RooflineEmulator(), TARGET, measured()[:72])


def test_networks_that_it_has_not_seen_are_predicted_within_ten_percent(
    fitted: CalibratedEmulator,
) -> None:
    unseen = measured()[72:]
    ratios = [fitted.estimate(o.profile, TARGET).latency_ms.value / o.latency_ms for o in unseen]
    errors = np.abs(np.array(ratios) - 1)
    plain = RooflineEmulator()
    before = [
        abs(plain.estimate(o.profile, TARGET).latency_ms.value / o.latency_ms - 1) for o in unseen
    ]
    assert np.median(errors) < 0.05
    assert np.mean(errors < 0.1) >= 0.75
    assert np.median(before) > 3 * np.median(errors)


def test_intervals_cover_networks_that_it_has_not_seen(fitted: CalibratedEmulator) -> None:
    covered = []
    for observation in measured()[72:]:
        interval = fitted.estimate(observation.profile, TARGET).latency_ms
        covered.append(interval.low <= observation.latency_ms <= interval.high)
    # of 24 networks; at a coverage of 90 % fewer than this are seen once in 130 times
    assert np.mean(covered) >= 0.75


def test_operators_add_up_to_the_network(fitted: CalibratedEmulator) -> None:
    for profile in profiles()[:10]:
        cost = fitted.estimate(profile, TARGET)
        layers = sum(layer.latency_ms for layer in cost.layers)
        # the call and the borders of the network belong to no operator
        assert 0.4 * cost.latency_ms.value < layers <= cost.latency_ms.value * 1.001


def test_quality_tells_the_error_of_left_out_networks() -> None:
    found = ProcessFitter().examine(RooflineEmulator(), TARGET, measured())
    (quality,) = found.quality
    assert quality.count == 96
    assert quality.median_error < 0.05 < quality.median_error_before
    assert 0.85 <= quality.coverage <= 1.0


def test_what_was_learned_spares_the_search(fitted: CalibratedEmulator) -> None:
    again = ProcessFitter().fit(RooflineEmulator(), TARGET, measured()[:72], fitted.learned)
    assert again.learned == pytest.approx(fitted.learned)
    for profile in profiles()[72:76]:
        first, second = (e.estimate(profile, TARGET).latency_ms for e in (fitted, again))
        assert (second.value, second.high) == pytest.approx((first.value, first.high))


def test_kinds_that_were_never_measured_widen_the_interval(fitted: CalibratedEmulator) -> None:
    profile = profiles()[1]
    first, *others = profile.operators
    strange = NetworkProfile(
        operators=(Operator(**{**vars(first), "kind": OperatorKind.RECURRENT}), *others),
        tensors=profile.tensors,
        inputs=profile.inputs,
        outputs=profile.outputs,
    )
    known, unknown = (fitted.estimate(p, TARGET).latency_ms for p in (profile, strange))
    assert unknown.high / unknown.value > known.high / known.value


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="too few"):
        ProcessFitter().fit(RooflineEmulator(), TARGET, measured()[:8])


def test_a_process_finds_what_terms_take_from_sums_alone() -> None:
    rng = np.random.default_rng(0)
    terms = [Term(kind, kind, (float(x), *(0.0,) * 7), 1.0) for kind in "ab" for x in range(6)]
    truth = {
        term: math.exp(0.4 * math.sin(term.position[0]) + (term.kind == "b")) for term in terms
    }
    networks = [[terms[i] for i in rng.integers(0, len(terms), 5)] for _ in range(60)]
    latencies = [sum(truth[term] for term in network) for network in networks]
    process = OperatorProcess(networks, latencies)
    gains = process.gains(terms)
    assert np.allclose(gains, [truth[term] for term in terms], rtol=0.1)
    predicted, deviation = process.network(networks[0])
    assert predicted == pytest.approx(latencies[0], rel=0.05)
    assert 0 < deviation < 0.2
