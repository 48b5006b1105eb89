"""The trainer: importance of channels and recovery of compressed graphs, in torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from tightfit_service.adapters.training.importance import channel_importance
from tightfit_service.adapters.training.number_format import TrainingFormat, fastest_format
from tightfit_service.adapters.training.preparation import (
    Student,
    normalise_filters,
    prepare,
    resemble,
)
from tightfit_service.adapters.training.recovery import RecoveryRun, recalibrate
from tightfit_service.adapters.training.scoring import Score, find_augmentation
from tightfit_service.adapters.training.teacher import VIEW_COUNT, Teacher, TeacherCache
from tightfit_service.application.ports import (
    ProgressCallback,
    QuantizationSettings,
    RecoveryResult,
    RecoverySettings,
)
from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.domain.errors import DivergedError, InvalidDatasetError, UnsupportedError
from tightfit_service.domain.network import PruningSpace
from tightfit_service.graph.logits import find_logits
from tightfit_service.graph.structure import graph_inputs

_STATISTICS_SAMPLES = 512
_PROBE_FROM_STEPS = 100
"""Shorter trainings take the plain number format: probing would cost more than it brings."""


class TorchTrainer:
    """Implements `ports.Trainer`. One call at a time per process: torch's threads and seed are global."""

    def __init__(self, *, threads: int | None = None) -> None:
        """Use that many threads; None leaves it to torch."""
        self._threads = threads

    def importance(
        self, graph: bytes, space: PruningSpace, samples: Samples, *, seed: int
    ) -> Mapping[str, Sequence[float]]:
        """Return the importance of each unit of each group; see `ports.Trainer`."""
        self._prepare_torch(seed)
        _check_samples(samples, "train")
        _check_inputs(graph)
        return channel_importance(graph, space, samples, logits=_logits(graph), seed=seed)

    def recover(
        self,
        graph: bytes,
        *,
        teacher: bytes,
        train: Samples,
        selection: Samples,
        settings: RecoverySettings,
        cache_dir: Path,
        on_progress: ProgressCallback,
        quantization: QuantizationSettings | None = None,
        more_teachers: Sequence[bytes] = (),
        unlabeled: Samples | None = None,
    ) -> RecoveryResult:
        """Train `graph` back towards `teacher`; see `ports.Trainer`."""
        del quantization
        if more_teachers or unlabeled is not None or settings.quantization_aware:
            raise UnsupportedError(
                "training takes one teacher, labelled samples and float numbers",
                field="recovery",
                remedy="leave out more teachers, unlabeled samples and quantization",
            )
        begun = time.monotonic()
        self._prepare_torch(settings.seed)
        _check_samples(train, "train")
        _check_samples(selection, "selection")
        _check_inputs(graph)
        on_progress(0.0, "fitting layers to the original")
        logits = _logits(graph)
        original = Teacher(graph=teacher, logits=_logits(teacher), threads=torch.get_num_threads())
        inputs = _some_inputs(train, settings.seed)
        class_count = original.logits(inputs[:1]).size
        for split, samples in (("train", train), ("selection", selection)):
            _check_labels(samples, split, class_count)
        student = prepare(graph, logits=logits, inputs=inputs)
        score = Score(samples=selection, teacher=original, input_scale=student.input_scale)
        scoring_begun = time.monotonic()
        given_score = score.of(student.module, logits, TrainingFormat())
        scoring_seconds = time.monotonic() - scoring_begun
        notes = _notes(student)
        start_score = _renormalise(student, teacher, train, inputs, score, logits, given_score)
        if start_score > given_score:
            notes.append(
                f"layers fitted to the original before training: {given_score:.3f} became {start_score:.3f}"
            )
        normalise_filters(student)
        augmentation = find_augmentation(original, selection, settings.augmentation)
        cache = TeacherCache(
            teacher=original, train=train, augmentation=augmentation, folder=cache_dir
        )
        run = RecoveryRun(
            module=student.module,
            logits=logits,
            cache=cache,
            view_count=1 if augmentation.is_none else VIEW_COUNT,
            train=train,
            score=score,
            settings=settings,
            form=TrainingFormat(),
            input_scale=student.input_scale,
            on_progress=on_progress,
            # recalibration and the last scoring come after the schedule
            deadline=None
            if settings.max_seconds is None
            else begun + settings.max_seconds - 2 * scoring_seconds,
            start_score=start_score,
            notes=notes,
        )
        if run.step_count >= _PROBE_FROM_STEPS:
            probe = train.inputs(np.arange(run.batch_size)) / np.float32(student.input_scale)
            run.form = fastest_format(student.module, logits, probe)
        run.form.place(student.module)
        best_score = run.run()
        notes.append(f"trained in {run.form}, {augmentation}")
        result = student.finish()
        if run.has_failed and best_score <= given_score:
            raise DivergedError(
                "training diverged at every learning rate that was tried",
                field="recovery.learning_rate",
                remedy="prune less, or give a lower learning rate",
            )
        if best_score < given_score:
            notes.append("no state was better than the graph as it came, which is returned")
            result = graph
        on_progress(1.0, f"{score.metric.replace('_', ' ')} {max(best_score, given_score):.4f}")
        return RecoveryResult(
            graph=result,
            epochs=run.epochs_done,
            steps=run.steps_done,
            history=tuple(run.history),
            notes=tuple(notes),
        )

    def _prepare_torch(self, seed: int) -> None:
        torch.manual_seed(seed)
        if self._threads is not None:
            torch.set_num_threads(self._threads)


