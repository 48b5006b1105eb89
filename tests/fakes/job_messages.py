"""The messages behind a `result.json`: the inverse of what the client does with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from tightfit.v1 import (
    dataset_pb2,
    hardware_pb2,
    job_pb2,
    metrics_pb2,
    model_pb2,
    recipe_pb2,
    trial_pb2,
)

_ESTIMATES = (
    "estimated_latency_ms",
    "estimated_energy_mj",
    "estimated_peak_ram_bytes",
    "flash_bytes",
)
_ACCURACIES = ("accuracy", "accuracy_low", "accuracy_high", "selection_accuracy")


def job_message(result: Mapping[str, Any]) -> job_pb2.CompressionJob:
    name = result["job"]["name"]
    job = job_pb2.CompressionJob(
        name=name,
        state=job_pb2.CompressionJob.State.Value(f"STATE_{result['state']}"),
        model_digest=result["model"]["digest"],
        dataset_digest=result["dataset"]["digest"],
        spec=_spec(result),
    )
    for key in ("create_time", "start_time", "end_time"):
        if result["job"][key]:
            getattr(job, key).CopyFrom(_time(result["job"][key]))
    if result["job"]["error"]:
        job.error.message = result["job"]["error"]
        job.error.reason = result["job"]["error_reason"]
    for key in ("baseline", "baseline_int8"):
        if result[key]:
            getattr(job.result, key).CopyFrom(metrics_message(result[key]))
    if result["best"]:
        job.result.best_trial = trial_name(name, result["best"]["index"])
    job.result.pareto_trials.extend(trial_name(name, index) for index in result["pareto"])
    for layer in result["layers"]:
        content = {
            key.replace("latency_ms", "estimated_latency_ms"): value
            for key, value in layer.items()
            if value is not None
        }
        job.result.layers.append(json_format.ParseDict(content, job_pb2.LayerAttribution()))
    for note in result["notes"]:
        job.result.notes.append(job_pb2.PreflightNote(**note))
    if result["infeasibility"]:
        _fill_infeasibility(job.result.infeasibility, result["infeasibility"], name)
    return job


def model_message(result: Mapping[str, Any]) -> model_pb2.Model:
    content = result["model"]
    model = model_pb2.Model(
        name=content["name"],
        digest=content["digest"],
        display_name=content["file"],
        size_bytes=1 << 20,
    )
    model.create_time.FromJsonString("2026-03-01T09:00:00Z")
    model.facts.update({"parameter_count": 272_474, "macs": 40_800_000})
    return model


def dataset_message(result: Mapping[str, Any]) -> dataset_pb2.Dataset:
    content = result["dataset"]
    dataset = dataset_pb2.Dataset(
        name=content["name"],
        digest=content["digest"],
        display_name=content["display_name"],
        size_bytes=74 << 20,
    )
    dataset.create_time.FromJsonString("2026-03-01T09:01:00Z")
    dataset.facts.update({"manifest": {key: content[key] for key in ("task", "metric")}})
    return dataset


def _spec(result: Mapping[str, Any]) -> job_pb2.CompressionSpec:
    target = dict(result["target"])
    spec = job_pb2.CompressionSpec(
        model=result["model"]["name"],
        dataset=result["dataset"]["name"],
        seed=result["seed"],
        packed=result["packed"],
        techniques=result["techniques"],
        output_format=hardware_pb2.ModelFormat.Value(f"MODEL_FORMAT_{result['format'].upper()}"),
        hardware_spec=hardware_pb2.HardwareSpec(
            name=target["name"],
            display_name=target["display_name"],
            core=target["core"],
            core_count=target["core_count"],
            clock_mhz=target["clock_mhz"],
            isa_features=target["isa_features"],
            number_formats=[
                hardware_pb2.NumberFormat.Value(f"NUMBER_FORMAT_{word.upper()}")
                for word in target["number_formats"]
            ],
            channel_multiple=target["channel_multiple"],
            output_format=hardware_pb2.MODEL_FORMAT_TFLITE,
            memory=hardware_pb2.Memory(
                ram_bytes=target["ram_bytes"], flash_bytes=target["flash_bytes"]
            ),
            runtime=hardware_pb2.Runtime(name=target["runtime"]),
            assumed_fields=target["assumed_fields"],
            sources=target["sources"],
        ),
    )
    for key, value in result["budget"].items():
        if value is not None:
            setattr(spec.budget, key, value)
    spec.objective.quantity = metrics_pb2.Quantity.Value(f"QUANTITY_{result['objective'].upper()}")
    spec.search_limits.max_trials = result["search_limits"]["max_trials"]
    spec.search_limits.max_time.FromSeconds(int(result["search_limits"]["max_seconds"]))
    return spec


def _fill_infeasibility(
    message: job_pb2.Infeasibility, content: Mapping[str, Any], job: str
) -> None:
    message.explanation = content["explanation"]
    message.binding.extend(_quantity(word) for word in content["binding"])
    message.closest_trials.extend(trial_name(job, index) for index in content["closest_trials"])
    for item in content["relaxations"]:
        relaxation = message.relaxations.add(
            quantity=_quantity(item["quantity"]), limit=item["limit"]
        )
        if item["needed"] is not None:
            relaxation.needed = item["needed"]
        if item["trial_index"] is not None:
            relaxation.trial = trial_name(job, item["trial_index"])


def metrics_message(figures: Mapping[str, Any]) -> metrics_pb2.Metrics:
    metrics = metrics_pb2.Metrics(
        file_bytes=figures["file_bytes"], download_bytes=figures["download_bytes"]
    )
    metrics.cost.macs = figures["macs"]
    for key in _ESTIMATES:
        getattr(metrics.cost, key).CopyFrom(metrics_pb2.Estimate(**figures[key]))
    for key in _ACCURACIES:
        if figures[key] is not None:
            setattr(metrics, key, figures[key])
    return metrics


def trial_message(content: Mapping[str, Any], *, job: str) -> trial_pb2.Trial:
    recipe = dict(content["recipe"])
    recipe["output_format"] = f"MODEL_FORMAT_{recipe['output_format'].upper()}"
    trial = trial_pb2.Trial(
        name=trial_name(job, content["index"]),
        index=content["index"],
        role=trial_pb2.Trial.Role.Value(f"ROLE_{content['role'].upper()}"),
        state=trial_pb2.Trial.State.Value(f"STATE_{content['state'].upper()}"),
        recipe=json_format.ParseDict(recipe, recipe_pb2.Recipe()),
        feasible=content["feasible"],
        artifacts={
            key: f"projects/default/artifacts/{digest}"
            for key, digest in content["artifacts"].items()
        },
        stage_seconds=content["stage_seconds"],
        notes=content["notes"],
        format_notes=content["format_notes"],
        error=content["error"],
        violations=[
            metrics_pb2.Violation(
                quantity=_quantity(item["quantity"]), limit=item["limit"], actual=item["actual"]
            )
            for item in content["violations"]
        ],
    )
    if content["estimated_latency_ms"] is not None:
        trial.metrics.CopyFrom(metrics_message(content))
    if content["predicted_accuracy"] is not None:
        trial.predicted_accuracy = content["predicted_accuracy"]
    return trial


def event_message(content: Mapping[str, Any], *, job: str) -> job_pb2.JobEvent:
    event = job_pb2.JobEvent(
        job=job,
        sequence=content["sequence"],
        time=_time(content["time"]),
        kind=job_pb2.JobEvent.Kind.Value(f"KIND_{content['kind'].upper()}"),
        message=content["message"],
        stage=content["stage"],
    )
    if content["state"]:
        event.state = job_pb2.CompressionJob.State.Value(f"STATE_{content['state']}")
    if content["trial_index"] is not None:
        event.trial = trial_name(job, content["trial_index"])
    if content["fraction"] is not None:
        event.fraction = content["fraction"]
    return event


def trial_name(job: str, index: int) -> str:
    return f"{job}/trials/{index}"


def _quantity(word: str) -> metrics_pb2.Quantity.ValueType:
    return metrics_pb2.Quantity.Value(f"QUANTITY_{word.upper()}")


def _time(text: str) -> Timestamp:
    time = Timestamp()
    time.FromJsonString(text)
    return time
