"""`dataset.yaml`: read, checked, and packed with its arrays into one archive for upload."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tightfit.errors import InvalidInputError

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
MAX_YAML_BYTES = 4 << 20
MAX_YAML_DEPTH = 50
"""Of what people write by hand; a parser recurses into it."""
_NPY_MAGIC = b"\x93NUMPY"
# the earliest time that ZIP can express: equal contents must give equal bytes
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


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


@dataclass(frozen=True)
class PackedDataset:
    """An archive ready for upload; `digest` is its lower-case hex sha-256."""

    path: Path
    display_name: str
    """Name of the folder that the description lies in."""
    digest: str
    size_bytes: int


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


@contextmanager
def packed(dataset: DatasetFile) -> Iterator[PackedDataset]:
    """Pack a dataset into a temporary archive that lives as long as the context.

    The archive is an uncompressed ZIP with `manifest.json` first and the array files as they are.
    Equal contents give equal bytes, so that a server which has them already need not be sent them.

    Raises:
        InvalidInputError: An array file cannot be read, or the temporary folder is full.
    """
    with tempfile.TemporaryDirectory(prefix="tightfit-") as folder:
        archive = Path(folder) / "dataset.zip"
        try:
            _write_archive(archive, dataset)
        except OSError as error:
            raise InvalidInputError(
                f"cannot pack the dataset: {error}",
                field=str(dataset.path),
                remedy="check that the arrays are readable and that TMPDIR has room for a copy",
            ) from error
        yield PackedDataset(
            path=archive,
            display_name=dataset.path.resolve().parent.name,
            digest=file_digest(archive),
            size_bytes=archive.stat().st_size,
        )


def file_digest(path: Path) -> str:
    """Return the lower-case hex sha-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_archive(archive: Path, dataset: DatasetFile) -> None:
    with zipfile.ZipFile(archive, "w", compression=zipfile.ZIP_STORED) as output:
        text = json.dumps(dataset.manifest, indent=1, sort_keys=True).encode()
        output.writestr(_member("manifest.json", len(text)), text)
        for name, source in sorted(dataset.files.items()):
            info = _member(name, source.stat().st_size)
            with source.open("rb") as file, output.open(info, "w") as member:
                shutil.copyfileobj(file, member, 1 << 20)


def _member(name: str, size: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=_FIXED_TIME)
    info.file_size = size
    info.create_system = 3
    info.external_attr = 0o100644 << 16
    return info


class _PlainLoader(yaml.SafeLoader):
    """Safe loader of what people write.

    It refuses a key given twice, of which plain loaders keep the last without a word; aliases, by which a
    few lines become gigabytes; and structures deeper than anybody means.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node and all that is in it."""
        problem = ""
        if self.check_event(yaml.AliasEvent):
            problem = "aliases are not read: write it out"
        elif self._depth >= MAX_YAML_DEPTH:
            problem = f"nested more than {MAX_YAML_DEPTH} deep"
        if problem:
            event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Build a value; numbers and dates that Python has no room for are told by their line."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, str(error), node.start_mark
            ) from error

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002  # the signature is PyYAML's
    ) -> dict[Hashable, Any]:
        """Build a mapping whose scalar keys are unique."""
        seen: set[str] = set()
        scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in scalars:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load_yaml_mapping(path: Path, *, what: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Args:
        path: The file.
        what: What the file should be, for messages: "a dataset description".

    Raises:
        InvalidInputError: Not readable, not YAML, or no mapping at its top.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise InvalidInputError(
                f"{path} has more than {MAX_YAML_BYTES >> 20} MiB",
                field=str(path),
                remedy=f"give the path of {what}",
            )
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # noqa: S506  # nosec B506  # a SafeLoader
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"there is no file {path}", field=str(path), remedy="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path} is no text", field=str(path), remedy=f"give the path of {what}"
        ) from error
    except OSError as error:
        raise InvalidInputError(
            f"cannot read {path}: {error.strerror or error}",
            field=str(path),
            remedy=f"give the path of {what}",
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise InvalidInputError(
            f"{path.name} is not valid YAML: {problem}", field=where, remedy="mend that line"
        ) from error
    if not isinstance(content, dict):
        raise InvalidInputError(
            f"{path.name} does not hold keys and values",
            field=str(path),
            remedy=f"write {what} as `key: value` lines",
        )
    return content


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
