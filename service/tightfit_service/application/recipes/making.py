"""Recipes of a job's trials, made from what the solver chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import QuantizationSettings, RecoverySettings
from tightfit_service.application.recipes.steps import (
    PRUNING_STEP,
    QUANTIZATION_STEP,
    RECOVERY_STEP,
)
from tightfit_service.application.recipes.techniques import PRECISION
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.job import JobSpec
from tightfit_service.domain.network import Alternative
from tightfit_service.domain.recipe import PassStep, Recipe


@dataclass(frozen=True, kw_only=True)
class RecipeMaker:
    """Writes recipes for one job."""

    spec: JobSpec
    number_format: NumberFormat
    tool_versions: Mapping[str, str]
    architecture: tuple[str, ...]

    def make(
        self,
        *,
        first: Sequence[PassStep] = (),
        keep: Mapping[str, Sequence[int]] | None = None,
        alternatives: Sequence[Alternative] = (),
        recovery: RecoverySettings | None = None,
    ) -> Recipe:
        """Return a recipe.

        Args:
            first: Steps that change the network as a whole; all others are for what they leave.
            keep: Units that stay, per group that is cut.
            alternatives: Ways to compute nodes that are not the ordinary ones.
            recovery: How to train back, or None for no training.
        """
        steps = list(first)
        if keep:
            kept = {group: list(units) for group, units in keep.items()}
            steps.append(PassStep(pass_name=PRUNING_STEP, parameters={"keep": kept}))
        formats: dict[str, NumberFormat] = {}
        nodes: dict[str, dict[str, Any]] = {}
        for choice in alternatives:
            if choice.pass_name == PRECISION:
                formats[choice.node] = NumberFormat(choice.parameters["number_format"])
            else:
                nodes.setdefault(choice.pass_name, {})[choice.node] = dict(choice.parameters)
        steps += [
            PassStep(pass_name=name, parameters={"nodes": chosen}) for name, chosen in nodes.items()
        ]
        if recovery is not None:
            taught = replace(recovery, teachers=self._teachers)
            steps.append(PassStep(pass_name=RECOVERY_STEP, parameters=to_plain(taught)))
        knows_rounding = recovery is not None and recovery.quantization_aware
        quantization = QuantizationSettings(
            number_format=self.number_format,
            node_formats=formats,
            # rounding weights to 4 bits shifts outputs by more than what noise there is in biases
            bias_correction=not knows_rounding
            and NumberFormat.INT4 in {self.number_format, *formats.values()},
        )
        steps.append(PassStep(pass_name=QUANTIZATION_STEP, parameters=to_plain(quantization)))
        return Recipe(
            source_digest=self.spec.model_digest,
            seed=self.spec.seed,
            target=self.spec.target.name,
            output_format=str(self.spec.format),
            steps=tuple(steps),
            tool_versions=self.tool_versions,
            architecture=self.architecture,
        )

    def continued(
        self,
        recipe: Recipe,
        *,
        further: Sequence[PassStep],
        recovery: RecoverySettings | None,
        quantization: QuantizationSettings,
    ) -> Recipe:
        """Return a recipe that goes on where an earlier one ended, training after each further step.

        Where training knows about rounding, only the last does.
        """
        steps = list(trained_steps(recipe))
        for number, step in enumerate(further, start=1):
            steps.append(step)
            if recovery is not None:
                knows_rounding = recovery.quantization_aware and number == len(further)
                taught = replace(
                    recovery, quantization_aware=knows_rounding, teachers=self._teachers
                )
                steps.append(PassStep(pass_name=RECOVERY_STEP, parameters=to_plain(taught)))
        steps.append(PassStep(pass_name=QUANTIZATION_STEP, parameters=to_plain(quantization)))
        return replace(recipe, steps=tuple(steps))

    def reapplied(self, recipe: Recipe) -> Recipe:
        """Return a recipe found on an earlier model, to be applied to this job's model as it is.

        What teaches besides the original are this job's teachers.
        """
        return replace(
            recipe,
            steps=tuple(self._taught(step) for step in recipe.steps),
            source_digest=self.spec.model_digest,
            target=self.spec.target.name,
            output_format=str(self.spec.format),
            tool_versions=self.tool_versions,
            architecture=self.architecture,
        )

    @property
    def _teachers(self) -> tuple[str, ...]:
        return tuple(teacher.digest for teacher in self.spec.teachers)

    def _taught(self, step: PassStep) -> PassStep:
        """Return a step that says who teaches in this job, if it trains."""
        if step.pass_name != RECOVERY_STEP or teachers_of(step) == self._teachers:
            return step
        return replace(step, parameters={**step.parameters, "teachers": list(self._teachers)})


def teachers_of(step: PassStep) -> tuple[str, ...]:
    """Return the digests of the models that taught besides the original in a recovery step."""
    return tuple(step.parameters.get("teachers", ()))


def trained_steps(recipe: Recipe) -> tuple[PassStep, ...]:
    """Return the steps that change or train the network; the one left out is for its export."""
    return tuple(step for step in recipe.steps if step.pass_name != QUANTIZATION_STEP)


def is_in(alternative: Alternative, recipe: Recipe) -> bool:
    """Whether a recipe computes the alternative's node in that way."""
    if alternative.pass_name == PRECISION:
        step = recipe.step(QUANTIZATION_STEP)
        formats = step.parameters.get("node_formats", {}) if step is not None else {}
        return bool(formats.get(alternative.node) == alternative.parameters["number_format"])
    step = recipe.step(alternative.pass_name)
    nodes = step.parameters.get("nodes", {}) if step is not None else {}
    return bool(nodes.get(alternative.node) == alternative.parameters)
