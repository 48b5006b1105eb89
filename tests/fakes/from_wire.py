"""Reads messages that the server only writes back into domain values: nothing may have been lost."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict

from tightfit.v1 import budget_pb2, job_pb2, metrics_pb2, recipe_pb2, trial_pb2
from tightfit_service.api import resource_names
from tightfit_service.api.codec import enums
from tightfit_service.api.codec.budget import (
    budget_from_proto,
    objective_from_proto,
    search_limits_from_proto,
)
from tightfit_service.api.codec.hardware import partial_from_proto
from tightfit_service.api.codec.times import duration_from_proto, timestamp_from_proto
from tightfit_service.application.plain import from_plain
from tightfit_service.domain.budget import Budget, Constraint, LimitSource
from tightfit_service.domain.cost import CostEstimate, OperatorCost
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.job import (
    Infeasibility,
    Job,
    JobEvent,
    JobResult,
    JobSpec,
    LayerAttribution,
    PreflightNote,
    Relaxation,
    TeacherModel,
)
from tightfit_service.domain.quantities import Accuracy, Interval
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.domain.trial import Metrics, Trial, Violation


def hardware(message: Any) -> HardwareSpec:
    """Read a complete description."""
    assumed = list(message.assumed_fields)
    return from_plain(HardwareSpec, {**partial_from_proto(message), "assumed_fields": assumed})


def budget(message: budget_pb2.Budget) -> Budget:
    """Read a budget with what the target implies."""
    return budget_from_proto(message).with_constraints(
        Constraint(
            quantity=enums.QUANTITY.from_proto(item.quantity, field="x"),
            limit=item.limit,
            source=LimitSource.TARGET,
        )
        for item in message.target_limits
    )


def interval(message: metrics_pb2.Estimate) -> Interval:
    """Read an estimate."""
    return Interval(value=message.value, low=message.low, high=message.high)


def cost(message: metrics_pb2.CostEstimate) -> CostEstimate:
    """Read a cost."""
    return CostEstimate(
        latency_ms=interval(message.estimated_latency_ms),
        energy_mj=interval(message.estimated_energy_mj),
        peak_ram_bytes=interval(message.estimated_peak_ram_bytes),
        flash_bytes=interval(message.flash_bytes),
        macs=message.macs,
        layers=tuple(
            OperatorCost(
                node=layer.node,
                op_type=layer.op_type,
                macs=layer.macs,
                latency_ms=layer.estimated_latency_ms,
                energy_mj=layer.estimated_energy_mj,
                weight_bytes=layer.weight_bytes,
                provenance=layer.provenance,
            )
            for layer in message.layers
        ),
        peak_node=message.peak_node,
        provenance=message.provenance,
        confidence=message.confidence,
        warnings=tuple(message.warnings),
    )


def metrics(message: metrics_pb2.Metrics) -> Metrics:
    """Read metrics."""

    def accuracy(prefix: str) -> Accuracy | None:
        if not message.HasField(prefix):  # type: ignore[arg-type]  # the stubs want a literal
            return None
        return Accuracy(
            value=getattr(message, prefix),
            low=getattr(message, f"{prefix}_low"),
            high=getattr(message, f"{prefix}_high"),
            sample_count=getattr(message, f"{prefix}_sample_count"),
        )

    return Metrics(
        cost=cost(message.cost),
        file_bytes=message.file_bytes,
        accuracy=accuracy("accuracy"),
        selection_accuracy=accuracy("selection_accuracy"),
        download_bytes=(message.download_bytes if message.HasField("download_bytes") else None),
    )


def recipe(message: recipe_pb2.Recipe) -> Recipe:
    """Read a recipe."""
    return Recipe(
        version=message.version,
        source_digest=message.source_digest,
        seed=message.seed,
        target=message.target,
        output_format=str(enums.MODEL_FORMAT.from_proto(message.output_format, field="x")),
        steps=tuple(
            PassStep(pass_name=step.pass_name, parameters=MessageToDict(step.parameters))
            for step in message.steps
        ),
        tool_versions=dict(message.tool_versions),
    )


def trial(message: trial_pb2.Trial) -> Trial:
    """Read a trial."""
    assert resource_names.parse_trial(message.name)[2] == message.index
    return Trial(
        index=message.index,
        role=enums.TRIAL_ROLE.from_proto(message.role, field="x"),
        state=enums.TRIAL_STATE.from_proto(message.state, field="x"),
        recipe=recipe(message.recipe),
        metrics=metrics(message.metrics) if message.HasField("metrics") else None,
        predicted_accuracy=(
            message.predicted_accuracy if message.HasField("predicted_accuracy") else None
        ),
        violations=tuple(
            Violation(
                quantity=enums.QUANTITY.from_proto(item.quantity, field="x"),
                limit=item.limit,
                actual=item.actual,
            )
            for item in message.violations
        ),
        artifacts={
            name: resource_names.parse_artifact(artifact)[1]
            for name, artifact in message.artifacts.items()
        },
        stage_seconds=dict(message.stage_seconds),
        input_digest=message.input_digest,
        error=message.error,
        notes=tuple(message.notes),
        format_notes=tuple(message.format_notes),
    )


def job(message: job_pb2.CompressionJob) -> Job:
    """Read a job."""
    project_id, job_id = resource_names.parse_job(message.name)

    def time(name: Any) -> Any:
        return timestamp_from_proto(getattr(message, name)) if message.HasField(name) else None

    return Job(
        job_id=job_id,
        project=project_id,
        spec=JobSpec(
            model_digest=message.model_digest,
            model_name=message.spec.model,
            target=hardware(message.spec.hardware_spec),
            budget=budget(message.spec.budget),
            dataset_digest=message.dataset_digest or None,
            dataset_name=message.spec.dataset,
            objective=objective_from_proto(message.spec.objective),
            search_limits=search_limits_from_proto(message.spec.search_limits),
            output_format=enums.MODEL_FORMAT.optional(message.spec.output_format, field="x"),
            seed=message.spec.seed,
            packed=message.spec.packed,
            runner_labels=dict(message.spec.runner_labels),
            teachers=tuple(
                TeacherModel(name=name, digest=digest)
                for name, digest in zip(message.spec.teachers, message.teacher_digests, strict=True)
            ),
            importance=enums.IMPORTANCE.optional(message.spec.importance, field="x"),
        ),
        state=enums.JOB_STATE.from_proto(message.state, field="x"),
        create_time=time("create_time"),
        update_time=time("update_time"),
        start_time=time("start_time"),
        end_time=time("end_time"),
        revision=message.revision,
        request_id=message.request_id,
        error=message.error.message,
        error_reason=message.error.reason,
        spent_seconds=duration_from_proto(message.spent_time),
        result=_result(message.result),
    )


def event(message: job_pb2.JobEvent) -> JobEvent:
    """Read an event."""
    return JobEvent(
        job_id=resource_names.parse_job(message.job)[1],
        sequence=message.sequence,
        time=timestamp_from_proto(message.time),
        kind=enums.EVENT_KIND.from_proto(message.kind, field="x"),
        message=message.message,
        stage=message.stage,
        state=enums.JOB_STATE.optional(message.state, field="x"),
        trial_index=_index(message.trial),
        fraction=message.fraction if message.HasField("fraction") else None,
    )


def _index(name: str) -> int | None:
    return resource_names.parse_trial(name)[2] if name else None


def _indices(names: Any) -> tuple[int, ...]:
    return tuple(resource_names.parse_trial(name)[2] for name in names)


def _result(message: job_pb2.JobResult) -> JobResult:
    return JobResult(
        baseline=metrics(message.baseline) if message.HasField("baseline") else None,
        baseline_int8=metrics(message.baseline_int8) if message.HasField("baseline_int8") else None,
        best_trial=_index(message.best_trial),
        pareto_trials=_indices(message.pareto_trials),
        infeasibility=(
            _infeasibility(message.infeasibility) if message.HasField("infeasibility") else None
        ),
        layers=tuple(
            LayerAttribution(
                node=layer.node,
                op_type=layer.op_type,
                macs_before=layer.macs_before,
                macs_after=layer.macs_after,
                latency_ms_before=layer.estimated_latency_ms_before,
                latency_ms_after=layer.estimated_latency_ms_after,
                channels_before=layer.channels_before,
                channels_after=layer.channels_after,
                accuracy_cost=layer.accuracy_cost if layer.HasField("accuracy_cost") else None,
                number_format=layer.number_format,
                format_cost=layer.format_cost if layer.HasField("format_cost") else None,
                changes=tuple(layer.changes),
                predicted_alone=(
                    layer.predicted_cost_alone if layer.HasField("predicted_cost_alone") else None
                ),
                measured_alone=(
                    layer.measured_cost_alone if layer.HasField("measured_cost_alone") else None
                ),
                format_cost_after=(
                    layer.format_cost_after if layer.HasField("format_cost_after") else None
                ),
            )
            for layer in message.layers
        ),
        notes=tuple(
            PreflightNote(code=note.code, message=note.message, node=note.node)
            for note in message.notes
        ),
    )


def _infeasibility(message: job_pb2.Infeasibility) -> Infeasibility:
    return Infeasibility(
        binding=enums.QUANTITY.several(message.binding, field="x"),
        closest_trials=_indices(message.closest_trials),
        relaxations=tuple(
            Relaxation(
                quantity=enums.QUANTITY.from_proto(item.quantity, field="x"),
                limit=item.limit,
                needed=item.needed if item.HasField("needed") else None,
                trial_index=_index(item.trial),
            )
            for item in message.relaxations
        ),
        explanation=message.explanation,
    )
