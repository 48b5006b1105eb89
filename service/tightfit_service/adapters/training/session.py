"""One recovery from graph to graph: student and teachers made ready, trained, and folded back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tightfit_service.adapters.training.constraints import WeightConstraints
from tightfit_service.adapters.training.fake_quantization import Range
from tightfit_service.adapters.training.features import FeatureGuide, feature_points
from tightfit_service.adapters.training.learner import Learner
from tightfit_service.adapters.training.losses import DistillationLoss
from tightfit_service.adapters.training.number_format import TrainingFormat, fastest_format
from tightfit_service.adapters.training.preparation import (
    Student,
    normalise_filters,
    prepare,
    resemble,
)
from tightfit_service.adapters.training.range_calibration import rounding_of
from tightfit_service.adapters.training.recovery import RecoveryRun, recalibrate
from tightfit_service.adapters.training.scoring import Score, find_augmentation
from tightfit_service.adapters.training.targets import find_targets
from tightfit_service.adapters.training.teacher import VIEW_COUNT, open_teachers
from tightfit_service.adapters.training.training_set import TrainingSet, has_class_labels
from tightfit_service.application.ports import (
    ProgressCallback,
    QuantizationSettings,
    RecoveryResult,
    RecoverySettings,
    Teachers,
    TrainingData,
)
from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.domain.errors import DivergedError, InvalidDatasetError

_STATISTICS_SAMPLES = 512
_PROBE_FROM_STEPS = 100
"""Shorter trainings take the plain number format: probing would cost more than it brings."""

QUANTIZED_SHARE = 0.4
"""Of the epochs of quantization-aware training: the last ones round, the first ones do not."""
_QUANTIZED_RATE = 0.1
"""Share of the usual learning rate while rounding, so that weights settle on their grids."""

_BARE_RATE = 0.3
"""Share of the usual learning rate for networks that no BatchNorm was inserted into."""


class RecoverySession:
    """Everything that one call of `TorchTrainer.recover` holds; `run` may be called once."""

    def __init__(
        self,
        *,
        graph: bytes,
        teachers: Teachers,
        data: TrainingData,
        settings: RecoverySettings,
        quantization: QuantizationSettings,
        cache_dir: Path,
        on_progress: ProgressCallback,
        begun: float,
    ) -> None:
        """Prepare the student and ask the original for the answers that scores need.

        `begun` is the value of `time.monotonic` that `settings.max_seconds` counts from.

        Raises:
            UnsupportedError: An operator has no rule.
            InvalidRequestError: A teacher takes or answers something else than the original.
            InvalidDatasetError: Labels that the network has no output for.
        """
        train, selection = data.train, data.selection
        self._graph, self._settings = graph, settings
        self._original = teachers.reference or teachers.original
        self._quantization = quantization
        self._train, self._on_progress, self._begun = train, on_progress, begun
        targets = find_targets(graph, is_regression=train.metric.is_error)
        self._teachers = open_teachers(
            (teachers.original, *teachers.others), train, threads=torch.get_num_threads()
        )
        self._inputs = _some_inputs(train, settings.seed)
        first = self._teachers[0].logits(self._inputs[:1])
        for split, samples in (("train", train), ("selection", selection)):
            _check_labels(samples, split, first.size)
        self._student = prepare(
            graph,
            logits=targets[0].name,
            inputs=self._inputs,
            with_norms=not settings.share_values,
        )
        module = self._student.module
        self._learner = Learner(
            module=module, targets=targets, input_scale=self._student.input_scale
        )
        self._constraints = WeightConstraints(
            graph, module, keep_zeros=settings.keep_zeros, share_values=settings.share_values
        )
        self._score = Score(samples=selection, teacher=self._teachers[0], targets=targets)
        augmentation = find_augmentation(self._teachers[0], selection, settings.augmentation)
        self._augmentation = augmentation
        self._data = TrainingSet(
            train=train,
            unlabeled=data.unlabeled,
            teachers=self._teachers,
            augmentation=augmentation,
            folder=cache_dir,
        )
        self._notes = _notes(self._student)

    def run(self) -> RecoveryResult:
        """Train and return the best graph found.

        Raises:
            DivergedError: Every rollback diverged again, and nothing better was found before.
        """
        scoring_begun = time.monotonic()
        given_score = self._score.of(self._learner)
        scoring_seconds = time.monotonic() - scoring_begun
        given_state = self._learner.state()
        start_score = self._fit(given_score)
        normalise_filters(self._student)
        run = self._float_run(start_score, scoring_seconds)
        best_score = run.run()
        self._notes.append(f"trained in {self._learner.form}, {self._augmentation}")
        if run.has_failed and best_score <= given_score:
            raise DivergedError(
                "training diverged at every learning rate that was tried",
                field="recovery.learning_rate",
                remedy="prune less, or give a lower learning rate",
            )
        is_given = best_score < given_score
        if is_given:
            self._notes.append("no state was better than the graph as it came, which is returned")
            self._learner.restore(given_state)
            best_score = given_score
        ranges: Mapping[str, Range] = {}
        if self._settings.quantization_aware:
            run = self._quantized_run(run, 2 * scoring_seconds)
            best_score = run.run()
            ranges = self._settle()
        metric = self._score.metric.replace("_", " ")
        self._on_progress(1.0, f"{metric} {best_score:.4f}")
        return RecoveryResult(
            graph=self._graph if is_given and not ranges else self._student.finish(),
            epochs=run.epochs_done,
            steps=run.steps_done,
            history=tuple(run.history),
            notes=tuple(self._notes),
            ranges=ranges,
        )

    def _fit(self, before: float) -> float:
        """Fit layers and statistics to the original, keep that if the score rises, and return it."""
        learner = self._learner
        state = learner.state()
        if len(self._inputs) < 2 or not resemble(
            self._student,
            original=self._original,
            inputs=self._inputs,
            logits=learner.targets[0].name,
        ):
            return before
        self._constraints.project_weights()
        recalibrate(learner, self._train, seed=0)
        after = self._score.of(learner)
        if after > before:
            self._notes.append(
                f"layers fitted to the original before training: {before:.3f} became {after:.3f}"
            )
            return after
        learner.restore(state)
        return before

    def _float_run(self, start_score: float, scoring_seconds: float) -> RecoveryRun:
        settings, learner = self._settings, self._learner
        share = 1.0 - QUANTIZED_SHARE if settings.quantization_aware else 1.0
        run = RecoveryRun(
            learner=learner,
            data=self._data,
            clean=self._train,
            view_count=1 if self._augmentation.is_none else VIEW_COUNT,
            loss=self._loss(),
            score=self._score,
            settings=settings,
            epochs=share * settings.epochs,
            rate_share=_BARE_RATE
            if settings.share_values and settings.learning_rate is None
            else 1.0,
            constraints=self._constraints,
            on_progress=self._on_progress,
            # recalibration and the last scoring come after the schedule
            deadline=self._deadline(share, 2 * scoring_seconds),
            start_score=start_score,
            notes=self._notes,
        )
        if run.step_count >= _PROBE_FROM_STEPS:
            probe = self._train.inputs(np.arange(min(run.batch_size, len(self._train))))
            scaled = probe / np.float32(learner.input_scale)
            learner.form = fastest_format(learner.module, learner.targets[0].name, scaled)
        learner.form.place(learner.module)
        self._constraints.to(learner.form.device)
        run.guide = self._guide()
        return run

    def _quantized_run(self, before: RecoveryRun, reserved_seconds: float) -> RecoveryRun:
        """Return the training that follows on `before`, now rounding as the exported file does."""
        learner = self._learner
        # bfloat16 would round once more, which the file does not
        learner.form = TrainingFormat(device=learner.form.device)
        learner.form.place(learner.module)
        learner.quantizer = rounding_of(
            self._student, learner, self._train, self._quantization, seed=self._settings.seed
        )
        if learner.holds_statistics:
            recalibrate(learner, self._train, seed=0)
        start_score = self._score.of(learner)
        self._notes.append(
            f"trained further with the exported file's rounding, which began at {start_score:.3f}"
        )
        return replace(
            before,
            epochs=QUANTIZED_SHARE * self._settings.epochs,
            rate_share=before.rate_share * _QUANTIZED_RATE,
            start_score=start_score,
            deadline=self._deadline(1.0, reserved_seconds),
            rollback_count=0,
            has_failed=False,
        )

    def _settle(self) -> Mapping[str, Range]:
        """Leave the rounded weights in the module and return the ranges of activations."""
        quantizer = self._learner.quantizer
        assert quantizer is not None
        if not self._settings.share_values:  # rounded per channel, shared values would differ
            quantizer.settle()
        return quantizer.ranges(self._learner.input_scale)

    def _deadline(self, share: float, reserved_seconds: float) -> float | None:
        """Return when a share of the time is over, less what comes after the schedule."""
        if self._settings.max_seconds is None:
            return None
        return self._begun + share * self._settings.max_seconds - reserved_seconds

    def _loss(self) -> DistillationLoss:
        values = self._teachers[0].answers(self._inputs)
        targets = self._learner.targets
        return DistillationLoss(
            targets=targets,
            variances=tuple(
                _variance(value) if target.axis is None else 1.0
                for target, value in zip(targets, values, strict=True)
            ),
            settings=self._settings,
        )

    def _guide(self) -> FeatureGuide | None:
        if self._settings.feature_weight <= 0:
            return None
        points = feature_points(self._graph, self._original)
        if not points:
            self._notes.append("no inner activations to compare: no channels were recognised")
            return None
        self._notes.append("features compared at " + ", ".join(p.tensor for p in points))
        return FeatureGuide(points=points, original=self._original, form=self._learner.form)


def _variance(value: FloatArray) -> float:
    found = float(value.var(dtype=np.float64))
    return found if np.isfinite(found) and found > 1e-12 else 1.0


def _notes(student: Student) -> list[str]:
    notes = []
    if student.norms:
        notes.append(f"BatchNorm inserted for training behind {len(student.norms)} layers")
    if student.input_scale != 1.0:
        notes.append(f"inputs divided by {student.input_scale:.3g} for training")
    frozen = student.module.frozen_nodes
    if frozen:
        named = ", ".join(f"'{name}' ({op_type})" for name, op_type in frozen.items())
        notes.append(f"no gradient passes {named}: what lies before is trained only around them")
    return notes


def _some_inputs(samples: Samples, seed: int) -> FloatArray:
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(samples))[:_STATISTICS_SAMPLES]
    return samples.inputs(np.sort(chosen))


def check_samples(samples: Samples, split: str) -> None:
    """Refuse an empty split.

    Raises:
        InvalidDatasetError: There are no samples.
    """
    if len(samples) == 0:
        raise InvalidDatasetError(
            f"the {split} split is empty",
            field=f"dataset.splits.{split}",
            remedy="give at least a few hundred samples",
        )


def _check_labels(samples: Samples, split: str, class_count: int) -> None:
    """Refuse labels that the network has no output for; a single output stands for two classes."""
    if samples.labels is None or samples.labels.ndim > 1 or not has_class_labels(samples):
        return
    most = max(class_count, 2)
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if low < 0 or high >= most:
        raise InvalidDatasetError(
            f"labels of the {split} split run from {low} to {high}, the model has {most} classes",
            field=f"dataset.splits.{split}.label",
            remedy=f"number the classes from 0 to {most - 1}",
        )
