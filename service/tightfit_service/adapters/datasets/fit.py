"""Whether samples fit a model: input shape and layout, preprocessing, labels, finite values."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tightfit_service.application.ports import ImportedModel, TensorSignature
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout
from tightfit_service.domain.errors import InvalidDatasetError

_CHECKED_BYTES = 64 << 20
"""Inputs are searched for NaN in at most this much of a split, evenly spread."""
_CHECK_BATCH = 256
_TO_NCHW = (0, 3, 1, 2)
_TO_NHWC = (0, 2, 3, 1)


def model_layout_of(
    stored: npt.NDArray[np.generic], layout: Layout, model: ImportedModel | None
) -> Layout:
    """Return the order of axes that the model's input wants.

    Graphs are NCHW, unless the input's shape shows that the graph transposes by itself.
    """
    if stored.ndim != 4 or layout is Layout.ANY:
        return Layout.ANY
    if model is None or len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        return Layout.NCHW
    wanted = model.inputs[0].shape
    if _matches(_arranged(stored.shape, layout, Layout.NCHW), wanted):
        return Layout.NCHW
    if _matches(_arranged(stored.shape, layout, Layout.NHWC), wanted):
        return Layout.NHWC
    return Layout.NCHW


def check_against_model(samples: Samples, model: ImportedModel | None) -> None:
    """Check a split against the model, or for itself when there is no model.

    Raises:
        InvalidDatasetError: Naming the split's array or the preprocessing, both shapes, and the remedy.
    """
    if model is not None:
        _check_input(samples, _single_input(model))
        _check_label_range(samples, model)
    elif samples.labels is not None and samples.labels.min() < 0:
        raise _label_error(samples, "is negative")
    _check_preprocess(samples)
    _check_finite(samples)


def _single_input(model: ImportedModel) -> TensorSignature:
    if len(model.inputs) != 1:
        names = ", ".join(repr(item.name) for item in model.inputs)
        raise InvalidDatasetError(
            f"the model has {len(model.inputs)} inputs ({names}); a dataset feeds exactly one",
            field="splits",
            remedy="export the model with a single input, or compress it without a dataset",
        )
    return model.inputs[0]


def _arranged(shape: tuple[int, ...], source: Layout, target: Layout) -> tuple[int, ...]:
    if source is Layout.NHWC and target is Layout.NCHW:
        return tuple(shape[axis] for axis in _TO_NCHW)
    if source is Layout.NCHW and target is Layout.NHWC:
        return tuple(shape[axis] for axis in _TO_NHWC)
    return shape


def _matches(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Compare shapes without the batch; -1 in the model's stands for any size."""
    return len(shape) == len(wanted) and all(
        b in (a, -1) for a, b in zip(shape[1:], wanted[1:], strict=True)
    )


def _check_input(samples: Samples, signature: TensorSignature) -> None:
    shape = samples.stored.shape
    arranged = (
        _arranged(shape, samples.layout, samples.model_layout)
        if samples.stored.ndim == 4
        else shape
    )
    if _matches(arranged, signature.shape):
        return
    remedy = "give samples of the model's input shape"
    if samples.stored.ndim == 4 and len(signature.shape) == 4:
        other = Layout.NHWC if samples.layout is Layout.NCHW else Layout.NCHW
        if _matches(_arranged(shape, other, Layout.NCHW), signature.shape):
            remedy = f"the samples look like {other}: set layout: {other}"
    elif math.prod(shape[1:]) == abs(math.prod(signature.shape[1:])):
        remedy = f"reshape the array to (samples, {', '.join(map(str, signature.shape[1:]))})"
    raise InvalidDatasetError(
        f"a sample of the {samples.name} split has shape {shape[1:]} (layout {samples.layout}), "
        f"the model's input {signature.name!r} has {signature.shape[1:]}",
        field=f"splits.{samples.name}.input",
        remedy=remedy,
    )


def _check_label_range(samples: Samples, model: ImportedModel) -> None:
    if samples.labels is None or not model.outputs:
        return
    shape = model.outputs[0].shape[1:]
    class_count = -1 if any(size < 0 for size in shape) else math.prod(shape)
    if class_count == 1:
        raise InvalidDatasetError(
            f"the model's output {model.outputs[0].name!r} has one value; top1 needs one per class",
            field="metric",
            remedy="export the model with one output per class",
        )
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if low < 0:
        raise _label_error(samples, f"is {low}, below 0")
    if class_count > 0 and high >= class_count:
        raise _label_error(samples, f"is {high}, but the model has {class_count} classes from 0")


def _label_error(samples: Samples, what: str) -> InvalidDatasetError:
    return InvalidDatasetError(
        f"a label of the {samples.name} split {what}",
        field=f"splits.{samples.name}.label",
        remedy="give class indices from 0 to the number of classes less one",
    )


def _check_preprocess(samples: Samples) -> None:
    ndim = samples.stored.ndim
    if ndim == 4 and samples.layout is Layout.NHWC:
        channels = samples.stored.shape[3]
    else:
        channels = samples.stored.shape[-1 if ndim < 3 else 1]
    for key, values in (("mean", samples.preprocess.mean), ("std", samples.preprocess.std)):
        if len(values) not in (0, 1, channels):
            raise InvalidDatasetError(
                f"preprocess.{key} has {len(values)} values, the samples have {channels} channels",
                field=f"preprocess.{key}",
                remedy=f"give {channels} values, or check layout (it is {samples.layout})",
            )


def _check_finite(samples: Samples) -> None:
    if samples.stored.dtype.kind != "f":
        return
    sample_bytes = max(1, samples.stored.nbytes // len(samples))
    count = min(len(samples), max(1, _CHECKED_BYTES // sample_bytes))
    chosen = np.unique(np.linspace(0, len(samples) - 1, count).astype(np.int64))
    for start in range(0, len(chosen), _CHECK_BATCH):
        part = chosen[start : start + _CHECK_BATCH]
        # float64 values beyond float32's range become infinite only after the conversion.
        with np.errstate(over="ignore", invalid="ignore"):
            values = samples.inputs(part)
        bad = ~np.isfinite(values.reshape(len(part), -1)).all(axis=1)
        if bad.any():
            raise InvalidDatasetError(
                f"sample {int(part[np.argmax(bad)])} of the {samples.name} split has NaN or "
                "infinite values after preprocessing",
                field=f"splits.{samples.name}.input",
                remedy="clean the array, and check preprocess",
            )
