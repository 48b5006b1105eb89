"""Jobs: requests inwards; jobs, results and events outwards."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from tightfit.v1 import compression_pb2, hardware_pb2, job_pb2, recipe_pb2
from tightfit_service.api import resource_names
from tightfit_service.api.codec import enums
from tightfit_service.api.codec.budget import (
    budget_from_proto,
    budget_to_proto,
    objective_from_proto,
    objective_to_proto,
    search_limits_from_proto,
    search_limits_to_proto,
)
from tightfit_service.api.codec.hardware import partial_from_proto, spec_to_proto
from tightfit_service.api.codec.metrics import metrics_to_proto, violation_to_proto
from tightfit_service.api.codec.times import duration_to_proto, timestamp_to_proto
from tightfit_service.api.codec.trial import recipe_from_proto, recipe_to_proto
from tightfit_service.application.ports import UnreadableJob
from tightfit_service.application.runners.sessions import MAX_LABELS, MAX_TEXT
from tightfit_service.application.use_cases import CheckReport, JobRequest
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.job import (
    MAX_PRIORITY,
    Infeasibility,
    Job,
    JobEvent,
    JobResult,
    JobSpec,
    LayerAttribution,
    PreflightNote,
    Relaxation,
)
from tightfit_service.domain.measurement import Verification

MAX_REQUEST_ID_LENGTH = 128


def target_from_proto(
    message: job_pb2.CompressionSpec | hardware_pb2.EstimateModelRequest, *, project_id: str
) -> str | Mapping[str, Any]:
    """Return the id of a target of the project or of the catalogue, or a partial description.

    Raises:
        InvalidRequestError: Neither is given, or the name is malformed or of another project.
        InvalidTargetError: The description has impossible figures.
    """
    which = message.WhichOneof("target")
    if which == "hardware_target":
        name = message.hardware_target
        if name.startswith("projects/"):
            return resource_names.parse_owned(
                resource_names.PROJECT_TARGET, name, project_id=project_id, field="target"
            )
        return resource_names.parse_hardware_target(name, field="target")[1]
    if which == "hardware_spec":
        return partial_from_proto(message.hardware_spec)
    raise InvalidRequestError(
        "no target is given",
        field="target",
        remedy="name a hardware target of the catalogue or describe one",
    )


def request_from_proto(
    spec: job_pb2.CompressionSpec,
    *,
    project_id: str,
    request_id: str = "",
    recipe: recipe_pb2.Recipe | None = None,
) -> JobRequest:
    """Return what is asked for; a recipe, where one is given, is applied instead of a search.

    Raises:
        InvalidRequestError: A missing or malformed name, an unknown enum value, a negative seed.
        InvalidBudgetError: A limit of zero or less, or two on one quantity.
        InvalidTargetError: A target with impossible figures.
    """
    _check_plain_fields(spec, request_id=request_id)
    owned = functools.partial(resource_names.parse_owned, project_id=project_id)
    return JobRequest(
        model=owned(resource_names.MODEL, spec.model, field="model"),
        dataset=(
            owned(resource_names.DATASET, spec.dataset, field="dataset") if spec.dataset else ""
        ),
        target=target_from_proto(spec, project_id=project_id),
        budget=budget_from_proto(spec.budget),
        objective=objective_from_proto(spec.objective),
        search_limits=search_limits_from_proto(spec.search_limits),
        output_format=enums.MODEL_FORMAT.optional(spec.output_format, field="output_format"),
        seed=spec.seed,
        priority=spec.priority,
        packed=spec.packed,
        techniques=tuple(spec.techniques),
        teachers=tuple(
            owned(resource_names.MODEL, name, field=f"teachers[{number}]")
            for number, name in enumerate(spec.teachers)
        ),
        importance=enums.IMPORTANCE.optional(spec.importance, field="importance"),
        runner_labels=dict(spec.runner_labels),
        recipe=None if recipe is None else recipe_from_proto(recipe),
        request_id=request_id,
        verification=enums.VERIFICATION.optional(spec.verification, field="verification")
        or Verification.NONE,
    )


def _check_plain_fields(spec: job_pb2.CompressionSpec, *, request_id: str) -> None:
    """Refuse numbers and texts outside their range."""
    if spec.seed < 0:
        raise InvalidRequestError(
            f"seed is {spec.seed}", field="seed", remedy="give a whole number from 0 on"
        )
    if abs(spec.priority) > MAX_PRIORITY:
        raise InvalidRequestError(
            f"priority is {spec.priority}",
            field="priority",
            remedy=f"give a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}",
        )
    texts = [text for pair in spec.runner_labels.items() for text in pair]
    if len(spec.runner_labels) > MAX_LABELS or max(map(len, texts), default=0) > MAX_TEXT:
        raise InvalidRequestError(
            f"more than {MAX_LABELS} labels of runners, or one beyond {MAX_TEXT} characters",
            field="runner_labels",
            remedy="name fewer labels, as the runners carry them",
        )
    if len(request_id) > MAX_REQUEST_ID_LENGTH or not request_id.isprintable():
        raise InvalidRequestError(
            f"request_id is longer than {MAX_REQUEST_ID_LENGTH} characters or not printable",
            field="request_id",
            remedy="a UUID is a good request id",
        )


def job_to_proto(job: Job) -> job_pb2.CompressionJob:
    """Return a job with its result as far as known."""
    has_error = bool(job.error or job.error_reason)
    return job_pb2.CompressionJob(
        name=resource_names.JOB.name(job.project, job.job_id),
        spec=_spec_to_proto(job.spec, project_id=job.project),
        state=enums.JOB_STATE.to_proto(job.state),
        error=(job_pb2.JobError(reason=job.error_reason, message=job.error) if has_error else None),
        result=_result_to_proto(job.result, project_id=job.project, job_id=job.job_id),
        create_time=timestamp_to_proto(job.create_time),
        update_time=timestamp_to_proto(job.update_time),
        start_time=None if job.start_time is None else timestamp_to_proto(job.start_time),
        end_time=None if job.end_time is None else timestamp_to_proto(job.end_time),
        revision=job.revision,
        request_id=job.request_id,
        model_digest=job.spec.model_digest,
        dataset_digest=job.spec.dataset_digest or "",
        teacher_digests=[teacher.digest for teacher in job.spec.teachers],
        spent_time=duration_to_proto(job.spent_seconds),
        creator=job.creator,
    )


def listed_job_to_proto(job: Job | UnreadableJob) -> job_pb2.CompressionJob:
    """Return a job of a list, with the reason as its error where it cannot be read."""
    if isinstance(job, Job):
        return job_to_proto(job)
    return job_pb2.CompressionJob(
        name=resource_names.JOB.name(job.project, job.job_id),
        state=enums.JOB_STATE.to_proto(job.state),
        error=job_pb2.JobError(reason=job.error.reason, message=str(job.error)),
        create_time=timestamp_to_proto(job.create_time),
        revision=job.revision,
    )


def event_to_proto(event: JobEvent, *, project_id: str) -> job_pb2.JobEvent:
    """Return a line of a job's course."""
    return job_pb2.JobEvent(
        job=resource_names.JOB.name(project_id, event.job_id),
        sequence=event.sequence,
        time=timestamp_to_proto(event.time),
        kind=enums.EVENT_KIND.to_proto(event.kind),
        message=event.message,
        stage=event.stage,
        state=enums.JOB_STATE.to_proto(event.state),
        trial=_trial_name(event.trial_index, project_id=project_id, job_id=event.job_id),
        fraction=event.fraction,
    )


