"""Reader of packed datasets: a ZIP of `manifest.json` and arrays, treated as hostile."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tightfit_service.adapters.datasets.fit import check_inputs, in_model_order
from tightfit_service.adapters.datasets.labels import (
    check_class_names,
    check_labels,
    own_labels,
    read_labels,
)
from tightfit_service.adapters.datasets.manifest import (
    WHOLE_ARCHIVE_KEY,
    near_names,
    parse_manifest,
)
from tightfit_service.adapters.datasets.npy_source import (
    ArrayCache,
    ZipSection,
    check_members,
    header_of,
    map_array,
)
from tightfit_service.adapters.datasets.splits import drawn, halves, held_out
from tightfit_service.application.ports import ImportedModel
from tightfit_service.application.samples import IntArray, LabelArray, Samples
from tightfit_service.domain.dataset import DatasetManifest, SplitName, SplitSpec, Task
from tightfit_service.domain.errors import InvalidDatasetError

_MANIFEST_NAME = "manifest.json"
_MEMBER_NAME = re.compile(r"(manifest\.json|arrays/[^/\\\x00]{1,200})\Z")
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_MEMBERS = 300
_COPY_LIMIT_BYTES = 512 << 20
"""Splits that leave samples out are copied to memory up to here, to a file beyond."""
_CHUNK_SAMPLES = 4096


class ArchiveDatasetReader:
    """Opens packed datasets (`ports.DatasetReader`).

    Arrays that lie uncompressed in the archive are memory-mapped where they are; compressed ones
    are unpacked once into `cache_dir`.
    """

    def __init__(self, *, cache_dir: Path | None = None, max_total_bytes: int = 16 << 30) -> None:
        """Keep the settings.

        Args:
            cache_dir: Folder for unpacked arrays, which may be shared; None puts a folder
                `<archive>.arrays` beside each archive.
            max_total_bytes: Most bytes that an archive may hold after decompression.
        """
        self._cache_dir = cache_dir
        self._max_total_bytes = max_total_bytes

    def read_manifest(self, archive: Path) -> DatasetManifest:
        """Check the archive's structure and return its manifest; of arrays only headers are read."""
        contents = self._contents(archive)
        for spec in contents.manifest.splits.values():
            for name in (*spec.input_arrays.values(), spec.label):
                if name:
                    contents.header(name)
        return contents.manifest

    def open(self, archive: Path, *, model: ImportedModel | None) -> PackedDataset:
        """Open the dataset and check that it fits the model."""
        contents = self._contents(archive)
        manifest = contents.manifest
        given: dict[str, Samples] = {}
        for name, spec in manifest.splits.items():
            given[name] = _load_split(contents, name, spec, model)
        return PackedDataset(
            manifest=manifest, given=given, seed=contents.seed, cache=contents.cache
        )

    def _contents(self, archive: Path) -> _Contents:
        # A link to the archive shares the cache of the file it points to.
        path = archive.resolve()
        if not path.is_file():
            raise InvalidDatasetError(
                "there is no such dataset archive", field="dataset", remedy="upload it again"
            )
        folder = self._cache_dir or path.with_name(path.name + ".arrays")
        return _Contents(path, ArrayCache(folder), max_total_bytes=self._max_total_bytes)


