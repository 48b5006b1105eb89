"""Scores a learner on held-out samples: accuracy where there are labels, else agreement with the teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tightfit_service.adapters.training.learner import Learner
from tightfit_service.adapters.training.targets import DistilledTensor
from tightfit_service.adapters.training.teacher import Augmentation, Teacher
from tightfit_service.application.samples import FloatArray, IntArray, Samples

_BATCH = 256

_MOST_ANSWER_BYTES = 256 << 20
"""Of the teacher's answers that are held in memory."""

_HARMLESS_LOSS = 0.03
"""Accuracy that the teacher may lose on augmented samples before the augmentation counts as harmful."""


class Score:
    """Scores learners on the same samples in the same way.

    With labels it is accuracy, as far as the first distilled tensor has one score per class. Else it is
    agreement with the teacher, the mean over distilled tensors of: the share of places where both
    see the same class; of logits behind a Sigmoid, the share with the same sign; of other values,
    the share of their variance that the learner explains (R squared, at least 0).
    """

    def __init__(
        self, *, samples: Samples, teacher: Teacher, targets: tuple[DistilledTensor, ...]
    ) -> None:
        """Keep the samples and what is expected of them; of large outputs for a part of them only."""
        self._targets = targets
        first = teacher.answers(samples.inputs([0]))
        is_row = first[0].size == first[0].shape[targets[0].axis or 0] or first[0].size == 1
        labels = samples.labels if samples.metric.has_class_labels else None
        self.is_agreement = labels is None or labels.ndim > 1 or not is_row
        self._numbers = np.arange(len(samples))
        self._samples = samples
        if self.is_agreement:
            most = max(1, _MOST_ANSWER_BYTES // (4 * sum(a[0].size for a in first)))
            self._numbers = _spread(self._numbers, most)
            self._expected = self._ask(teacher)
        else:
            assert labels is not None
            self._expected = [labels]

    @property
    def metric(self) -> str:
        """Name under which the history has the score."""
        return "selection_agreement" if self.is_agreement else "selection_accuracy"

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._numbers)

    def of(self, learner: Learner, *, at_most: int | None = None) -> float:
        """Return the score in inference mode, in [0, 1]; with `at_most` on an evenly spread part."""
        places = _spread(np.arange(len(self._numbers)), at_most or len(self._numbers))
        was_training = learner.module.training
        total = np.zeros(len(self._expected))
        with torch.inference_mode():
            for start in range(0, len(places), _BATCH):
                part = places[start : start + _BATCH]
                outputs = learner.outputs(self._samples.inputs(self._numbers[part]))
                for place, expected in enumerate(self._expected):
                    answer = self._answer(place, outputs[place].float().cpu().numpy())
                    total[place] += self._agreement(place, answer, expected[part]).sum()
        learner.module.train(was_training)
        return float(np.mean(np.maximum(total / len(places), 0.0)))

    def _ask(self, teacher: Teacher) -> list[npt.NDArray[Any]]:
        """Return the teacher's answers per distilled tensor."""
        found: list[list[npt.NDArray[Any]]] = [[] for _ in self._targets]
        for start in range(0, len(self._numbers), _BATCH):
            inputs = self._samples.inputs(self._numbers[start : start + _BATCH])
            for place, value in enumerate(teacher.answers(inputs)):
                found[place].append(self._answer(place, value))
        return [np.concatenate(parts) for parts in found]

    def _answer(self, place: int, value: FloatArray) -> npt.NDArray[Any]:
        """Return what counts of a distilled tensor: classes, signs, or the values."""
        target = self._targets[place]
        if not self.is_agreement:
            return answers_of(value)
        if target.axis is not None:
            return np.asarray(value.argmax(axis=target.axis))
        return value > 0 if target.name != target.output else value

    def _agreement(
        self, place: int, answer: npt.NDArray[Any], expected: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """Return the score of each sample."""
        rows, wanted = (v.reshape(len(answer), -1) for v in (answer, expected))
        if answer.dtype.kind in "bi":
            return np.asarray((rows == wanted).mean(axis=1))
        error = np.square(rows - wanted).mean(axis=1, dtype=np.float64)
        spread = max(float(self._expected[place].var(dtype=np.float64)), 1e-12)
        return np.asarray(1.0 - error / spread)


def _spread(numbers: IntArray, at_most: int) -> IntArray:
    """Return at most so many of the numbers, evenly spread."""
    if at_most >= len(numbers):
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, at_most).astype(np.int64)]


def answers_of(logits: FloatArray) -> IntArray:
    """Return the class of each row of logits; a single logit tells two classes apart by its sign."""
    rows = logits.reshape(len(logits), -1)
    if rows.shape[1] == 1:
        return (rows[:, 0] > 0).astype(np.int64)
    answers: IntArray = rows.argmax(axis=1).astype(np.int64)
    return answers


def find_augmentation(teacher: Teacher, samples: Samples, kind: str) -> Augmentation:
    """Return what can be done to the inputs without harm, judged by what it does to the teacher.

    Where answers belong to places of the image, they move along and tell nothing: no augmentation.
    Only images (one or three channels, 16 pixels or more) are augmented. Mirroring is left out where
    it changes the teacher's mind (digits), shifts are made smaller until they do not.
    """
    shape = samples.inputs([0]).shape
    is_image = len(shape) == 4 and shape[1] in {1, 3} and min(shape[2:]) >= 16
    if kind == "none" or not is_image:
        return Augmentation()
    if kind == "flip-crop":
        return Augmentation(shift=4, flip=True)
    if max(teacher.logits(samples.inputs([0])).shape[2:], default=1) > 1:
        return Augmentation()
    chosen = np.linspace(0, len(samples) - 1, min(len(samples), 500)).astype(np.int64)
    inputs = samples.inputs(chosen)
    before = answers_of(teacher.logits(inputs))
    labels = samples.labels if samples.metric.has_class_labels else None
    truth = before if labels is None else labels[chosen]
    floor = float((before == truth).mean()) - _HARMLESS_LOSS
    if labels is None:
        floor = 1.0 - 3 * _HARMLESS_LOSS  # agreement falls faster than accuracy

    def score(changed: FloatArray) -> float:
        answers = answers_of(teacher.logits(np.ascontiguousarray(changed)))
        return float((answers == truth).mean())

    flip = score(inputs[:, :, :, ::-1]) >= floor
    numbers = np.arange(len(chosen))
    for shift in (4, 2, 1):
        if shift * 8 <= min(shape[2:]):
            shifted = Augmentation(shift=shift).apply(inputs, numbers, 0, len(chosen))
            if score(shifted) >= floor:
                return Augmentation(shift=shift, flip=flip)
    return Augmentation(flip=flip)
