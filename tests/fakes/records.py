"""Small valid jobs, trials, events and assets for tests."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from tightfit_service.application.ports import AssetRecord
from tightfit_service.domain.budget import Budget, Constraint, Quantity
from tightfit_service.domain.hardware import HardwareSpec, Memory, Runtime
from tightfit_service.domain.job import Job, JobEvent, JobEventKind, JobSpec, JobState
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.domain.trial import Trial, TrialRole, TrialState

START = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


def digest_of(text: str) -> str:
    """Return a valid digest that stands for `text`."""
    return hashlib.sha256(text.encode()).hexdigest()


def make_target() -> HardwareSpec:
    """Return a small microcontroller."""
    return HardwareSpec(
        name="test-board",
        display_name="Test board",
        core="cortex-m7",
        clock_mhz=216.0,
        memory=Memory(ram_bytes=512 << 10, flash_bytes=2 << 20),
        runtime=Runtime(name="tflm"),
    )


def make_spec(**changes: Any) -> JobSpec:
    """Return a job's specification; any field can be changed."""
    values: dict[str, Any] = {
        "model_digest": digest_of("model"),
        "model_name": "projects/default/models/model",
        "dataset_digest": digest_of("dataset"),
        "dataset_name": "projects/default/datasets/dataset",
        "target": make_target(),
        "budget": Budget(constraints=(Constraint(quantity=Quantity.LATENCY, limit=0.1 + 0.2),)),
    }
    return JobSpec(**(values | changes))


def make_job(job_id: str = "job", *, minutes: float = 0.0, **changes: Any) -> Job:
    """Return a queued job created `minutes` after START; any field can be changed."""
    time = START + timedelta(minutes=minutes)
    values: dict[str, Any] = {
        "job_id": job_id,
        "project": "default",
        "spec": make_spec(),
        "state": JobState.QUEUED,
        "create_time": time,
        "update_time": time,
    }
    return Job(**(values | changes))


def make_trial(index: int = 0, **changes: Any) -> Trial:
    """Return a completed trial; any field can be changed."""
    recipe = Recipe(
        source_digest=digest_of("model"),
        seed=0,
        target="test-board",
        output_format="tflite",
        steps=(PassStep(pass_name="structured_pruning", parameters={"keep": {"conv": [0, 1]}}),),
    )
    values: dict[str, Any] = {
        "index": index,
        "role": TrialRole.SCREENING,
        "state": TrialState.COMPLETED,
        "recipe": recipe,
        "stage_seconds": {"recover": 1.5},
    }
    return Trial(**(values | changes))


def make_event(job_id: str = "job", message: str = "hello", **changes: Any) -> JobEvent:
    """Return an event whose sequence number the store will choose."""
    values: dict[str, Any] = {
        "job_id": job_id,
        "sequence": 0,
        "time": START,
        "kind": JobEventKind.PROGRESS,
        "message": message,
    }
    return JobEvent(**(values | changes))


def make_asset(asset_id: str = "asset", **changes: Any) -> AssetRecord:
    """Return the record of a model; any field can be changed."""
    values: dict[str, Any] = {
        "asset_id": asset_id,
        "project": "default",
        "kind": "model",
        "digest": digest_of("model"),
        "size_bytes": 1 << 40,
        "display_name": "A model",
        "create_time": START,
        "description": {"opset": 17, "inputs": [{"name": "x", "shape": [-1, 3, 8, 8]}]},
    }
    return AssetRecord(**(values | changes))
