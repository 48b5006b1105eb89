"""Tests of the checks of calibration samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tightfit_service.application.data.calibration_checks import InputCheck
from tightfit_service.domain.errors import InvalidDatasetError

IMAGES = np.random.default_rng(0).uniform(0.0, 1.0, size=(20, 3, 8, 8)).astype(np.float32)


def notes_on(values: npt.NDArray[np.float32], check: InputCheck | None = None) -> str:
    check = check or InputCheck()
    for part in np.array_split(values, 3):
        check.add(part)
    return " | ".join(check.notes())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_their_sample(bad: float) -> None:
    values = IMAGES.copy()
    values[11, 1, 2, 3] = bad
    with pytest.raises(InvalidDatasetError, match="sample 11 ") as caught:
        notes_on(values, InputCheck(name="image"))
    assert caught.value.field == "calibration"
    assert caught.value.remedy
    assert "'image'" in caught.value.message


def test_good_samples_have_no_notes() -> None:
    assert notes_on(IMAGES) == ""
    assert (
        notes_on(
            (IMAGES - np.float32(0.5)) * np.float32(4),
            InputCheck(is_normalised=True, background=-2.0),
        )
        == ""
    )


def test_ranges_that_say_nothing_are_told() -> None:
    assert "is 0.5 everywhere" in notes_on(np.full_like(IMAGES, 0.5))
    assert "the same in all 20 samples" in notes_on(np.repeat(IMAGES[:1], 20, axis=0))


def test_clipped_values_are_told_on_either_side() -> None:
    assert "are at its greatest, 1" in notes_on(np.minimum(IMAGES * 3, 1.0))
    assert "are at its least, -1" in notes_on(np.maximum(IMAGES * 4 - 2, -1.0))


def test_black_background_is_no_saturation() -> None:
    drawing = np.where(IMAGES > 0.8, IMAGES, 0.0).astype(np.float32)
    assert notes_on(drawing) == ""
    shifted = ((drawing - 0.3) / 0.3).astype(np.float32)
    assert notes_on(shifted, InputCheck(is_normalised=True, background=-1.0)) == ""
    assert "at its least" in notes_on(shifted)


def test_normalisation_that_did_not_work_is_told() -> None:
    check = InputCheck(is_normalised=True)
    pixels = np.rint(IMAGES * 254).astype(np.float32) + np.float32(1)
    assert "reaches 255" in notes_on(pixels, check)
    assert "check scale, mean and std" in notes_on(
        IMAGES * np.float32(1 / 255), InputCheck(is_normalised=True)
    )