def check_to_proto(report: CheckReport) -> compression_pb2.CheckJobResponse:
    """Return what can be said before a search."""
    return compression_pb2.CheckJobResponse(
        target=spec_to_proto(report.target),
        baseline=metrics_to_proto(report.baseline),
        baseline_int8=(
            None if report.baseline_int8 is None else metrics_to_proto(report.baseline_int8)
        ),
        violations=[violation_to_proto(violation) for violation in report.violations],
        notes=[_note_to_proto(note) for note in report.notes],
        fits_already=report.fits_already,
        reachable=report.reachable,
    )


def _spec_to_proto(spec: JobSpec, *, project_id: str) -> job_pb2.CompressionSpec:
    return job_pb2.CompressionSpec(
        model=_full_name(resource_names.MODEL, spec.model_name, project_id),
        dataset=_full_name(resource_names.DATASET, spec.dataset_name, project_id),
        hardware_spec=spec_to_proto(spec.target),
        budget=budget_to_proto(spec.budget),
        objective=objective_to_proto(spec.objective),
        search_limits=search_limits_to_proto(spec.search_limits),
        output_format=enums.MODEL_FORMAT.to_proto(spec.output_format),
        seed=spec.seed,
        priority=spec.priority,
        packed=spec.packed,
        techniques=spec.techniques,
        recipe=None if spec.recipe is None else recipe_to_proto(spec.recipe),
        verification=enums.VERIFICATION.to_proto(spec.verification),
        teachers=[
            _full_name(resource_names.MODEL, teacher.name, project_id) for teacher in spec.teachers
        ],
        importance=enums.IMPORTANCE.to_proto(spec.importance),
        runner_labels=spec.runner_labels,
    )


