"""Labels of a split: read in the type that the metric wants, and held against the model's output."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tightfit_service.application.ports import ImportedModel
from tightfit_service.application.samples import LabelArray, Samples
from tightfit_service.domain.dataset import MetricName, Task
from tightfit_service.domain.errors import InvalidDatasetError

NO_CLASS = 255
"""Dense label of pixels that do not count, as in Pascal VOC and Cityscapes."""


def read_labels(labels: npt.NDArray[np.generic], *, split: str, metric: MetricName) -> LabelArray:
    """Return labels as int64 class indices or float32 values, shaped as `Samples.labels` says.

    Raises:
        InvalidDatasetError: A type or number of axes that the metric cannot use.
    """
    if not metric.has_class_labels:
        return _values(labels, split)
    wanted = 3 if metric.is_dense else 1
    if labels.ndim == wanted + 1 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != wanted:
        shape = "(samples, height, width)" if metric.is_dense else "(samples,)"
        raise InvalidDatasetError(
            f"the labels of the {split} split have shape {labels.shape}, not {shape}",
            field=f"splits.{split}.label",
            remedy="give class indices; labels.argmax(axis=1) makes them from one-hot rows",
        )
    if labels.dtype.kind not in "uib":
        raise InvalidDatasetError(
            f"the labels of the {split} split have type {labels.dtype}, not an integer type",
            field=f"splits.{split}.label",
            remedy="labels.astype('int64') if they are class indices",
        )
    if labels.dtype.kind == "u" and labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise InvalidDatasetError(
            f"a label of the {split} split is {int(labels.max())}",
            field=f"splits.{split}.label",
            remedy="give class indices from 0",
        )
    return np.asarray(labels, dtype=np.int64)


def own_labels(samples: Samples) -> LabelArray:
    """Return the labels of a reconstruction: the inputs as the model gets them."""
    return samples.inputs(slice(None))


def check_labels(samples: Samples, model: ImportedModel | None) -> None:
    """Hold labels against the model's first output, or against themselves without a model.

    Raises:
        InvalidDatasetError: Labels that the output has no place for.
    """
    if samples.labels is None:
        return
    shape = model.outputs[0].shape if model is not None and model.outputs else None
    if not samples.metric.has_class_labels:
        if shape is not None:
            _check_size(samples, shape)
        return
    known = (
        samples.labels[samples.labels != NO_CLASS] if samples.metric.is_dense else samples.labels
    )
    low, high = (int(known.min()), int(known.max())) if known.size else (0, 0)
    if low < 0:
        raise _label_error(samples, f"is {low}, below 0")
    count = _class_count(samples, model) if shape is not None else -1
    if count > 0 and high >= count:
        raise _label_error(samples, f"is {high}, but the model has {count} classes from 0")


def check_class_names(names: Sequence[str], samples: Samples, model: ImportedModel | None) -> None:
    """See that every class of the model has a name, where there are names.

    Raises:
        InvalidDatasetError: More names than classes, or fewer.
    """
    if not names or model is None or samples.labels is None or not samples.metric.has_class_labels:
        return
    count = _class_count(samples, model)
    if count > 0 and count != len(names):
        raise InvalidDatasetError(
            f"there are {len(names)} names of classes, and the model has {count} classes",
            field="class_names",
            remedy="name every class, in the order of the model's scores",
        )


def _values(labels: npt.NDArray[np.generic], split: str) -> LabelArray:
    if labels.dtype.kind not in "uifb":
        raise InvalidDatasetError(
            f"the labels of the {split} split have type {labels.dtype}, which holds no numbers",
            field=f"splits.{split}.label",
            remedy="labels.astype('float32')",
        )
    values = np.asarray(labels, dtype=np.float32)
    if not np.isfinite(values).all():
        raise InvalidDatasetError(
            f"the labels of the {split} split have NaN or infinite values",
            field=f"splits.{split}.label",
            remedy="clean the array",
        )
    return values


def _class_count(samples: Samples, model: ImportedModel | None) -> int:
    """Return the classes of the first output, or -1 where its shape leaves them open."""
    assert model is not None
    output, metric = model.outputs[0], samples.metric
    shape = output.shape[1:]
    if any(size < 0 for size in shape):
        return -1
    if samples.task is Task.RECONSTRUCTION:
        return 2
    if metric.is_dense:
        return _dense_class_count(samples, output.name, shape)
    count = math.prod(shape)
    if count == 1 and metric is MetricName.AUC:
        return 2
    if count == 1:
        raise InvalidDatasetError(
            f"the model's output {output.name!r} has one value; {metric} needs one per class",
            field="metric",
            remedy="declare metric: auc, or export the model with one output per class",
        )
    return count


def _dense_class_count(samples: Samples, name: str, shape: tuple[int, ...]) -> int:
    assert samples.labels is not None
    size = samples.labels.shape[1:]
    if shape[1:] == size or shape == size:
        return shape[0] if len(shape) == 3 else -1
    if shape[:2] == size:
        return shape[2]
    raise InvalidDatasetError(
        f"the labels of the {samples.name} split have {size} pixels, the model's output {name!r} "
        f"has shape {shape}",
        field=f"splits.{samples.name}.label",
        remedy="give one class index per pixel of the output",
    )


def _check_size(samples: Samples, shape: tuple[int, ...]) -> None:
    assert samples.labels is not None
    wanted = math.prod(shape[1:])
    given = math.prod(samples.labels.shape[1:])
    if not any(size < 0 for size in shape[1:]) and wanted != given:
        raise InvalidDatasetError(
            f"a label of the {samples.name} split has {given} values, the model's first output "
            f"{wanted}",
            field=f"splits.{samples.name}.label",
            remedy="give labels of the shape of the first output",
        )


def _label_error(samples: Samples, what: str) -> InvalidDatasetError:
    return InvalidDatasetError(
        f"a label of the {samples.name} split {what}",
        field=f"splits.{samples.name}.label",
        remedy="give class indices from 0 to the number of classes less one",
    )
