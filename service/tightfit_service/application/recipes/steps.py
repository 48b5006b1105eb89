"""The steps of recipes: what they are called, what they may say, and how graphs are changed by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from tightfit_service.application.data.activation_ranges import check_method
from tightfit_service.application.plain import from_plain
from tightfit_service.application.ports import (
    GraphPass,
    PassContext,
    QuantizationSettings,
    RecoverySettings,
    StructuredPruning,
)
from tightfit_service.domain.errors import InvalidDatasetError, InvalidRequestError
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
        """Check every step of a recipe against the graph it is for, before any time is spent on it.

        Steps see what the earlier ones made, so all that change the graph are carried out, without
        training and without data: neither changes which nodes and channels there are.

        Raises:
            InvalidRequestError: An unknown pass, an unknown parameter, or one out of range.
        """
        for step in recipe.steps:
            if step.pass_name == RECOVERY_STEP:
                _check_keys(step, RecoverySettings)
                check_recovery(_settings_of(step, RecoverySettings))
            elif step.pass_name == QUANTIZATION_STEP:
                _check_keys(step, QuantizationSettings)
                settings = _settings_of(step, QuantizationSettings)
                check_method(settings.method, settings.percentile)
            elif step.pass_name == PRUNING_STEP:
                _kept(step)
            else:
                self._known(step)
        context = PassContext(seed=recipe.seed)
        for step in recipe.steps:
            if step.pass_name in {RECOVERY_STEP, QUANTIZATION_STEP}:
                continue
            if step is recipe.steps[0] and step.pass_name in self.passes:
                # stricter than applying it: what pruning leads to later is an error here
                self.passes[step.pass_name].check(graph, step.parameters)
            try:
                graph = self.apply(graph, step, context)
            except InvalidDatasetError:
                return  # only the job has the samples that this step looks at

    def apply(self, graph: bytes, step: PassStep, context: PassContext) -> bytes:
        """Return the graph with one step applied.

        Raises:
            InvalidRequestError: An unknown pass, or parameters that do not fit the graph.
        """
        if step.pass_name == PRUNING_STEP:
            keep = _kept(step)
            return self.pruning.apply(graph, keep) if keep else graph
        # passes check their parameters themselves, and clip what pruning has put out of range
        return self._known(step).apply(graph, step.parameters, context)

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


def _kept(step: PassStep) -> Mapping[str, Sequence[int]]:
    """Return the units that stay, by group, of a step of structured pruning.

    Raises:
        InvalidRequestError: An unknown parameter, or what is no list of whole numbers.
    """
    field = f"recipe.steps.{PRUNING_STEP}"
    for key in step.parameters:
        if key != "keep":
            raise InvalidRequestError(
                f"{PRUNING_STEP} has no parameter {key!r}",
                field=f"{field}.{key}",
                remedy="the only one is keep: the units that stay, by group",
            )
    keep = step.parameters.get("keep", {})
    if not isinstance(keep, Mapping):
        raise InvalidRequestError(
            f"keep is {keep!r}",
            field=f"{field}.keep",
            remedy="map channel groups to the lists of their units that stay",
        )
    for group, units in keep.items():
        is_list = isinstance(units, Sequence) and not isinstance(units, str)
        if not is_list or not all(_is_whole(unit) for unit in units):
            raise InvalidRequestError(
                f"units of group {group!r} are not whole numbers",
                field=f"{field}.keep[{group}]",
                remedy="list the indices of the units that stay, such as [0, 1, 5]",
            )
    return keep


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1


def _check_keys(step: PassStep, kind: type[Any]) -> None:
    """Refuse parameters that the settings do not have: what they ask for would not be done."""
    known = [item.name for item in fields(kind)]
    for key in step.parameters:
        if key not in known:
            raise InvalidRequestError(
                f"{step.pass_name} has no parameter {key!r}",
                field=f"recipe.steps.{step.pass_name}.{key}",
                remedy=f"its parameters are {', '.join(known)}",
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
