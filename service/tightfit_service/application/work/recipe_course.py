"""A network on its way through the steps of a recipe: passes in order, and training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tightfit_service.application import tracing
from tightfit_service.application.ports import (
    PassContext,
    ProgressCallback,
    RecoveryResult,
    RecoverySettings,
    Teachers,
    Trainer,
    TrainingData,
)
from tightfit_service.application.recipes.steps import (
    QUANTIZATION_STEP,
    RECOVERY_STEP,
    RESOLUTION_STEP,
    GraphSteps,
    quantization_of,
    recovery_of,
)
from tightfit_service.application.work.data import Splits
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.domain.recipe import PassStep, Recipe


@dataclass(frozen=True, kw_only=True)
class TrainedGraph:
    """A float graph that the first `steps` steps of a recipe have made already."""

    graph: bytes
    steps: int


@dataclass
class StageTimes:
    """Seconds by stage; what is timed twice adds up."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside, and trace it."""
        start = time.perf_counter()
        try:
            with tracing.span(f"stage {name}"):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(kw_only=True)
class RecipeCourse:
    """One network, changed and trained step by step.

    Attributes:
        graph: The network as it is now.
        teachers: What it is trained back towards, at the size that it has now.
        teacher_cache: Folder for the teachers' answers.
        times: Stages `prune` and `recover` are added to it.
        trained: What the last training gave.
        recoveries: Epochs of each training.
        notes: What a user should know of it.
    """

    steps: GraphSteps
    trainer: Trainer
    recipe: Recipe
    splits: Splits
    graph: bytes
    teachers: Teachers
    teacher_cache: Path
    times: StageTimes
    on_progress: ProgressCallback
    trained: RecoveryResult | None = None
    recoveries: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def carry_out(self, start: TrainedGraph | None) -> None:
        """Take the steps of the recipe that change or train the network; `start` has taken the first.

        Raises:
            TightfitError: A step that does not fit, or training that diverged.
        """
        finished = 0 if start is None else start.steps
        done: list[PassStep] = []
        for place, step in enumerate(self.recipe.steps):
            if step.pass_name == QUANTIZATION_STEP:
                continue
            if start is not None and place == finished:
                self.graph = start.graph
            if step.pass_name == RECOVERY_STEP and place >= finished:
                with self.times.stage("recover"):
                    self._train(recovery_of(step, done))
            # what resizes inputs concerns the teachers as well
            elif place >= finished or step.pass_name == RESOLUTION_STEP:
                self.on_progress(0.0, f"applying {step.pass_name.replace('_', ' ')}")
                calibration = self.splits.get(SplitName.CALIBRATION)
                with self.times.stage("prune"):
                    self._change(step, PassContext(calibration=calibration, seed=self.recipe.seed))
            done.append(step)

    def _change(self, step: PassStep, context: PassContext) -> None:
        self.graph = self.steps.apply(self.graph, step, context)
        if step.pass_name != RESOLUTION_STEP:
            return
        # layers are fitted to those of the original at the same size, but the original
        # itself answers best, if its inputs are still there
        before = self.teachers
        reference = self.steps.apply(before.reference or before.original, step, context)
        self.teachers = replace(before, reference=reference)
        if not step.parameters.get("inside"):
            others = tuple(self.steps.apply(other, step, context) for other in before.others)
            self.teachers = Teachers(original=reference, others=others)

    def _train(self, settings: RecoverySettings) -> None:
        """Train the network back; where that cannot be done, say why and go on without."""
        try:
            self.trained = self._recovered(settings)
        except UnsupportedError as error:
            self.trained = None
            self.notes.append(f"not trained: {error.message}")
        if self.trained is None:
            self.recoveries.append(0.0)
            return
        self.graph = self.trained.graph
        self.recoveries.append(self.trained.epochs)
        self.notes.extend(self.trained.notes)

    def _recovered(self, settings: RecoverySettings) -> RecoveryResult | None:
        train = self.splits.get(SplitName.TRAIN)
        if train is None:
            self.notes.append("not trained: the dataset has no training split")
            return None
        return self.trainer.recover(
            self.graph,
            teachers=self.teachers,
            data=TrainingData(
                train=train,
                selection=self.splits.need(SplitName.SELECTION),
                unlabeled=self.splits.get(SplitName.UNLABELED),
            ),
            settings=settings,
            cache_dir=self.teacher_cache,
            on_progress=self.on_progress,
            quantization=quantization_of(self.recipe),
        )
