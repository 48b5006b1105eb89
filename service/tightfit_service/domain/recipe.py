"""Recipes: what was done to a model, as data that can be stored, compared and re-applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RECIPE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PassStep:
    """One pass with its parameters.

    `parameters` is plain JSON data; each pass documents its own keys. The keys of the passes here:
        structured_pruning: `keep`: group id -> sorted list of unit indices that stay.
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
    """

    source_digest: str
    seed: int
    target: str
    output_format: str
    steps: tuple[PassStep, ...]
    tool_versions: Mapping[str, str] = field(default_factory=dict)
    version: int = RECIPE_VERSION

    def step(self, pass_name: str) -> PassStep | None:
        """Return the first step of that pass, or None."""
        return next((step for step in self.steps if step.pass_name == pass_name), None)
