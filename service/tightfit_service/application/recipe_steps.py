"""The steps of recipes: what they are called, what they may say, and how graphs are changed by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tightfit_service.application.plain import from_plain
from tightfit_service.application.ports import (
    GraphPass,
    PassContext,
    QuantizationSettings,
    RecoverySettings,
    StructuredPruning,
)
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.recipe import PassStep, Recipe

S = TypeVar("S")

PRUNING_STEP = "structured_pruning"
RESOLUTION_STEP = "resolution"
SPARSITY_STEP = "sparsity"
CLUSTERING_STEP = "clustering"
RECOVERY_STEP = "recovery"
QUANTIZATION_STEP = "quantization"

RECOVERY_RANGES: Mapping[str, tuple[float, float]] = {
    "epochs": (0, 100_000),
    "max_seconds": (0, 1e9),
    "batch_size": (1, 65_536),
    "learning_rate": (1e-9, 10),
    "weight_decay": (0, 1),
    "distillation_weight": (0, 1),
    "temperature": (0.01, 100),
    "feature_weight": (0, 1e6),
}
"""Values of `RecoverySettings` that make sense; NaN is in no range."""

AUGMENTATIONS = ("auto", "none", "flip-crop")


@dataclass(frozen=True, kw_only=True)
class GraphSteps:
    """The steps of a recipe that turn one graph into another without training."""

    pruning: StructuredPruning
    passes: Mapping[str, GraphPass]

    def check(self, graph: bytes, recipe: Recipe) -> None:
        """Check the parameters of a recipe's first step against the graph it is for.

        Later steps see what the earlier ones made, so they are checked when they are applied.

        Raises:
            InvalidRequestError: An unknown pass, or a parameter out of range.
        """
        for step in recipe.steps:
            if step.pass_name == RECOVERY_STEP:
                check_recovery(_settings_of(step, RecoverySettings))
            elif step.pass_name == QUANTIZATION_STEP:
                _settings_of(step, QuantizationSettings)
            elif step.pass_name != PRUNING_STEP:
                self._known(step)
        for step in recipe.steps[:1]:
            if step.pass_name in self.passes:
                self.passes[step.pass_name].check(graph, step.parameters)

    def apply(self, graph: bytes, step: PassStep, context: PassContext) -> bytes:
        """Return the graph with one step applied.

        Raises:
            InvalidRequestError: An unknown pass, or parameters that do not fit the graph.
        """
        if step.pass_name == PRUNING_STEP:
            keep = step.parameters.get("keep", {})
            return self.pruning.apply(graph, keep) if keep else graph
        found = self._known(step)
        found.check(graph, step.parameters)
        return found.apply(graph, step.parameters, context)

    def _known(self, step: PassStep) -> GraphPass:
        if step.pass_name not in self.passes:
            names = sorted([*self.passes, PRUNING_STEP, RECOVERY_STEP, QUANTIZATION_STEP])
            raise InvalidRequestError(
                f"there is no pass {step.pass_name!r}",
                field="recipe.steps.pass_name",
                remedy=f"the passes are {', '.join(names)}",
            )
        return self.passes[step.pass_name]


def check_recovery(settings: RecoverySettings) -> None:
    """Refuse training that cannot be meant.

    Raises:
        InvalidRequestError: A value out of its range; `field` names it.
    """
    for name, (low, high) in RECOVERY_RANGES.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise InvalidRequestError(
                f"{name} is {value}",
                field=f"recipe.steps.{RECOVERY_STEP}.{name}",
                remedy=f"give a number from {low:g} to {high:g}",
            )
    if settings.augmentation not in AUGMENTATIONS:
        raise InvalidRequestError(
            f"there is no augmentation {settings.augmentation!r}",
            field=f"recipe.steps.{RECOVERY_STEP}.augmentation",
            remedy=f"choose from {', '.join(AUGMENTATIONS)}",
        )


def recovery_of(step: PassStep, done: Sequence[PassStep]) -> RecoverySettings:
    """Return how a step trains, given what was done before: it must not undo that."""
    settings = _settings_of(step, RecoverySettings)
    names = {earlier.pass_name for earlier in done}
    return replace(
        settings,
        keep_zeros=settings.keep_zeros or SPARSITY_STEP in names,
        share_values=settings.share_values or CLUSTERING_STEP in names,
    )


def _settings_of(step: PassStep, kind: type[S]) -> S:
    """Return the parameters of a step as settings.

    Raises:
        InvalidRequestError: A parameter is missing or of the wrong type.
    """
    return from_plain(
        kind,
        step.parameters,
        field=f"recipe.steps.{step.pass_name}",
        remedy="give the parameters that `tightfit recipe show` lists for this step",
    )


def quantization_of(recipe: Recipe) -> QuantizationSettings:
    """Return how a recipe's result is exported."""
    step = recipe.step(QUANTIZATION_STEP)
    if step is None:
        return QuantizationSettings()
    return _settings_of(step, QuantizationSettings)


def as_carried_out(recipe: Recipe, recoveries: Sequence[float]) -> Recipe:
    """Return a recipe that trains as long as it did, however much time there is the next time.

    `recoveries` has the epochs of its last trainings; those before were carried out earlier.
    """
    steps, left = [], list(recoveries)
    for step in reversed(recipe.steps):
        parameters = step.parameters
        if step.pass_name == RECOVERY_STEP and left:
            parameters = {**parameters, "epochs": left.pop(), "max_seconds": None}
        steps.append(replace(step, parameters=parameters))
    return replace(recipe, steps=tuple(reversed(steps)))
