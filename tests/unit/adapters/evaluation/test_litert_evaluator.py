"""Tests of the LiteRT evaluator on files made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fakes.tflite_files import TfliteBuilder, image_sum, quantized_identity
from tightfit_service.adapters.evaluation.litert_evaluator import (
    LitertEvaluator,
    LitertRunner,
    read_metadata,
)
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidDatasetError, InvalidModelError

WEIGHTS = np.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def test_inputs_are_quantized_and_outputs_dequantized() -> None:
    data = quantized_identity(scale=0.5, zero_point=-8, size=3)
    inputs = np.asarray([[0.0, 0.6, -1.1], [1000.0, -1000.0, 0.5]], dtype=np.float32)
    found = LitertEvaluator().outputs(data, inputs)
    # Steps of 0.5; int8 around -8 reaches from -60 to 67.5.
    assert np.array_equal(found, [[0.0, 0.5, -1.0], [67.5, -60.0, 0.5]])


def test_channels_first_inputs_are_given_as_the_file_wants_them() -> None:
    inputs = np.random.default_rng(0).normal(size=(4, 3, 6, 5)).astype(np.float32)
    found = LitertEvaluator().outputs(image_sum((6, 5, 3), WEIGHTS), inputs)
    assert np.allclose(found, inputs.mean(axis=(2, 3)), atol=1e-6)


def test_inputs_in_the_files_own_layout_are_taken_as_they_are() -> None:
    inputs = np.random.default_rng(0).normal(size=(4, 6, 5, 3)).astype(np.float32)
    found = LitertEvaluator().outputs(image_sum((6, 5, 3), WEIGHTS), inputs)
    assert np.allclose(found, inputs.mean(axis=(1, 2)), atol=1e-6)


def test_cubes_are_taken_for_channels_first() -> None:
    inputs = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    found = LitertEvaluator().outputs(image_sum((3, 3, 3), WEIGHTS), inputs)
    assert np.allclose(found, inputs.mean(axis=(2, 3)), atol=1e-6)


def test_accuracy_counts_right_answers() -> None:
    stored = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]].reshape(4, 3, 1, 1).repeat(2, axis=2)
    samples = Samples(stored=stored, labels=np.asarray([0, 1, 2, 1]), name="evaluation")
    found = LitertEvaluator(threads=2).evaluate(image_sum((2, 1, 3), WEIGHTS), samples)
    assert found.value == 0.75
    assert found.sample_count == 4
    assert found.low < 0.75 < found.high


def test_wrong_shapes_name_both() -> None:
    data = image_sum((6, 5, 3), WEIGHTS)
    with pytest.raises(InvalidDatasetError, match=r"\(3, 5, 6\).*\(6, 5, 3\)"):
        LitertEvaluator().outputs(data, np.zeros((1, 3, 5, 6), np.float32))


def test_labels_out_of_range_are_refused() -> None:
    samples = Samples(
        stored=np.zeros((2, 3, 6, 5), np.float32), labels=np.asarray([0, 3]), name="evaluation"
    )
    with pytest.raises(InvalidDatasetError, match="3 classes"):
        LitertEvaluator().evaluate(image_sum((6, 5, 3), WEIGHTS), samples)


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 64, b"not a flatbuffer at all"])
def test_what_is_no_file_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidModelError):
        LitertEvaluator().outputs(data, np.zeros((1, 3), np.float32))


def test_several_inputs_are_told_apart_by_name() -> None:
    builder = TfliteBuilder()
    first, second = builder.tensor([1, 2]), builder.tensor([1, 2])
    ends = [builder.dense(first, np.eye(2)), builder.dense(second, 10 * np.eye(2))]
    data = builder.build([first, second], ends)
    runner = LitertRunner(data, threads=1)
    names = runner.input_names
    assert len(set(names)) == 2
    one, other = (np.full((3, 2), value, np.float32) for value in (1.0, 2.0))
    left, right = runner.run({names[1]: other, names[0]: one})
    assert left == pytest.approx(1.0 * one)
    assert right == pytest.approx(10 * other)
    for given in (one, {names[0]: one}, {names[0]: one, "other": other}):
        with pytest.raises(InvalidDatasetError, match="the given inputs"):
            runner.run(given)


def test_foreign_files_have_no_metadata_of_ours() -> None:
    assert read_metadata(image_sum((6, 5, 3), WEIGHTS)) == {}
