"""Datasets of models with several inputs, and of tasks other than classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fakes.packed_datasets import manifest, pack
from tightfit_service.adapters.datasets.archive import ArchiveDatasetReader
from tightfit_service.application.ports import ImportedModel, TensorSignature
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import MetricName, SplitName, Task
from tightfit_service.domain.errors import InvalidDatasetError

TRAIN, TEST = 40, 20


def _model(outputs: tuple[int, ...] = (-1, 4), **inputs: tuple[int, ...]) -> ImportedModel:
    return ImportedModel(
        graph=b"",
        inputs=tuple(
            TensorSignature(name=name, shape=shape, dtype="float32")
            for name, shape in inputs.items()
        ),
        outputs=(TensorSignature(name="y", shape=outputs, dtype="float32"),),
        opset=17,
        node_count=1,
        parameter_count=1,
        macs=1,
    )


TWO = _model(image=(-1, 3, 6, 5), facts=(-1, 2))
DENSE = _model((-1, 3, 6, 5), image=(-1, 3, 6, 5))
VALUES = _model((-1, 2), facts=(-1, 2))


def _arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        arrays[f"{split}_image"] = rng.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
        arrays[f"{split}_facts"] = rng.normal(size=(count, 2))
        arrays[f"{split}_class"] = np.arange(count) % 4
        arrays[f"{split}_map"] = rng.integers(0, 3, (count, 6, 5), dtype=np.uint8)
        arrays[f"{split}_value"] = rng.normal(size=(count, 2))
    return arrays


def _splits(inputs: Any, label: str = "") -> dict[str, Any]:
    splits = {}
    for name, stem in (("train", "train"), ("evaluation", "test")):
        if isinstance(inputs, str):
            given: Any = f"{stem}_{inputs}"
        else:
            given = {key: f"{stem}_{array}" for key, array in inputs.items()}
        splits[name] = {"input": given, **({"label": f"{stem}_{label}"} if label else {})}
    return splits


def _open(
    path: Path, model: ImportedModel, *, arrays: dict[str, Any] | None = None, **changes: Any
) -> dict[SplitName, Samples]:
    document = manifest(**changes)
    if "metric" not in changes:
        del document["metric"]
    packed = pack(path / "d.zip", arrays or _arrays(), document=document)
    dataset = ArchiveDatasetReader().open(packed, model=model)
    found = {name: dataset.samples(name) for name in SplitName}
    return {name: samples for name, samples in found.items() if samples is not None}


def _labels(samples: Samples) -> npt.NDArray[Any]:
    assert samples.labels is not None
    return samples.labels


BOTH = _splits({"facts": "facts", "image": "image"}, "class")


def test_each_input_has_its_array_in_every_split(tmp_path: Path) -> None:
    found = _open(
        tmp_path,
        TWO,
        splits=BOTH,
        layout={"image": "NHWC", "facts": "ANY"},
        preprocess={"image": {"scale": 0.5}},
    )
    arrays = _arrays()
    for name, samples in found.items():
        feeds = samples.feeds(slice(None), ["image", "facts"])
        assert samples.input_name == "image"  # the model's order
        assert feeds["image"].shape[1:] == (3, 6, 5)
        assert len(feeds["facts"]) == len(samples)
        source = "test" if name is SplitName.EVALUATION else "train"
        # every sample is still one: the image, the facts and the class of the same row
        for image, facts, label in zip(
            feeds["image"], feeds["facts"], _labels(samples), strict=True
        ):
            row = int(np.abs(arrays[f"{source}_facts"] - facts).sum(axis=1).argmin())
            expected = arrays[f"{source}_image"][row].transpose(2, 0, 1) * 0.5
            np.testing.assert_allclose(image, expected)
            assert label == arrays[f"{source}_class"][row]


@pytest.mark.parametrize(
    ("inputs", "field", "words"),
    [
        ({"image": "image", "fact": "facts"}, "splits.train.input.fact", "did you mean 'facts'?"),
        ({"image": "image"}, "splits.train.input", "'facts'"),
        ("image", "splits.train.input", "facts: <array>"),
    ],
)
def test_names_that_are_not_the_models_are_told(
    tmp_path: Path, inputs: Any, field: str, words: str
) -> None:
    with pytest.raises(InvalidDatasetError) as caught:
        _open(tmp_path, TWO, splits=_splits(inputs, "class"), layout="NHWC")
    assert caught.value.field == field
    assert words in str(caught.value)


def test_inputs_of_different_length_are_refused(tmp_path: Path) -> None:
    arrays = _arrays()
    arrays["train_facts"] = arrays["train_facts"][:-1]
    with pytest.raises(InvalidDatasetError, match="39 samples"):
        _open(tmp_path, TWO, arrays=arrays, splits=BOTH, layout="NHWC")


def test_the_input_at_fault_is_named(tmp_path: Path) -> None:
    arrays = _arrays()
    arrays["test_facts"][3, 1] = np.nan
    with pytest.raises(InvalidDatasetError, match="NaN") as caught:
        _open(tmp_path, TWO, arrays=arrays, splits=BOTH, layout="NHWC")
    assert caught.value.field == "splits.evaluation.input.facts"


def test_the_only_input_may_be_named(tmp_path: Path) -> None:
    found = _open(tmp_path, VALUES, splits=_splits({"facts": "facts"}, "value"), task="regression")
    assert found[SplitName.TRAIN].feeds([0], ["facts"])["facts"].shape == (1, 2)


def test_labels_of_pixels_are_read(tmp_path: Path) -> None:
    found = _open(
        tmp_path, DENSE, splits=_splits("image", "map"), task="segmentation", layout="NHWC"
    )
    evaluation = found[SplitName.EVALUATION]
    assert (evaluation.metric, evaluation.task) == (MetricName.MIOU, Task.SEGMENTATION)
    assert evaluation.class_labels is not None
    np.testing.assert_array_equal(evaluation.class_labels, _arrays()["test_map"])
    assert len(found[SplitName.SELECTION]) == TRAIN // 10


@pytest.mark.parametrize(("value", "words"), [(3, "3 classes"), (255, "")])
def test_labels_of_pixels_have_classes_or_none(tmp_path: Path, value: int, words: str) -> None:
    arrays = _arrays()
    arrays["test_map"][0, 0, 0] = value
    changes = {"splits": _splits("image", "map"), "task": "segmentation", "layout": "NHWC"}
    if not words:
        assert _open(tmp_path, DENSE, arrays=arrays, **changes)
        return
    with pytest.raises(InvalidDatasetError, match=words):
        _open(tmp_path, DENSE, arrays=arrays, **changes)


def test_maps_of_another_size_are_refused(tmp_path: Path) -> None:
    model = _model((-1, 3, 12, 10), image=(-1, 3, 6, 5))
    with pytest.raises(InvalidDatasetError, match=r"\(6, 5\) pixels"):
        _open(tmp_path, model, splits=_splits("image", "map"), task="segmentation", layout="NHWC")


def test_values_are_labels_of_a_regression(tmp_path: Path) -> None:
    found = _open(tmp_path, VALUES, splits=_splits("facts", "value"), task="regression")
    evaluation = found[SplitName.EVALUATION]
    assert evaluation.class_labels is None
    np.testing.assert_allclose(_labels(evaluation), _arrays()["test_value"], rtol=1e-6)


def test_values_of_another_size_are_refused(tmp_path: Path) -> None:
    model = _model((-1, 3), facts=(-1, 2))
    with pytest.raises(InvalidDatasetError, match="has 2 values, the model's first output 3"):
        _open(tmp_path, model, splits=_splits("facts", "value"), task="regression")


def test_a_reconstruction_is_its_own_label(tmp_path: Path) -> None:
    preprocess = {"scale": 2.0}
    found = _open(
        tmp_path, VALUES, splits=_splits("facts"), task="reconstruction", preprocess=preprocess
    )
    for samples in found.values():
        np.testing.assert_array_equal(_labels(samples), samples.inputs(slice(None)))
    np.testing.assert_allclose(
        _labels(found[SplitName.EVALUATION]), 2 * _arrays()["test_facts"], rtol=1e-6
    )


def test_fidelity_needs_no_labels(tmp_path: Path) -> None:
    found = _open(tmp_path, TWO, splits=_splits({"image": "image", "facts": "facts"}),
                  layout="NHWC", metric="agreement")  # fmt: skip
    assert found[SplitName.EVALUATION].labels is None
    assert found[SplitName.EVALUATION].metric is MetricName.AGREEMENT
