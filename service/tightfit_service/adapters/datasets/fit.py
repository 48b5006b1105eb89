"""Whether samples fit a model: names of inputs, shape and layout, preprocessing, finite values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tightfit_service.adapters.datasets.manifest import near_names
from tightfit_service.application.ports import ImportedModel, TensorSignature
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.dataset import DatasetManifest, Layout
from tightfit_service.domain.errors import InvalidDatasetError

_CHECKED_BYTES = 64 << 20
"""Inputs are searched for NaN in at most this much of a split, evenly spread."""
_CHECK_BATCH = 256
_TO_NCHW = (0, 3, 1, 2)
_TO_NHWC = (0, 2, 3, 1)


def in_model_order(
    stored: Mapping[str, npt.NDArray[np.generic]],
    manifest: DatasetManifest,
    model: ImportedModel | None,
    *,
    split: str,
) -> dict[str, StoredInput]:
    """Return the inputs by name in the order of the model's, with their layouts.

    Raises:
        InvalidDatasetError: The names are not those of the model's inputs.
    """
    signatures = {item.name: item for item in model.inputs} if model is not None else {}
    names = list(stored)
    if signatures and len(names) == 1 and len(signatures) == 1 and not names[0]:
        only = next(iter(signatures.values()))
        return {"": _stored_input(stored[""], manifest, "", only)}
    if model is not None:
        _check_names(names, list(signatures), split)
        names = list(signatures)
    return {n: _stored_input(stored[n], manifest, n, signatures.get(n)) for n in names}


def _check_names(names: Sequence[str], wanted: Sequence[str], split: str) -> None:
    listed = ", ".join(repr(name) for name in wanted)
    if not any(names):
        raise InvalidDatasetError(
            f"the model has {len(wanted)} inputs ({listed}), the {split} split names one array",
            field=f"splits.{split}.input",
            remedy=f"write input: {{{', '.join(f'{name}: <array>' for name in wanted)}}}",
        )
    for name in names:
        if name not in wanted:
            raise InvalidDatasetError(
                f"the model has no input {name!r}",
                field=f"splits.{split}.input.{name}",
                remedy=near_names(name, wanted),
            )
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InvalidDatasetError(
            f"the {split} split has no array for the model's input {missing[0]!r}",
            field=f"splits.{split}.input",
            remedy=f"name an array for each of {listed}",
        )


def _stored_input(
    stored: npt.NDArray[np.generic],
    manifest: DatasetManifest,
    name: str,
    signature: TensorSignature | None,
) -> StoredInput:
    spec = manifest.input_spec(name)
    return StoredInput(
        stored=stored,
        preprocess=spec.preprocess,
        layout=spec.layout,
        model_layout=_model_layout(stored, spec.layout, signature),
    )


def _model_layout(
    stored: npt.NDArray[np.generic], layout: Layout, signature: TensorSignature | None
) -> Layout:
    """Return the order of axes that the model's input wants.

    Graphs are NCHW, unless the input's shape shows that the graph transposes by itself.
    """
    if stored.ndim != 4 or layout is Layout.ANY:
        return Layout.ANY
    if signature is None or len(signature.shape) != 4:
        return Layout.NCHW
    if _matches(_arranged(stored.shape, layout, Layout.NCHW), signature.shape):
        return Layout.NCHW
    if _matches(_arranged(stored.shape, layout, Layout.NHWC), signature.shape):
        return Layout.NHWC
    return Layout.NCHW


def check_inputs(samples: Samples, model: ImportedModel | None) -> None:
    """Check a split's inputs against the model's, or for themselves when there is no model.

    Raises:
        InvalidDatasetError: Naming the split's array or the preprocessing, both shapes, and the remedy.
    """
    given = samples.by_input
    signatures = {item.name: item for item in model.inputs} if model is not None else {}
    for name, item in given.items():
        signature = signatures.get(name)
        if signature is None and len(signatures) == 1:
            signature = next(iter(signatures.values()))
        where = f"splits.{samples.name}.input.{name}".rstrip(".")
        if signature is not None:
            _check_input(item, signature, samples.name, where)
        _check_preprocess(item, name)
        _check_finite(item, samples.name, where)


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


def _check_input(item: StoredInput, signature: TensorSignature, split: str, where: str) -> None:
    shape = item.stored.shape
    arranged = _arranged(shape, item.layout, item.model_layout) if item.stored.ndim == 4 else shape
    if _matches(arranged, signature.shape):
        return
    remedy = "give samples of the model's input shape"
    if item.stored.ndim == 4 and len(signature.shape) == 4:
        other = Layout.NHWC if item.layout is Layout.NCHW else Layout.NCHW
        if _matches(_arranged(shape, other, Layout.NCHW), signature.shape):
            remedy = f"the samples look like {other}: set layout: {other}"
    elif math.prod(shape[1:]) == abs(math.prod(signature.shape[1:])):
        remedy = f"reshape the array to (samples, {', '.join(map(str, signature.shape[1:]))})"
    raise InvalidDatasetError(
        f"a sample of the {split} split has shape {shape[1:]} (layout {item.layout}), "
        f"the model's input {signature.name!r} has {signature.shape[1:]}",
        field=where,
        remedy=remedy,
    )


def _check_preprocess(item: StoredInput, name: str) -> None:
    ndim = item.stored.ndim
    if ndim == 4 and item.layout is Layout.NHWC:
        channels = item.stored.shape[3]
    else:
        channels = item.stored.shape[-1 if ndim < 3 else 1]
    for key, values in (("mean", item.preprocess.mean), ("std", item.preprocess.std)):
        if len(values) not in (0, 1, channels):
            raise InvalidDatasetError(
                f"preprocess.{key} has {len(values)} values, the samples have {channels} channels",
                field=f"preprocess.{name}.{key}" if name else f"preprocess.{key}",
                remedy=f"give {channels} values, or check layout (it is {item.layout})",
            )


def _check_finite(item: StoredInput, split: str, where: str) -> None:
    if item.stored.dtype.kind != "f":
        return
    sample_bytes = max(1, item.stored.nbytes // len(item.stored))
    count = min(len(item.stored), max(1, _CHECKED_BYTES // sample_bytes))
    chosen = np.unique(np.linspace(0, len(item.stored) - 1, count).astype(np.int64))
    for start in range(0, len(chosen), _CHECK_BATCH):
        part = chosen[start : start + _CHECK_BATCH]
        # float64 values beyond float32's range become infinite only after the conversion.
        with np.errstate(over="ignore", invalid="ignore"):
            values = item.batch(part)
        bad = ~np.isfinite(values.reshape(len(part), -1)).all(axis=1)
        if bad.any():
            raise InvalidDatasetError(
                f"sample {int(part[np.argmax(bad)])} of the {split} split has NaN or "
                "infinite values after preprocessing",
                field=where,
                remedy="clean the array, and check preprocess",
            )
