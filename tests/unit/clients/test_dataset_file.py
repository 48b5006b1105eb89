"""`dataset.yaml`: what is accepted and normalised, what is refused, and that packing is repeatable."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tightfit.dataset_archive import packed
from tightfit.dataset_file import read_dataset_file
from tightfit.errors import InvalidInputError

FULL: dict[str, Any] = {
    "task": "classification",
    "arrays": "data.npz",
    "splits": {
        "train": {"input": "train_x", "label": "train_y"},
        "evaluation": {"input": "test_x", "label": "test_y"},
        "calibration": {"from": "train", "count": 64},
    },
    "layout": "NHWC",
    "preprocess": {"scale": 0.5, "mean": [0, 0, 0], "std": [1, 1, 2]},
    "metric": "top1",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arrays: dict[str, Any] = {
        "train_x": np.zeros((6, 2, 2, 3), np.uint8),
        "train_y": np.arange(6),
        "test_x": np.ones((4, 2, 2, 3), np.uint8),
        "test_y": np.arange(4),
    }
    np.savez(tmp_path / "data.npz", **arrays)
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


def write(folder: Path, content: object) -> Path:
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(content) if not isinstance(content, str) else content)
    return path


def without(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def test_a_full_description_is_normalised(folder: Path) -> None:
    dataset = read_dataset_file(write(folder, FULL))
    assert dataset.manifest == {
        "version": 1,
        "task": "classification",
        "arrays": {"*": "arrays/data.npz"},
        "splits": {
            "train": {"input": "train_x", "label": "train_y"},
            "evaluation": {"input": "test_x", "label": "test_y"},
        },
        "calibration": {"from": "train", "count": 64},
        "layout": "NHWC",
        "preprocess": {"scale": 0.5, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 2.0]},
        "metric": "top1",
    }


def test_defaults_are_written_out(folder: Path) -> None:
    content = {"arrays": "data.npz", "splits": {"evaluation": {"input": "test_x"}}}
    manifest = read_dataset_file(write(folder, content)).manifest
    assert manifest["layout"] == "NCHW"
    assert manifest["task"] == "classification"
    assert manifest["preprocess"] == {"scale": 1.0, "mean": [], "std": []}
    assert manifest["calibration"] == {"from": "evaluation", "count": 256}
    assert manifest["splits"] == {"evaluation": {"input": "test_x", "label": ""}}


def test_separate_arrays_are_packed_by_name(folder: Path) -> None:
    names = ("train_x", "train_y", "test_x", "test_y")
    content = FULL | {"arrays": {name: f"{name}.npy" for name in names}}
    dataset = read_dataset_file(write(folder, content))
    with packed(dataset) as archive, zipfile.ZipFile(archive.path) as opened:
        assert opened.namelist()[0] == "manifest.json"
        assert set(opened.namelist()[1:]) == {f"arrays/{name}.npy" for name in names}
        assert opened.read("arrays/test_y.npy") == (folder / "test_y.npy").read_bytes()
        assert json.loads(opened.read("manifest.json"))["arrays"]["test_y"] == "arrays/test_y.npy"
        assert all(info.compress_type == zipfile.ZIP_STORED for info in opened.infolist())


def test_packing_twice_gives_the_same_digest_whatever_the_file_times(folder: Path) -> None:
    dataset = read_dataset_file(write(folder, FULL))
    with packed(dataset) as first:
        digest = first.digest
        kept = first.path
    os.utime(folder / "data.npz", (1, 10**9))
    with packed(read_dataset_file(write(folder, FULL))) as second:
        assert second.digest == digest
        assert second.size_bytes == second.path.stat().st_size
    assert not kept.exists()


def test_other_contents_give_another_digest(folder: Path) -> None:
    with packed(read_dataset_file(write(folder, FULL))) as first:
        digest = first.digest
    with packed(read_dataset_file(write(folder, FULL | {"layout": "NCHW"}))) as second:
        assert second.digest != digest


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("unknown key", FULL | {"metrik": "top1"}, "metrik", "'metric'"),
    ("unknown task", FULL | {"task": "clasification"}, "task", "'classification'"),
    ("unknown layout", FULL | {"layout": "NCWH"}, "layout", "'NCHW'"),
    ("unknown metric", FULL | {"metric": "loss"}, "metric", "top1"),
    ("no arrays", without(FULL, "arrays"), "arrays", "data.npz"),
    ("empty arrays", FULL | {"arrays": {}}, "arrays", "train_x"),
    ("arrays outside", FULL | {"arrays": "../data.npz"}, "arrays", "beside"),
    ("absolute path", FULL | {"arrays": "/etc/passwd"}, "arrays", "beside"),
    ("missing file", FULL | {"arrays": "dota.npz"}, "arrays", "'data.npz'"),
    ("bad array name", FULL | {"arrays": {"a/b": "test_x.npy"}}, "arrays.a/b", "letters"),
    ("array file no text", FULL | {"arrays": {"a": 3}}, "arrays.a", "data.npz"),
    ("wrong suffix", FULL | {"arrays": "test_x.npy"}, "arrays", "mapping"),
    ("no splits", without(FULL, "splits"), "splits", "evaluation"),
    (
        "no evaluation",
        FULL | {"splits": {"train": {"input": "train_x"}}},
        "splits.evaluation",
        "evaluation",
    ),
    (
        "unknown split",
        FULL | {"splits": FULL["splits"] | {"evalution": {}}},
        "splits.evalution",
        "'evaluation'",
    ),
    (
        "no input",
        FULL | {"splits": {"evaluation": {"label": "test_y"}}},
        "splits.evaluation.input",
        "inputs",
    ),
    (
        "unknown array",
        FULL | {"splits": {"evaluation": {"input": "tst_x"}}},
        "splits.evaluation.input",
        "'test_x'",
    ),
    (
        "label no name",
        FULL | {"splits": {"evaluation": {"input": "test_x", "label": 3}}},
        "splits.evaluation.label",
        "array",
    ),
    (
        "calibration source",
        FULL | {"splits": {"evaluation": {"input": "test_x"}, "calibration": {"from": "train"}}},
        "splits.calibration.from",
        "evaluation",
    ),
    (
        "calibration count",
        FULL | {"splits": FULL["splits"] | {"calibration": {"count": 0}}},
        "splits.calibration.count",
        "256",
    ),
    ("scale text", FULL | {"preprocess": {"scale": "1"}}, "preprocess.scale", "finite"),
    ("scale zero", FULL | {"preprocess": {"scale": 0}}, "preprocess.scale", "finite"),
    ("mean NaN", FULL | {"preprocess": {"mean": [float("nan")]}}, "preprocess.mean[0]", "finite"),
    ("mean no list", FULL | {"preprocess": {"mean": 1}}, "preprocess.mean", "per channel"),
    ("std zero", FULL | {"preprocess": {"std": [1, 0, 1]}}, "preprocess.std", "above zero"),
    ("lengths differ", FULL | {"preprocess": {"mean": [0], "std": [1, 1]}}, "preprocess", "both"),
    ("unknown preprocess", FULL | {"preprocess": {"men": [0]}}, "preprocess.men", "'mean'"),
]


@pytest.mark.parametrize(
    ("content", "at", "remedy"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_descriptions_name_the_key_and_the_remedy(
    folder: Path, content: dict[str, Any], at: str, remedy: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_dataset_file(write(folder, content))
    assert caught.value.field == f"dataset.yaml: {at}"
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "not valid YAML"),
        ("a: &a [x]\nb: [*a, *a]", "aliases are not read"),
        ("a: &a [*a]", "aliases are not read"),
        ("[" * 10_000, "nested more than 50 deep"),
        ("a: " + "9" * 10_000, "integer string conversion"),
        ("a: 9999-99-99", "month must be"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("# " + "x" * (4 << 20), "more than 4 MiB"),
        ("- 1\n- 2\n", "keys and values"),
        ("task: a\ntask: b\n", "given twice"),
        ("", "keys and values"),
    ],
)
def test_what_is_no_mapping_is_refused(folder: Path, text: str, expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        read_dataset_file(write(folder, text))


def test_a_missing_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no file"):
        read_dataset_file(tmp_path / "dataset.yaml")


def test_a_cut_off_array_file_is_refused(folder: Path) -> None:
    whole = (folder / "data.npz").read_bytes()
    (folder / "data.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInputError, match="cut off"):
        read_dataset_file(write(folder, FULL))


def test_a_link_that_leaves_the_folder_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "data.npz"
    np.savez(outside, x=np.zeros(1))
    (folder / "data.npz").unlink()
    (folder / "data.npz").symlink_to(outside)
    with pytest.raises(InvalidInputError, match="outside the folder"):
        read_dataset_file(write(folder, FULL))


def test_classes_may_have_names(folder: Path) -> None:
    dataset = read_dataset_file(write(folder, FULL | {"class_names": ["cat", 7, "d\u00f6ner"]}))
    assert dataset.manifest["class_names"] == ["cat", "7", "d\u00f6ner"]
    assert "class_names" not in read_dataset_file(write(folder, FULL)).manifest


@pytest.mark.parametrize(
    ("value", "said"), [("cat", "no list"), ([], "no list"), (["yes", True], "True is no text")]
)
def test_names_that_yaml_reads_otherwise_are_refused(folder: Path, value: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        read_dataset_file(write(folder, FULL | {"class_names": value}))
    assert "class_names" in str(caught.value)


def test_inputs_without_labels_may_be_given_for_training(folder: Path) -> None:
    splits = {**FULL["splits"], "unlabeled": {"input": "test_x"}}
    found = read_dataset_file(write(folder, FULL | {"splits": splits})).manifest
    assert found["splits"]["unlabeled"] == {"input": "test_x", "label": ""}
    assert found["calibration"]["from"] == "train"
    labelled = {**splits, "unlabeled": {"input": "test_x", "label": "test_y"}}
    for wrong in (labelled, {k: v for k, v in splits.items() if k != "train"}):
        wrong["calibration"] = {}
        with pytest.raises(InvalidInputError, match="unlabeled split"):
            read_dataset_file(write(folder, FULL | {"splits": wrong}))


@pytest.mark.parametrize(
    ("task", "metric", "default"),
    [
        ("classification", "agreement", "top1"),
        ("segmentation", "miou", "miou"),
        ("regression", "mae", "mse"),
        ("reconstruction", "auc", "mse"),
    ],
)
def test_each_task_has_its_metrics(folder: Path, task: str, metric: str, default: str) -> None:
    content = FULL | {"task": task, "metric": metric}
    assert read_dataset_file(write(folder, content)).manifest["metric"] == metric
    assert (
        read_dataset_file(write(folder, without(content, "metric"))).manifest["metric"] == default
    )
    with pytest.raises(InvalidInputError, match="not offered"):
        read_dataset_file(write(folder, FULL | {"task": task, "metric": "psnr"}))


def test_several_inputs_each_have_an_array_a_layout_and_a_preprocessing(folder: Path) -> None:
    splits: dict[str, Any] = {
        "evaluation": {"input": {"image": "test_x", "mask": "train_x"}, "label": "test_y"},
        "calibration": {"from": "evaluation"},
    }
    content = FULL | {
        "splits": splits,
        "layout": {"image": "NHWC"},
        "preprocess": {"image": {"scale": 0.5}, "mask": {"mean": [1]}},
    }
    found = read_dataset_file(write(folder, content)).manifest
    assert found["splits"]["evaluation"]["input"] == splits["evaluation"]["input"]
    assert found["layout"] == {"image": "NHWC"}
    assert found["preprocess"]["image"] == {"scale": 0.5, "mean": [], "std": []}
    assert found["preprocess"]["mask"]["mean"] == [1.0]
    for wrong, said in (
        ({"layout": {"image": "NHCW"}}, "layout.image"),
        ({"layout": {"imgae": "NHWC"}}, "layout.imgae"),
        ({"preprocess": {"image": {"scale": 0}}}, "preprocess.image.scale"),
        (
            {"splits": {"evaluation": {"input": {"image": "tset_x"}}}},
            "splits.evaluation.input.image",
        ),
        ({"splits": {"evaluation": {"input": {"image": 3}}}}, "splits.evaluation.input.image"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            read_dataset_file(write(folder, content | wrong))
        assert caught.value.field == f"dataset.yaml: {said}"
