"""A recipe applied to a model inside a worker: its course, then the file written, packed and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tightfit_service.application.ports import (
    Evaluator,
    ExportedModel,
    Exporter,
    FileCompiler,
    GraphInspector,
    OpenDataset,
    Packer,
    TargetEvaluator,
    Teachers,
    Trainer,
)
from tightfit_service.application.recipes.steps import (
    GraphSteps,
    as_carried_out,
    quantization_of,
)
from tightfit_service.application.units.kinds import UnitContext
from tightfit_service.application.work.data import Splits, accuracy_of
from tightfit_service.application.work.file_metadata import recipe_metadata
from tightfit_service.application.work.file_parity import held_out
from tightfit_service.application.work.recipe_course import RecipeCourse, StageTimes, TrainedGraph
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat
from tightfit_service.domain.network import NetworkProfile
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.recipe import Recipe

_COURSE_SHARE = 0.75
"""Share of a trial's progress that the steps up to the last training fill."""


@dataclass(frozen=True, kw_only=True)
class RecipeTask:
    """A recipe and the model that it is applied to.

    Attributes:
        graph: The model that the recipe is for.
        dataset: Data to train, calibrate and evaluate on.
        target: What the file is for.
        evaluate: Whether the evaluation set may be looked at.
        packed: Whether a packed file is made beside the exported one.
        start: What an earlier trial made by the first steps; None begins with the model.
        teachers: Networks that training learns from besides the original.
        teacher_cache: Folder for the teachers' answers.
        metadata: What travels inside the exported file, besides what the recipe says.
    """

    graph: bytes
    recipe: Recipe
    dataset: OpenDataset
    target: HardwareSpec
    evaluate: bool
    teacher_cache: Path
    packed: bool = False
    start: TrainedGraph | None = None
    teachers: Sequence[bytes] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """What one trial produced; its files are the outputs `model` and `graph`."""

    profile: NetworkProfile
    file_bytes: int
    """Of the exported model as the device stores it."""
    accuracy: Accuracy | None
    selection_accuracy: Accuracy | None
    parity: Mapping[str, float]
    stage_seconds: Mapping[str, float]
    history: tuple[Mapping[str, float], ...] = ()
    recoveries: tuple[float, ...] = ()
    """Epochs of each training that was run, in the order of the recipe."""
    steps: int = 0
    notes: tuple[str, ...] = ()
    format_notes: tuple[str, ...] = ()
    """Which nodes of the file compute in other numbers than the rest, and why."""
    download_bytes: int | None = None
    """Of the packed file; None where none was asked for."""


