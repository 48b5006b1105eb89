"""Tests of what exported files say about themselves."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from tightfit_service.application.plain import from_plain
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.application.work.file_metadata import (
    input_metadata,
    recipe_metadata,
    recipe_text,
)
from tightfit_service.domain.dataset import Preprocess
from tightfit_service.domain.recipe import PassStep, Recipe

RECIPE = Recipe(
    source_digest="ab" * 32,
    seed=7,
    target="nucleo-h7a3zi-q",
    output_format="tflite",
    steps=(PassStep(pass_name="recovery", parameters={"epochs": 3.0, "learning_rate": 0.5}),),
    tool_versions={"tightfit-service": "0.1.0", "torch": "2.13.0"},
    architecture=("conv Conv 8x1x3x3",),
)


def test_a_recipe_says_where_the_file_came_from() -> None:
    facts = recipe_metadata(RECIPE)
    assert facts["tightfit.source_digest"] == "ab" * 32
    assert facts["tightfit.target"] == "nucleo-h7a3zi-q"
    assert facts["tightfit.seed"] == "7"
    assert facts["tightfit.version"] == "0.1.0"
    text = facts["tightfit.recipe"]
    assert facts["tightfit.recipe_digest"] == hashlib.sha256(text.encode()).hexdigest()
    assert from_plain(Recipe, json.loads(text)) == RECIPE


def test_a_recipe_has_one_digest_however_its_numbers_are_typed() -> None:
    # whole numbers come back from JSON as integers or as floats, depending on who read them
    typed = Recipe(
        **{
            **RECIPE.__dict__,
            "steps": (
                PassStep(pass_name="recovery", parameters={"learning_rate": 0.5, "epochs": 3}),
            ),
        }
    )
    assert recipe_text(typed) == recipe_text(RECIPE)
    assert '"epochs":3,' in recipe_text(RECIPE)


def test_inputs_say_how_they_are_made_from_data() -> None:
    stored = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    samples = Samples(
        stored=stored,
        labels=None,
        preprocess=Preprocess(scale=0.5, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0)),
        input_name="image",
        others={"size": StoredInput(stored=np.zeros((2, 1)))},
    )
    facts = input_metadata(samples, ["cat", "dog"])
    assert json.loads(facts["tightfit.preprocess"]) == {
        "image": {"scale": 0.5, "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]},
        "size": {"scale": 1.0, "mean": [], "std": []},
    }
    assert json.loads(facts["tightfit.labels"]) == ["cat", "dog"]
    assert input_metadata(None) == {}