class _Contents:
    """The checked directory of an archive: its manifest, and where each array is."""

    def __init__(self, path: Path, cache: ArrayCache, *, max_total_bytes: int) -> None:
        self.cache = cache
        outer = ZipSection.whole(path)
        with outer.opened() as opened:
            check_members(opened, max_count=_MAX_MEMBERS, max_total_bytes=max_total_bytes)
            members = {info.filename: info for info in opened.infolist()}
            _check_names(members)
            self.manifest = parse_manifest(opened.read(members[_MANIFEST_NAME]))
        self.seed = _content_seed(members)
        files = self.manifest.arrays
        for name, file in files.items():
            if file not in members:
                raise InvalidDatasetError(
                    f"the archive lacks {file!r}",
                    field="arrays" if name == WHOLE_ARCHIVE_KEY else f"arrays.{name}",
                    remedy=near_names(file, members.keys() - {_MANIFEST_NAME}),
                )
        self._section = outer
        if WHOLE_ARCHIVE_KEY in files:
            self._section = self._nested(outer, members[files[WHOLE_ARCHIVE_KEY]])
            with self._section.opened() as inner:
                check_members(inner, max_count=_MAX_MEMBERS, max_total_bytes=max_total_bytes)
                self._arrays = {
                    info.filename.removesuffix(".npy"): info for info in inner.infolist()
                }
        else:
            self._arrays = {name: members[file] for name, file in files.items()}

    def header(self, name: str) -> Any:
        """Read and check the header of an array."""
        return header_of(self._section, self._info(name), name=name)

    def array(self, name: str) -> npt.NDArray[np.generic]:
        """Return an array, memory-mapped."""
        return map_array(self._section, self._info(name), name=name, cache=self.cache)

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._arrays:
            raise InvalidDatasetError(
                f"there is no array {name!r}",
                field=self._field_of(name),
                remedy=near_names(name, self._arrays.keys()),
            )
        return self._arrays[name]

    def _field_of(self, array: str) -> str:
        for split, spec in self.manifest.splits.items():
            for name, given in spec.input_arrays.items():
                if given == array:
                    return f"splits.{split}.input.{name}".rstrip(".")
            if spec.label == array:
                return f"splits.{split}.label"
        return "splits"

    def _nested(self, outer: ZipSection, info: zipfile.ZipInfo) -> ZipSection:
        if info.compress_type == zipfile.ZIP_STORED:
            return ZipSection(path=outer.path, start=outer.data_start(info), size=info.file_size)
        return ZipSection.whole(self.cache.extract(outer, info))


def _check_names(members: Mapping[str, zipfile.ZipInfo]) -> None:
    for name in members:
        if not _MEMBER_NAME.match(name):
            raise InvalidDatasetError(
                f"the archive holds {name[:80]!r}; only manifest.json and arrays/<file> belong there",
                field="dataset",
                remedy="pack the dataset with the tightfit client",
            )
    manifest = members.get(_MANIFEST_NAME)
    if manifest is None or manifest.file_size > _MAX_MANIFEST_BYTES:
        raise InvalidDatasetError(
            f"the archive has no manifest.json of at most {_MAX_MANIFEST_BYTES} bytes",
            field="manifest.json",
            remedy="pack the dataset with the tightfit client",
        )


def _content_seed(members: Mapping[str, zipfile.ZipInfo]) -> int:
    """Return a seed that depends on the content only: names, sizes and checksums of all members."""
    text = "".join(
        f"{name} {info.file_size} {info.CRC}\n" for name, info in sorted(members.items())
    )
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _load_split(
    contents: _Contents, name: str, spec: SplitSpec, model: ImportedModel | None
) -> Samples:
    manifest = contents.manifest
    stored = {key: _input_array(contents, name, key, spec) for key in spec.input_arrays}
    lengths = {key: len(array) for key, array in stored.items()}
    count = next(iter(lengths.values()))
    if any(length != count for length in lengths.values()):
        raise InvalidDatasetError(
            f"the inputs of the {name} split differ in length: "
            + ", ".join(f"{key!r} has {length} samples" for key, length in lengths.items()),
            field=f"splits.{name}.input",
            remedy="give the same samples for every input",
        )
    inputs = in_model_order(stored, manifest, model, split=name)
    (first_name, first), *others = inputs.items()
    samples = Samples(
        stored=first.stored,
        labels=None,
        preprocess=first.preprocess,
        layout=first.layout,
        model_layout=first.model_layout,
        name=name,
        metric=manifest.metric,
        task=manifest.task,
        input_name=first_name,
        others=dict(others),
    )
    check_inputs(samples, model)
    labels = _labels(contents, samples, spec)
    if labels is not None and len(labels) != count:
        raise InvalidDatasetError(
            f"the {name} split has {count} inputs but {len(labels)} labels",
            field=f"splits.{name}.label",
            remedy="give one label for each sample",
        )
    samples = replace(samples, labels=labels)
    check_labels(samples, model)
    check_class_names(manifest.class_names, samples, model)
    return samples


def _input_array(
    contents: _Contents, split: str, name: str, spec: SplitSpec
) -> npt.NDArray[np.generic]:
    stored = contents.array(spec.input_arrays[name])
    if stored.ndim < 2 or stored.shape[0] == 0 or stored.size == 0:
        raise InvalidDatasetError(
            f"the {split} split is empty: its input array has shape {stored.shape}",
            field=f"splits.{split}.input.{name}".rstrip("."),
            remedy="give an array of shape (samples, ...) with at least one sample",
        )
    return stored


