"""Contents of `result.json` as a server's answers would fill them: one success, one infeasible."""

from __future__ import annotations

import copy
import math
from hashlib import sha256
from typing import Any

JOB = "projects/default/jobs/j-7f3a"
Result = dict[str, Any]
NODES = (
    ("conv_stem", "Conv", 16, 16, 442_368),
    ("block1_conv1", "Conv", 16, 11, 2_359_296),
    ("block1_conv2", "Conv", 16, 16, 2_359_296),
    ("block2_conv1", "Conv", 32, 18, 1_179_648),
    ("block2_conv2", "Conv", 32, 24, 2_359_296),
    ("block2_shortcut", "Conv", 32, 24, 131_072),
    ("block3_conv1", "Conv", 64, 30, 1_179_648),
    ("block3_conv2", "Conv", 64, 48, 2_359_296),
    ("block3_shortcut", "Conv", 64, 48, 131_072),
    ("classifier", "Gemm", 10, 10, 640),
)


def estimate(value: float, spread: float = 0.12) -> dict[str, float]:
    return {"value": value, "low": value * (1 - spread), "high": value * (1 + spread)}


def figures(
    latency_ms: float,
    *,
    accuracy: float | None = None,
    selection: float | None = None,
    ram: float = 52_000,
    flash: float = 98_496,
    macs: int = 12_501_632,
) -> dict[str, Any]:
    known = accuracy is not None
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / 4000) if accuracy is not None else 0
    return {
        "accuracy": accuracy,
        "accuracy_low": accuracy - half if known and accuracy is not None else None,
        "accuracy_high": accuracy + half if known and accuracy is not None else None,
        "selection_accuracy": selection,
        "macs": macs,
        "estimated_latency_ms": estimate(latency_ms),
        "estimated_energy_mj": estimate(latency_ms * 0.24, 0.2),
        "estimated_peak_ram_bytes": estimate(ram, 0.02),
        "flash_bytes": estimate(flash, 0.0),
        "file_bytes": int(flash),
        "download_bytes": None,
        "measured": None,
    }


def no_figures() -> dict[str, Any]:
    return dict.fromkeys(figures(1.0))


def recipe(scale: float) -> dict[str, Any]:
    kept = {name: list(range(max(2, round(width * scale)))) for name, _, width, _, _ in NODES[1:8]}
    return {
        "version": 1,
        "source_digest": "a3" * 32,
        "seed": 0,
        "target": "nucleo-h7a3zi-q",
        "output_format": "tflite",
        "steps": [
            {"pass_name": "structured_pruning", "parameters": {"keep": kept}},
            {"pass_name": "recovery", "parameters": {"epochs": 6, "distillation_weight": 0.9}},
            {"pass_name": "quantization", "parameters": {"number_format": "int8", "method": "mse"}},
        ],
        "tool_versions": {"tightfit": "0.1.0"},
        "architecture": ["conv1 Conv 16x3x3x3", "fc Gemm 10x64 10"],
    }


def trial(
    index: int, role: str, *, scale: float, metrics: dict[str, Any], **more: Any
) -> dict[str, Any]:
    return {
        "index": index,
        "role": role,
        "state": "completed",
        "recipe": recipe(scale),
        "feasible": True,
        "violations": [],
        "artifacts": {"model": sha256(f"model {index}".encode()).hexdigest()},
        "stage_seconds": {"prune": 0.4, "recover": 21.5 + index, "export": 6.1, "evaluate": 2.2},
        "notes": [],
        "format_notes": [],
        "error": "",
        "predicted_accuracy": None,
        **metrics,
        **more,
    }


def _event(sequence: int, seconds: int, kind: str, message: str, **more: Any) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "time": f"2026-03-01T10:{seconds // 60:02d}:{seconds % 60:02d}.000Z",
        "kind": kind,
        "message": message,
        "stage": "",
        "state": None,
        "trial_index": None,
        "fraction": None,
        **more,
    }


