"""Which class an output names: rows of scores, maps of them, single values, and maps of classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tightfit_service.application.samples import IntArray, LabelArray
from tightfit_service.domain.errors import InvalidDatasetError

Outputs = npt.NDArray[np.float32]


def row_scores(outputs: Outputs, labels: LabelArray, *, split: str) -> Outputs:
    """Return scores of shape (n, classes), to which class labels of shape (n,) fit.

    Raises:
        InvalidDatasetError: A label is no class of the output.
    """
    scores = outputs.reshape(len(outputs), -1)
    low, high = int(labels.min()), int(labels.max())
    count = 2 if scores.shape[1] == 1 else scores.shape[1]
    if low < 0 or high >= count:
        raise InvalidDatasetError(
            f"labels span [{low}, {high}], the model has {count} classes from 0",
            field=f"splits.{split}.label",
            remedy="give class indices from 0 to the number of classes less one",
        )
    return scores


def classes_of(outputs: Outputs) -> IntArray:
    """Return the class that each place of an output names, shape (n, places).

    Scores are along axis 1, in outputs (n, length, classes) along the last one. A single value
    says one of two classes: by its sign, or where all lie in [0, 1] by which end is nearer.
    """
    if outputs.ndim == 3:
        outputs = outputs.transpose(0, 2, 1)
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return _one_of_two(outputs).reshape(len(outputs), -1)
    flat = outputs.reshape(len(outputs), outputs.shape[1], -1)
    return np.asarray(flat.argmax(axis=1), dtype=np.int64)


def dense_classes_of(outputs: Outputs, size: tuple[int, ...], *, split: str) -> IntArray:
    """Return the class of each pixel, shape (n, *size), from scores first or last, or classes.

    Raises:
        InvalidDatasetError: The output has other pixels.
    """
    shape = outputs.shape[1:]
    if shape == size:
        return np.asarray(np.rint(outputs), dtype=np.int64)
    if shape[1:] == size and shape[0] == 1:
        return _one_of_two(outputs[:, 0])
    if shape[1:] == size:
        return np.asarray(outputs.argmax(axis=1), dtype=np.int64)
    if shape[:-1] == size:
        return np.asarray(outputs.argmax(axis=-1), dtype=np.int64)
    raise InvalidDatasetError(
        f"labels have {size} pixels, an output of the model has shape {shape}",
        field=f"splits.{split}.label",
        remedy="give one class index per pixel of the output",
    )


def probabilities(scores: Outputs) -> npt.NDArray[np.float64]:
    """Return scores that can be compared between samples: logits go through a softmax."""
    values = np.nan_to_num(scores.astype(np.float64), nan=-1e30, posinf=1e30, neginf=-1e30)
    if scores.shape[1] == 1 or (values.min() >= 0 and values.max() <= 1):
        return values
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _one_of_two(values: Outputs) -> IntArray:
    is_share = bool(values.size) and values.min() >= 0 and values.max() <= 1
    return (values > (0.5 if is_share else 0.0)).astype(np.int64)
