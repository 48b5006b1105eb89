"""The unit of work that is one trial: a recipe applied to the model, its file written and evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tightfit_service.application.ports import WorkHandler
from tightfit_service.application.units.kinds import UnitContext, UnitKind
from tightfit_service.application.work.data import UnitData
from tightfit_service.application.work.file_metadata import input_metadata
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.recipe import RecipeTask, RecipeWork, TrialOutcome
from tightfit_service.application.work.recipe_course import TrainedGraph
from tightfit_service.application.work.teacher_inputs import teacher_graphs
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """One trial.

    Attributes:
        target: What the file is for.
        evaluate: Whether the evaluation set may be looked at.
        teacher_key: Names the cache of the teachers' outputs.
        packed: Whether a packed file is made beside the exported one.
        finished_steps: Steps of the recipe that the input `start` has behind it; None without one.
    """

    model: ModelFacts
    recipe: Recipe
    target: HardwareSpec
    evaluate: bool
    teacher_key: str
    packed: bool = False
    finished_steps: int | None = None


TRIAL = UnitKind("trial", TrialTask, TrialOutcome)


@dataclass(frozen=True, kw_only=True)
class TrialWork:
    """Runs trials; composed in the worker process.

    Attributes:
        cache_dir: Keeps the teachers' outputs.
    """

    data: UnitData
    recipes: RecipeWork
    cache_dir: Path

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handler by the kind of unit it runs."""
        return {TRIAL.name: TRIAL.handler(self.run)}

    def run(self, task: TrialTask, context: UnitContext) -> TrialOutcome:
        """Apply the recipe to the input `graph`: passes, training, export, evaluation of the file.

        Further inputs: `dataset` unless there is none, working graphs of further teachers (see
        `teacher_inputs`), and `start`, the float graph of an earlier trial that the recipe goes on from.
        Outputs: `model` (the exported file), `graph` (float ONNX), `packed` where it is asked for.
        """
        dataset = self.data.open(task.model, context)
        # what made-up data looks like says nothing about real inputs
        is_real = "dataset" in context.inputs
        samples = dataset.samples(SplitName.CALIBRATION) if is_real else None
        start = None
        if task.finished_steps is not None:
            start = TrainedGraph(graph=context.read("start"), steps=task.finished_steps)
        return self.recipes.run(
            RecipeTask(
                graph=context.read("graph"),
                recipe=task.recipe,
                dataset=dataset,
                target=task.target,
                evaluate=task.evaluate,
                packed=task.packed,
                start=start,
                teachers=teacher_graphs(context.inputs),
                teacher_cache=self._teacher_cache(task.teacher_key),
                metadata=input_metadata(samples, dataset.manifest.class_names),
            ),
            context,
        )

    def _teacher_cache(self, key: str) -> Path:
        path = self.cache_dir / "teachers" / key
        path.mkdir(parents=True, exist_ok=True)
        return path
