"""What a worker finds when a packed file is to become smaller, with real passes, exporter and packer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from onnx import load_from_string, numpy_helper

from fakes.networks import NETWORKS
from fakes.scripted_work import facts
from fakes.search_bench import TARGET
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.packed import layer_sizes, pack
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import (
    DownloadPass,
    ExportedModel,
    Exporter,
    OpenDataset,
    PassContext,
    QuantizationSettings,
)
from tightfit_service.application.recipes.steps import GraphSteps
from tightfit_service.application.samples import Samples
from tightfit_service.application.units.kinds import UnitContext
from tightfit_service.application.work.data import UnitData
from tightfit_service.application.work.download import (
    DownloadNotesTask,
    DownloadOffer,
    DownloadOption,
    DownloadOptionsTask,
    DownloadReasons,
    DownloadWork,
)
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.recipe import RecipeWork
from tightfit_service.domain.dataset import DatasetManifest, SplitName
from tightfit_service.domain.errors import ParityError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.graph.structure import tensor_shapes
from tightfit_service.passes.clustering import ClusteringPass
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.sparsity import SparsityPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

MODEL = NETWORKS["plain_cnn"](0)
GRAPH = MODEL.SerializeToString()
PASSES: dict[str, DownloadPass] = {"sparsity": SparsityPass(), "clustering": ClusteringPass()}


class _Dataset:
    def __init__(self) -> None:
        shape = tensor_shapes(MODEL)["input"]
        inputs = np.random.default_rng(0).normal(size=(64, *shape[1:])).astype(np.float32)
        answers = OnnxRuntimeEvaluator().outputs(GRAPH, inputs).argmax(axis=1)
        self._samples = Samples(stored=inputs, labels=answers.astype(np.int64))

    @property
    def manifest(self) -> DatasetManifest:
        raise NotImplementedError

    def samples(self, split: SplitName) -> Samples | None:
        return replace(self._samples, name=split.value)


class _Data:
    def open(self, model: ModelFacts, context: UnitContext) -> OpenDataset:
        del model, context
        return _Dataset()


class _Fragile(OnnxExporter):
    """Exports nothing in which more than half of the weights of a layer are zero."""

    def export(self, graph: bytes, **given: Any) -> ExportedModel:
        if _most_zeros(graph) > 0.55:
            raise ParityError("too little is left", field="model", remedy="take less away")
        return super().export(graph, **given)


def _most_zeros(graph: bytes) -> float:
    values = [numpy_helper.to_array(t) for t in load_from_string(graph).graph.initializer]
    return max(float((value == 0).mean()) for value in values if value.ndim > 1)


def work(exporter: Exporter | None = None) -> DownloadWork:
    recipes = RecipeWork(
        steps=GraphSteps(pruning=StructuredPruningPass(), passes=PASSES),
        inspector=OnnxGraphInspector(),
        trainer=TorchTrainer(threads=1),
        exporters={ModelFormat.ONNX: exporter or OnnxExporter(quantizer=StaticQuantizationPass())},
        evaluators={ModelFormat.ONNX: OnnxRuntimeEvaluator()},
        pack=pack,
    )
    return DownloadWork(
        data=cast("UnitData", _Data()),
        recipes=recipes,
        passes=PASSES,
        expected_bytes=lambda data, model_format: len(pack(data, model_format)),
        layer_sizes=layer_sizes,
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    path = tmp_path / "graph.onnx"
    path.write_bytes(GRAPH)
    return {"graph": path, "start": path}


SETTINGS = QuantizationSettings(number_format=NumberFormat.FLOAT32)
RECIPE = Recipe(
    source_digest="1" * 64,
    seed=0,
    target="board",
    output_format="tflite",
    steps=(PassStep(pass_name="quantization", parameters=to_plain(SETTINGS)),),
)
WHOLE = len(
    pack(
        OnnxExporter(quantizer=StaticQuantizationPass())
        .export(GRAPH, calibration=None, settings=SETTINGS, metadata={})
        .data,
        ModelFormat.ONNX,
    )
)
METADATA = 1000
"""Bytes by which the trial's own file is larger than what is exported here."""


