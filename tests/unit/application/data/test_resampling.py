"""Samples of another size: areas averaged, lines interpolated, preprocessing left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tightfit_service.application.data.resampling import resampling_weights, resize_samples
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout, Preprocess
from tightfit_service.domain.errors import InvalidDatasetError


def stored(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_halves_are_means_of_four_pixels() -> None:
    images = stored(5, 3, 8, 6).astype(np.float32)
    found: Any = resize_samples(Samples(stored=images, labels=None), 4, 3).stored
    expected = images.reshape(5, 3, 4, 2, 3, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(32, 24), (7, 5), (96, 80), (9, 1), (5, 5)])
def test_areas_that_overlap_are_weighted_by_their_share(source: int, target: int) -> None:
    weights = resampling_weights(source, target)
    # each source pixel cut into `target` parts, of which each target pixel averages `source`
    line = np.random.default_rng(0).random(source)
    expected = np.repeat(line, target).reshape(target, source).mean(axis=1)
    np.testing.assert_allclose(weights @ line, expected, rtol=1e-5)


def test_growing_lines_are_interpolated_between_centres() -> None:
    weights = resampling_weights(4, 8)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    line = np.array([0.0, 1.0, 2.0, 3.0])
    expected = [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
    np.testing.assert_allclose(weights @ line, expected, rtol=1e-6)


def test_both_layouts_give_the_same_inputs() -> None:
    images = stored(4, 3, 12, 8)
    one = resize_samples(Samples(stored=images, labels=None), 9, 6)
    other = resize_samples(
        Samples(stored=images.transpose(0, 2, 3, 1), labels=None, layout=Layout.NHWC), 9, 6
    )
    assert other.stored.shape == (4, 9, 6, 3)
    np.testing.assert_array_equal(one.inputs(slice(None)), other.inputs(slice(None)))


def test_bytes_stay_bytes_rounded_to_the_nearest() -> None:
    images = stored(4, 3, 12, 8)
    as_bytes = resize_samples(Samples(stored=images, labels=None), 5, 5).stored
    as_floats = resize_samples(Samples(stored=images.astype(np.float32), labels=None), 5, 5).stored
    assert as_bytes.dtype == np.uint8
    assert np.abs(as_bytes.astype(np.float32) - np.asarray(as_floats, dtype=float)).max() <= 0.501


def test_everything_else_stays() -> None:
    preprocess = Preprocess(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    samples = Samples(
        stored=stored(4, 3, 8, 8),
        labels=np.arange(4),
        preprocess=preprocess,
        model_layout=Layout.NHWC,
        name="train",
    )
    found = resize_samples(samples, 4, 4)
    assert found.labels is samples.labels
    assert (found.preprocess, found.model_layout, found.name) == (preprocess, Layout.NHWC, "train")
    assert found.inputs([0]).shape == (1, 4, 4, 3)
    assert resize_samples(samples, 8, 8) is samples


def test_preprocessing_before_or_after_is_the_same() -> None:
    images = stored(4, 3, 8, 8).astype(np.float32)
    preprocess = Preprocess(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    given = Samples(stored=images, labels=None, preprocess=preprocess)
    before = resize_samples(Samples(stored=given.inputs(slice(None)), labels=None), 6, 6)
    after = resize_samples(given, 6, 6)
    np.testing.assert_allclose(
        before.inputs(slice(None)), after.inputs(slice(None)), rtol=1e-4, atol=1e-5
    )


def test_many_images_are_resized_in_parts() -> None:
    images = stored(40, 3, 512, 512)
    found = resize_samples(Samples(stored=images, labels=None), 256, 256).stored
    expected = images[-1].reshape(3, 256, 2, 256, 2).astype(float).mean(axis=(2, 4))
    assert np.abs(np.asarray(found[-1], dtype=float) - expected).max() <= 0.501


@pytest.mark.parametrize("shape", [(4, 10), (4, 3, 10)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidDatasetError, match="only images"):
        resize_samples(Samples(stored=stored(*shape), labels=None), 4, 4)
