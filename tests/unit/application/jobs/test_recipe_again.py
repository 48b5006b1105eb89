"""A recipe applied again: the same file from the same weights, and which models it fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fakes.networks import NETWORKS
from fakes.search_bench import TARGET
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.packed import pack
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.recipes.steps import GraphSteps
from tightfit_service.application.samples import Samples
from tightfit_service.application.units.kinds import UnitContext
from tightfit_service.application.work.recipe import RecipeTask, RecipeWork
from tightfit_service.domain.dataset import DatasetManifest, SplitName, SplitSpec
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.graph.architecture import architecture
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.graph.structure import tensor_shapes
from tightfit_service.passes.low_rank import LowRankPass
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

NETWORK = NETWORKS["plain_cnn"]
COUNTS = {
    SplitName.TRAIN: 32,
    SplitName.CALIBRATION: 16,
    SplitName.SELECTION: 32,
    SplitName.EVALUATION: 32,
}


class Noise:
    """Noise with labels by chance: what matters here is that it is the same each time."""

    manifest = DatasetManifest(
        arrays={"*": "x.npz"}, splits={"evaluation": SplitSpec(input="x", label="y")}
    )

    def samples(self, split: SplitName) -> Samples | None:
        if split not in COUNTS:
            return None
        rng = np.random.default_rng(len(split))
        shape = (COUNTS[split], *tensor_shapes(NETWORK(0))["input"][1:])
        return Samples(
            stored=rng.normal(size=shape).astype(np.float32),
            labels=rng.integers(0, 4, size=shape[0]),
            name=split.value,
        )


def recipe() -> Recipe:
    """Prune, factorize, train back, round."""
    graph = NETWORK(0).SerializeToString()
    group = StructuredPruningPass().space(graph).groups[0]
    keep = {group.group_id: list(range(group.unit_count // 2))}
    ranks = {"fc1": {"method": "svd", "rank": 4}}
    return Recipe(
        source_digest="1" * 64,
        seed=3,
        target=TARGET.name,
        output_format="onnx",
        steps=(
            PassStep(pass_name="structured_pruning", parameters={"keep": keep}),
            PassStep(pass_name="low_rank", parameters={"nodes": ranks}),
            PassStep(
                pass_name="recovery",
                parameters={"epochs": 1.0, "batch_size": 16, "learning_rate": 0.01, "seed": 3},
            ),
            PassStep(pass_name="quantization", parameters={"number_format": "int8"}),
        ),
        architecture=architecture(graph),
    )


def applied(folder: Path, seed: int) -> bytes:
    """Return the file that the recipe makes of the weights of a seed."""
    folder.mkdir()
    graph = NETWORK(seed).SerializeToString()
    recipe().check_fits(architecture(graph))
    evaluator, low_rank = OnnxRuntimeEvaluator(), LowRankPass()
    context = UnitContext(inputs={}, output_dir=folder, on_progress=lambda _share, _text: None)
    work = RecipeWork(
        steps=GraphSteps(pruning=StructuredPruningPass(), passes={low_rank.name: low_rank}),
        inspector=OnnxGraphInspector(),
        trainer=TorchTrainer(threads=1),
        exporters={ModelFormat.ONNX: OnnxExporter(quantizer=StaticQuantizationPass())},
        evaluators={ModelFormat.ONNX: evaluator},
        pack=pack,
    )
    outcome = work.run(
        RecipeTask(
            graph=graph,
            recipe=recipe(),
            dataset=Noise(),
            target=TARGET,
            evaluate=True,
            teacher_cache=folder,
        ),
        context,
    )
    assert outcome.recoveries == (1.0,)
    assert "held_out_noise_ratio" in outcome.parity
    return context.outputs["model"].read_bytes()


def test_a_recipe_makes_the_same_file_again(tmp_path: Path) -> None:
    assert applied(tmp_path / "first", 0) == applied(tmp_path / "again", 0)


def test_a_recipe_fits_other_weights_and_no_other_architecture() -> None:
    recipe().check_fits(architecture(NETWORK(1).SerializeToString()))
    with pytest.raises(InvalidRequestError, match="node 1: the recipe has conv1 Conv 8x3x3x3"):
        recipe().check_fits(architecture(NETWORKS["mlp"](0).SerializeToString()))
