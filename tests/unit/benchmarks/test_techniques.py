"""The benchmark of techniques, on a network of a few channels: what it compares is what was made."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.techniques import TECHNIQUES, Case, rows_of, with_alternative

from fakes.networks import Builder
from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.application.ports import PassContext
from tightfit_service.application.samples import Samples
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.low_rank import LowRankPass


@pytest.fixture(scope="module")
def case() -> Case:
    b = Builder()
    x = b.conv("stem", b.input("input", (3, 32, 32)), 3, 24)
    y = b.conv("block.conv1", x, 24, 24, norm=True)
    y = b.conv("block.conv2", y, 24, 24, relu=False)
    x = b.conv("last", b.node("block.add", "Add", [y, x]), 24, 32, stride=2)
    rng = np.random.default_rng(0)
    images = np.repeat(np.repeat(rng.normal(size=(32, 3, 8, 8)), 4, axis=2), 4, axis=3)
    samples = Samples(stored=images.astype(np.float32), labels=rng.integers(0, 5, 32))
    return Case(
        network="small",
        graph=b.model({b.head(x, 32): (5,)}).SerializeToString(),
        calibration=samples,
        ranked=samples,
        evaluation=samples,
        target=YamlTargetCatalogue().get("nucleo-h7a3zi-q"),
        emulator=McuEmulator(),
    )


def test_a_profile_with_an_alternative_is_that_of_the_graph_it_makes(case: Case) -> None:
    profile = OnnxGraphInspector().profile(case.graph)
    found = LowRankPass().alternatives(case.graph, profile, case.target)
    assert found
    for node, offers in found.items():
        for offer in offers:
            graph = LowRankPass().apply(
                case.graph, {"nodes": {node: offer.parameters}}, PassContext()
            )
            real = OnnxGraphInspector().profile(graph)
            guessed = with_alternative(profile, offer)
            assert guessed.operators == real.operators
            assert guessed.tensors == real.tensors


@pytest.mark.parametrize(
    "name", ["structured_pruning", "importance", "depth_pruning", "low_rank", "resolution"]
)
def test_techniques_that_leave_work_out_make_something_cheaper(name: str, case: Case) -> None:
    whole, *rows = rows_of(case, {name: TECHNIQUES[name]})
    assert whole.latency_ratio == 1.0
    assert rows
    assert {row.technique for row in rows} == {name}
    assert min(row.macs for row in rows) < whole.macs
    assert min(row.latency_ratio for row in rows) < 1.0
    assert all(row.latency_ratio <= 1.0 for row in rows)


def test_criteria_of_importance_cut_as_much_and_choose_otherwise(case: Case) -> None:
    candidates = list(TECHNIQUES["importance"](case))
    inspector = OnnxGraphInspector()
    for start in range(0, len(candidates), 3):
        graphs = [candidate.graph for candidate in candidates[start : start + 3]]
        assert len({inspector.profile(graph).macs for graph in graphs}) == 1
        assert len(set(graphs)) == 3