def _events(state: str) -> list[dict[str, Any]]:
    lines: list[tuple[int, str, str, dict[str, Any]]] = [
        (0, "state", "queued", {"state": "QUEUED"}),
        (1, "state", "running", {"state": "RUNNING"}),
        (1, "stage", "estimating the baseline", {"stage": "preflight"}),
        (3, "stage", "measuring the baselines", {"stage": "baseline"}),
        (18, "stage", "ranking channels", {"stage": "sensitivity"}),
        (47, "stage", "solving for candidates", {"stage": "solve"}),
        (49, "stage", "running trials", {"stage": "trial"}),
        (50, "trial", "trial 2 runs", {"stage": "trial", "trial_index": 2}),
        (82, "trial", "trial 2 completed", {"stage": "trial", "trial_index": 2, "fraction": 0.3}),
        (90, "note", "training diverged once and was rolled back", {"stage": "trial"}),
        (120, "trial", "trial 3 completed", {"stage": "trial", "trial_index": 3, "fraction": 0.4}),
        (180, "progress", "epoch 3 of 6", {"stage": "trial", "fraction": 0.45}),
        (200, "trial", "trial 7 completed", {"stage": "trial", "trial_index": 7, "fraction": 0.5}),
        (260, "stage", "solving again with what was seen", {"stage": "solve"}),
        (262, "stage", "running trials", {"stage": "trial"}),
        (420, "stage", "long recovery of the finalists", {"stage": "finish"}),
        (
            600,
            "trial",
            "trial 8 completed",
            {"stage": "finish", "trial_index": 8, "fraction": 0.95},
        ),
        (610, "stage", "packing the result", {"stage": "package"}),
        (612, "state", state.lower(), {"state": state}),
    ]
    return [
        _event(number + 1, seconds, kind, message, **more)
        for number, (seconds, kind, message, more) in enumerate(lines)
    ]


