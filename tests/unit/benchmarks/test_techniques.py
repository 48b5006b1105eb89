"""The benchmark of techniques, on a network of a few channels: what it compares is what was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
from benchmarks import techniques
from benchmarks.techniques import TECHNIQUES, Case, Row, merged, rows_of, with_alternative

from fakes.networks import Builder
from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.application.ports import ImportedModel, PassContext
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import SplitName
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
        model=OnnxImporter().import_model(b.model({b.head(x, 32): (5,)}).SerializeToString()),
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
    "name",
    [
        "structured_pruning",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("importance", "depth_pruning", "low_rank", "resolution")
        ),
    ],
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


@pytest.mark.parametrize("name", ["sparsity", pytest.param("clustering", marks=pytest.mark.long)])
def test_techniques_for_downloads_make_the_packed_file_smaller_and_nothing_else(
    name: str, case: Case
) -> None:
    whole, *rows = rows_of(case, {name: TECHNIQUES[name]})
    assert whole.packed_bytes is not None
    for row in rows:
        assert (row.macs, row.latency_ms) == (whole.macs, whole.latency_ms)
        assert row.packed_bytes is not None
        assert row.packed_bytes < whole.packed_bytes


def test_without_data_the_same_is_done_by_inputs_that_were_made_up(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SplitName] = []

    @dataclass
    class MadeUp:
        inputs: Samples

        def samples(self, split: SplitName) -> Samples:
            asked.append(split)
            return self.inputs

    class Synthesizer:
        def dataset(self, model: ImportedModel, *, cache_dir: Path, seed: int) -> MadeUp:
            assert model is case.model
            assert cache_dir.is_dir()
            assert seed == 0
            return MadeUp(case.ranked)

    monkeypatch.setattr(techniques, "NetworkSynthesizer", Synthesizer)
    found = {candidate.what: candidate.graph for candidate in TECHNIQUES["data_free"](case)}
    assert asked == [SplitName.TRAIN, SplitName.CALIBRATION]
    # on the same inputs it is the same as with data
    with_data = {candidate.what: candidate.graph for candidate in TECHNIQUES["importance"](case)}
    same = set(found) & set(with_data)
    assert len(same) == 2
    assert all(found[what] == with_data[what] for what in same)
    assert any("low-rank" in what for what in found)


def row_of(network: str, technique: str, what: str) -> Row:
    return Row(
        network=network, technique=technique, what=what, macs=1, weight_count=1, latency_ms=1.0,
        latency_ratio=1.0, accuracy=0.5, accuracy_low=0.4, accuracy_high=0.6,
    )  # fmt: skip


def test_rows_that_are_measured_again_replace_earlier_ones() -> None:
    known = [
        asdict(row_of(*names))
        for names in (
            ("resnet20", "", "old"),
            ("resnet20", "low_rank", "old 1"),
            ("resnet20", "low_rank", "old 2"),
            ("resnet8", "", "old"),
        )
    ]
    measured = [row_of("resnet20", "sparsity", "new"), row_of("resnet20", "", "new")]
    found = [(row["network"], row["technique"], row["what"]) for row in merged(known, measured)]
    assert found == [
        ("resnet20", "", "new"),
        ("resnet20", "low_rank", "old 1"),
        ("resnet20", "low_rank", "old 2"),
        ("resnet20", "sparsity", "new"),
        ("resnet8", "", "old"),
    ]
