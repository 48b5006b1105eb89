"""Tests of manifest parsing: what is read, and which mistakes are named how."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes.packed_datasets import manifest
from tightfit_service.adapters.datasets.manifest import parse_manifest
from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.domain.dataset import (
    METRICS_OF_TASK,
    CalibrationSpec,
    DatasetManifest,
    InputSpec,
    Layout,
    Preprocess,
    SplitSpec,
    Task,
)
from tightfit_service.domain.errors import InvalidDatasetError


def parse(**changes: Any) -> Any:
    return parse_manifest(json.dumps(manifest(**changes)).encode())


def test_every_field_is_read() -> None:
    found = parse(
        layout="NHWC",
        preprocess={"scale": 0.5, "mean": [1, 2.5, 3], "std": [1, 2, 4]},
        calibration={"from": "evaluation", "count": 3},
    )
    assert found.splits == {
        "train": SplitSpec(input="train_x", label="train_y"),
        "evaluation": SplitSpec(input="test_x", label="test_y"),
    }
    assert found.layout is Layout.NHWC
    assert found.preprocess == Preprocess(scale=0.5, mean=(1.0, 2.5, 3.0), std=(1.0, 2.0, 4.0))
    assert found.calibration == CalibrationSpec(source="evaluation", count=3)


def test_optional_fields_have_defaults() -> None:
    document = manifest()
    for key in ("calibration", "layout", "preprocess", "metric", "task"):
        del document[key]
    found = parse_manifest(json.dumps(document).encode())
    assert found.layout is Layout.NCHW
    assert found.preprocess == Preprocess()
    assert found.calibration == CalibrationSpec(source="train", count=256)


def test_a_training_split_may_be_unlabelled() -> None:
    found = parse(splits={"train": {"input": "a"}, "evaluation": {"input": "b", "label": "c"}})
    assert found.splits["train"].label == ""


def test_a_training_split_may_have_an_unlabeled_one_beside_it() -> None:
    splits = {"train": {"input": "a"}, "evaluation": {"input": "b", "label": "c"}}
    found = parse(splits={**splits, "unlabeled": {"input": "d"}})
    assert found.splits["unlabeled"] == SplitSpec(input="d")


@pytest.mark.parametrize(
    ("changes", "field", "hint"),
    [
        ({"layuot": "NCHW"}, "layuot", "'layout'"),
        ({"layout": "NCWH"}, "layout", "'NCHW'"),
        ({"version": 2}, "version", "client"),
        ({"version": True}, "version", "client"),
        ({"task": "clasification"}, "task", "'classification'"),
        ({"metric": "top2"}, "metric", "'top1'"),
        ({"metric": "miou"}, "metric", "'top1'"),
        ({"metric": "top1", "task": "segmentation"}, "metric", "'miou'"),
        ({"layout": {"image": "NCHW"}}, "layout.image", "there are none"),
        ({"splits": {"evaluation": {"input": {}, "label": "c"}}}, "splits.evaluation.input", ""),
        (
            {"splits": {"evaluation": {"input": {"a": 3}, "label": "c"}}},
            "splits.evaluation.input.a",
            "array name",
        ),
        (
            {
                "splits": {
                    "train": {"input": {"a": "x"}},
                    "evaluation": {"input": {"a": "x", "b": "y"}, "label": "c"},
                }
            },
            "splits.train.input",
            "every split",
        ),
        (
            {"splits": {"unlabeled": {"input": "a"}, "evaluation": {"input": "b", "label": "c"}}},
            "splits.unlabeled",
            "train",
        ),
        (
            {
                "splits": {
                    "train": {"input": "a", "label": "c"},
                    "evaluation": {"input": "b", "label": "c"},
                    "unlabeled": {"input": "b", "label": "c"},
                }
            },
            "splits.unlabeled.label",
            "training split",
        ),
        ({"calibration": {"from": "unlabeled"}}, "calibration.from", "'train'"),
        ({"arrays": {}}, "arrays", ".npz"),
        ({"arrays": []}, "arrays", ""),
        ({"arrays": {"*": "arrays/../x.npz"}}, "arrays.*", ""),
        ({"arrays": {"*": "/etc/passwd"}}, "arrays.*", ""),
        ({"arrays": {"*": "arrays/x.npy"}}, "arrays.*", ""),
        ({"arrays": {"*": "arrays/x.npz", "a": "arrays/a.npy"}}, "arrays", ".npy"),
        ({"arrays": {"a/b": "arrays/a.npy"}}, "arrays", "names"),
        ({"arrays": {"a": 3}}, "arrays.a", ""),
        ({"splits": {"train": {"input": "a"}}}, "splits.evaluation", "training"),
        ({"splits": {"evaluation": {"input": "a"}}}, "splits.evaluation.label", "class indices"),
        ({"splits": {"evaluation": {"label": "a"}}}, "splits.evaluation.input", "inputs"),
        ({"splits": {"evaluation": "test"}}, "splits.evaluation", ""),
        (
            {"splits": {"evaluation": {"input": ["a", "b"], "label": "c"}}},
            "splits.evaluation.input",
            "one input",
        ),
        ({"splits": {"evalution": {"input": "a"}}}, "splits.evalution", "'evaluation'"),
        ({"calibration": {"from": "trian"}}, "calibration.from", "'train'"),
        ({"calibration": {"count": 0}}, "calibration.count", "256"),
        ({"calibration": {"count": 2.5}}, "calibration.count", "256"),
        ({"calibration": {"counts": 2}}, "calibration.counts", "'count'"),
        ({"preprocess": {"scale": 0}}, "preprocess.scale", "1/255"),
        ({"preprocess": {"scale": "1/255"}}, "preprocess.scale", "number"),
        ({"preprocess": {"scale": 10**400}}, "preprocess.scale", "finite"),
        ({"preprocess": {"std": [1, 0, 1]}}, "preprocess.std", "above 0"),
        ({"preprocess": {"mean": [1, None]}}, "preprocess.mean", "number"),
    ],
)
def test_mistakes_name_the_field_and_the_remedy(
    changes: dict[str, Any], field: str, hint: str
) -> None:
    with pytest.raises(InvalidDatasetError) as caught:
        parse(**changes)
    assert caught.value.field == field
    assert hint in caught.value.remedy
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[1, 2]", b'"x"', b'{"version": NaN}', b"[" * 100_000, b"1" * 5_000],
    ids=["empty", "open", "no-utf8", "list", "text", "nan", "deep", "long number"],
)
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidDatasetError) as caught:
        parse_manifest(text)
    assert caught.value.field == "manifest.json"


TWO_INPUTS = {
    "train": {"input": {"image": "a", "facts": "b"}, "label": "c"},
    "evaluation": {"input": {"image": "d", "facts": "e"}, "label": "f"},
}


def test_several_inputs_are_read_with_what_is_said_of_each() -> None:
    found = parse(
        splits=TWO_INPUTS,
        layout={"image": "NHWC", "facts": "ANY"},
        preprocess={"image": {"scale": 0.5}},
    )
    assert found.splits["train"].input_arrays == {"image": "a", "facts": "b"}
    assert found.input_spec("image") == InputSpec(
        layout=Layout.NHWC, preprocess=Preprocess(scale=0.5)
    )
    assert found.input_spec("facts") == InputSpec(layout=Layout.ANY)
    assert from_plain(DatasetManifest, to_plain(found)) == found


def test_what_is_said_once_holds_for_all_inputs() -> None:
    found = parse(splits=TWO_INPUTS, layout="NHWC", preprocess={"scale": 0.5})
    for name in ("image", "facts"):
        expected = InputSpec(layout=Layout.NHWC, preprocess=Preprocess(scale=0.5))
        assert found.input_spec(name) == expected


@pytest.mark.parametrize("task", list(Task))
def test_every_task_has_a_metric_of_its_own(task: Task) -> None:
    document = manifest(task=task.value)
    del document["metric"]
    assert parse_manifest(json.dumps(document).encode()).metric is METRICS_OF_TASK[task][0]


@pytest.mark.parametrize(
    ("task", "metric"), [("reconstruction", "mse"), ("classification", "agreement")]
)
def test_labels_may_be_left_out_where_the_metric_has_its_own(task: str, metric: str) -> None:
    found = parse(task=task, metric=metric, splits={"evaluation": {"input": "x"}})
    assert found.splits["evaluation"].label == ""


@pytest.mark.parametrize("value", ["cat", ["cat", 1], [["cat"]], ["x" * 201], {"0": "cat"}])
def test_names_of_classes_are_texts(value: Any) -> None:
    assert parse(class_names=["cat", "no"]).class_names == ("cat", "no")
    with pytest.raises(InvalidDatasetError) as caught:
        parse(class_names=value)
    assert caught.value.field == "class_names"
