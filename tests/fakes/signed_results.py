"""A finished job's folder as a user receives it, signed by a key made for the test."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fakes.artifacts import InMemoryArtifactStores
from fakes.search_bench import WHOLE_LATENCY_MS, Bench, latency
from tightfit.result_file import build_result
from tightfit.verification import PROVENANCE_FILE
from tightfit_service.adapters.provenance.dsse import Ed25519Signer
from tightfit_service.adapters.provenance.file_digests import ZipFileSets
from tightfit_service.adapters.provenance.signing_key import public_pem
from tightfit_service.api.codec.job import job_to_proto
from tightfit_service.api.codec.trial import trial_to_proto
from tightfit_service.application.trials.provenance import Outcome, Provenance
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.job import Job, TeacherModel
from tightfit_service.domain.trial import Trial

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PEM = public_pem(KEY.public_key())
OTHER_PEM = public_pem(OTHER_KEY.public_key())
MODEL_BYTES = b"a model file"


def provenance(stores: InMemoryArtifactStores, scratch_dir: Path) -> Provenance:
    return Provenance(
        signer=Ed25519Signer(KEY),
        artifacts=stores,
        file_sets=ZipFileSets(),
        scratch_dir=scratch_dir,
    )


@cache
def finished_job(teachers: tuple[TeacherModel, ...] = ()) -> tuple[Job, Trial, Bench]:
    """Return a job that succeeded, and its best trial; it is searched once."""
    bench = Bench(latency(0.5 * WHOLE_LATENCY_MS), teachers=teachers)
    job = asyncio.run(bench.run())
    assert job.result.best_trial is not None
    return job, bench.trials()[job.result.best_trial], bench


def outcome_of(job: Job, trial: Trial, *, model: bytes, output_format: ModelFormat) -> Outcome:
    """Return the outcome whose trial exported these bytes."""
    digest = hashlib.sha256(model).hexdigest()
    assert job.end_time is not None
    return Outcome(
        job=replace(job, spec=replace(job.spec, output_format=output_format)),
        state=job.state,
        end_time=job.end_time,
        trial=replace(trial, artifacts={"model": digest}),
        tool_versions={"tightfit-service": "1"},
        baseline=job.result.baseline,
    )


def signed_folder(folder: Path, *, teachers: tuple[TeacherModel, ...] = ()) -> Path:
    """Write model, recipe, result, report and signed statement of a job that succeeded."""
    folder.mkdir()
    stores = InMemoryArtifactStores()
    job, trial, bench = finished_job(teachers)
    outcome = outcome_of(job, trial, model=MODEL_BYTES, output_format=ModelFormat.TFLITE)
    signed = asyncio.run(provenance(stores, folder.parent / "scratch").attest(outcome))
    trials = [
        trial_to_proto(
            outcome.trial if item.index == trial.index else item, project_id="p", job_id="j"
        )
        for item in bench.trials()
    ]
    result = build_result(job_to_proto(outcome.job), trials, ())
    (folder / "model.tflite").write_bytes(MODEL_BYTES)
    (folder / "recipe.json").write_text(json.dumps(result["best"]["recipe"], indent=2))
    (folder / "result.json").write_text(json.dumps(result, indent=2))
    (folder / "report.html").write_text("<p>what people read</p>")
    (folder / PROVENANCE_FILE).write_bytes(stores.of("p").contents[signed])
    return folder
