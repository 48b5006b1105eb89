"""What layers bear, measured with real passes; and what a choice by layer is worth.

The network has one layer that cannot bear few values: most of its weights are small and count, the others are
large and are multiplied by zero, so clusters are spent on them. Two wide layers count for little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from onnx import load_from_string, numpy_helper

from fakes.networks import Builder
from fakes.scripted_work import facts
from fakes.search_bench import TARGET
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.packed import expected_bytes, layer_sizes, pack
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import (
    DownloadPass,
    OpenDataset,
    PassContext,
    QuantizationSettings,
    Trainer,
)
from tightfit_service.application.recipes.steps import GraphSteps
from tightfit_service.application.samples import Samples
from tightfit_service.application.units.kinds import UnitContext
from tightfit_service.application.work.data import Splits, UnitData
from tightfit_service.application.work.download import (
    DownloadLayersTask,
    DownloadOffer,
    DownloadOptionsTask,
    DownloadWork,
)
from tightfit_service.application.work.download_files import UNCHANGED, ChangedFiles, WeightChanges
from tightfit_service.application.work.download_layers import NOT_MEASURED, LayerStudy
from tightfit_service.application.work.download_study import (
    Strengths,
    measured_levels,
    study_layers,
)
from tightfit_service.application.work.recipe import RecipeWork
from tightfit_service.domain.dataset import DatasetManifest, SplitName
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.clustering import ClusteringPass
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.sparsity import SparsityPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

WIDTH, DEAD = 48, 16
FRAGILE, WIDE = "fragile", ("wide1", "wide2")
PASSES: dict[str, DownloadPass] = {"sparsity": SparsityPass(), "clustering": ClusteringPass()}
SETTINGS = QuantizationSettings(number_format=NumberFormat.FLOAT32)
RECIPE = Recipe(
    source_digest="1" * 64,
    seed=0,
    target="board",
    output_format="onnx",
    steps=(PassStep(pass_name="quantization", parameters=to_plain(SETTINGS)),),
)


@cache
def network() -> bytes:
    b = Builder(0)
    x = b.input("input", (WIDTH,))
    fragile = b.rng.normal(0.0, (2 / WIDTH) ** 0.5, (WIDTH, WIDTH))
    fragile[:, -DEAD:] = b.rng.choice([-90.0, 90.0], (WIDTH, DEAD)) * b.rng.uniform(0.5, 1, DEAD)
    weight = b.constant(f"{FRAGILE}.w", fragile, dtype=np.float32)
    x = b.node(FRAGILE, "Gemm", [x, weight, b.vector(f"{FRAGILE}.b", WIDTH)], transB=1)
    x = b.node("relu", "Relu", [x])
    side = b.node("side", "Relu", [b.gemm(WIDE[0], x, WIDTH, 192)])
    side = b.gemm(WIDE[1], side, 192, WIDTH)
    small = b.constant("small", 0.02, dtype=np.float32)
    x = b.node("sum", "Add", [x, b.node("scaled", "Mul", [side, small])])
    x = b.gemm("head", x, WIDTH, 4)
    return bytes(b.model({x: (4,)}).SerializeToString())


@dataclass(frozen=True)
class _Dataset:
    """Answers of the network itself as labels, where it has any."""

    has_labels: bool = True

    @property
    def manifest(self) -> DatasetManifest:
        raise NotImplementedError

    def samples(self, split: SplitName) -> Samples | None:
        rng = np.random.default_rng(list(SplitName).index(split))
        inputs = rng.normal(size=(200, WIDTH)).astype(np.float32)
        inputs[:, -DEAD:] = 0
        answers = OnnxRuntimeEvaluator().outputs(network(), inputs).argmax(axis=1)
        labels = answers.astype(np.int64) if self.has_labels else None
        return Samples(stored=inputs, labels=labels, name=split.value)


@dataclass(frozen=True)
class _Data:
    dataset: OpenDataset

    def open(self, facts: object, context: UnitContext) -> OpenDataset:
        del facts, context
        return self.dataset


def recipes() -> RecipeWork:
    return RecipeWork(
        steps=GraphSteps(pruning=StructuredPruningPass(), passes=PASSES),
        inspector=OnnxGraphInspector(),
        trainer=cast("Trainer", None),  # nothing is trained here
        exporters={ModelFormat.ONNX: OnnxExporter(quantizer=StaticQuantizationPass())},
        evaluators={ModelFormat.ONNX: OnnxRuntimeEvaluator()},
        pack=pack,
    )


def files(*, has_labels: bool = True) -> ChangedFiles:
    return ChangedFiles(
        recipes=recipes(),
        passes=PASSES,
        expected_bytes=expected_bytes,
        start=network(),
        splits=Splits(dataset=_Dataset(has_labels)),
        settings=SETTINGS,
        seed=0,
        packed_bytes=100_000,
    )


def strengths() -> Strengths:
    return {
        name: item.strengths(network(), TARGET, NumberFormat.FLOAT32)
        for name, item in PASSES.items()
    }


def studied(
    *, has_labels: bool = True, has_time: Callable[[], bool] = lambda: True
) -> tuple[LayerStudy, list[str]]:
    told: list[str] = []
    study = study_layers(
        files(has_labels=has_labels),
        strengths(),
        layer_sizes,
        has_time=has_time,
        on_layer=told.append,
    )
    return study, told


@pytest.mark.parametrize(
    ("count", "levels"),
    [(0, ()), (1, (0,)), (2, (1,)), (3, (0, 2)), (6, (3, 5, 1)), (8, (5, 7, 3, 1))],
)
def test_every_second_level_is_measured_and_not_the_strongest_first(
    count: int, levels: tuple[int, ...]
) -> None:
    assert measured_levels(count) == levels


@pytest.mark.parametrize("has_labels", [True, False])
def test_the_layer_that_bears_least_is_seen(has_labels: bool) -> None:
    study, told = studied(has_labels=has_labels)
    assert not study.is_cut_short
    layers = {layer.node: layer for layer in study.layers}
    assert set(layers) == {FRAGILE, *WIDE}
    assert len(told) == 3 * (4 + 3)
    for name, levels in (("sparsity", (1, 3, 5, 7)), ("clustering", (1, 3, 5))):
        for layer in study.layers:
            assert tuple(figures.level for figures in layer.levels[name]) == levels
            sizes = [figures.packed_bytes for figures in layer.levels[name]]
            assert [layer.packed_bytes, *sizes] == sorted(
                [layer.packed_bytes, *sizes], reverse=True
            )
            assert all(0 < figures.error < 1 for figures in layer.levels[name])
    lost = {node: layer.levels["clustering"][-1].loss for node, layer in layers.items()}
    assert lost[FRAGILE] > 10 * max(lost[node] for node in WIDE)
    assert [figures.zeros for figures in layers["wide1"].levels["sparsity"]] == pytest.approx(
        [0.4, 0.6, 0.8, 0.93], abs=0.01
    )


def test_a_level_that_time_cuts_short_is_forgotten() -> None:
    answers = iter([True] * 12 + [False] * 100)
    study, _ = studied(has_time=lambda: next(answers))
    assert study.is_cut_short
    assert len(study.layers) == 3
    for layer in study.layers:
        assert [len(levels) for levels in layer.levels.values()] == [1, 1]
    nothing, told = studied(has_time=lambda: False)
    assert nothing == replace(NOT_MEASURED, is_cut_short=True)
    assert not told


def context(folder: Path) -> UnitContext:
    path = folder / "start.onnx"
    path.write_bytes(network())
    return UnitContext(
        inputs={"graph": path, "start": path}, output_dir=folder, on_progress=lambda *_: None
    )


def work() -> DownloadWork:
    return DownloadWork(
        data=cast("UnitData", _Data(_Dataset())),
        recipes=recipes(),
        passes=PASSES,
        expected_bytes=expected_bytes,
        layer_sizes=layer_sizes,
    )


WHOLE = 60_000


def offered(folder: Path, *, aim: int, layers: LayerStudy) -> DownloadOffer:
    task = DownloadOptionsTask(
        model=facts(),
        recipe=RECIPE,
        target=TARGET,
        techniques=("clustering",),
        packed_bytes=WHOLE,
        aim_bytes=aim,
        layers=layers,
    )
    return work().options(task, context(folder))


def test_a_choice_by_layer_loses_less_than_the_same_for_all_at_the_same_size(
    tmp_path: Path,
) -> None:
    task = DownloadLayersTask(
        model=facts(),
        recipe=RECIPE,
        target=TARGET,
        techniques=("clustering",),
        packed_bytes=WHOLE,
        max_seconds=600.0,
    )
    study = work().layers(task, context(tmp_path))
    saved = files().file(UNCHANGED).packed_bytes
    aim = int(WHOLE - 0.8 * saved)
    uniform = offered(tmp_path, aim=aim, layers=NOT_MEASURED)
    offer = offered(tmp_path, aim=aim, layers=study)
    first = offer.options[0]
    assert all(option.download_bytes <= aim for option in (*uniform.options, *offer.options))
    assert first.label not in [option.label for option in uniform.options]
    assert first.lost is not None
    (same_for_all,) = uniform.options
    assert same_for_all.lost is not None
    assert first.lost < same_for_all.lost - 0.1
    assert first.download_bytes == pytest.approx(same_for_all.download_bytes, rel=0.05)
    assert same_for_all.label in [option.label for option in offer.options[1:]]
    assert first.clustering is not None
    clusters = first.clustering["nodes"]
    assert set(clusters) == set(WIDE)
    assert "in 2 of 3 layers" in first.label

    made, changes = files(), WeightChanges(sparsity=None, clustering=first.clustering)
    packed = [len(pack(made.file(item).data, ModelFormat.ONNX)) for item in (changes, UNCHANGED)]
    assert first.download_bytes == packed[0] + WHOLE - packed[1], "it was not corrected by packing"

    graph = network()
    for step in first.steps:
        changed = PASSES[step.pass_name].apply(graph, step.parameters, PassContext())
        assert changed == PASSES[step.pass_name].apply(graph, step.parameters, PassContext())
        graph = changed
    values = {t.name: numpy_helper.to_array(t) for t in load_from_string(graph).graph.initializer}
    for node, choice in clusters.items():
        used = np.unique(values[f"{node}.w"])
        assert len(used[used != 0]) <= choice["clusters"]


def test_changes_are_told_in_a_few_words() -> None:
    nodes = {"a": {"clusters": 6}, "b": {"clusters": 32}}
    both = WeightChanges.of({"clustering": {"nodes": nodes}, "sparsity": None})
    assert both.label(layer_count=2) == "clustering clusters 6 to 32"
    assert both.label(layer_count=3) == "clustering clusters 6 to 32 in 2 of 3 layers"
    assert UNCHANGED.label(layer_count=3) == ""
    assert [step.pass_name for step in both.steps] == ["clustering"]
