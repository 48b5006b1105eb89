"""`dataset.yaml`: read and checked, key by key, with the arrays that it names."""

from __future__ import annotations

import difflib
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tightfit.errors import InvalidInputError
from tightfit.yaml_file import load_yaml_mapping

MANIFEST_VERSION = 1
METRICS_OF_TASK: Mapping[str, tuple[str, ...]] = {
    "classification": ("top1", "top5", "f1", "auc", "agreement", "sqnr"),
    "segmentation": ("miou", "agreement", "sqnr"),
    "regression": ("mse", "mae", "sqnr"),
    "reconstruction": ("mse", "mae", "auc", "sqnr"),
}
"""What can be judged by for each task, its default first."""
LAYOUTS = ("NCHW", "NHWC", "ANY")
SPLITS = ("train", "evaluation", "unlabeled")
_TOP_KEYS = ("task", "arrays", "splits", "layout", "preprocess", "metric", "class_names")
_PREPROCESS_KEYS = ("scale", "mean", "std")
_ARRAY_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class DatasetFile:
    """A checked `dataset.yaml`.

    Attributes:
        path: The YAML file.
        manifest: The normalised manifest as it goes into the archive (`manifest.json`).
        files: Archive member to the local file that fills it.
    """

    path: Path
    manifest: Mapping[str, Any]
    files: Mapping[str, Path]


def read_dataset_file(path: Path) -> DatasetFile:
    """Read and check a `dataset.yaml` and find its arrays.

    Raises:
        InvalidInputError: The file, a key, a value or an array cannot be used; names the key and
            offers the nearest valid one.
    """
    reader = _Reader(path)
    content = reader.load()
    reader.check_keys(content, _TOP_KEYS, at="")
    arrays, files = reader.arrays(content.get("arrays"))
    splits, calibration = reader.splits(content.get("splits"))
    available = reader.available_arrays(arrays, files)
    for at, array in _arrays_named(splits):
        if array and available is not None and array not in available:
            raise reader.error(
                f"there is no array {array!r}",
                at=at,
                remedy=_offer(array, available, "arrays in the file"),
            )
    task = reader.choice(content, "task", tuple(METRICS_OF_TASK))
    inputs = _input_names(splits)
    manifest = {
        "version": MANIFEST_VERSION,
        "task": task,
        "arrays": arrays,
        "splits": splits,
        "calibration": calibration,
        "layout": reader.layout(content, inputs),
        "preprocess": reader.preprocesses(content.get("preprocess"), inputs),
        "metric": reader.choice(content, "metric", METRICS_OF_TASK[task]),
    }
    if "class_names" in content:
        manifest["class_names"] = reader.class_names(content["class_names"])
    return DatasetFile(path=path, manifest=manifest, files=files)


