"""What a recipe's training is given of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.networks import NETWORKS
from fakes.records import make_target
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.packed import pack
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.ports import (
    PassContext,
    RecoveryResult,
    Teachers,
)
from tightfit_service.application.recipes.steps import RECOVERY_STEP, RESOLUTION_STEP, GraphSteps
from tightfit_service.application.samples import Samples
from tightfit_service.application.units.kinds import UnitContext
from tightfit_service.application.work.recipe import RecipeTask, RecipeWork
from tightfit_service.domain.dataset import DatasetManifest, SplitName
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.graph.structure import tensor_shapes
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass


class _Dataset:
    def __init__(self, splits: Mapping[SplitName, Samples]) -> None:
        self._splits = splits

    @property
    def manifest(self) -> DatasetManifest:
        raise NotImplementedError

    def samples(self, split: SplitName) -> Samples | None:
        return self._splits.get(split)


class _Trainer(TorchTrainer):
    """Notes what it is given, and trains nothing."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.given: dict[str, Any] = {}

    def recover(self, graph: bytes, **given: Any) -> RecoveryResult:
        self.given = given
        raise UnsupportedError("not here", field="model", remedy="elsewhere")


def _recipe(*steps: PassStep) -> Recipe:
    return Recipe(source_digest="1" * 64, seed=0, target="none", output_format="onnx", steps=steps)


def _context(folder: Path) -> UnitContext:
    return UnitContext(inputs={}, output_dir=folder, on_progress=lambda _share, _text: None)


def test_training_gets_inputs_that_only_teachers_answer(tmp_path: Path) -> None:
    model = NETWORKS["mlp"](0)
    shape = tensor_shapes(model)["input"]
    rng = np.random.default_rng(0)
    splits: dict[SplitName, Samples] = {
        name: Samples(
            stored=rng.normal(size=(count, *shape[1:])).astype(np.float32),
            labels=None if name is SplitName.UNLABELED else np.zeros(count, dtype=np.int64),
            name=name.value,
        )
        for count, name in enumerate(SplitName, start=4)
    }
    labelled = dict(splits)
    del labelled[SplitName.UNLABELED]
    for given in (splits, labelled):
        trainer = _Trainer()
        evaluator = OnnxRuntimeEvaluator()
        work = RecipeWork(
            steps=GraphSteps(pruning=StructuredPruningPass(), passes={}),
            inspector=OnnxGraphInspector(),
            trainer=trainer,
            exporters={ModelFormat.ONNX: OnnxExporter(quantizer=StaticQuantizationPass())},
            evaluators={ModelFormat.ONNX: evaluator},
            pack=pack,
        )
        outcome = work.run(
            RecipeTask(
                graph=model.SerializeToString(),
                recipe=_recipe(PassStep(pass_name=RECOVERY_STEP, parameters={"epochs": 1})),
                dataset=_Dataset(given),
                target=make_target(),
                evaluate=False,
                teacher_cache=tmp_path,
            ),
            _context(tmp_path),
        )
        assert trainer.given["data"].unlabeled is given.get(SplitName.UNLABELED)
        assert trainer.given["data"].train is given[SplitName.TRAIN]
        assert "not trained: not here" in outcome.notes


class _Resizing:
    """A pass that notes which graphs it is applied to, and leaves them as they are."""

    name = RESOLUTION_STEP

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        del graph, target
        return ()

    def check(self, graph: bytes, parameters: Mapping[str, Any]) -> None:
        del graph, parameters

    def apply(self, graph: bytes, parameters: Mapping[str, Any], context: PassContext) -> bytes:
        del parameters, context
        self.seen.append(graph)
        return graph


@pytest.mark.parametrize("inside", [True, False])
def test_further_teachers_are_made_for_the_size_that_the_samples_get(
    tmp_path: Path, inside: bool
) -> None:
    graph, *teachers = (NETWORKS["plain_cnn"](seed).SerializeToString() for seed in range(3))
    rng = np.random.default_rng(0)
    samples = Samples(
        stored=rng.normal(size=(4, 3, 8, 8)).astype(np.float32), labels=np.zeros(4, dtype=np.int64)
    )
    trainer, resolution = _Trainer(), _Resizing()
    work = RecipeWork(
        steps=GraphSteps(pruning=StructuredPruningPass(), passes={RESOLUTION_STEP: resolution}),
        inspector=OnnxGraphInspector(),
        trainer=trainer,
        pack=pack,
        exporters={ModelFormat.ONNX: OnnxExporter(quantizer=StaticQuantizationPass())},
        evaluators={ModelFormat.ONNX: OnnxRuntimeEvaluator()},
    )
    size: dict[str, Any] = {"height": 8, "width": 8, "inside": inside}
    work.run(
        RecipeTask(
            graph=graph,
            recipe=_recipe(
                PassStep(pass_name=RESOLUTION_STEP, parameters=size),
                PassStep(pass_name=RECOVERY_STEP, parameters={"epochs": 1}),
            ),
            dataset=_Dataset(dict.fromkeys(SplitName, samples)),
            target=make_target(),
            evaluate=False,
            teachers=teachers,
            teacher_cache=tmp_path,
        ),
        _context(tmp_path),
    )
    assert trainer.given["teachers"] == Teachers(
        original=graph, others=tuple(teachers), reference=graph if inside else None
    )
    assert resolution.seen == [graph, graph] + ([] if inside else teachers)
