"""Recipes: what was done to a model, as data that can be stored, compared and re-applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from tightfit_service.domain.errors import InvalidRequestError

RECIPE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PassStep:
    """One pass with its parameters.

    `parameters` is plain JSON data; each pass documents its own keys. Those that need no file to say:
        structured_pruning: `keep`: group id -> sorted list of unit indices that stay.
        passes that work on single nodes: `nodes`: node name -> parameters for that node.
        recovery: fields of `application.ports.RecoverySettings`.
        quantization: fields of `application.ports.QuantizationSettings`.
    """

    pass_name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Ordered passes with all that is needed to apply them again.

    Attributes:
        version: Version of this format (`RECIPE_VERSION`).
        source_digest: Digest of the model that the recipe was found on.
        seed: Seed of every random choice.
        target: Name of the hardware target.
        output_format: Format of the exported file (`tflite`, `onnx`).
        steps: Passes in order of application.
        tool_versions: Versions of tightfit and of the libraries that computed the result.
        architecture: One line per node of the model that the recipe was found on: name, operator and
            shapes of its weights. A recipe fits models with the same lines, whatever the weights.
    """

    source_digest: str
    seed: int
    target: str
    output_format: str
    steps: tuple[PassStep, ...]
    tool_versions: Mapping[str, str] = field(default_factory=dict)
    architecture: tuple[str, ...] = ()
    version: int = RECIPE_VERSION

    def step(self, pass_name: str) -> PassStep | None:
        """Return the first step of that pass, or None."""
        return next((step for step in self.steps if step.pass_name == pass_name), None)

    def check_fits(self, architecture: Sequence[str]) -> None:
        """Refuse a model of another architecture, or a recipe of a format that is not known here.

        Raises:
            InvalidRequestError: With the first difference between the two.
        """
        if self.version != RECIPE_VERSION:
            raise InvalidRequestError(
                f"the recipe has version {self.version}; this server reads version {RECIPE_VERSION}",
                field="recipe.version",
                remedy="search again with this version, or apply it with the one that made it",
            )
        for number, (wanted, found) in enumerate(
            zip_longest(self.architecture, architecture, fillvalue="nothing more"), start=1
        ):
            if wanted != found:
                raise InvalidRequestError(
                    f"the model differs from the one that the recipe was found on at node {number}: "
                    f"the recipe has {wanted}, the model has {found}",
                    field="recipe.architecture",
                    remedy="apply the recipe to other weights of the same architecture, or search",
                )
