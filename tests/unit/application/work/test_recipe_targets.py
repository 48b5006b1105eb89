"""Recipes whose files are compiled for a target, and judged as the target computes them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.networks import NETWORKS
from fakes.records import make_target
from tightfit_service.adapters.evaluation.contained_evaluator import ContainedEvaluator
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.packed import pack
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import ExportedModel, QuantizationSettings, TargetAccuracy
from tightfit_service.application.recipes.steps import QUANTIZATION_STEP, GraphSteps
from tightfit_service.application.samples import Samples
from tightfit_service.application.units.kinds import UnitContext
from tightfit_service.application.work.recipe import RecipeTask, RecipeWork, TrialOutcome
from tightfit_service.domain.dataset import DatasetManifest, SplitName
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.graph.structure import tensor_shapes
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

TARGET = make_target()
MARK = b"compiled:"
AS_THE_TARGET_HAS_IT = Accuracy(value=0.25, low=0.2, high=0.3, sample_count=9)


@dataclass
class _Dataset:
    splits: dict[SplitName, Samples]

    @property
    def manifest(self) -> DatasetManifest:
        raise NotImplementedError

    def samples(self, split: SplitName) -> Samples | None:
        return self.splits.get(split)


@dataclass
class _Compiler:
    """Puts a mark before ONNX files."""

    targets: list[HardwareSpec] = field(default_factory=list)
    source_format: ModelFormat = ModelFormat.ONNX

    def compile(self, exported: ExportedModel, target: HardwareSpec) -> ExportedModel:
        self.targets.append(target)
        return replace(
            exported,
            data=MARK + exported.data,
            format=ModelFormat.VELA,
            device_bytes=1234,
            notes=("compiled",),
        )


@dataclass
class _Judge:
    """Knows the accuracy of compiled files."""

    judged: list[Samples] = field(default_factory=list)

    def supports(self, target: HardwareSpec, model_format: ModelFormat) -> bool:
        return target == TARGET and model_format is ModelFormat.VELA

    def evaluate(self, data: bytes, model_format: ModelFormat, samples: Samples) -> TargetAccuracy:
        assert data.startswith(MARK)
        self.judged.append(samples)
        return TargetAccuracy(accuracy=AS_THE_TARGET_HAS_IT, notes=("judged as the target does",))


@pytest.fixture(scope="module")
def splits() -> dict[SplitName, Samples]:
    shape = tensor_shapes(NETWORKS["mlp"](0))["input"]
    rng = np.random.default_rng(0)
    return {
        name: Samples(
            stored=rng.normal(size=(count, *shape[1:])).astype(np.float32),
            labels=np.zeros(count, dtype=np.int64),
            name=name.value,
        )
        for count, name in enumerate(SplitName, start=4)
    }


def outcome_of(
    splits: dict[SplitName, Samples],
    folder: Path,
    *,
    output_format: ModelFormat,
    compiler: _Compiler,
    judge: _Judge | None,
    evaluate: bool = True,
) -> TrialOutcome:
    onnx = OnnxRuntimeEvaluator()
    work = RecipeWork(
        steps=GraphSteps(pruning=StructuredPruningPass(), passes={}),
        inspector=OnnxGraphInspector(),
        trainer=TorchTrainer(threads=1),
        pack=pack,
        exporters={ModelFormat.ONNX: OnnxExporter(quantizer=StaticQuantizationPass())},
        evaluators={
            ModelFormat.ONNX: onnx,
            ModelFormat.VELA: ContainedEvaluator(
                file_in=lambda data: data.removeprefix(MARK), evaluator=onnx
            ),
        },
        compilers={ModelFormat.VELA: compiler},
        target_evaluator=judge,
    )
    quantization: dict[str, Any] = to_plain(
        QuantizationSettings(number_format=NumberFormat.FLOAT32)
    )
    context = UnitContext(inputs={}, output_dir=folder, on_progress=lambda _share, _text: None)
    outcome = work.run(
        RecipeTask(
            graph=NETWORKS["mlp"](0).SerializeToString(),
            recipe=Recipe(
                source_digest="1" * 64,
                seed=0,
                target=TARGET.name,
                output_format=output_format.value,
                steps=(PassStep(pass_name=QUANTIZATION_STEP, parameters=quantization),),
            ),
            dataset=_Dataset(splits),
            target=TARGET,
            evaluate=evaluate,
            teacher_cache=folder,
        ),
        context,
    )
    assert context.outputs["model"].read_bytes().startswith(MARK) is (
        output_format is ModelFormat.VELA
    )
    return outcome


def test_a_file_is_compiled_for_the_recipes_target(
    splits: dict[SplitName, Samples], tmp_path: Path
) -> None:
    compiler, judge = _Compiler(), _Judge()
    found = outcome_of(
        splits, tmp_path, output_format=ModelFormat.VELA, compiler=compiler, judge=judge
    )
    assert compiler.targets == [TARGET]
    assert found.file_bytes == 1234
    assert found.accuracy == AS_THE_TARGET_HAS_IT
    assert judge.judged == [splits[SplitName.EVALUATION]]
    assert found.selection_accuracy is not None
    assert found.selection_accuracy != AS_THE_TARGET_HAS_IT
    assert found.notes == ("compiled", "judged as the target does")


def test_the_evaluation_set_is_left_alone_where_it_may_not_be_looked_at(
    splits: dict[SplitName, Samples], tmp_path: Path
) -> None:
    judge = _Judge()
    found = outcome_of(
        splits,
        tmp_path,
        output_format=ModelFormat.VELA,
        compiler=_Compiler(),
        judge=judge,
        evaluate=False,
    )
    assert (found.accuracy, judge.judged) == (None, [])


@pytest.mark.parametrize("judge", [_Judge(), None])
def test_other_formats_are_neither_compiled_nor_judged_so(
    splits: dict[SplitName, Samples], tmp_path: Path, judge: _Judge | None
) -> None:
    compiler = _Compiler()
    found = outcome_of(
        splits, tmp_path, output_format=ModelFormat.ONNX, compiler=compiler, judge=judge
    )
    assert compiler.targets == []
    assert found.accuracy is not None
    assert found.accuracy.sample_count == len(splits[SplitName.EVALUATION])
    assert found.accuracy != AS_THE_TARGET_HAS_IT