@dataclass(frozen=True, kw_only=True)
class RecipeWork:
    """Applies recipes through the ports."""

    steps: GraphSteps
    inspector: GraphInspector
    trainer: Trainer
    exporters: Mapping[ModelFormat, Exporter]
    evaluators: Mapping[ModelFormat, Evaluator]
    pack: Packer
    compilers: Mapping[ModelFormat, FileCompiler] = field(default_factory=dict)
    """By what they make; the files that they compile come from an exporter, and are what is evaluated."""
    target_evaluator: TargetEvaluator | None = None
    """Judges files of some targets on the evaluation set; None leaves it to the evaluators."""

    def run(self, task: RecipeTask, context: UnitContext) -> TrialOutcome:
        """Apply a recipe to a working graph, and return what came of it.

        Outputs: `model` (the exported file), `graph` (float ONNX), `packed` where it is asked for.

        Raises:
            TightfitError: A step that does not fit, training that diverged, an export that failed.
        """
        times = StageTimes()
        course = self._course(task, times, context)
        splits = course.splits
        course.carry_out(task.start)

        context.on_progress(_COURSE_SHARE, "exporting")
        with times.stage("export"):
            exported = self._exported(task, course)
        context.write("model", exported.data, file_name=f"model.{task.recipe.output_format}")
        context.write("graph", course.graph, file_name="graph.onnx")

        download_bytes = None
        if task.packed:
            context.on_progress(0.83, "packing the exported file")
            with times.stage("pack"):
                packed = self.pack(exported.data, exported.format)
            context.write("packed", packed, file_name="model.packed")
            download_bytes = len(packed)

        context.on_progress(0.85, "evaluating the exported file")
        profile = self.inspector.profile(course.graph)
        with times.stage("evaluate"):
            compared = self._compared(task, course, exported, profile.inputs)
            selection_accuracy = accuracy_of(
                self.evaluators[exported.format], exported.data, splits.get(SplitName.SELECTION)
            )
            accuracy, judged_notes = self._judged(task, exported, splits)
        trained = course.trained
        return TrialOutcome(
            profile=profile,
            file_bytes=exported.device_bytes or len(exported.data),
            accuracy=accuracy,
            selection_accuracy=selection_accuracy,
            parity={**exported.parity, **compared},
            stage_seconds=times.seconds,
            history=() if trained is None else trained.history,
            recoveries=tuple(course.recoveries),
            steps=0 if trained is None else trained.steps,
            notes=(*course.notes, *exported.notes, *judged_notes),
            format_notes=exported.format_notes,
            download_bytes=download_bytes,
        )

    def write(self, task: RecipeTask, context: UnitContext) -> NetworkProfile:
        """Apply a recipe to a working graph and write its file only; return what network is in it.

        Output: `model` (the exported file).

        Raises:
            TightfitError: A step that does not fit, training that diverged, an export that failed.
        """
        course = self._course(task, StageTimes(), context)
        course.carry_out(task.start)
        exported = self._exported(task, course)
        context.write("model", exported.data, file_name=f"model.{task.recipe.output_format}")
        return self.inspector.profile(course.graph)

    def _course(self, task: RecipeTask, times: StageTimes, context: UnitContext) -> RecipeCourse:
        return RecipeCourse(
            steps=self.steps,
            trainer=self.trainer,
            recipe=task.recipe,
            splits=Splits.of(task.dataset, task.recipe.steps),
            graph=task.graph,
            teachers=Teachers(original=task.graph, others=tuple(task.teachers)),
            teacher_cache=task.teacher_cache,
            times=times,
            on_progress=lambda share, text: context.on_progress(_COURSE_SHARE * share, text),
        )

    def _exported(self, task: RecipeTask, course: RecipeCourse) -> ExportedModel:
        """Write what the course has made as the file that the recipe asks for."""
        recipe, trained = task.recipe, course.trained
        output_format = ModelFormat(recipe.output_format)
        compiler = self.compilers.get(output_format)
        exporter = self.exporters[compiler.source_format if compiler else output_format]
        said_by_recipe = recipe_metadata(as_carried_out(recipe, course.recoveries))
        exported = exporter.export(
            course.graph,
            calibration=course.splits.get(SplitName.CALIBRATION),
            settings=quantization_of(recipe),
            metadata={**said_by_recipe, **task.metadata},
            ranges=trained.ranges if trained is not None and trained.ranges else None,
            target=task.target,
        )
        return exported if compiler is None else compiler.compile(exported, task.target)

    def _compared(
        self,
        task: RecipeTask,
        course: RecipeCourse,
        exported: ExportedModel,
        names: Sequence[str],
    ) -> Mapping[str, float]:
        """Hold the file against the network that the recipe led to, on samples that neither has seen.

        Raises:
            ParityError: They differ by more than the file's number formats explain.
        """
        split = SplitName.EVALUATION if task.evaluate else SplitName.SELECTION
        samples = course.splits.get(split)
        if samples is None or not len(samples):
            return {}
        figures = held_out(
            graph=course.graph,
            of_graph=self.evaluators[ModelFormat.ONNX],
            file=exported.data,
            of_file=self.evaluators[exported.format],
            samples=samples,
            names=names,
            settings=quantization_of(task.recipe),
        )
        return {f"held_out_{key}": value for key, value in figures.items()}

    def _judged(
        self, task: RecipeTask, exported: ExportedModel, splits: Splits
    ) -> tuple[Accuracy | None, tuple[str, ...]]:
        """Return the accuracy that is reported, as the target computes it where that can be had, and notes."""
        samples = splits.get(SplitName.EVALUATION) if task.evaluate else None
        if samples is None or samples.labels is None:
            return None, ()
        judge = self.target_evaluator
        if judge is None or not judge.supports(task.target, exported.format):
            return self.evaluators[exported.format].evaluate(exported.data, samples), ()
        found = judge.evaluate(exported.data, exported.format, samples)
        return found.accuracy, found.notes