def _renormalise(
    student: Student,
    teacher: bytes,
    train: Samples,
    inputs: FloatArray,
    score: Score,
    logits: str,
    before: float,
) -> float:
    """Restore and recalibrate statistics, keep them if the score rises, and return the score."""
    plain = TrainingFormat()
    state = {name: value.clone() for name, value in student.module.state_dict().items()}
    if len(inputs) < 2 or not resemble(student, original=teacher, inputs=inputs, logits=logits):
        return before
    recalibrate(student.module, logits, plain, train, student.input_scale, seed=0)
    after = score.of(student.module, logits, plain)
    if after > before:
        return after
    student.module.load_state_dict(state)
    return before


def _notes(student: Student) -> list[str]:
    notes = []
    if student.norms:
        notes.append(f"BatchNorm inserted for training behind {len(student.norms)} layers")
    if student.input_scale != 1.0:
        notes.append(f"inputs divided by {student.input_scale:.3g} for training")
    return notes


def _logits(graph: bytes) -> str:
    return find_logits(onnx.load_model_from_string(graph))


def _some_inputs(samples: Samples, seed: int) -> FloatArray:
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(samples))[:_STATISTICS_SAMPLES]
    return samples.inputs(np.sort(chosen))


def _check_inputs(graph: bytes) -> None:
    """Refuse graphs with several inputs: samples are one array."""
    names = graph_inputs(onnx.load_model_from_string(graph))
    if len(names) != 1:
        raise UnsupportedError(
            f"the model has {len(names)} inputs ({', '.join(names)}); training takes models with one",
            field="model",
            remedy="the model can still be quantized without training",
        )


def _check_samples(samples: Samples, split: str) -> None:
    if len(samples) == 0:
        raise InvalidDatasetError(
            f"the {split} split is empty",
            field=f"dataset.splits.{split}",
            remedy="give at least a few hundred samples",
        )


def _check_labels(samples: Samples, split: str, class_count: int) -> None:
    """Refuse labels that the network has no output for; a single output stands for two classes."""
    if samples.labels is None:
        return
    most = max(class_count, 2)
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if low < 0 or high >= most:
        raise InvalidDatasetError(
            f"labels of the {split} split run from {low} to {high}, the model has {most} classes",
            field=f"dataset.splits.{split}.label",
            remedy=f"number the classes from 0 to {most - 1}",
        )
