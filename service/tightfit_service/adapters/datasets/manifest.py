"""The manifest of a packed dataset: JSON to `DatasetManifest`, every key and value checked."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from tightfit_service.domain.dataset import (
    METRICS_OF_TASK,
    CalibrationSpec,
    DatasetManifest,
    InputSpec,
    Layout,
    MetricName,
    Preprocess,
    SplitName,
    SplitSpec,
    Task,
)
from tightfit_service.domain.errors import InvalidDatasetError

MANIFEST_VERSION = 1
WHOLE_ARCHIVE_KEY = "*"
"""Array name under which a single .npz stands for all arrays in it."""

_ARRAY_PATH = re.compile(r"arrays/[^/\\\x00]{1,200}\Z")
_ARRAY_NAME = re.compile(r"[^/\\\x00]{1,200}\Z")
_CALIBRATING_SPLITS = (SplitName.TRAIN.value, SplitName.EVALUATION.value)
_GIVEN_SPLITS = (*_CALIBRATING_SPLITS, SplitName.UNLABELED.value)
_MAX_ARRAYS = 256
_MAX_CHANNELS = 65_536
_MAX_CLASSES = 65_536
_MAX_NAME = 200

_E = TypeVar("_E", bound=StrEnum)


def parse_manifest(text: bytes) -> DatasetManifest:
    """Return the manifest that `manifest.json` holds.

    Raises:
        InvalidDatasetError: Not JSON, unknown keys (near names are offered), missing keys, bad values.
    """
    try:
        document = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of 5,000 digits
        raise InvalidDatasetError(
            "manifest.json is not valid JSON in UTF-8",
            field="manifest.json",
            remedy="pack the dataset with the tightfit client",
        ) from error
    root = _mapping(document, "manifest.json")
    _known_keys(
        root,
        {
            "version",
            "task",
            "arrays",
            "splits",
            "calibration",
            "layout",
            "preprocess",
            "metric",
            "class_names",
        },
        "",
    )
    if root.get("version") != MANIFEST_VERSION or isinstance(root.get("version"), bool):
        raise InvalidDatasetError(
            f"the manifest's version is {root.get('version')!r}, this service reads {MANIFEST_VERSION}",
            field="version",
            remedy="pack the dataset with a client of the service's version",
        )
    task = _choice(Task, root.get("task", Task.CLASSIFICATION.value), "task")
    metric = _metric(root.get("metric"), task)
    splits = _splits(root.get("splits"), task, metric)
    names = {name for spec in splits.values() for name in spec.inputs}
    layout, preprocess = root.get("layout", Layout.NCHW.value), root.get("preprocess", {})
    return DatasetManifest(
        arrays=_arrays(root.get("arrays")),
        splits=splits,
        task=task,
        layout=Layout.NCHW if isinstance(layout, dict) else _choice(Layout, layout, "layout"),
        preprocess=Preprocess()
        if _is_per_input(preprocess, names)
        else _preprocess(preprocess, "preprocess"),
        metric=metric,
        calibration=_calibration(root.get("calibration", {})),
        inputs=_inputs(names, layout, preprocess),
        class_names=_class_names(root.get("class_names", [])),
    )


def _class_names(value: Any) -> tuple[str, ...]:
    is_list = isinstance(value, list) and len(value) <= _MAX_CLASSES
    if not is_list or not all(isinstance(item, str) and len(item) <= _MAX_NAME for item in value):
        raise InvalidDatasetError(
            "class_names is no list of names",
            field="class_names",
            remedy=f"list at most {_MAX_CLASSES} texts of at most {_MAX_NAME} characters",
        )
    return tuple(value)


def _metric(value: Any, task: Task) -> MetricName:
    offered = METRICS_OF_TASK[task]
    if value is None:
        return offered[0]
    metric = _choice(MetricName, value, "metric")
    if metric not in offered:
        raise InvalidDatasetError(
            f"metric {value!r} is not offered for the task {task.value!r}",
            field="metric",
            remedy="use " + ", ".join(repr(item.value) for item in offered),
        )
    return metric


def _is_per_input(value: Any, names: Collection[str]) -> bool:
    """Whether `preprocess` says something for each input, and not the same for all."""
    return isinstance(value, dict) and bool(names) and bool(value) and set(value) <= set(names)


def _inputs(names: Collection[str], layout: Any, preprocess: Any) -> dict[str, InputSpec]:
    """Return layout and preprocessing of single inputs, where the manifest names them."""
    layouts = layout if isinstance(layout, dict) else {}
    if layouts:
        _known_keys(layouts, names, "layout")
    processes = preprocess if _is_per_input(preprocess, names) else {}
    if not layouts and not processes:
        return {}
    common = Layout.NCHW if isinstance(layout, dict) else _choice(Layout, layout, "layout")
    general = Preprocess() if processes else _preprocess(preprocess, "preprocess")
    return {
        name: InputSpec(
            layout=_choice(Layout, layouts[name], f"layout.{name}") if name in layouts else common,
            preprocess=_preprocess(processes[name], f"preprocess.{name}")
            if name in processes
            else general,
        )
        for name in sorted(names)
    }


def near_names(wanted: str, known: Collection[str]) -> str:
    """Return a remedy that offers the names nearest to the wanted one, or lists those there are."""
    near = difflib.get_close_matches(wanted, list(known), n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    listed = sorted(known)[:12]
    return "known: " + ", ".join(repr(name) for name in listed) if listed else "there are none"


def _refuse_constant(name: str) -> float:
    raise InvalidDatasetError(
        f"the manifest holds {name}, which is no finite number",
        field="manifest.json",
        remedy="give finite numbers",
    )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidDatasetError(
            f"{where} must be a mapping, not {_kind(value)}", field=where, remedy="see dataset.yaml"
        )
    return value


def _kind(value: Any) -> str:
    return {"NoneType": "missing", "list": "a list", "str": "a text"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )


def _known_keys(value: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in value:
        if key not in known:
            field = f"{where}.{key}" if where else key
            raise InvalidDatasetError(
                f"unknown key {key!r}", field=field, remedy=near_names(key, known)
            )


def _choice(kind: type[_E], value: Any, where: str) -> _E:
    names = [member.value for member in kind]
    if value not in names:
        raise InvalidDatasetError(
            f"{where} is {value!r}, which is not offered",
            field=where,
            remedy=near_names(str(value), names),
        )
    return kind(value)


def _arrays(value: Any) -> dict[str, str]:
    arrays = _mapping(value, "arrays")
    if not arrays or len(arrays) > _MAX_ARRAYS:
        raise InvalidDatasetError(
            f"arrays has {len(arrays)} entries, outside [1, {_MAX_ARRAYS}]",
            field="arrays",
            remedy="name one .npz file, or one .npy file per array",
        )
    if WHOLE_ARCHIVE_KEY in arrays and len(arrays) > 1:
        raise InvalidDatasetError(
            "arrays names one .npz for everything and further files beside it",
            field="arrays",
            remedy="give either one .npz or a mapping of names to .npy files",
        )
    for name, path in arrays.items():
        field = f"arrays.{name}"
        suffix = ".npz" if name == WHOLE_ARCHIVE_KEY else ".npy"
        if not _ARRAY_NAME.match(name):
            raise InvalidDatasetError(
                "an array's name is empty, too long, or holds a slash",
                field="arrays",
                remedy="use short plain names",
            )
        if not isinstance(path, str) or not _ARRAY_PATH.match(path) or not path.endswith(suffix):
            raise InvalidDatasetError(
                f"the file of array {name!r} is {path!r}, not arrays/<file>{suffix}",
                field=field,
                remedy="pack the dataset with the tightfit client",
            )
    return dict(arrays)


def _splits(value: Any, task: Task, metric: MetricName) -> dict[str, SplitSpec]:
    splits = _mapping(value, "splits")
    _known_keys(splits, _GIVEN_SPLITS, "splits")
    result = {name: _split(entry, f"splits.{name}") for name, entry in splits.items()}
    evaluation = result.get(SplitName.EVALUATION.value)
    if evaluation is None:
        raise InvalidDatasetError(
            "there is no evaluation split, so no accuracy could be reported",
            field="splits.evaluation",
            remedy="add one that no sample of the training split is in",
        )
    is_own_label = task is Task.RECONSTRUCTION and metric.is_error
    if not evaluation.label and not metric.is_fidelity and not is_own_label:
        wanted = "class indices" if metric.has_class_labels else "values"
        raise InvalidDatasetError(
            f"the evaluation split has no labels, which {metric.value} needs",
            field="splits.evaluation.label",
            remedy=f"name the array of {wanted}, or judge by metric: agreement without labels",
        )
    _check_unlabeled(result)
    named = {frozenset(spec.input_arrays) for spec in result.values()}
    if len(named) > 1:
        raise InvalidDatasetError(
            "the splits name different inputs",
            field="splits.train.input",
            remedy="name the same inputs of the model in every split",
        )
    return result


def _check_unlabeled(splits: Mapping[str, SplitSpec]) -> None:
    """Refuse inputs without labels that are some, or that are beside nothing to train on."""
    unlabeled = splits.get(SplitName.UNLABELED.value)
    if unlabeled is None:
        return
    if unlabeled.label:
        raise InvalidDatasetError(
            "the unlabeled split names labels",
            field="splits.unlabeled.label",
            remedy="leave them out, or put these samples into the training split",
        )
    if SplitName.TRAIN.value not in splits:
        raise InvalidDatasetError(
            "there is an unlabeled split, but no training split beside which it could be used",
            field="splits.unlabeled",
            remedy="call it train, whose labels may be left out",
        )


def _split(value: Any, where: str) -> SplitSpec:
    spec = _mapping(value, where)
    _known_keys(spec, {"input", "label"}, where)
    label = spec.get("label", "")
    if not isinstance(label, str):
        raise InvalidDatasetError(
            f"{where}.label must be the name of an array",
            field=f"{where}.label",
            remedy="labels are about the model's first output; give one array name",
        )
    given = spec.get("input", "")
    if isinstance(given, dict):
        for name, array in given.items():
            if not name or not isinstance(array, str) or not array:
                raise InvalidDatasetError(
                    f"{where}.input.{name} must be the name of an array",
                    field=f"{where}.input.{name}",
                    remedy="map each of the model's input names to an array name",
                )
        if given:
            return SplitSpec(inputs=dict(given), label=label)
    elif not isinstance(given, str):
        raise InvalidDatasetError(
            f"{where}.input must be the name of an array, not {_kind(given)}",
            field=f"{where}.input",
            remedy="for a model with one input give one array name, for several a mapping of "
            "the model's input names to array names",
        )
    if not given:
        raise InvalidDatasetError(
            f"{where} names no input array",
            field=f"{where}.input",
            remedy="name the array that holds the inputs",
        )
    return SplitSpec(input=given, label=label)


def _calibration(value: Any) -> CalibrationSpec:
    spec = _mapping(value, "calibration")
    _known_keys(spec, {"from", "count"}, "calibration")
    source = spec.get("from", CalibrationSpec().source)
    if source not in _CALIBRATING_SPLITS:
        raise InvalidDatasetError(
            f"calibration.from is {source!r}",
            field="calibration.from",
            remedy=near_names(str(source), _CALIBRATING_SPLITS),
        )
    count = spec.get("count", CalibrationSpec().count)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1_000_000:
        raise InvalidDatasetError(
            f"calibration.count is {count!r}, not a whole number of at least 1",
            field="calibration.count",
            remedy="256 is enough for most models",
        )
    return CalibrationSpec(source=source, count=count)


def _preprocess(value: Any, where: str) -> Preprocess:
    spec = _mapping(value, where)
    _known_keys(spec, {"scale", "mean", "std"}, where)
    scale = _number(spec.get("scale", 1.0), f"{where}.scale")
    if scale == 0:
        raise InvalidDatasetError(
            f"{where}.scale is 0, which makes all inputs equal",
            field=f"{where}.scale",
            remedy="leave it out, or give 1/255 (0.00392157) to map bytes to [0, 1]",
        )
    mean = _numbers(spec.get("mean", []), f"{where}.mean")
    std = _numbers(spec.get("std", []), f"{where}.std")
    if any(item <= 0 for item in std):
        raise InvalidDatasetError(
            f"{where}.std has a value that is not positive",
            field=f"{where}.std",
            remedy="give the standard deviation per channel, above 0",
        )
    return Preprocess(scale=scale, mean=mean, std=std)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidDatasetError(
            f"{where} must be a number, not {_kind(value)}", field=where, remedy="give a number"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # The arithmetic is in float32, whose range is narrower than JSON's.
    if not math.isfinite(number) or abs(number) > 1e30 or 0 < abs(number) < 1e-30:
        raise InvalidDatasetError(
            f"{where} is beyond the range of float32", field=where, remedy="give a finite number"
        )
    return number


def _numbers(value: Any, where: str) -> tuple[float, ...]:
    items = value if isinstance(value, list) else [value]
    if len(items) > _MAX_CHANNELS:
        raise InvalidDatasetError(
            f"{where} has {len(items)} values", field=where, remedy="give one per channel"
        )
    return tuple(_number(item, where) for item in items)
