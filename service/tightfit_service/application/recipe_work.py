"""A recipe applied to a model inside a worker: passes in order, training, export, evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tightfit_service.application import tracing
from tightfit_service.application.file_metadata import recipe_metadata
from tightfit_service.application.ports import (
    Evaluator,
    ExportedModel,
    Exporter,
    FileCompiler,
    GraphInspector,
    OpenDataset,
    Packer,
    PassContext,
    ProgressCallback,
    QuantizationSettings,
    RecoveryResult,
    RecoverySettings,
    TargetEvaluator,
    Trainer,
)
from tightfit_service.application.recipe_steps import (
    QUANTIZATION_STEP,
    RECOVERY_STEP,
    RESOLUTION_STEP,
    GraphSteps,
    as_carried_out,
    quantization_of,
    recovery_of,
)
from tightfit_service.application.resampling import resize_samples
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.errors import (
    InvalidDatasetError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat
from tightfit_service.domain.network import NetworkProfile
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.recipe import PassStep, Recipe

_RECOVERY_SHARE = 0.75
"""Share of a trial's progress that training fills."""


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """What one trial produced; its files are the outputs `model` and `graph`."""

    profile: NetworkProfile
    file_bytes: int
    """Of the exported model as the device stores it."""
    accuracy: Accuracy | None
    selection_accuracy: Accuracy | None
    float_selection_accuracy: Accuracy | None
    parity: Mapping[str, float]
    stage_seconds: Mapping[str, float]
    history: tuple[Mapping[str, float], ...] = ()
    recoveries: tuple[float, ...] = ()
    """Epochs of each training that was run, in the order of the recipe."""
    steps: int = 0
    notes: tuple[str, ...] = ()
    download_bytes: int | None = None
    """Of the packed file; None where none was asked for."""


