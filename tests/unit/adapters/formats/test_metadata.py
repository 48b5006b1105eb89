"""Tests of what metadata may cost a file."""

from __future__ import annotations

import base64
import json
import zlib

from tightfit_service.adapters.formats.metadata import COMPRESSED, affordable

RECIPE = json.dumps({"architecture": [f"conv{index} Conv 8x8x3x3" for index in range(100)]})
FACTS = {"tightfit.seed": "1", "tightfit.recipe": RECIPE, "tightfit.labels": '["cat","dog"]'}


def test_large_files_carry_everything_as_it_is() -> None:
    assert affordable(FACTS, 1 << 20) == FACTS


def test_smaller_files_carry_the_recipe_compressed() -> None:
    kept = affordable(FACTS, 16 * len(RECIPE))
    form = kept["tightfit.recipe"]
    assert len(form) < len(RECIPE) / 2
    assert zlib.decompress(base64.b64decode(form.removeprefix(COMPRESSED))).decode() == RECIPE
    assert kept["tightfit.labels"] == FACTS["tightfit.labels"]


def test_the_smallest_files_carry_what_cannot_be_left_out() -> None:
    assert affordable(FACTS, 100) == {"tightfit.seed": "1"}
