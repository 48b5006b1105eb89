"""The process behind calibrated emulators, and its parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from tightfit_service.adapters.emulators.operator_process import (
    START,
    Observed,
    OperatorProcess,
    Parameters,
    Term,
)
from tightfit_service.adapters.emulators.process_tuning import Tuning, tuned

NOWHERE = (0.0,) * 8


def test_a_process_finds_what_terms_take_from_sums_alone() -> None:
    rng = np.random.default_rng(0)
    terms = [Term(kind, kind, (float(x), *(0.0,) * 7), 1.0) for kind in "ab" for x in range(6)]
    truth = {
        term: math.exp(0.4 * math.sin(term.position[0]) + (term.kind == "b")) for term in terms
    }
    networks = [[terms[i] for i in rng.integers(0, len(terms), 5)] for _ in range(60)]
    latencies = [sum(truth[term] for term in network) for network in networks]
    observed = Observed.of(networks, latencies)
    process = OperatorProcess(observed, tuned(observed))
    gains = process.gains(terms)
    assert np.allclose(gains, [truth[term] for term in terms], rtol=0.1)
    predicted, deviation = process.network(networks[0])
    assert predicted == pytest.approx(latencies[0], rel=0.05)
    assert 0 < deviation < 0.2


def test_a_process_trusts_a_part_that_was_measured_as_far_as_it_is_sure() -> None:
    parts = [Term(kind, "one", (0.0,) * 8, 1.0) for kind in "ab"]
    gains = []
    for deviation in (0.01, 3.0):
        observed = Observed.of(
            [parts] * 20 + [parts[:1]], [2.0] * 20 + [1.2], [0.0] * 20 + [deviation]
        )
        process = OperatorProcess(observed, Parameters(np.array(START)))
        gains.append(process.gains(parts))
    assert gains[0] == pytest.approx([1.2, 0.8], rel=0.03)
    assert gains[1] == pytest.approx([1.0, 1.0], rel=0.03)


def test_a_kind_that_goes_two_ways_through_a_runtime_does_not_unsettle_the_rest() -> None:
    rng = np.random.default_rng(0)
    networks, latencies = [], []
    for number in range(120):
        places = [(kind, float(rng.uniform(4, 18))) for kind in rng.choice(list("abcd"), size=4)]
        terms = [Term(kind, "one", (x, *(0.0,) * 7), 2**x / 1e6) for kind, x in places]
        slow = 50 if number % 6 == 0 else 1
        networks.append(terms)
        latencies.append(sum(t.prior_ms * (slow if t.kind == "a" else 1) for t in terms))
    # a process that takes its kinds for wild and its measurements for exact
    wild = np.add(START, (0.4, 0, 1.3, 1.4, 1.0, 0.7, 0.8, -0.4, -0.2, -0.3, -0.7))
    observed = Observed.of(networks[:90], latencies[:90])
    process = OperatorProcess(observed, Parameters(wild))
    ratios = [
        process.network(terms)[0] / latency_ms
        for terms, latency_ms in zip(networks[90:], latencies[90:], strict=True)
    ]
    assert np.median(np.abs(np.log(ratios))) < 0.5


def test_a_measurement_that_the_others_deny_is_hardly_believed() -> None:
    term = Term("a", "one", NOWHERE, 1.0)
    with_one_slow = Observed.of([[term]] * 12, [2.0] * 11 + [3.5])
    process = OperatorProcess(with_one_slow, Parameters(np.array(START)))
    assert process.gains([term]) == pytest.approx([2.0], rel=0.01)


def wild_and_tame(count: int = 60, *, wildness: float = 0.8) -> Observed:
    """Return networks of a kind that is as its first guess says, and of one that is not."""
    rng = np.random.default_rng(1)
    networks, latencies = [], []
    for _ in range(count):
        terms = [
            Term(kind, "one", (float(rng.uniform(0, 12)), *NOWHERE[1:]), 1.0, kind == "product")
            for kind in ("tame", "wild")
        ]
        wild = math.exp(wildness * math.sin(3 * terms[1].position[0]))
        networks.append(terms[: int(rng.integers(1, 3))])
        latencies.append(1.0 + (wild if len(networks[-1]) > 1 else 0.0))
    return Observed.of(networks, latencies)


def test_kinds_deviate_as_much_as_they_were_seen_to() -> None:
    scales = tuned(wild_and_tame()).scales
    assert scales["wild"] > scales["tame"] + 1.0


def test_a_process_without_some_measurements_says_what_the_others_do() -> None:
    observed = wild_and_tame(wildness=0.3)
    parameters = Parameters(np.array(START))
    left_out = range(0, 60, 7)
    kept = [row for row in range(60) if row not in left_out]
    process = OperatorProcess(observed, parameters).without(left_out, np.zeros(len(observed.terms)))
    networks = [
        [observed.terms[column] for column in observed.members[row : row + 1].indices]
        for row in range(60)
    ]
    others = OperatorProcess(
        Observed.of([networks[row] for row in kept], np.exp(observed.logs[kept]).tolist()),
        parameters,
    )
    for row in left_out:
        value, deviation = process.network(networks[row])
        expected, expected_deviation = others.network(networks[row])
        assert value == pytest.approx(expected, rel=0.05)
        assert deviation == pytest.approx(expected_deviation, rel=0.1)


def test_priors_of_the_others_are_where_a_process_without_some_begins() -> None:
    near, far = Term("a", "one", NOWHERE, 1.0), Term("b", "other", NOWHERE, 1.0)
    observed = Observed.of([[near]] * 3 + [[near, far]] * 3, [2.0] * 3 + [5.0] * 3)
    process = OperatorProcess(observed, Parameters(np.array(START)))
    # of the second kind nothing is left but its prior
    found = process.without([3, 4, 5], np.zeros(2))
    assert found.gains([near, far]) == pytest.approx([2.0, 1.0], rel=0.05)
    # where the prior of the first was twice as high, it would deviate by half as much
    found = process.without([3, 4, 5], np.log([2.0, 1.0]))
    assert found.gains([near]) == pytest.approx([1.0], rel=0.05)


def test_some_measurements_are_always_the_same_and_have_their_own_terms_only() -> None:
    observed = wild_and_tame()
    assert observed.some(60) is observed
    some = observed.some(20)
    assert some.logs.tolist() == observed.some(20).logs.tolist()
    assert set(some.logs) < set(observed.logs)
    assert some.members.shape == (20, len(some.terms))
    assert set(some.terms) < set(observed.terms)
    totals, _ = some.shares(np.zeros(len(some.terms)))
    assert totals == pytest.approx(np.asarray(some.members.sum(axis=1)).ravel())


def test_slopes_of_the_evidence_are_its_differences() -> None:
    rng = np.random.default_rng(2)
    terms = [
        Term(kind, family, tuple(rng.uniform(0, 4, 8).tolist()), 1.0, family == "products")
        for kind, family in (("conv", "products"), ("dense", "products"), ("Add", "moved"))
        for _ in range(5)
    ]
    networks = [[terms[i] for i in rng.integers(0, len(terms), 4)] for _ in range(20)]
    observed = Observed.of(
        networks, rng.uniform(2, 6, 20).tolist(), rng.uniform(0, 0.1, 20).tolist()
    )
    tuning = Tuning.of(observed.terms)
    gain = rng.normal(0, 0.1, len(observed.terms))
    values = np.concatenate([START, np.zeros(3)]) + rng.normal(0, 0.3, len(START) + 3)

    def evidence(at: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return tuning.evidence(observed, tuning.parameters(at), gain)[0]

    _, slopes = tuning.evidence(observed, tuning.parameters(values), gain)
    assert slopes == pytest.approx(approx_fprime(values, evidence, 1e-6), rel=1e-3, abs=1e-3)
