"""Scores a module on held-out samples: accuracy where there are labels, else agreement with the teacher."""

from __future__ import annotations

import numpy as np
import torch

from tightfit_service.adapters.training.module import GraphModule
from tightfit_service.adapters.training.number_format import TrainingFormat
from tightfit_service.adapters.training.teacher import Augmentation, Teacher
from tightfit_service.application.samples import FloatArray, IntArray, Samples

_BATCH = 256

_HARMLESS_LOSS = 0.03
"""Accuracy that the teacher may lose on augmented samples before the augmentation counts as harmful."""


class Score:
    """Scores modules on the same samples in the same way."""

    def __init__(self, *, samples: Samples, teacher: Teacher, input_scale: float) -> None:
        """Keep the samples; without labels the teacher's answers stand in for them."""
        self._samples, self._scale = samples, input_scale
        self.is_agreement = samples.labels is None
        self._answers: IntArray = (
            teacher_answers(teacher, samples) if samples.labels is None else samples.labels
        )

    @property
    def metric(self) -> str:
        """Name under which the history has the score."""
        return "selection_agreement" if self.is_agreement else "selection_accuracy"

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._samples)

    def of(
        self, module: GraphModule, logits: str, form: TrainingFormat, *, at_most: int | None = None
    ) -> float:
        """Return the share of samples that the module answers as it should, the module in inference mode.

        With `at_most` an evenly spread part of the samples is used.
        """
        count = len(self._samples)
        chosen = np.arange(count)
        if at_most is not None and at_most < count:
            chosen = np.linspace(0, count - 1, at_most).astype(np.int64)
        was_training = module.training
        module.eval()
        right = 0
        with torch.inference_mode():
            for start in range(0, len(chosen), _BATCH):
                part = chosen[start : start + _BATCH]
                inputs = form.inputs(self._samples.inputs(part) / np.float32(self._scale))
                with form.context():
                    output = module.run_to([logits], inputs)[0]
                answers = answers_of(output.float().cpu().numpy())
                right += int((answers == self._answers[part]).sum())
        module.train(was_training)
        return right / len(chosen)


def teacher_answers(teacher: Teacher, samples: Samples) -> IntArray:
    """Return the class that the teacher sees in each sample."""
    answers = [answers_of(teacher.logits(inputs)) for inputs, _ in samples.batches(_BATCH)]
    return np.concatenate(answers)


def answers_of(logits: FloatArray) -> IntArray:
    """Return the class of each row of logits; a single logit tells two classes apart by its sign."""
    rows = logits.reshape(len(logits), -1)
    if rows.shape[1] == 1:
        return (rows[:, 0] > 0).astype(np.int64)
    answers: IntArray = rows.argmax(axis=1).astype(np.int64)
    return answers


def find_augmentation(teacher: Teacher, samples: Samples, kind: str) -> Augmentation:
    """Return what can be done to the inputs without harm, judged by what it does to the teacher.

    Only images (one or three channels, 16 pixels or more) are augmented. Mirroring is left out where
    it changes the teacher's mind (digits), shifts are made smaller until they do not.
    """
    shape = samples.inputs([0]).shape
    is_image = len(shape) == 4 and shape[1] in {1, 3} and min(shape[2:]) >= 16
    if kind == "none" or not is_image:
        return Augmentation()
    if kind == "flip-crop":
        return Augmentation(shift=4, flip=True)
    chosen = np.linspace(0, len(samples) - 1, min(len(samples), 500)).astype(np.int64)
    inputs = samples.inputs(chosen)
    before = answers_of(teacher.logits(inputs))
    truth = before if samples.labels is None else samples.labels[chosen]
    floor = float((before == truth).mean()) - _HARMLESS_LOSS
    if samples.labels is None:
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
