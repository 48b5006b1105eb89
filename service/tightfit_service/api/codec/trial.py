"""Trials and their recipes."""

from __future__ import annotations

from tightfit.v1 import recipe_pb2, trial_pb2
from tightfit_service.api import resource_names
from tightfit_service.api.codec import enums
from tightfit_service.api.codec.metrics import metrics_to_proto, violation_to_proto
from tightfit_service.api.codec.plain_data import struct_from_proto, struct_to_proto
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.domain.trial import Trial


def trial_to_proto(trial: Trial, *, project_id: str, job_id: str) -> trial_pb2.Trial:
    """Return a trial of the given job."""
    return trial_pb2.Trial(
        name=resource_names.TRIAL.name(project_id, job_id, str(trial.index)),
        index=trial.index,
        role=enums.TRIAL_ROLE.to_proto(trial.role),
        state=enums.TRIAL_STATE.to_proto(trial.state),
        recipe=recipe_to_proto(trial.recipe),
        metrics=None if trial.metrics is None else metrics_to_proto(trial.metrics),
        predicted_accuracy=trial.predicted_accuracy,
        violations=[violation_to_proto(violation) for violation in trial.violations],
        feasible=trial.is_feasible,
        artifacts={
            name: resource_names.ARTIFACT.name(project_id, digest)
            for name, digest in trial.artifacts.items()
        },
        stage_seconds=trial.stage_seconds,
        input_digest=trial.input_digest,
        error=trial.error,
        notes=trial.notes,
        format_notes=trial.format_notes,
    )


def recipe_to_proto(recipe: Recipe) -> recipe_pb2.Recipe:
    """Return a recipe."""
    return recipe_pb2.Recipe(
        version=recipe.version,
        source_digest=recipe.source_digest,
        seed=recipe.seed,
        target=recipe.target,
        output_format=enums.MODEL_FORMAT.to_proto(ModelFormat(recipe.output_format)),
        steps=[
            recipe_pb2.PassStep(
                pass_name=step.pass_name, parameters=struct_to_proto(step.parameters)
            )
            for step in recipe.steps
        ],
        tool_versions=recipe.tool_versions,
        architecture=recipe.architecture,
    )


def recipe_from_proto(message: recipe_pb2.Recipe) -> Recipe:
    """Return a recipe.

    Raises:
        InvalidRequestError: No steps, a step without a name, or an unknown output format.
    """
    if not message.steps or any(not step.pass_name for step in message.steps):
        raise InvalidRequestError(
            "the recipe has no steps, or one without a name",
            field="recipe.steps",
            remedy="send the recipe.json of an earlier result unchanged",
        )
    return Recipe(
        version=message.version,
        source_digest=message.source_digest,
        seed=message.seed,
        target=message.target,
        output_format=enums.MODEL_FORMAT.from_proto(
            message.output_format, field="recipe.output_format"
        ),
        steps=tuple(
            PassStep(pass_name=step.pass_name, parameters=struct_from_proto(step.parameters))
            for step in message.steps
        ),
        tool_versions=dict(message.tool_versions),
        architecture=tuple(message.architecture),
    )