def offered(
    files: Mapping[str, Path],
    aim: float,
    *,
    techniques: tuple[str, ...] = ("sparsity", "clustering"),
    exporter: Exporter | None = None,
) -> DownloadOffer:
    task = DownloadOptionsTask(
        model=facts(),
        recipe=RECIPE,
        target=TARGET,
        techniques=techniques,
        packed_bytes=WHOLE + METADATA,
        aim_bytes=int(aim * WHOLE) + METADATA,
    )
    return work(exporter).options(task, context(files))


def context(files: Mapping[str, Path]) -> UnitContext:
    return UnitContext(inputs=files, output_dir=Path(), on_progress=lambda _share, _text: None)


def packed_bytes(option: DownloadOption) -> int:
    """Make the file of an option and return the size of its packed form."""
    graph = GRAPH
    for step in option.steps:
        graph = PASSES[step.pass_name].apply(
            graph, step.parameters, PassContext(calibration=_Dataset().samples(SplitName.TRAIN))
        )
    exporter = OnnxExporter(quantizer=StaticQuantizationPass())
    file = exporter.export(graph, calibration=None, settings=SETTINGS, metadata={})
    return len(pack(file.data, ModelFormat.ONNX))


def test_options_reach_the_aim_and_those_that_do_least_harm_come_first(
    files: Mapping[str, Path],
) -> None:
    offer = offered(files, 0.3)
    assert offer.options
    harm = [option.harm for option in offer.options]
    assert harm == sorted(harm)
    assert all(0 < option.error < 1 for option in offer.options)
    assert all(option.lost is not None for option in offer.options)
    for option in offer.options:
        assert option.download_bytes == packed_bytes(option) + METADATA
        assert option.download_bytes <= 0.3 * WHOLE + METADATA


def test_no_more_is_taken_away_than_the_aim_needs(files: Mapping[str, Path]) -> None:
    (option,) = offered(files, 0.6, techniques=("sparsity",)).options
    assert option.clustering is None
    assert option.sparsity is not None
    ratio = next(iter(option.sparsity["nodes"].values()))["ratio"]
    milder = {
        "nodes": {
            name: {**choice, "ratio": ratio - 0.15}
            for name, choice in option.sparsity["nodes"].items()
        }
    }
    assert packed_bytes(replace(option, sparsity=milder)) > 0.6 * WHOLE


def test_where_nothing_reaches_the_aim_the_smallest_file_is_told(files: Mapping[str, Path]) -> None:
    offer = offered(files, 0.0)
    assert not offer.options
    assert offer.least is not None
    assert offer.least.sparsity is not None
    assert offer.least.clustering is not None
    assert offer.least.download_bytes == packed_bytes(offer.least) + METADATA


def test_what_no_longer_computes_the_graph_is_not_offered(files: Mapping[str, Path]) -> None:
    exporter = _Fragile(quantizer=StaticQuantizationPass())
    offer = offered(files, 0.6, exporter=exporter)
    assert offer.options
    for option in offer.options:
        for step in option.steps:
            if step.pass_name == "sparsity":
                assert all(c["ratio"] <= 0.5 for c in step.parameters["nodes"].values())


def test_without_techniques_there_is_nothing_to_offer(files: Mapping[str, Path]) -> None:
    assert offered(files, 0.5, techniques=()) == DownloadOffer()


def test_notes_come_from_the_passes(files: Mapping[str, Path]) -> None:
    task = DownloadNotesTask(target=TARGET, techniques=("sparsity",))
    reasons = {"sparsity": tuple(SparsityPass().applies_to(GRAPH, TARGET))}
    assert work().notes(task, context(files)) == DownloadReasons(reasons=reasons)
