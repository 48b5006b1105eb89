"""Tests of the dataset reader: splits, memory mapping, the cache, the model's fit, hostile archives."""

from __future__ import annotations

import contextlib
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.packed_datasets import (
    image_arrays,
    manifest,
    npy_bytes,
    npz_bytes,
    pack,
    pack_members,
)
from tightfit_service.adapters.datasets import archive as archive_module
from tightfit_service.adapters.datasets.archive import ArchiveDatasetReader
from tightfit_service.application.ports import ImportedModel, TensorSignature
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout, SplitName
from tightfit_service.domain.errors import InvalidDatasetError, UnavailableError

COMPRESSIONS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]


def model(
    *inputs: tuple[int, ...], classes: int = 4, outputs: tuple[int, ...] | None = None
) -> ImportedModel:
    shapes = inputs or ((-1, 3, 6, 5),)
    return ImportedModel(
        graph=b"",
        inputs=tuple(
            TensorSignature(name=f"x{i}", shape=shape, dtype="float32")
            for i, shape in enumerate(shapes)
        ),
        outputs=(TensorSignature(name="y", shape=outputs or (-1, classes), dtype="float32"),),
        opset=17,
        node_count=1,
        parameter_count=1,
        macs=1,
    )


def split(path: Path, name: SplitName, fitting: ImportedModel | None = None) -> Samples:
    samples = ArchiveDatasetReader().open(path, model=fitting or model()).samples(name)
    assert samples is not None
    return samples


def refused(path: Path, fitting: ImportedModel | None = None) -> InvalidDatasetError:
    with pytest.raises(InvalidDatasetError) as caught:
        ArchiveDatasetReader(max_total_bytes=1 << 24).open(path, model=fitting or model())
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("inner", COMPRESSIONS)
@pytest.mark.parametrize("outer", COMPRESSIONS)
def test_arrays_are_the_same_in_any_compression(tmp_path: Path, inner: int, outer: int) -> None:
    arrays = image_arrays()
    path = pack(tmp_path / "d.zip", arrays, compression=outer, inner_compression=inner)
    evaluation = split(path, SplitName.EVALUATION)
    assert np.array_equal(evaluation.stored, arrays["test_x"])
    assert evaluation.labels is not None
    assert np.array_equal(evaluation.labels, arrays["test_y"])


def test_single_npy_files_are_read_too(tmp_path: Path) -> None:
    arrays = image_arrays()
    document = manifest(arrays={name: f"arrays/{name}.npy" for name in arrays})
    members = {f"arrays/{name}.npy": npy_bytes(value) for name, value in arrays.items()}
    path = pack_members(tmp_path / "d.zip", members, document=document)
    assert np.array_equal(split(path, SplitName.EVALUATION).stored, arrays["test_x"])


def test_fortran_order_and_big_endian_arrays_keep_their_values(tmp_path: Path) -> None:
    arrays = image_arrays()
    arrays["test_x"] = np.asfortranarray(arrays["test_x"].astype(">f4"))
    path = pack(tmp_path / "d.zip", arrays)
    evaluation = split(path, SplitName.EVALUATION)
    assert np.array_equal(evaluation.inputs(slice(0, 20)), arrays["test_x"].astype(np.float32))


