"""Samples with one input and with several."""

from __future__ import annotations

import numpy as np
import pytest

from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.dataset import Layout, MetricName, Preprocess
from tightfit_service.domain.errors import InvalidDatasetError


def _two(count: int = 5) -> Samples:
    rng = np.random.default_rng(0)
    return Samples(
        stored=rng.integers(0, 256, (count, 4, 6, 3), dtype=np.uint8),
        labels=np.arange(count),
        preprocess=Preprocess(scale=1 / 255),
        layout=Layout.NHWC,
        name="train",
        input_name="image",
        others={"meta": StoredInput(stored=rng.normal(size=(count, 2)), layout=Layout.ANY)},
    )


def test_a_sample_with_several_inputs_feeds_each_in_the_models_order() -> None:
    samples = _two()
    feeds = samples.feeds([1, 3], ["meta", "image"])
    assert list(feeds) == ["meta", "image"]
    assert feeds["image"].shape == (2, 3, 4, 6)
    stored = np.asarray(samples.others["meta"].stored[[1, 3]], dtype=np.float32)
    np.testing.assert_array_equal(feeds["meta"], stored)
    np.testing.assert_array_equal(feeds["image"], samples.inputs([1, 3]))


def test_the_only_input_needs_no_name() -> None:
    samples = Samples(stored=np.ones((3, 2)), labels=None)
    assert list(samples.feeds(slice(0, 2), ["anything"])) == ["anything"]


@pytest.mark.parametrize("names", [["image"], ["image", "other"], ["image", "meta", "third"]])
def test_inputs_that_are_not_the_models_are_named(names: list[str]) -> None:
    with pytest.raises(InvalidDatasetError, match=r"'image', 'meta'") as caught:
        _two().feeds([0], names)
    assert caught.value.field == "splits.train.input"


def test_batches_walk_through_all_inputs_and_labels() -> None:
    samples = _two(5)
    batches = list(samples.feed_batches(2, ["image", "meta"]))
    assert [len(feeds["meta"]) for feeds, _ in batches] == [2, 2, 1]
    labels = [labels for _, labels in batches if labels is not None]
    np.testing.assert_array_equal(np.concatenate(labels), samples.labels)


def test_a_part_keeps_all_inputs_together() -> None:
    samples = _two().judged(np.arange(5.0), MetricName.MSE)
    part = samples.take([4, 0], name="selection")
    assert (part.name, part.metric, len(part)) == ("selection", MetricName.MSE, 2)
    np.testing.assert_array_equal(part.others["meta"].stored, samples.others["meta"].stored[[4, 0]])
    np.testing.assert_array_equal(part.labels, [4.0, 0.0])


def test_a_models_answers_stand_for_labels() -> None:
    samples = _two(5).judged(None, MetricName.SQNR)
    answered = samples.answered(lambda feeds: feeds["meta"] * 2, ["image", "meta"], batch_size=2)
    assert answered.metric is MetricName.SQNR
    expected = samples.feeds(slice(None), ["image", "meta"])["meta"] * 2
    np.testing.assert_array_equal(np.asarray(answered.labels), expected)
