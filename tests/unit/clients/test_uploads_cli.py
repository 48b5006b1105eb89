"""`tightfit models` and `tightfit datasets`: looking at what was uploaded, and making room."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import yaml
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # no types

from fakes import results
from fakes.tightfit_server import FakeTightfit, rich_status
from tightfit.cli import main
from tightfit.v1 import model_pb2

Run = Callable[..., int]


@pytest.fixture
def run(fake: FakeTightfit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIGHTFIT_SERVER", fake.address)
    fake.state.load(results.succeeded())

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tightfit", *arguments])
        return main(arguments)

    return run


@pytest.mark.parametrize(
    ("noun", "file", "content"),
    [
        ("model", "resnet20.onnx", "272 k parameters, 40.8 M MACs"),
        ("dataset", "cifar10", "classification, top1"),
    ],
)
def test_what_was_uploaded_is_listed_and_shown(
    run: Run, capsys: pytest.CaptureFixture[str], noun: str, file: str, content: str
) -> None:
    name = results.succeeded()[noun]["name"]
    assert run(f"{noun}s", "list") == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.startswith(noun.upper())
    assert all(part in line for part in (name.rpartition("/")[2], file, content, "2026-03-01 09:0"))
    assert run(f"{noun}s", "list", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["display_name"]) == (name, file)
    assert run(f"{noun}s", "show", name.rpartition("/")[2]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == listed
    assert run(f"{noun}s", "show", name, "--json") == 0
    assert json.loads(capsys.readouterr().out) == listed


def test_the_newest_comes_first(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = model_pb2.Model(name="projects/default/models/ff", display_name="newer.onnx")
    newer.create_time.FromJsonString("2026-03-02T09:00:00Z")
    fake.state.models.append(newer)
    assert run("models", "list") == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [
        "FILE",
        "newer.onnx",
        "resnet20.onnx",
    ]


def test_room_is_made_by_deleting(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    for noun in ("model", "dataset"):
        short = results.succeeded()[noun]["name"].rpartition("/")[2]
        assert run(f"{noun}s", "delete", short) == 0
        assert capsys.readouterr().out == f"{noun} {short} is deleted\n"
        assert run(f"{noun}s", "delete", short) == 2
        assert "there is no" in capsys.readouterr().err
    assert fake.state.models == []
    assert fake.state.datasets == []


def test_what_a_job_uses_stays(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.state.failures["DeleteModel"] = [
        rich_status(
            grpc.StatusCode.FAILED_PRECONDITION,
            "job 7f3a is not finished and uses model a3",
            error_details_pb2.ErrorInfo(metadata={"remedy": "cancel the job"}),
        )
    ]
    assert run("models", "delete", "a3") == 2
    assert "cancel the job" in capsys.readouterr().err
    assert len(fake.state.models) == 1


@pytest.mark.parametrize("noun", ["model", "dataset"])
def test_what_is_no_id_is_refused(run: Run, capsys: pytest.CaptureFixture[str], noun: str) -> None:
    assert run(f"{noun}s", "show", "some/where.onnx") == 2
    assert f"`tightfit {noun}s list`" in capsys.readouterr().err