def _full_name(pattern: resource_names.NamePattern, name_or_id: str, project_id: str) -> str:
    """Return the full name; use cases that know no resource names keep the asset's id."""
    if not name_or_id or "/" in name_or_id:
        return name_or_id
    return pattern.name(project_id, name_or_id)


def _trial_name(index: int | None, *, project_id: str, job_id: str) -> str:
    return "" if index is None else resource_names.TRIAL.name(project_id, job_id, str(index))


def _result_to_proto(result: JobResult, *, project_id: str, job_id: str) -> job_pb2.JobResult:
    baseline, int8 = result.baseline, result.baseline_int8
    infeasibility = result.infeasibility
    return job_pb2.JobResult(
        baseline=None if baseline is None else metrics_to_proto(baseline),
        baseline_int8=None if int8 is None else metrics_to_proto(int8),
        best_trial=_trial_name(result.best_trial, project_id=project_id, job_id=job_id),
        pareto_trials=[
            _trial_name(index, project_id=project_id, job_id=job_id)
            for index in result.pareto_trials
        ],
        infeasibility=(
            None
            if infeasibility is None
            else _infeasibility_to_proto(infeasibility, project_id=project_id, job_id=job_id)
        ),
        layers=[_layer_to_proto(layer) for layer in result.layers],
        notes=[_note_to_proto(note) for note in result.notes],
    )


def _infeasibility_to_proto(
    infeasibility: Infeasibility, *, project_id: str, job_id: str
) -> job_pb2.Infeasibility:
    def relaxation(value: Relaxation) -> job_pb2.Relaxation:
        return job_pb2.Relaxation(
            quantity=enums.QUANTITY.to_proto(value.quantity),
            limit=value.limit,
            needed=value.needed,
            trial=_trial_name(value.trial_index, project_id=project_id, job_id=job_id),
        )

    return job_pb2.Infeasibility(
        binding=[enums.QUANTITY.to_proto(quantity) for quantity in infeasibility.binding],
        closest_trials=[
            _trial_name(index, project_id=project_id, job_id=job_id)
            for index in infeasibility.closest_trials
        ],
        relaxations=[relaxation(value) for value in infeasibility.relaxations],
        explanation=infeasibility.explanation,
    )


def _layer_to_proto(layer: LayerAttribution) -> job_pb2.LayerAttribution:
    return job_pb2.LayerAttribution(
        node=layer.node,
        op_type=layer.op_type,
        macs_before=layer.macs_before,
        macs_after=layer.macs_after,
        estimated_latency_ms_before=layer.latency_ms_before,
        estimated_latency_ms_after=layer.latency_ms_after,
        channels_before=layer.channels_before,
        channels_after=layer.channels_after,
        accuracy_cost=layer.accuracy_cost,
        number_format=layer.number_format,
        format_cost=layer.format_cost,
        changes=layer.changes,
        predicted_cost_alone=layer.predicted_alone,
        measured_cost_alone=layer.measured_alone,
        format_cost_after=layer.format_cost_after,
    )


def _note_to_proto(note: PreflightNote) -> job_pb2.PreflightNote:
    return job_pb2.PreflightNote(code=note.code, message=note.message, node=note.node)
