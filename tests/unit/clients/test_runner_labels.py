"""Labels of runners on the command line: what a job asks of the device that measures for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fakes import results
from fakes.tightfit_server import FakeTightfit
from tightfit.cli import main

COMPRESS = ("compress", "net.onnx", "--target", "nucleo-h7a3zi-q")


@pytest.fixture
def server(fake: FakeTightfit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTightfit:
    (tmp_path / "net.onnx").write_bytes(b"a model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIGHTFIT_SERVER", fake.address)
    fake.state.load(results.succeeded())
    fake.state.targets = [fake.state.job.spec.hardware_spec]
    return fake


def test_labels_are_asked_for(server: FakeTightfit) -> None:
    labels = ("--runner-label", "lab=a", "--runner-label", "cooling = fan=on")
    assert main([*COMPRESS, "--verify", "required", *labels]) == 0
    asked = server.state.created[-1].job.spec.runner_labels
    assert dict(asked) == {"lab": "a", "cooling": "fan=on"}
    assert main(COMPRESS) == 0
    assert not server.state.created[-1].job.spec.runner_labels


@pytest.mark.parametrize("label", ["lab", "=a", ""])
def test_what_is_no_label_is_refused(
    server: FakeTightfit, capsys: pytest.CaptureFixture[str], label: str
) -> None:
    assert main([*COMPRESS, "--verify", "required", "--runner-label", label]) == 2
    told = capsys.readouterr().err
    assert "--runner-label" in told
    assert "KEY=VALUE" in told
    assert not server.state.created


def test_the_result_says_which_labels_were_asked_for(server: FakeTightfit) -> None:
    server.state.job.spec.runner_labels["lab"] = "a"
    assert main([*COMPRESS, "--verify", "required", "--runner-label", "lab=a", "-o", "out"]) == 0
    assert json.loads(Path("out/result.json").read_text())["runner_labels"] == {"lab": "a"}
    assert "lab=a" in Path("out/report.html").read_text()