@dataclass(frozen=True, kw_only=True)
class TrainedGraph:
    """A float graph that the first `steps` steps of a recipe have made already."""

    graph: bytes
    steps: int


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits of a dataset at the input size that a recipe works with."""

    dataset: OpenDataset
    size: tuple[int, int] | None = None
    """Height and width of images, None as they are."""

    @classmethod
    def of(cls, dataset: OpenDataset, steps: Sequence[PassStep]) -> Splits:
        """Return the splits as the network wants them after the given steps."""
        for step in steps:
            if step.pass_name == RESOLUTION_STEP and not step.parameters.get("inside"):
                size = (int(step.parameters["height"]), int(step.parameters["width"]))
                return cls(dataset=dataset, size=size)
        return cls(dataset=dataset)

    def get(self, split: SplitName) -> Samples | None:
        """Return a split, or None where the dataset has none."""
        samples = self.dataset.samples(split)
        if samples is None or self.size is None:
            return samples
        return resize_samples(samples, *self.size)

    def need(self, split: SplitName) -> Samples:
        """Return a split.

        Raises:
            InvalidDatasetError: The dataset has none.
        """
        samples = self.get(split)
        if samples is None:
            raise InvalidDatasetError(
                f"the dataset has no {split} split",
                field=f"dataset.splits.{split}",
                remedy="name its arrays in the manifest",
            )
        return samples


@dataclass(kw_only=True)
class _Network:
    """A network on its way through a recipe.

    Attributes:
        teachers: The original, the network whose layers are fitted to, and further teachers.
        trained: What the last training gave.
        recoveries: Epochs of each training.
    """

    graph: bytes
    teachers: tuple[bytes, ...]
    trained: RecoveryResult | None = None
    recoveries: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take_trained(self, said: Sequence[str]) -> None:
        """Go on with what training gave, if it could train."""
        self.notes.extend(said)
        self.recoveries.append(0.0 if self.trained is None else self.trained.epochs)
        if self.trained is not None:
            self.graph = self.trained.graph


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

    def run(
        self,
        graph: bytes,
        recipe: Recipe,
        dataset: OpenDataset,
        *,
        target: HardwareSpec,
        evaluate: bool,
        packed: bool = False,
        start: TrainedGraph | None = None,
        teachers: Sequence[bytes] = (),
        teacher_cache: Path,
        output_dir: Path,
        metadata: Mapping[str, str],
        on_progress: ProgressCallback,
    ) -> tuple[TrialOutcome, Mapping[str, Path]]:
        """Apply a recipe to a working graph, and return what came of it with its files by name.

        Args:
            graph: The model that the recipe is for.
            recipe: What to do.
            dataset: Data to train, calibrate and evaluate on.
            target: What the file is for.
            evaluate: Whether the evaluation set may be looked at.
            packed: Whether a packed file is made beside the exported one.
            start: What an earlier trial made by the first steps; None begins with the model.
            teachers: Networks that training learns from besides the original.
            teacher_cache: Folder for the teachers' answers.
            output_dir: Where the exported file and the float graph are written.
            metadata: What travels inside the exported file, besides what the recipe says.
            on_progress: Told about progress.

        Raises:
            TightfitError: A step that does not fit, training that diverged, an export that failed.
        """
        timed = _Stages()
        splits = Splits.of(dataset, recipe.steps)
        network = _Network(graph=graph, teachers=(graph, graph, *teachers))
        self._carry_out(network, recipe, splits, start, teacher_cache, timed, on_progress)
        working, trained, notes = network.graph, network.trained, network.notes

        on_progress(_RECOVERY_SHARE, "exporting")
        output_format = ModelFormat(recipe.output_format)
        compiler = self.compilers.get(output_format)
        exporter = self.exporters[compiler.source_format if compiler else output_format]
        said_by_recipe = recipe_metadata(as_carried_out(recipe, network.recoveries))
        with timed.stage("export"):
            exported = exporter.export(
                working,
                calibration=splits.get(SplitName.CALIBRATION),
                settings=quantization_of(recipe),
                metadata={**said_by_recipe, **metadata},
                ranges=trained.ranges if trained is not None and trained.ranges else None,
            )
            if compiler is not None:
                exported = compiler.compile(exported, target)
        notes.extend(exported.notes)

        packed_data = None
        if packed:
            on_progress(0.83, "packing the exported file")
            with timed.stage("pack"):
                packed_data = self.pack(exported.data, exported.format)

        on_progress(0.85, "evaluating the exported file")
        evaluator = self.evaluators[exported.format]
        selection = splits.get(SplitName.SELECTION)
        with timed.stage("evaluate"):
            selection_accuracy = accuracy_of(evaluator, exported.data, selection)
            accuracy = None
            if evaluate:
                accuracy, said = self._judged(exported, splits.get(SplitName.EVALUATION), target)
                notes.extend(said)
        float_accuracy = accuracy_of(self.evaluators[ModelFormat.ONNX], working, selection)
        outcome = TrialOutcome(
            profile=self.inspector.profile(working),
            file_bytes=exported.device_bytes or len(exported.data),
            accuracy=accuracy,
            selection_accuracy=selection_accuracy,
            float_selection_accuracy=float_accuracy,
            parity=dict(exported.parity),
            stage_seconds=timed.seconds,
            history=() if trained is None else trained.history,
            recoveries=tuple(network.recoveries),
            steps=0 if trained is None else trained.steps,
            notes=tuple(notes),
            download_bytes=None if packed_data is None else len(packed_data),
        )
        files = {
            "model": output_dir / f"model.{recipe.output_format}",
            "graph": output_dir / "graph.onnx",
        }
        files["model"].write_bytes(exported.data)
        files["graph"].write_bytes(working)
        if packed_data is not None:
            files["packed"] = output_dir / "model.packed"
            files["packed"].write_bytes(packed_data)
        return outcome, files

    def _carry_out(
        self,
        network: _Network,
        recipe: Recipe,
        splits: Splits,
        start: TrainedGraph | None,
        teacher_cache: Path,
        timed: _Stages,
        on_progress: ProgressCallback,
    ) -> None:
        """Take the steps of a recipe that change or train the network; `start` has taken the first."""
        finished = 0 if start is None else start.steps
        done: list[PassStep] = []
        for place, step in enumerate(recipe.steps):
            if step.pass_name == QUANTIZATION_STEP:
                continue
            if start is not None and place == finished:
                network.graph = start.graph
            if step.pass_name == RECOVERY_STEP and place >= finished:
                with timed.stage("recover"):
                    network.trained, said = self._recover(
                        network.graph,
                        network.teachers,
                        recovery_of(step, done),
                        splits,
                        quantization_of(recipe),
                        teacher_cache,
                        on_progress,
                    )
                network.take_trained(said)
            # what resizes inputs concerns the teachers as well
            elif place >= finished or step.pass_name == RESOLUTION_STEP:
                on_progress(0.0, f"applying {step.pass_name.replace('_', ' ')}")
                calibration = splits.get(SplitName.CALIBRATION)
                with timed.stage("prune"):
                    context = PassContext(calibration=calibration, seed=recipe.seed)
                    self._change(network, step, context)
            done.append(step)

    def _change(self, network: _Network, step: PassStep, context: PassContext) -> None:
        network.graph = self.steps.apply(network.graph, step, context)
        if step.pass_name != RESOLUTION_STEP:
            return
        # layers are fitted to those of the original at the same size, but the original
        # itself answers best, if its inputs are still there
        teacher, reference, *others = network.teachers
        reference = self.steps.apply(reference, step, context)
        if not step.parameters.get("inside"):
            teacher = reference
            others = [self.steps.apply(other, step, context) for other in others]
        network.teachers = (teacher, reference, *others)

    def _judged(
        self, exported: ExportedModel, samples: Samples | None, target: HardwareSpec
    ) -> tuple[Accuracy | None, Sequence[str]]:
        """Return the accuracy of a file, as the target computes it where that can be had, and notes."""
        judge = self.target_evaluator
        if samples is None or samples.labels is None:
            return None, ()
        if judge is None or not judge.supports(target, exported.format):
            return self.evaluators[exported.format].evaluate(exported.data, samples), ()
        found = judge.evaluate(exported.data, exported.format, samples)
        return found.accuracy, found.notes

    def _recover(
        self,
        working: bytes,
        originals: Sequence[bytes],
        settings: RecoverySettings,
        splits: Splits,
        quantization: QuantizationSettings,
        teacher_cache: Path,
        on_progress: ProgressCallback,
    ) -> tuple[RecoveryResult | None, Sequence[str]]:
        """Train a graph back; where that cannot be done, say why and go on without.

        `originals` are the teacher, the network whose layers are fitted to, and further teachers.
        """
        teacher, reference, *others = originals
        train = splits.get(SplitName.TRAIN)
        if train is None:
            return None, ["not trained: the dataset has no training split"]
        try:
            result = self.trainer.recover(
                working,
                teacher=teacher,
                reference=reference,
                more_teachers=others,
                train=train,
                selection=splits.need(SplitName.SELECTION),
                settings=settings,
                cache_dir=teacher_cache,
                on_progress=lambda share, text: on_progress(_RECOVERY_SHARE * share, text),
                quantization=quantization,
                unlabeled=splits.get(SplitName.UNLABELED),
            )
        except UnsupportedError as error:
            return None, [f"not trained: {error.message}"]
        return result, result.notes


def accuracy_of(evaluator: Evaluator, data: bytes, samples: Samples | None) -> Accuracy | None:
    """Return the accuracy of a file, or None where there is nothing to hold it against."""
    if samples is None or samples.labels is None:
        return None
    return evaluator.evaluate(data, samples)


@dataclass
class _Stages:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with tracing.span(f"stage {name}"):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