def test_stored_arrays_are_mapped_in_place_without_a_cache(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", image_arrays())
    assert isinstance(split(path, SplitName.EVALUATION).stored, np.memmap)
    assert list(tmp_path.iterdir()) == [path]


def test_compressed_arrays_are_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "d.zip", image_arrays(), inner_compression=zipfile.ZIP_LZMA)
    first = split(path, SplitName.EVALUATION).stored
    files = sorted((tmp_path / "d.zip.arrays").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    link = tmp_path / "other" / "link.zip"
    link.parent.mkdir()
    link.symlink_to(path)
    again = split(link, SplitName.EVALUATION).stored
    assert np.array_equal(first, again)
    assert [file.stat().st_mtime_ns for file in sorted(files)] == times
    assert list(link.parent.iterdir()) == [link]


def test_a_shared_cache_keeps_datasets_apart(tmp_path: Path) -> None:
    reader = ArchiveDatasetReader(cache_dir=tmp_path / "cache")
    for seed in (1, 2):
        arrays = image_arrays(seed=seed)
        path = pack(tmp_path / f"{seed}.zip", arrays, inner_compression=zipfile.ZIP_DEFLATED)
        found = reader.open(path, model=None).samples(SplitName.EVALUATION)
        assert found is not None
        assert np.array_equal(found.stored, arrays["test_x"])


def test_a_damaged_cache_file_is_made_again(tmp_path: Path) -> None:
    arrays = image_arrays()
    path = pack(tmp_path / "d.zip", arrays, inner_compression=zipfile.ZIP_DEFLATED)
    split(path, SplitName.EVALUATION)
    for file in (tmp_path / "d.zip.arrays").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(split(path, SplitName.EVALUATION).stored, arrays["test_x"])


def test_a_cache_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", image_arrays(), inner_compression=zipfile.ZIP_DEFLATED)
    (tmp_path / "file").write_bytes(b"")
    reader = ArchiveDatasetReader(cache_dir=tmp_path / "file" / "cache")
    with pytest.raises(UnavailableError):
        reader.open(path, model=None)


def test_selection_is_held_out_of_training(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", image_arrays(train_count=40))
    opened = ArchiveDatasetReader().open(path, model=model())
    train, selection = (opened.samples(name) for name in (SplitName.TRAIN, SplitName.SELECTION))
    assert train is not None
    assert selection is not None
    assert selection.labels is not None
    assert (len(train), len(selection)) == (36, 4)
    assert sorted(selection.labels) == [0, 1, 2, 3]
    rows = {sample.tobytes() for sample in train.stored}
    assert not rows & {sample.tobytes() for sample in selection.stored}


def test_unlabeled_inputs_are_apart_from_all_others(tmp_path: Path) -> None:
    arrays = image_arrays()
    arrays["more_x"] = image_arrays(train_count=7, seed=5)["train_x"]
    splits = {**manifest()["splits"], "unlabeled": {"input": "more_x"}}
    path = pack(tmp_path / "d.zip", arrays, document=manifest(splits=splits))
    opened = ArchiveDatasetReader().open(path, model=model())
    found = opened.samples(SplitName.UNLABELED)
    assert found is not None
    assert found.labels is None
    np.testing.assert_array_equal(found.stored, arrays["more_x"])
    train = opened.samples(SplitName.TRAIN)
    assert train is not None
    assert len(train) == 36
    without = pack(tmp_path / "e.zip", image_arrays())
    assert ArchiveDatasetReader().open(without, model=model()).samples(SplitName.UNLABELED) is None


def test_calibration_comes_from_training_and_is_capped(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", image_arrays())
    train = {sample.tobytes() for sample in split(path, SplitName.TRAIN).stored}
    calibration = split(path, SplitName.CALIBRATION)
    assert len(calibration) == 8
    assert {sample.tobytes() for sample in calibration.stored} <= train


def test_without_training_the_evaluation_split_is_halved(tmp_path: Path) -> None:
    arrays = image_arrays(test_count=21)
    document = manifest(splits={"evaluation": {"input": "test_x", "label": "test_y"}})
    opened = ArchiveDatasetReader().open(
        pack(tmp_path / "d.zip", arrays, document=document), model=model()
    )
    assert opened.samples(SplitName.TRAIN) is None
    parts = [opened.samples(name) for name in (SplitName.SELECTION, SplitName.EVALUATION)]
    rows = [{sample.tobytes() for sample in part.stored} for part in parts if part is not None]
    assert [len(part) for part in rows] == [10, 11]
    assert not rows[0] & rows[1]
    calibration = opened.samples(SplitName.CALIBRATION)
    assert calibration is not None
    assert {sample.tobytes() for sample in calibration.stored} <= rows[0]


def test_splits_depend_on_the_content_only(tmp_path: Path) -> None:
    paths = [
        pack(tmp_path / f"{i}.zip", image_arrays(seed=seed)) for i, seed in enumerate((3, 3, 4))
    ]
    labels = [split(path, SplitName.CALIBRATION).labels for path in paths]
    assert np.array_equal(labels[0], labels[1])  # type: ignore[arg-type]  # labels are given above
    assert not np.array_equal(labels[0], labels[2])  # type: ignore[arg-type]  # as above


def test_large_splits_are_written_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "d.zip", image_arrays())
    in_memory = split(path, SplitName.TRAIN).stored
    monkeypatch.setattr(archive_module, "_COPY_LIMIT_BYTES", 1)
    on_disk = split(path, SplitName.TRAIN).stored
    assert isinstance(on_disk, np.memmap)
    assert np.array_equal(in_memory, on_disk)


def test_layouts_are_matched_to_the_model(tmp_path: Path) -> None:
    arrays = image_arrays()
    stored_last = {
        name: value.transpose(0, 2, 3, 1) if name.endswith("x") else value
        for name, value in arrays.items()
    }
    first = pack(tmp_path / "first.zip", arrays)
    last = pack(tmp_path / "last.zip", stored_last, document=manifest(layout="NHWC"))
    graph_last = model((-1, 6, 5, 3))
    for path in (first, last):
        for fitting, layout in ((model(), Layout.NCHW), (graph_last, Layout.NHWC)):
            samples = split(path, SplitName.EVALUATION, fitting)
            assert samples.model_layout is layout
            expected = arrays["test_x"].astype(np.float32)
            if layout is Layout.NHWC:
                expected = expected.transpose(0, 2, 3, 1)
            assert np.array_equal(samples.inputs(slice(0, 20)), expected)


def test_feature_vectors_need_no_layout(tmp_path: Path) -> None:
    arrays = {
        name: value.reshape(len(value), -1).astype(np.float32) if name.endswith("x") else value
        for name, value in image_arrays().items()
    }
    samples = split(pack(tmp_path / "d.zip", arrays), SplitName.EVALUATION, model((-1, 90)))
    assert samples.model_layout is Layout.ANY
    assert samples.inputs([0]).shape == (1, 90)


def test_a_manifest_is_read_without_the_arrays(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", image_arrays(), inner_compression=zipfile.ZIP_LZMA)
    found = ArchiveDatasetReader().read_manifest(path)
    assert set(found.splits) == {"train", "evaluation"}
    assert list(tmp_path.iterdir()) == [path]


def changed(**changes: Any) -> dict[str, Any]:
    return {**image_arrays(), **changes}


@pytest.mark.parametrize(
    ("arrays", "field", "words"),
    [
        (changed(train_x=np.zeros((40, 3, 6, 4), np.uint8)), "splits.train.input", "(3, 6, 4)"),
        (changed(test_x=np.zeros((20, 90), np.uint8)), "splits.evaluation.input", "(90,)"),
        (changed(test_x=np.zeros((0, 3, 6, 5), np.uint8)), "splits.evaluation.input", "empty"),
        (changed(test_x=np.float32(3.0)), "splits.evaluation.input", "empty"),
        (changed(test_y=np.zeros(19, np.int64)), "splits.evaluation.label", "19 labels"),
        (changed(test_y=np.zeros(20, np.float32)), "splits.evaluation.label", "float32"),
        (changed(test_y=np.zeros((20, 4), np.int64)), "splits.evaluation.label", "(20, 4)"),
        (changed(test_y=np.full(20, 4)), "splits.evaluation.label", "is 4"),
        (changed(test_y=np.full(20, -1)), "splits.evaluation.label", "below 0"),
        (changed(test_y=np.full(20, 2**63, np.uint64)), "splits.evaluation.label", "9223372"),
        (
            changed(test_x=np.full((20, 3, 6, 5), np.nan, np.float32)),
            "splits.evaluation.input",
            "NaN",
        ),
        (
            changed(train_x=np.full((40, 3, 6, 5), 1e300, np.float64)),
            "splits.train.input",
            "infinite",
        ),
        (changed(test_x=np.zeros((20, 3, 6, 5), np.complex64)), "arrays.test_x", "complex64"),
        (changed(test_x=np.full((20, 3), "a")), "arrays.test_x", "<U1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, Any], field: str, words: str
) -> None:
    error = refused(pack(tmp_path / "d.zip", arrays))
    assert error.field == field
    assert words in error.message


def test_both_shapes_and_the_right_layout_are_told(tmp_path: Path) -> None:
    arrays = {
        name: value.transpose(0, 2, 3, 1) if name.endswith("x") else value
        for name, value in image_arrays().items()
    }
    error = refused(pack(tmp_path / "d.zip", arrays))
    assert "(6, 5, 3)" in error.message
    assert "(3, 6, 5)" in error.message
    assert "layout: NHWC" in error.remedy


def test_a_missing_channel_axis_is_told(tmp_path: Path) -> None:
    arrays = changed(train_x=np.zeros((40, 6, 5), np.uint8), test_x=np.zeros((20, 6, 5), np.uint8))
    error = refused(pack(tmp_path / "d.zip", arrays), model((-1, 1, 6, 5)))
    assert "(samples, 1, 6, 5)" in error.remedy


@pytest.mark.parametrize("key", ["mean", "std"])
def test_preprocessing_needs_a_value_per_channel(tmp_path: Path, key: str) -> None:
    document = manifest(preprocess={key: [0.5, 0.5]})
    error = refused(pack(tmp_path / "d.zip", image_arrays(), document=document))
    assert error.field == f"preprocess.{key}"
    assert "3 channels" in error.message


def test_models_with_several_inputs_or_one_score_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", image_arrays())
    assert "2 inputs ('x0', 'x1')" in refused(path, model((-1, 3, 6, 5), (-1, 2))).message
    assert "one value" in refused(path, model(outputs=(-1, 1))).message


def test_negative_labels_are_refused_without_a_model(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", changed(test_y=np.full(20, -1)))
    with pytest.raises(InvalidDatasetError, match="below 0"):
        ArchiveDatasetReader().open(path, model=None)


def test_one_training_sample_is_too_few(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", image_arrays(train_count=1))
    assert refused(path).field == "splits.train.input"


def test_missing_arrays_are_named_with_near_ones(tmp_path: Path) -> None:
    document = manifest(splits={"evaluation": {"input": "tset_x", "label": "test_y"}})
    path = pack(tmp_path / "d.zip", image_arrays(), document=document)
    with pytest.raises(InvalidDatasetError) as caught:
        ArchiveDatasetReader().read_manifest(path)
    assert caught.value.field == "splits.evaluation.input"
    assert "'test_x'" in caught.value.remedy


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = pack_members(tmp_path / "d.zip", {"arrays/dota.npz": b""})
    error = refused(path)
    assert "arrays/data.npz" in error.message
    assert "arrays/dota.npz" in error.remedy


@pytest.mark.parametrize(
    "name", ["../x.npy", "/etc/x", "arrays/../x", "arrays/a/b.npy", "arrays\\x", "readme.txt"]
)
def test_foreign_member_names_are_refused(tmp_path: Path, name: str) -> None:
    members = {"arrays/data.npz": npz_bytes(image_arrays()), name: b"x"}
    assert "belong there" in refused(pack_members(tmp_path / "d.zip", members)).message


def test_links_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", image_arrays())
    info = zipfile.ZipInfo("arrays/link.npy")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "is a link" in refused(path).message


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_doubled_members_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", image_arrays())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("arrays/data.npz", b"x")
    assert "twice" in refused(path).message


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    data = npy_bytes(np.asarray([{"a": 1}], dtype=object), allow_pickle=True)
    document = manifest(
        arrays={"x": "arrays/x.npy", "y": "arrays/y.npy"},
        splits={"evaluation": {"input": "x", "label": "y"}},
    )
    members = {"arrays/x.npy": data, "arrays/y.npy": npy_bytes(np.zeros(1, np.int64))}
    error = refused(pack_members(tmp_path / "d.zip", members, document=document))
    assert error.field == "arrays.x"
    assert "object" in error.message


def header_with_shape(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (118 - len(text) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    "data",
    [
        header_with_shape("(1000000000000, 3, 6, 5)") + b"x" * 90,
        header_with_shape("(2, 3, 6, 5)") + b"x" * 90,
        header_with_shape("(1, 3, 6, 5)") + b"x" * 91,
        header_with_shape("(-1, 3, 6, 5)") + b"x" * 90,
        header_with_shape("(1,) * 10**9"),
        header_with_shape("(" * 20),
        header_with_shape("(" + "1," * 20 + ")") + b"x",
        b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65535,
        b"\x93NUMPY\x09\x00" + b" " * 100,
        b"not an array",
        b"",
    ],
    ids=[
        "huge", "too-short", "too-long", "negative", "code", "open", "axes", "long-header", "version",
        "text", "empty",
    ],
)  # fmt: skip
def test_forged_headers_are_refused(tmp_path: Path, data: bytes, compression: int) -> None:
    document = manifest(
        arrays={"x": "arrays/x.npy", "y": "arrays/y.npy"},
        splits={"evaluation": {"input": "x", "label": "y"}},
    )
    members = {"arrays/x.npy": data, "arrays/y.npy": npy_bytes(np.zeros(1, np.int64))}
    path = pack_members(tmp_path / "d.zip", members, document=document, compression=compression)
    assert refused(path).field == "arrays.x"


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    arrays = changed(test_x=np.zeros((20, 3, 700, 700), np.uint8))
    path = pack(tmp_path / "d.zip", arrays, inner_compression=zipfile.ZIP_DEFLATED)
    error = refused(path)
    assert "expands to" in error.message
    assert list(tmp_path.iterdir()) == [path]


def test_large_lzma_dictionaries_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", image_arrays(), inner_compression=zipfile.ZIP_LZMA)
    data = bytearray(path.read_bytes())
    at = data.index(b"train_x.npy") + len(b"train_x.npy")
    # Version 9.4, five bytes of properties: lc/lp/pb, then the dictionary's size.
    assert data[at + 2 : at + 4] == b"\x05\x00"
    data[at + 5 : at + 9] = struct.pack("<I", 1 << 31)
    path.write_bytes(data)
    assert "dictionary" in refused(path).message


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "d.zip", image_arrays())
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.rindex(magic) + offset] |= 1
    path.write_bytes(data)
    assert "encrypted" in refused(path).message


@pytest.mark.parametrize("seed", range(60))
def test_damaged_archives_are_refused_or_read(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = pack(tmp_path / "d.zip", image_arrays(), inner_compression=COMPRESSIONS[seed % 3])
    data = bytearray(path.read_bytes())
    if seed % 4 == 0:
        data = data[: rng.integers(0, len(data))]
    else:
        for at in rng.integers(0, len(data), 12):
            data[at] = rng.integers(0, 256)
    path.write_bytes(data)
    reader = ArchiveDatasetReader(max_total_bytes=1 << 24)
    with contextlib.suppress(InvalidDatasetError):
        assert reader.open(path, model=model()).samples(SplitName.EVALUATION) is not None


def test_a_missing_archive_is_an_error_of_ours(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.zip").field == "dataset"


def test_every_class_of_the_model_has_a_name_or_none(tmp_path: Path) -> None:
    named = manifest(class_names=["a", "b", "c", "d"])
    path = pack(tmp_path / "d.zip", image_arrays(), document=named)
    assert ArchiveDatasetReader().open(path, model=model()).manifest.class_names == (*"abcd",)
    error = refused(path, model(classes=5))
    assert error.field == "class_names"
    assert "4 names of classes, and the model has 5" in error.message
