"""What a finished job vouches for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fakes.artifacts import InMemoryArtifactStores
from fakes.search_bench import WHOLE_LATENCY_MS, Bench, latency
from fakes.signed_results import finished_job, outcome_of, provenance
from tightfit_service.application.trials.provenance import canonical
from tightfit_service.domain.errors import IntegrityError
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.job import JobState, TeacherModel


def statement_in(stores: InMemoryArtifactStores, digest: str) -> dict[str, Any]:
    envelope = json.loads(stores.of("p").contents[digest])
    payload = base64.b64decode(envelope["payload"])
    statement: dict[str, Any] = json.loads(payload)
    assert canonical(statement) == payload
    return statement


async def test_the_winner_of_a_job_carries_a_statement_of_what_was_done(tmp_path: Path) -> None:
    stores = InMemoryArtifactStores()
    bench = Bench(
        latency(0.5 * WHOLE_LATENCY_MS), provenance=provenance(stores, tmp_path / "scratch")
    )
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial is not None
    best = bench.trials()[job.result.best_trial]
    statement = statement_in(stores, best.artifacts["provenance"])
    said = statement["predicate"]
    assert statement["subject"] == [
        {"name": "model.tflite", "digest": {"sha256": best.artifacts["model"]}}
    ]
    assert said["job"]["name"] == "projects/p/jobs/j"
    assert said["job"]["state"] == "SUCCEEDED"
    assert said["model"]["digest"]["sha256"] == "1" * 64
    assert said["dataset"]["digest"]["sha256"] == "2" * 64
    assert said["budget"] == {"max_latency_ms": 0.5 * WHOLE_LATENCY_MS}
    assert said["fits"] is True
    assert best.metrics is not None
    assert said["estimated"]["latency_ms"]["high"] == best.metrics.cost.latency_ms.high
    assert best.metrics.accuracy is not None
    assert said["accuracy"]["value"] == best.metrics.accuracy.value
    assert not [note for note in job.result.notes if note.code == "NOT_SIGNED"]


async def test_the_statement_names_the_teachers(tmp_path: Path) -> None:
    stores = InMemoryArtifactStores()
    bench = Bench(
        latency(0.5 * WHOLE_LATENCY_MS),
        provenance=provenance(stores, tmp_path / "scratch"),
        teachers=(TeacherModel(name="t", digest="3" * 64),),
    )
    job = await bench.run()
    assert job.result.best_trial is not None
    best = bench.trials()[job.result.best_trial]
    said = statement_in(stores, best.artifacts["provenance"])["predicate"]
    assert said["teachers"] == [{"digest": {"sha256": "3" * 64}}]


async def test_the_packed_file_is_vouched_for_beside_the_model(tmp_path: Path) -> None:
    stores = InMemoryArtifactStores()
    bench = Bench(
        latency(0.5 * WHOLE_LATENCY_MS),
        provenance=provenance(stores, tmp_path / "scratch"),
        packed=True,
    )
    job = await bench.run()
    assert job.result.best_trial is not None
    best = bench.trials()[job.result.best_trial]
    statement = statement_in(stores, best.artifacts["provenance"])
    assert {item["name"]: item["digest"]["sha256"] for item in statement["subject"]} == {
        "model.tflite": best.artifacts["model"],
        "model.packed": best.artifacts["packed"],
    }


async def test_the_closest_model_of_a_budget_out_of_reach_is_signed_as_such(tmp_path: Path) -> None:
    stores = InMemoryArtifactStores()
    bench = Bench(
        latency(1e-4 * WHOLE_LATENCY_MS), provenance=provenance(stores, tmp_path / "scratch")
    )
    job = await bench.run()
    assert job.result.infeasibility is not None
    closest = bench.trials()[job.result.infeasibility.closest_trials[0]]
    statement = statement_in(stores, closest.artifacts["provenance"])
    assert statement["subject"][0]["name"] == "closest.tflite"
    assert statement["predicate"]["job"]["state"] == "INFEASIBLE"
    assert statement["predicate"]["fits"] is False
    assert statement["predicate"]["violations"][0]["quantity"] == "latency"


async def test_a_store_that_is_down_costs_the_signature_and_not_the_result(tmp_path: Path) -> None:
    stores = InMemoryArtifactStores()
    stores.of("p").is_down = True
    bench = Bench(
        latency(0.5 * WHOLE_LATENCY_MS), provenance=provenance(stores, tmp_path / "scratch")
    )
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert "NOT_SIGNED" in [note.code for note in job.result.notes]


def test_a_model_of_several_files_is_signed_file_by_file(tmp_path: Path) -> None:
    stores = InMemoryArtifactStores()
    job, trial, _ = finished_job()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("model.h", b"header")
        opened.writestr("model.c", b"source")
    stores.of("p").add(archive.getvalue())
    outcome = outcome_of(job, trial, model=archive.getvalue(), output_format=ModelFormat.C_ARRAY)
    digest = asyncio.run(provenance(stores, tmp_path).attest(outcome))
    assert statement_in(stores, digest)["subject"] == [
        {"name": name, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}
        for name, data in (("model.c", b"source"), ("model.h", b"header"))
    ]
    assert not list(tmp_path.iterdir()), "nothing is left in the scratch folder"


def test_an_exported_archive_that_is_damaged_is_not_signed(tmp_path: Path) -> None:
    stores = InMemoryArtifactStores()
    job, trial, _ = finished_job()
    stores.of("p").add(b"no archive")
    outcome = outcome_of(job, trial, model=b"no archive", output_format=ModelFormat.OPENVINO)
    with pytest.raises(IntegrityError, match="not an archive"):
        asyncio.run(provenance(stores, tmp_path).attest(outcome))


def test_equal_outcomes_give_equal_envelopes(tmp_path: Path) -> None:
    stores = InMemoryArtifactStores()
    job, trial, _ = finished_job()
    outcome = outcome_of(job, trial, model=b"model", output_format=ModelFormat.TFLITE)
    desk = provenance(stores, tmp_path)
    assert asyncio.run(desk.attest(outcome)) == asyncio.run(desk.attest(outcome))


def test_the_canonical_spelling() -> None:
    data = {"b": [1.0, 2.5, -0.0, 1e300], "a": {"ü": None, "t": True}, "c": (1, "x")}
    whole = str(int(1e300))
    assert (
        canonical(data)
        == ('{"a":{"t":true,"ü":null},"b":[1,2.5,0,' + whole + '],"c":[1,"x"]}').encode()
    )
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))