def _labels(contents: _Contents, samples: Samples, spec: SplitSpec) -> LabelArray | None:
    """Return the labels that the split names; a reconstruction's are its inputs otherwise."""
    metric, task = contents.manifest.metric, contents.manifest.task
    if spec.label:
        return read_labels(contents.array(spec.label), split=samples.name, metric=metric)
    has_own = task is Task.RECONSTRUCTION and metric.is_error
    is_labelled = samples.name != SplitName.UNLABELED.value
    return own_labels(samples) if has_own and is_labelled else None


class PackedDataset:
    """A dataset ready to be read (`ports.OpenDataset`); made by `ArchiveDatasetReader`."""

    def __init__(
        self,
        *,
        manifest: DatasetManifest,
        given: Mapping[str, Samples],
        seed: int,
        cache: ArrayCache,
    ) -> None:
        self._manifest = manifest
        self._seed = seed
        self._cache = cache
        self._splits: dict[SplitName, Samples] = {}
        self._divide(given)

    @property
    def manifest(self) -> DatasetManifest:
        """The manifest."""
        return self._manifest

    def samples(self, split: SplitName) -> Samples | None:
        """Return a split, or None where the dataset has none; see the port for how they are drawn."""
        return self._splits.get(split)

    def _divide(self, given: Mapping[str, Samples]) -> None:
        evaluation = given[SplitName.EVALUATION.value]
        train = given.get(SplitName.TRAIN.value)
        if SplitName.UNLABELED.value in given:
            self._splits[SplitName.UNLABELED] = given[SplitName.UNLABELED.value]
        rng = np.random.default_rng(self._seed)
        whole = train if train is not None else evaluation
        if len(whole) < 2:
            raise InvalidDatasetError(
                f"the {whole.name} split has 1 sample; selection needs one of its own",
                field=f"splits.{whole.name}.input",
                remedy="give at least 2 samples, better some hundreds",
            )
        if train is not None:
            is_dense = train.metric.is_dense or not train.metric.has_class_labels
            classes = None if is_dense else train.labels
            stay, out = held_out(len(train), classes, rng)
            self._splits[SplitName.EVALUATION] = evaluation
            self._splits[SplitName.TRAIN] = self._part(train, stay, SplitName.TRAIN)
            self._splits[SplitName.SELECTION] = self._part(train, out, SplitName.SELECTION)
        else:
            out, stay = halves(len(evaluation), rng)
            self._splits[SplitName.EVALUATION] = self._part(evaluation, stay, SplitName.EVALUATION)
            self._splits[SplitName.SELECTION] = self._part(evaluation, out, SplitName.SELECTION)
        spec = self._manifest.calibration
        if spec.source == SplitName.EVALUATION.value or train is None:
            # Of the evaluation data only the selection half may be looked at before the report;
            # with a training split the evaluation split is the user's to lend.
            source = self._splits[SplitName.SELECTION if train is None else SplitName.EVALUATION]
        else:
            source = self._splits[SplitName.TRAIN]
        self._splits[SplitName.CALIBRATION] = source.take(
            drawn(len(source), spec.count, rng), name=SplitName.CALIBRATION.value
        )

    def _part(self, samples: Samples, indices: IntArray, split: SplitName) -> Samples:
        return replace(
            samples,
            stored=self._taken(samples.stored, indices),
            labels=None if samples.labels is None else samples.labels[indices],
            name=split.value,
            others={
                name: replace(item, stored=self._taken(item.stored, indices))
                for name, item in samples.others.items()
            },
        )

    def _taken(self, stored: npt.NDArray[np.generic], indices: IntArray) -> npt.NDArray[np.generic]:
        """Return the chosen samples, in memory or, when they are many, memory-mapped."""
        shape = (len(indices), *stored.shape[1:])
        size_bytes = stored.itemsize * int(np.prod(shape, dtype=np.int64))
        if size_bytes <= _COPY_LIMIT_BYTES:
            return np.asarray(stored[indices])
        key = hashlib.sha256(f"{self._seed} {shape} {stored.dtype.str}".encode())
        key.update(indices.tobytes())
        target = self._cache.folder / f"{key.hexdigest()}.part"
        if not (target.is_file() and target.stat().st_size == size_bytes):
            with self._cache.writing(target) as out:
                for start in range(0, len(indices), _CHUNK_SAMPLES):
                    chunk = np.ascontiguousarray(stored[indices[start : start + _CHUNK_SAMPLES]])
                    out.write(chunk.data)
        return np.memmap(target, dtype=stored.dtype, mode="r", shape=shape)
