"""`result.json`: a job with its trials and events as one plain document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timezone
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from tightfit import words
from tightfit.names import last_segment, trial_index
from tightfit.timestamps import seconds_between, to_text
from tightfit.v1 import (
    budget_pb2,
    dataset_pb2,
    hardware_pb2,
    job_pb2,
    metrics_pb2,
    recipe_pb2,
    trial_pb2,
)

SCHEMA_VERSION = 1
_BUDGET_KEYS = (
    "max_latency_ms",
    "max_energy_mj",
    "max_ram_bytes",
    "max_size_bytes",
    "max_download_bytes",
    "min_accuracy",
    "max_accuracy_drop",
)
_ESTIMATES = (
    "estimated_latency_ms",
    "estimated_energy_mj",
    "estimated_peak_ram_bytes",
    "flash_bytes",
)
_ACCURACIES = ("accuracy", "accuracy_low", "accuracy_high", "selection_accuracy")


def build_result(
    job: job_pb2.CompressionJob,
    trials: Iterable[trial_pb2.Trial],
    events: Iterable[job_pb2.JobEvent],
    *,
    model_file: str = "",
    dataset: dataset_pb2.Dataset | None = None,
    client_version: str = "",
) -> dict[str, Any]:
    """Return the content of `result.json`; everything in it is plain JSON data.

    Args:
        job: The job; its state may be any.
        trials: All trials of the job.
        events: The events of the job by sequence.
        model_file: Name of the file that was compressed, for people.
        dataset: What the server knows of the dataset: its task and its metric; None leaves them out.
        client_version: Version of the client that writes the file.
    """
    spec, outcome = job.spec, job.result
    listed = [trial_content(trial) for trial in trials]
    best = trial_index(outcome.best_trial)
    return {
        "schema_version": SCHEMA_VERSION,
        "job": _job(job),
        "state": words.job_state_word(job.state),
        "model": {"name": spec.model, "digest": job.model_digest, "file": model_file},
        "dataset": _dataset(job, dataset) if spec.dataset else None,
        "budget": budget_content(spec.budget),
        "objective": words.quantity_word(spec.objective.quantity)
        if spec.objective.quantity
        else "accuracy",
        "target": target_content(spec.hardware_spec),
        "format": words.format_word(spec.output_format or spec.hardware_spec.output_format),
        "search_limits": {
            "max_trials": _optional(spec.search_limits, "max_trials"),
            "max_seconds": spec.search_limits.max_time.ToNanoseconds() / 1e9
            if spec.search_limits.HasField("max_time")
            else None,
        },
        "seed": spec.seed,
        "techniques": list(spec.techniques),
        "verification": words.verification_word(spec.verification),
        "runner_labels": dict(spec.runner_labels),
        "packed": spec.packed or spec.budget.HasField("max_download_bytes"),
        "teachers": list(spec.teachers),
        "teacher_digests": list(job.teacher_digests),
        "importance": words.importance_word(spec.importance),
        "baseline": metrics_content(outcome.baseline) if outcome.HasField("baseline") else None,
        "baseline_int8": metrics_content(outcome.baseline_int8)
        if outcome.HasField("baseline_int8")
        else None,
        "best": next((trial for trial in listed if trial["index"] == best), None),
        "trials": listed,
        "pareto": [trial_index(name) for name in outcome.pareto_trials],
        "infeasibility": _infeasibility(outcome.infeasibility)
        if outcome.HasField("infeasibility")
        else None,
        "layers": [_layer(layer) for layer in outcome.layers],
        "notes": [
            {"code": note.code, "message": note.message, "node": note.node}
            for note in outcome.notes
        ],
        "events": [_event(event) for event in events],
        "client_version": client_version,
    }


def budget_content(budget: budget_pb2.Budget) -> dict[str, Any]:
    """Return the limits as asked, None where there is none."""
    return {key: _optional(budget, key) for key in _BUDGET_KEYS}


def metrics_content(metrics: metrics_pb2.Metrics) -> dict[str, Any]:
    """Return metrics flat; what is unknown is None."""
    content: dict[str, Any] = {key: _optional(metrics, key) for key in _ACCURACIES}
    content |= cost_content(metrics.cost if metrics.HasField("cost") else None)
    content["file_bytes"] = metrics.file_bytes or None
    content["download_bytes"] = _optional(metrics, "download_bytes")
    content["measured"] = _measured(metrics.measured) if metrics.HasField("measured") else None
    return content


def cost_content(cost: metrics_pb2.CostEstimate | None) -> dict[str, Any]:
    """Return the totals of an estimate as objects of value, low and high, and the MACs."""
    content: dict[str, Any] = {"macs": cost.macs if cost is not None else None}
    for key in _ESTIMATES:
        estimate = _optional(cost, key) if cost is not None else None
        content[key] = _estimate(estimate) if estimate is not None else None
    return content


def trial_content(trial: trial_pb2.Trial) -> dict[str, Any]:
    """Return a trial with its metrics flat."""
    metrics = trial.metrics if trial.HasField("metrics") else metrics_pb2.Metrics()
    return {
        "index": trial.index,
        "role": words.trial_role_word(trial.role),
        "state": words.trial_state_word(trial.state),
        "feasible": trial.feasible,
        **metrics_content(metrics),
        "predicted_accuracy": _optional(trial, "predicted_accuracy"),
        "violations": violations_content(trial.violations),
        "recipe": recipe_content(trial.recipe),
        "artifacts": {key: last_segment(name) for key, name in sorted(trial.artifacts.items())},
        "stage_seconds": dict(sorted(trial.stage_seconds.items())),
        "notes": list(trial.notes),
        "format_notes": list(trial.format_notes),
        "error": trial.error,
    }


def violations_content(violations: Iterable[metrics_pb2.Violation]) -> list[dict[str, Any]]:
    """Return missed limits."""
    return [
        {"quantity": words.quantity_word(v.quantity), "limit": v.limit, "actual": v.actual}
        for v in violations
    ]


def recipe_content(recipe: recipe_pb2.Recipe) -> dict[str, Any]:
    """Return a recipe as `recipe.json` holds it."""
    return {
        "version": recipe.version,
        "source_digest": recipe.source_digest,
        "seed": recipe.seed,
        "target": recipe.target,
        "output_format": words.format_word(recipe.output_format),
        "steps": [
            {
                "pass_name": step.pass_name,
                "parameters": _whole_numbers(json_format.MessageToDict(step.parameters)),
            }
            for step in recipe.steps
        ],
        "tool_versions": dict(sorted(recipe.tool_versions.items())),
        "architecture": list(recipe.architecture),
    }


def facts_content(facts: Struct) -> dict[str, Any]:
    """Return what a server found in an upload as plain data."""
    content: dict[str, Any] = _whole_numbers(json_format.MessageToDict(facts))
    return content


def target_content(spec: hardware_pb2.HardwareSpec) -> dict[str, Any]:
    """Return a target flat: what decides the costs, and what was assumed."""
    memory, power = spec.memory, spec.power
    return {
        "name": spec.name,
        "display_name": spec.display_name,
        "core": spec.core,
        "core_count": _optional(spec, "core_count"),
        "clock_mhz": _optional(spec, "clock_mhz"),
        "accelerator": spec.accelerator.name or spec.accelerator.kind,
        "isa_features": list(spec.isa_features),
        "number_formats": [words.number_format_word(value) for value in spec.number_formats],
        "channel_multiple": _optional(spec, "channel_multiple"),
        "output_format": words.format_word(spec.output_format),
        "ram_bytes": _optional(memory, "ram_bytes"),
        "flash_bytes": _optional(memory, "flash_bytes"),
        "runtime": spec.runtime.name,
        "runtime_version": spec.runtime.version,
        "power_active_mw": _optional(power, "active_mw"),
        "assumed_fields": list(spec.assumed_fields),
        "sources": list(spec.sources),
    }


def _measured(measured: metrics_pb2.MeasuredCost) -> dict[str, Any]:
    return {
        "measured_latency_ms_p50": measured.measured_latency_ms_p50,
        "measured_latency_ms_p90": measured.measured_latency_ms_p90,
        "measured_latency_ms_p99": _optional(measured, "measured_latency_ms_p99"),
        "measured_energy_mj": _optional(measured, "measured_energy_mj"),
        "measured_peak_ram_bytes": _optional(measured, "measured_peak_ram_bytes"),
        "run_count": measured.run_count,
        "settled": measured.settled,
        "noise_ratio": measured.noise_ratio,
        "throttled": measured.throttled,
        "runner": measured.runner,
        "runtime": measured.runtime,
    }


def _job(job: job_pb2.CompressionJob) -> dict[str, Any]:
    times = {
        key: None if (time := _optional(job, key)) is None else _time(time)
        for key in ("create_time", "start_time", "end_time")
    }
    start, end = times["start_time"], times["end_time"]
    return {
        "name": job.name,
        **times,
        "elapsed_seconds": seconds_between(start, end) if start and end else None,
        "error": job.error.message,
        "error_reason": job.error.reason,
    }


def _dataset(job: job_pb2.CompressionJob, dataset: dataset_pb2.Dataset | None) -> dict[str, Any]:
    known = facts_content(dataset.facts) if dataset is not None else {}
    manifest = known.get("manifest", {})
    return {
        "name": job.spec.dataset,
        "digest": job.dataset_digest,
        "display_name": dataset.display_name if dataset is not None else "",
        "task": manifest.get("task", ""),
        "metric": manifest.get("metric", ""),
    }


def _infeasibility(outcome: job_pb2.Infeasibility) -> dict[str, Any]:
    return {
        "binding": [words.quantity_word(value) for value in outcome.binding],
        "closest_trials": [trial_index(name) for name in outcome.closest_trials],
        "relaxations": [
            {
                "quantity": words.quantity_word(item.quantity),
                "limit": item.limit,
                "needed": _optional(item, "needed"),
                "trial_index": trial_index(item.trial),
            }
            for item in outcome.relaxations
        ],
        "explanation": outcome.explanation,
    }


def _layer(layer: job_pb2.LayerAttribution) -> dict[str, Any]:
    return {
        "node": layer.node,
        "op_type": layer.op_type,
        "macs_before": layer.macs_before,
        "macs_after": layer.macs_after,
        "latency_ms_before": layer.estimated_latency_ms_before,
        "latency_ms_after": layer.estimated_latency_ms_after,
        "channels_before": layer.channels_before,
        "channels_after": layer.channels_after,
        "accuracy_cost": _optional(layer, "accuracy_cost"),
        "number_format": layer.number_format,
        "format_cost": _optional(layer, "format_cost"),
        "changes": list(layer.changes),
        "predicted_cost_alone": _optional(layer, "predicted_cost_alone"),
        "measured_cost_alone": _optional(layer, "measured_cost_alone"),
        "format_cost_after": _optional(layer, "format_cost_after"),
    }


def _event(event: job_pb2.JobEvent) -> dict[str, Any]:
    return {
        "sequence": event.sequence,
        "time": _time(event.time),
        "kind": words.event_kind_word(event.kind),
        "message": event.message,
        "stage": event.stage,
        "state": words.job_state_word(event.state) if event.state else None,
        "trial_index": trial_index(event.trial),
        "fraction": _optional(event, "fraction"),
    }


def _optional(message: Message, key: str) -> Any:
    """Return a field's value, or None where it is absent."""
    return getattr(message, key) if message.HasField(key) else None


def _estimate(estimate: metrics_pb2.Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _time(time: Timestamp) -> str:
    return to_text(time.ToDatetime(tzinfo=timezone.utc))


def _whole_numbers(value: Any) -> Any:
    """Turn the floats that Struct makes of whole numbers back into integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_whole_numbers(item) for item in value]
    return value
