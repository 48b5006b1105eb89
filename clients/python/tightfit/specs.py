"""What a user asks for, put into the message that the service takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from google.protobuf import duration_pb2

from tightfit.names import target_name
from tightfit.v1 import budget_pb2, hardware_pb2, job_pb2
from tightfit.words import format_value, importance_value, quantity_value, verification_value


def compression_spec(
    *,
    model: str,
    target: str | hardware_pb2.HardwareSpec,
    dataset: str = "",
    budget: budget_pb2.Budget | None = None,
    objective: str = "accuracy",
    max_trials: int | None = None,
    max_seconds: float | None = None,
    output_format: str = "",
    seed: int = 0,
    techniques: Sequence[str] = (),
    teachers: Sequence[str] = (),
    importance: str = "",
    verify: str = "none",
    priority: int = 0,
    packed: bool = False,
    runner_labels: Mapping[str, str] | None = None,
) -> job_pb2.CompressionSpec:
    """Return the message that `create_job` and `check` take.

    Args:
        model: Resource name of an uploaded model.
        target: Name of a target of the catalogue, or a description of a device.
        dataset: Resource name of an uploaded dataset, or "" for none.
        budget: Limits on the result.
        objective: `accuracy`, `latency`, `energy`, `ram` or `size`.
        max_trials: Trials that the search may run; None leaves it to the server.
        max_seconds: Time that the search may take; None leaves it to the server.
        output_format: One of `tightfit.words.FORMATS`, or "" for what the target's runtime loads.
        seed: Of every random choice.
        techniques: Names of what the search may use; empty leaves the choice to it.
        teachers: Resource names of uploaded models that training learns from besides the model.
        importance: What channels are chosen by, one of `tightfit.words.IMPORTANCES`; "" leaves the
            choice to the search.
        verify: Whether candidates are measured on a device: one of `tightfit.words.VERIFICATIONS`.
        priority: Of the project's queued jobs the one with the highest starts first; -100 to 100.
        packed: Whether a packed file for download is wanted beside the model.
        runner_labels: Labels that a runner must carry to measure candidates.

    Raises:
        InvalidInputError: An unknown objective, format, importance or verification.
    """
    spec = job_pb2.CompressionSpec(
        model=model,
        dataset=dataset,
        budget=budget,
        objective=budget_pb2.Objective(quantity=quantity_value(objective)),
        seed=seed,
        techniques=techniques,
        teachers=teachers,
        verification=verification_value(verify),
        priority=priority,
        packed=packed,
        runner_labels=runner_labels,
    )
    if isinstance(target, str):
        spec.hardware_target = target_name(target)
    else:
        spec.hardware_spec.CopyFrom(target)
    if output_format:
        spec.output_format = format_value(output_format)
    if importance:
        spec.importance = importance_value(importance)
    if max_trials is not None:
        spec.search_limits.max_trials = max_trials
    if max_seconds is not None:
        fraction, whole = math.modf(max_seconds)
        spec.search_limits.max_time.CopyFrom(
            duration_pb2.Duration(seconds=int(whole), nanos=int(fraction * 1e9))
        )
    return spec
