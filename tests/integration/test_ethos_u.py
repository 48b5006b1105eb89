"""A job for a target with an Ethos-U: compiled by Vela in a worker, judged as the device computes it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from running_server import RunningServer
from tightfit import compression_spec
from tightfit.errors import TightfitError
from tightfit.v1 import budget_pb2, job_pb2
from tightfit_service.adapters.emulators.tflm_interpreter import TflmInterpreter
from tightfit_service.adapters.emulators.vela import VelaCompiler
from tightfit_service.adapters.evaluation.litert_evaluator import LitertEvaluator

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
TARGET = "cortex-m55-ethos-u55-128"


@pytest.mark.slow
@pytest.mark.skipif(
    not (VelaCompiler.is_installed() and TflmInterpreter.is_installed()),
    reason="the extras `ethos-u` and `tflm` are not installed",
)
def test_a_job_ends_in_what_vela_compiled_and_what_it_was_made_of(tmp_path: Path) -> None:
    server = RunningServer(tmp_path / "data").start()
    with server.client() as client:
        budget = budget_pb2.Budget(max_latency_ms=1000)
        given: dict[str, Any] = {
            "model": client.upload_model(EXAMPLE / "digits.onnx").name,
            "dataset": client.upload_dataset(EXAMPLE / "dataset.yaml").name,
            "budget": budget,
            "output_format": "vela",
        }
        with pytest.raises(TightfitError, match="raspberry-pi-4 has no Ethos-U"):
            client.create_job(compression_spec(target="raspberry-pi-4", **given))
        job = client.wait(client.create_job(compression_spec(target=TARGET, **given)).name)
        assert job.state == job_pb2.CompressionJob.STATE_SUCCEEDED, job.error
        best = client.get_trial(job.result.best_trial)
        archive = tmp_path / "model.zip"
        client.download_artifact(best.artifacts["model"], archive)
    assert server.stop() == 0
    with zipfile.ZipFile(archive) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    assert sorted(files) == ["model.tflite", "model_vela.tflite"]
    assert best.metrics.file_bytes == len(files["model_vela.tflite"])
    notes = "\n".join(best.notes)
    assert "nothing here executes model_vela.tflite" in notes
    assert "accuracy computed by TFLM's interpreter" in notes
    arrays = np.load(EXAMPLE / "digits.npz")
    inputs = arrays["test_x"].astype(np.float32) * np.float32(0.0625)
    outputs = LitertEvaluator().outputs(files["model.tflite"], inputs)
    by_litert = float(np.mean(outputs.argmax(axis=1) == arrays["test_y"]))
    assert best.metrics.accuracy == pytest.approx(by_litert, abs=0.01)