def succeeded() -> dict[str, Any]:
    trials = [
        trial(0, "baseline", scale=1.0, metrics=figures(58.0, accuracy=0.9153, flash=1_080_000)),
        trial(1, "baseline_int8", scale=1.0, metrics=figures(36.2, accuracy=0.9148)),
    ]
    for index, (latency, selection) in enumerate(
        [(16.1, 0.894), (14.2, 0.882), (12.3, 0.869), (17.4, 0.9012), (9.8, 0.81), (15.8, 0.897)], 2
    ):
        size = figures(
            latency,
            selection=selection,
            ram=30_000 + 900 * latency,
            flash=22_000 + 1_500 * latency,
            macs=int(330_000 * latency),
        )
        trials.append(trial(index, "screening", scale=latency / 36, metrics=size))
    trials[5]["feasible"] = False
    trials[5]["violations"] = [{"quantity": "latency", "limit": 18.0, "actual": 17.4 * 1.12}]
    trials[6] |= {"state": "stopped", "feasible": False}
    trials[7]["notes"] = ["training diverged once and was rolled back to step 240"]
    best = trial(
        8,
        "finalist",
        scale=0.44,
        metrics=figures(
            15.9, accuracy=0.9048, selection=0.908, ram=44_500, flash=47_616, macs=5_240_000
        ),
        predicted_accuracy=0.903,
    )
    failed = trial(
        9,
        "finalist",
        scale=0.4,
        metrics=no_figures(),
        state="failed",
        feasible=False,
        artifacts={},
        error="out of memory",
    )
    trials += [best, failed]
    return {
        "schema_version": 1,
        "job": {
            "name": JOB,
            "create_time": "2026-03-01T10:00:00.000Z",
            "start_time": "2026-03-01T10:00:01.000Z",
            "end_time": "2026-03-01T10:10:12.000Z",
            "elapsed_seconds": 611.0,
            "error": "",
            "error_reason": "",
        },
        "state": "SUCCEEDED",
        "model": {
            "name": "projects/default/models/a3",
            "digest": "a3" * 32,
            "file": "resnet20.onnx",
        },
        "dataset": {
            "name": "projects/default/datasets/b4",
            "digest": "b4" * 32,
            "display_name": "cifar10",
            "task": "classification",
            "metric": "top1",
        },
        "budget": {
            "max_latency_ms": 18.0,
            "max_energy_mj": None,
            "max_ram_bytes": 131_072,
            "max_size_bytes": None,
            "max_download_bytes": None,
            "min_accuracy": None,
            "max_accuracy_drop": 0.015,
        },
        "objective": "accuracy",
        "target": {
            "name": "nucleo-h7a3zi-q",
            "display_name": "ST Nucleo H7A3ZI-Q",
            "core": "cortex-m7",
            "core_count": 1,
            "clock_mhz": 280.0,
            "accelerator": "",
            "isa_features": ["dsp", "fpu"],
            "number_formats": ["int8", "float32"],
            "channel_multiple": 4,
            "output_format": "tflite",
            "ram_bytes": 1_048_576,
            "flash_bytes": 2_097_152,
            "runtime": "tflite-micro",
            "runtime_version": "",
            "power_active_mw": None,
            "assumed_fields": ["power.active_mw"],
            "sources": ["data sheet"],
        },
        "format": "tflite",
        "search_limits": {"max_trials": 12, "max_seconds": 900.0},
        "seed": 0,
        "techniques": [],
        "verification": "none",
        "runner_labels": {},
        "packed": False,
        "teachers": [],
        "teacher_digests": [],
        "importance": "",
        "baseline": figures(58.0, accuracy=0.9153, flash=1_080_000, ram=208_000, macs=40_800_000),
        "baseline_int8": figures(36.2, accuracy=0.9148, flash=281_000, macs=40_800_000),
        "best": copy.deepcopy(best),
        "trials": trials,
        "pareto": [8, 7, 2, 3, 4],
        "infeasibility": None,
        "layers": [
            {
                "node": name,
                "op_type": op_type,
                "macs_before": macs,
                "macs_after": int(macs * (after / before) ** 2),
                "latency_ms_before": macs / 420_000,
                "latency_ms_after": macs / 420_000 * (after / before) ** 1.7,
                "channels_before": before,
                "channels_after": after,
                "accuracy_cost": None if before == after else 0.0031 * (before - after) / before,
                "number_format": "int8",
                "format_cost": 0.0012 if op_type == "Conv" else None,
                "changes": ["low rank spatial rank 8"] if after < before else [],
                "predicted_cost_alone": None if before == after else 0.021,
                "measured_cost_alone": None if before == after else 0.034,
                "format_cost_after": 0.0007 if op_type == "Conv" else None,
            }
            for name, op_type, before, after, macs in NODES
        ],
        "notes": [
            {
                "code": "NOT_PRUNABLE",
                "message": "its 10 channels are the model's output",
                "node": "classifier",
            },
            {
                "code": "NOT_PRUNABLE",
                "message": "its 16 channels are tied to a Reshape that mixes them",
                "node": "conv_stem",
            },
            {
                "code": "WIDTH_ROUNDED_UP",
                "message": "the kernels of this target work on 4 channels at a time",
                "node": "",
            },
        ],
        "events": _events("SUCCEEDED"),
        "client_version": "0.1.0",
    }


def infeasible() -> dict[str, Any]:
    result = succeeded()
    result["state"] = "INFEASIBLE"
    result["best"] = None
    result["pareto"] = []
    result["budget"]["max_latency_ms"] = 0.36
    result["budget"]["max_accuracy_drop"] = 0.0
    for item in result["trials"]:
        if item.get("estimated_latency_ms"):
            high = item["estimated_latency_ms"]["high"]
            item["feasible"] = False
            item["violations"] = [{"quantity": "latency", "limit": 0.36, "actual": high}]
    result["infeasibility"] = {
        "binding": ["latency", "accuracy"],
        "closest_trials": [6, 4],
        "relaxations": [
            {"quantity": "latency", "limit": 0.36, "needed": 40.54, "trial_index": 1},
            {"quantity": "accuracy", "limit": 0.9153, "needed": None, "trial_index": None},
        ],
        "explanation": (
            "Latency and accuracy cannot be met together: the fastest trial needs 10.98 ms, "
            "thirty times the limit, and already loses 10.5 points."
        ),
    }
    result["events"] = _events("INFEASIBLE")
    return result
