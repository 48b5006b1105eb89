"""What a deployment vouches for: a signed statement of where an exported model came from.

The statement is an in-toto Statement v1 (https://in-toto.io/Statement/v1): its subjects are the files
that the user receives, its predicate says what they were made of, how, and what was found of them. It is
signed as a DSSE envelope (https://github.com/secure-systems-lab/dsse) and stored as an artifact of the
trial that the result shows, under the name `provenance`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import ArtifactStores
from tightfit_service.application.ports.provenance import FileSetReader, StatementSigner
from tightfit_service.domain.budget import Budget, LimitSource
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.job import Job, JobState
from tightfit_service.domain.quantities import Accuracy, Interval
from tightfit_service.domain.recipe import Recipe
from tightfit_service.domain.trial import Metrics, Trial

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://tightfit.dev/provenance/compression/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
ARTIFACT_NAME = "provenance"
MODEL = "model"
PACKED = "packed"

_FILE_SETS = (ModelFormat.C_ARRAY, ModelFormat.OPENVINO, ModelFormat.VELA)
"""Formats whose artifact is an archive that reaches the user unpacked."""
_SUFFIXES = {ModelFormat.EXECUTORCH: "pte"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job ended with, as far as a statement says it."""

    job: Job
    state: JobState
    end_time: datetime
    trial: Trial
    tool_versions: Mapping[str, str]
    baseline: Metrics | None = None


class Provenance:
    """Makes, signs and stores the statements of finished jobs."""

    def __init__(
        self,
        *,
        signer: StatementSigner,
        artifacts: ArtifactStores,
        file_sets: FileSetReader,
        scratch_dir: Path,
    ) -> None:
        self._signer = signer
        self._artifacts = artifacts
        self._file_sets = file_sets
        self._scratch_dir = scratch_dir

    async def attest(self, outcome: Outcome) -> str:
        """Store the signed statement of a job's outcome, and return its digest.

        Raises:
            TightfitError: The model cannot be read, or the statement not be stored.
        """
        return await asyncio.to_thread(self._attest, outcome)

    def _attest(self, outcome: Outcome) -> str:
        self._scratch_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch_dir, prefix="provenance-") as folder:
            files = self._subjects(outcome, Path(folder))
            payload = canonical(statement(outcome, files=files, key_id=self._signer.key_id))
            envelope = self._signer.sign(PAYLOAD_TYPE, payload)
            digest = hashlib.sha256(envelope).hexdigest()
            source = Path(folder) / "envelope.json"
            source.write_bytes(envelope)
            self._artifacts.of(outcome.job.project).put(source, digest)
        return digest

    def _subjects(self, outcome: Outcome, folder: Path) -> Mapping[str, str]:
        """Return the digests of the files as the user receives them, by name."""
        digest, kind = outcome.trial.artifacts[MODEL], outcome.job.spec.format
        fits = outcome.state is JobState.SUCCEEDED
        stem = "model" if fits else "closest"
        packed = outcome.trial.artifacts.get(PACKED)
        if kind not in _FILE_SETS:
            files = {f"{stem}.{_SUFFIXES.get(kind, kind)}": digest}
            return files if packed is None else {**files, f"{stem}.packed": packed}
        archive = folder / "model.zip"
        self._artifacts.of(outcome.job.project).fetch(digest, archive)
        prefix = "" if fits else "closest/"
        return {prefix + name: found for name, found in self._file_sets.digests(archive).items()}


def statement(outcome: Outcome, *, files: Mapping[str, str], key_id: str) -> dict[str, Any]:
    """Return the statement of an outcome as plain JSON data.

    Args:
        outcome: What the job ended with; the trial has metrics and a model.
        files: Name to sha-256 of the files that the user receives.
        key_id: Of the key that will sign it.
    """
    job, trial = outcome.job, outcome.trial
    spec, metrics = job.spec, trial.metrics
    assert metrics is not None
    recipe, target = recipe_content(trial.recipe), to_plain(spec.target)
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": _sha256(files[name])} for name in sorted(files)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "job": {
                "name": f"projects/{job.project}/jobs/{job.job_id}",
                "state": str(outcome.state).upper(),
                "create_time": job.create_time.isoformat(),
                "start_time": None if job.start_time is None else job.start_time.isoformat(),
                "end_time": outcome.end_time.isoformat(),
            },
            "signer": {"key_id": key_id},
            "model": {"digest": _sha256(spec.model_digest)},
            "dataset": None
            if spec.dataset_digest is None
            else {"digest": _sha256(spec.dataset_digest)},
            "teachers": [{"digest": _sha256(teacher.digest)} for teacher in spec.teachers],
            "target": {"name": spec.target.name, "digest": _sha256(digest_of(target))},
            "budget": budget_content(spec.budget),
            "objective": str(spec.objective.quantity),
            "seed": spec.seed,
            "recipe": {"content": recipe, "digest": _sha256(digest_of(recipe))},
            "trial": {"index": trial.index, "role": str(trial.role)},
            "artifact": {
                "digest": _sha256(trial.artifacts[MODEL]),
                "format": str(spec.format),
                "bytes": metrics.file_bytes,
            },
            "fits": trial.is_feasible,
            "violations": to_plain(trial.violations),
            "estimated": {
                "latency_ms": _interval(metrics.cost.latency_ms),
                "energy_mj": _interval(metrics.cost.energy_mj),
                "peak_ram_bytes": _interval(metrics.cost.peak_ram_bytes),
                "flash_bytes": _interval(metrics.cost.flash_bytes),
                "confidence": metrics.cost.confidence,
                "source": metrics.cost.provenance,
            },
            "measured": to_plain(metrics.measured),
            "accuracy": _accuracy(metrics.accuracy),
            "baseline_accuracy": _accuracy(outcome.baseline.accuracy if outcome.baseline else None),
            "tool_versions": dict(outcome.tool_versions),
        },
    }


def canonical(value: Any) -> bytes:
    """Return the one spelling of plain JSON data: sorted keys, no spaces, UTF-8, whole floats as integers.

    Equal data gives equal bytes, also after it went through a format that has floats only (such as
    google.protobuf.Struct).

    Raises:
        ValueError: Not-a-number or an infinity, for which JSON has no words.
    """
    return json.dumps(
        _whole(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(value: Any) -> str:
    """Return the lower-case hex sha-256 of the canonical spelling."""
    return hashlib.sha256(canonical(value)).hexdigest()


def recipe_content(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as `recipe.json` holds it."""
    return {
        "version": recipe.version,
        "source_digest": recipe.source_digest,
        "seed": recipe.seed,
        "target": recipe.target,
        "output_format": recipe.output_format,
        "steps": [
            {"pass_name": step.pass_name, "parameters": to_plain(step.parameters)}
            for step in recipe.steps
        ],
        "tool_versions": dict(recipe.tool_versions),
        "architecture": list(recipe.architecture),
    }


def budget_content(budget: Budget) -> dict[str, float]:
    """Return the limits that the user asked for, under the names that the budget has in a request."""
    limits = {}
    for constraint in budget.constraints:
        value = constraint.limit if constraint.limit is not None else constraint.max_drop
        if constraint.source is LimitSource.USER and value is not None:
            limits[constraint.field_name.removeprefix("budget.")] = value
    return limits


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return value


def _sha256(digest: str) -> dict[str, str]:
    return {"sha256": digest}


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _accuracy(accuracy: Accuracy | None) -> dict[str, float] | None:
    if accuracy is None:
        return None
    return {
        "value": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "sample_count": accuracy.sample_count,
    }
