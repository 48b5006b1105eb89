"""What a student is trained on: labelled and unlabelled samples, each with its teachers' answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tightfit_service.adapters.training.losses import NO_LABEL
from tightfit_service.adapters.training.teacher import Augmentation, Teacher, TeacherCache
from tightfit_service.application.samples import FloatArray, IntArray, Samples

IGNORED_CLASS = 255
"""Class index of pixels that belong to no class, as in PASCAL VOC's masks."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs with all that is known about them.

    Attributes:
        answers: Per teacher and distilled tensor, shape (n, ...).
        labels: Class of each place of each sample or NO_LABEL, shape (n, places); one place for
            classifiers, all pixels for segmenters.
    """

    inputs: FloatArray
    answers: tuple[tuple[FloatArray, ...], ...]
    labels: IntArray

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.inputs)

    def parts(self, count: int) -> tuple[Batch, ...]:
        """Return so many parts of about the same size, fewer where there are fewer samples."""
        ends = np.linspace(0, len(self), min(count, len(self)) + 1).astype(int)
        return tuple(
            Batch(
                inputs=self.inputs[start:end],
                answers=tuple(tuple(a[start:end] for a in of) for of in self.answers),
                labels=self.labels[start:end],
            )
            for start, end in itertools.pairwise(ends)
        )


class TrainingSet:
    """Samples of the training split, then those that only teachers answer for, numbered through."""

    def __init__(
        self,
        *,
        train: Samples,
        unlabeled: Samples | None,
        teachers: Sequence[Teacher],
        augmentation: Augmentation,
        folder: Path,
    ) -> None:
        """Open the caches of the teachers' answers in `folder`."""
        parts = [train] if unlabeled is None or len(unlabeled) == 0 else [train, unlabeled]
        self._caches = [
            [
                TeacherCache(teacher=teacher, train=part, augmentation=augmentation, folder=folder)
                for teacher in teachers
            ]
            for part in parts
        ]
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self._labels = train.labels if has_class_labels(train) else None

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self._starts[-1])

    def batch(self, indices: IntArray, view: int) -> Batch:
        """Return some samples, augmented; `indices` have to be in ascending order."""
        inputs: list[FloatArray] = []
        answers: list[list[tuple[FloatArray, ...]]] = []
        for part, caches in enumerate(self._caches):
            start, end = np.searchsorted(indices, self._starts[part : part + 2])
            if start == end:
                continue
            own = indices[start:end] - self._starts[part]
            augmented = caches[0].inputs(own, view)
            inputs.append(augmented)
            answers.append([cache.answers(own, view, augmented) for cache in caches])
        return Batch(
            inputs=np.concatenate(inputs),
            answers=tuple(
                tuple(np.concatenate(pieces) for pieces in zip(*of_teacher, strict=True))
                for of_teacher in zip(*answers, strict=True)
            ),
            labels=self._labels_of(indices),
        )

    def _labels_of(self, indices: IntArray) -> IntArray:
        if self._labels is None:
            return np.full((len(indices), 1), NO_LABEL, dtype=np.int64)
        own = self._labels[indices[indices < self._starts[1]]]
        rows = own.reshape(len(own), int(np.prod(self._labels.shape[1:]))).astype(np.int64)
        if rows.shape[1] > 1:
            rows[rows == IGNORED_CLASS] = NO_LABEL
        found = np.full((len(indices), rows.shape[1]), NO_LABEL, dtype=np.int64)
        found[: len(rows)] = rows  # indices ascend: those of the training split come first
        return found


def has_class_labels(samples: Samples) -> bool:
    """Return whether the labels are class indices that a student can be trained on."""
    return samples.labels is not None and samples.metric.has_class_labels
