"""What an exported file says about itself: where it came from, what was done, how it is to be fed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tightfit_service.application.plain import to_plain
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.recipe import Recipe

PREFIX = "tightfit."
VERSION_KEY = "tightfit.version"
SOURCE_KEY = "tightfit.source_digest"
TARGET_KEY = "tightfit.target"
SEED_KEY = "tightfit.seed"
RECIPE_DIGEST_KEY = "tightfit.recipe_digest"
RECIPE_KEY = "tightfit.recipe"
PREPROCESS_KEY = "tightfit.preprocess"
"""JSON: per input `scale`, `mean` and `std`; a model with one input may leave its name empty."""
LABELS_KEY = "tightfit.labels"
"""JSON: names of the classes, in the order of the scores."""

_SERVICE = "tightfit-service"


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as it is stored in files: compact JSON with sorted keys.

    Its sha-256 is the recipe's digest. `recipe.json` has the same content, indented.
    """
    return _compact(_whole_numbers(to_plain(recipe)))


def recipe_metadata(recipe: Recipe) -> Mapping[str, str]:
    """Return what a recipe says about the file that it led to."""
    text = recipe_text(recipe)
    facts = {
        VERSION_KEY: recipe.tool_versions.get(_SERVICE, ""),
        SOURCE_KEY: recipe.source_digest,
        TARGET_KEY: recipe.target,
        SEED_KEY: str(recipe.seed),
        RECIPE_DIGEST_KEY: hashlib.sha256(text.encode()).hexdigest(),
        RECIPE_KEY: text,
    }
    return {key: value for key, value in facts.items() if value}


def input_metadata(samples: Samples | None, class_names: Sequence[str] = ()) -> Mapping[str, str]:
    """Return how the file's inputs are made from data, and what its scores are called.

    Args:
        samples: Of the dataset that the file was evaluated on; None where that was made up.
        class_names: Empty where the dataset does not say.
    """
    facts: dict[str, str] = {}
    if samples is not None:
        facts[PREPROCESS_KEY] = _compact(
            {name: _preprocess(stored) for name, stored in samples.by_input.items()}
        )
    if class_names:
        facts[LABELS_KEY] = _compact(list(class_names))
    return facts


def _preprocess(stored: StoredInput) -> dict[str, Any]:
    mean, std = stored.preprocess.mean, stored.preprocess.std
    return {"scale": stored.preprocess.scale, "mean": list(mean), "std": list(std)}


def _whole_numbers(value: Any) -> Any:
    """Return data with 1.0 as 1: what travels as JSON numbers has one type, and one digest."""
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