class _Reader:
    """Checks one `dataset.yaml` key by key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, Any]:
        return load_yaml_mapping(self.path, what="a dataset description")

    def error(self, message: str, *, at: str, remedy: str) -> InvalidInputError:
        return InvalidInputError(message, field=f"{self.path.name}: {at}", remedy=remedy)

    def check_keys(self, content: Mapping[Any, Any], known: Iterable[str], *, at: str) -> None:
        names = tuple(known)
        for key in content:
            if key not in names:
                raise self.error(
                    f"unknown key {str(key)!r}",
                    at=f"{at}.{key}".lstrip("."),
                    remedy=_offer(str(key), names, "known keys"),
                )

    def mapping(self, value: Any, *, at: str, example: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            what = "is missing" if value is None else "is no mapping"
            raise self.error(f"{at} {what}", at=at, remedy=f"write {example}")
        return value

    def choice(self, content: Mapping[str, Any], key: str, offered: tuple[str, ...]) -> str:
        value = content.get(key, offered[0])
        if value not in offered:
            raise self.error(
                f"{key} {value!r} is not offered", at=key, remedy=_offer(str(value), offered, key)
            )
        return str(value)

    def class_names(self, value: Any) -> list[str]:
        """Return what the classes are called; whole numbers are taken as text."""
        at, example = "class_names", 'class_names: [cat, dog, "no"]'
        if not isinstance(value, list) or not value:
            raise self.error(f"{at} is no list", at=at, remedy=f"write {example}")
        for number, name in enumerate(value):
            if isinstance(name, bool) or not isinstance(name, str | int):
                raise self.error(
                    f"{name!r} is no text, as YAML reads it",
                    at=f"{at}[{number}]",
                    remedy=f"put it into quotes, as in {example}",
                )
        return [str(name) for name in value]

    def arrays(self, value: Any) -> tuple[dict[str, str], dict[str, Path]]:
        """Return array name to archive member, and archive member to local file."""
        if isinstance(value, str):
            source = self.inside(value, at="arrays", suffix=".npz")
            member = f"arrays/{re.sub(r'[^A-Za-z0-9_.-]', '_', source.name)}"
            return {"*": member}, {member: source}
        example = "arrays: data.npz, or a mapping such as {train_x: train_x.npy}"
        mapping = self.mapping(value, at="arrays", example=example)
        if not mapping:
            raise self.error("arrays is empty", at="arrays", remedy=f"write {example}")
        members: dict[str, str] = {}
        files: dict[str, Path] = {}
        for name, file in mapping.items():
            at = f"arrays.{name}"
            if not isinstance(name, str) or not _ARRAY_NAME.fullmatch(name):
                raise self.error(
                    f"{name!r} is no array name", at=at, remedy="use letters, digits, _ . and -"
                )
            if not isinstance(file, str):
                raise self.error(f"{at} is no file name", at=at, remedy=f"write {example}")
            members[name] = f"arrays/{name}.npy"
            files[members[name]] = self.inside(file, at=at, suffix=".npy")
        return members, files

    def inside(self, file: str, *, at: str, suffix: str) -> Path:
        """Resolve an array file, which must lie in the YAML's folder or below."""
        folder = self.path.resolve().parent
        source = (folder / file).resolve()
        if not source.is_relative_to(folder):
            raise self.error(
                f"{file} lies outside the folder of {self.path.name}",
                at=at,
                remedy="put the arrays beside the file, or below it",
            )
        if not source.is_file():
            present = [p.name for p in folder.iterdir() if p.suffix == suffix]
            raise self.error(
                f"there is no file {file}",
                at=at,
                remedy=_offer(file, present, f"{suffix} files there"),
            )
        if source.suffix != suffix:
            raise self.error(
                f"{file} is no {suffix} file",
                at=at,
                remedy="give one .npz file, or a mapping of array names to .npy files",
            )
        self._check_magic(source, file, at=at)
        return source

    def _check_magic(self, source: Path, file: str, *, at: str) -> None:
        with source.open("rb") as opened:
            magic = opened.read(len(_NPY_MAGIC))
        is_right = magic == _NPY_MAGIC if source.suffix == ".npy" else zipfile.is_zipfile(source)
        if not is_right:
            raise self.error(
                f"{file} is not a NumPy {source.suffix} file, or is cut off",
                at=at,
                remedy="write it with numpy.save or numpy.savez",
            )

    def available_arrays(
        self, arrays: Mapping[str, str], files: Mapping[str, Path]
    ) -> tuple[str, ...] | None:
        """Return the names that splits may use."""
        if "*" not in arrays:
            return tuple(arrays)
        with zipfile.ZipFile(files[arrays["*"]]) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())

    def splits(self, value: Any) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Return the splits, and where calibration samples come from."""
        example = "splits: {evaluation: {input: test_x, label: test_y}}"
        mapping = self.mapping(value, at="splits", example=example)
        self.check_keys(mapping, (*SPLITS, "calibration"), at="splits")
        if "evaluation" not in mapping:
            raise self.error(
                "there is no evaluation split", at="splits.evaluation", remedy=f"write {example}"
            )
        splits = {name: self._split(mapping[name], name) for name in SPLITS if name in mapping}
        unlabeled = splits.get("unlabeled")
        if unlabeled is not None and (unlabeled["label"] or "train" not in splits):
            raise self.error(
                "an unlabeled split has no labels, and stands beside a training split",
                at="splits.unlabeled",
                remedy="call it train, whose labels may be left out, or leave its label out",
            )
        sources = tuple(name for name in splits if name != "unlabeled")
        return splits, self._calibration(mapping.get("calibration"), sources)

    def _split(self, value: Any, name: str) -> dict[str, Any]:
        at = f"splits.{name}"
        mapping = self.mapping(value, at=at, example=f"{name}: {{input: x, label: y}}")
        self.check_keys(mapping, ("input", "label"), at=at)
        given = mapping.get("input", "")
        named = given if isinstance(given, dict) else {"": given}
        checked = {f"{at}.input.{key}".rstrip("."): array for key, array in named.items()}
        for where, array in {**checked, f"{at}.label": mapping.get("label", "")}.items():
            if not isinstance(array, str):
                raise self.error(
                    f"{where} is no array name",
                    at=where,
                    remedy="name an array; of several inputs map each input's name to an array",
                )
        if not given or (isinstance(given, dict) and not all(given.values())):
            raise self.error(
                f"{at} has no input", at=f"{at}.input", remedy="name the array of the inputs"
            )
        return {"input": given, "label": mapping.get("label", "")}

    def _calibration(self, value: Any, splits: tuple[str, ...]) -> dict[str, Any]:
        default = "train" if "train" in splits else "evaluation"
        mapping = self.mapping(
            {} if value is None else value,
            at="splits.calibration",
            example="calibration: {from: train, count: 256}",
        )
        self.check_keys(mapping, ("from", "count"), at="splits.calibration")
        source = mapping.get("from", default)
        if source not in splits:
            raise self.error(
                f"calibration is taken from {source!r}, which is no split here",
                at="splits.calibration.from",
                remedy=_offer(str(source), splits, "splits"),
            )
        count = mapping.get("count", 256)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise self.error(
                f"{count!r} is no number of samples",
                at="splits.calibration.count",
                remedy="give a whole number of at least 1; 256 is the default",
            )
        return {"from": source, "count": count}

    def layout(self, content: Mapping[str, Any], inputs: tuple[str, ...]) -> Any:
        """Return the layout of all inputs, or that of each which is named."""
        value = content.get("layout")
        if not isinstance(value, dict):
            return self.choice(content, "layout", LAYOUTS)
        self.check_keys(value, inputs, at="layout")
        for name, item in value.items():
            if item not in LAYOUTS:
                raise self.error(
                    f"layout {item!r} is not offered",
                    at=f"layout.{name}",
                    remedy=_offer(str(item), LAYOUTS, "layouts"),
                )
        return dict(value)

    def preprocesses(self, value: Any, inputs: tuple[str, ...]) -> dict[str, Any]:
        """Return the preprocessing of all inputs, or that of each which is named."""
        if isinstance(value, dict) and value and set(value) <= set(inputs):
            return {name: self.preprocess(value[name], f"preprocess.{name}") for name in value}
        return self.preprocess(value, "preprocess")

    def preprocess(self, value: Any, at: str) -> dict[str, Any]:
        """Return the preprocessing that stands at a place of the file."""
        mapping = self.mapping(
            {} if value is None else value,
            at=at,
            example=f"{at.rpartition('.')[2]}: {{scale: 1.0, mean: [0, 0, 0], std: [1, 1, 1]}}",
        )
        self.check_keys(mapping, _PREPROCESS_KEYS, at=at)
        scale = self._number(mapping.get("scale", 1.0), at=f"{at}.scale")
        mean, std = (
            self._numbers(mapping.get(key, []), at=f"{at}.{key}") for key in ("mean", "std")
        )
        for index, value_of_channel in enumerate(std):
            if value_of_channel <= 0:
                raise self.error(
                    f"std of channel {index} is {value_of_channel:g}",
                    at=f"{at}.std",
                    remedy="a standard deviation is above zero; leave std out to divide by nothing",
                )
        if mean and std and len(mean) != len(std):
            raise self.error(
                f"mean has {len(mean)} channels, std has {len(std)}",
                at=at,
                remedy="give one figure per channel in both",
            )
        return {"scale": scale, "mean": mean, "std": std}

    def _number(self, value: Any, *, at: str) -> float:
        finite = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not finite or not -1e30 < value < 1e30 or (at.endswith("scale") and value == 0):
            raise self.error(f"{value!r} is no usable number", at=at, remedy="give a finite number")
        return float(value)

    def _numbers(self, value: Any, *, at: str) -> list[float]:
        if not isinstance(value, list):
            raise self.error(f"{at} is no list", at=at, remedy="give one figure per channel in []")
        return [self._number(item, at=f"{at}[{index}]") for index, item in enumerate(value)]


def _arrays_named(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield where arrays are named, and their names."""
    for split, spec in splits.items():
        given = spec["input"]
        named = given if isinstance(given, dict) else {"": given}
        for name, array in named.items():
            yield f"splits.{split}.input.{name}".rstrip("."), array
        yield f"splits.{split}.label", spec["label"]


def _input_names(splits: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names of the model's inputs, where the splits give them."""
    given = splits["evaluation"]["input"]
    return tuple(given) if isinstance(given, dict) else ()


def _offer(wrong: str, known: Iterable[str], what: str) -> str:
    """Name the nearest known word, else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"{what}: {shown}" if names else f"there are no {what}"
