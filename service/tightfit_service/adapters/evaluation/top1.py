"""Top-1 accuracy of anything that maps input batches to class scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.domain.errors import InvalidDatasetError
from tightfit_service.domain.quantities import Accuracy, wilson_accuracy


def evaluate_top1(
    run: Callable[[FloatArray], npt.NDArray[np.float32]], samples: Samples, *, batch_size: int
) -> Accuracy:
    """Return the share of samples whose highest score is their label's, with its Wilson interval.

    Of equal scores the first counts, as argmax has it. Scores that are NaN count as wrong.

    Args:
        run: Maps inputs of shape (n, ...) to scores of shape (n, classes, 1...).
        samples: The labelled samples.
        batch_size: Most inputs given to `run` at once.

    Raises:
        InvalidDatasetError: No samples, no labels, or labels that the scores have no place for.
    """
    if len(samples) == 0:
        raise InvalidDatasetError(
            f"the {samples.name or 'given'} split is empty",
            field=f"splits.{samples.name}",
            remedy="give at least one sample",
        )
    if samples.labels is None:
        raise InvalidDatasetError(
            f"the {samples.name or 'given'} split has no labels, which top1 needs",
            field=f"splits.{samples.name}.label",
            remedy="name the array of class indices",
        )
    low, high = int(samples.labels.min()), int(samples.labels.max())
    correct = 0
    for inputs, labels in samples.batches(batch_size):
        assert labels is not None
        outputs = run(inputs)
        scores = outputs.reshape(len(inputs), -1)
        if low < 0 or high >= scores.shape[1]:
            raise InvalidDatasetError(
                f"labels span [{low}, {high}], the model has {scores.shape[1]} classes from 0",
                field=f"splits.{samples.name}.label",
                remedy="give class indices from 0 to the number of classes less one",
            )
        right = (scores.argmax(axis=1) == labels) & np.isfinite(scores).all(axis=1)
        correct += int(right.sum())
    return wilson_accuracy(correct, len(samples))
