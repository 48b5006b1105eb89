"""The folder that `-o` names: what a command reads is never replaced by what it writes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes import results
from fakes.tightfit_server import FakeTightfit
from tightfit.cli import main, outputs
from tightfit.errors import InvalidInputError

Run = Callable[..., int]
TARGET = ("--target", "nucleo-h7a3zi-q")


@pytest.fixture
def run(fake: FakeTightfit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIGHTFIT_SERVER", fake.address)
    fake.state.load(results.succeeded())
    fake.state.targets = [fake.state.job.spec.hardware_spec]

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tightfit", *arguments])
        return main(arguments)

    return run


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "recipe.json", "closest/model.h"])
def test_an_input_that_a_result_would_replace_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "closest").mkdir()
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InvalidInputError, match="would be replaced by the result") as caught:
        outputs.prepare(tmp_path, inputs=[tmp_path / "other.onnx", tmp_path / name])
    assert caught.value.field == "-o"
    outputs.prepare(tmp_path, inputs=[tmp_path / "other.onnx"])
    outputs.prepare(tmp_path / "new", inputs=[tmp_path / name])


def test_a_link_to_the_folder_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.onnx").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("models")
    with pytest.raises(InvalidInputError, match="would be replaced"):
        outputs.prepare(tmp_path / "link", inputs=[tmp_path / "models" / "model.onnx"])


def test_the_models_of_a_command_stay(
    run: Run, fake: FakeTightfit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, teacher = tmp_path / "model.onnx", tmp_path / "closest.tflite"
    for file in (model, teacher, tmp_path / "net.onnx"):
        file.write_bytes(b"mine")
    assert run("compress", "model.onnx", *TARGET, "-o", ".") == 2
    assert "(-o)" in capsys.readouterr().err
    assert run("compress", "net.onnx", *TARGET, "--teacher", "closest.tflite", "-o", ".") == 2
    assert fake.state.uploads == {}
    assert {model.read_bytes(), teacher.read_bytes()} == {b"mine"}
    assert run("compress", "model.onnx", *TARGET, "-o", "out") == 0
    assert model.read_bytes() == b"mine"


def test_the_recipe_that_is_applied_stays(run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"mine")
    assert run("compress", "net.onnx", *TARGET, "-o", "out") == 0
    kept = (tmp_path / "out" / "recipe.json").read_bytes()
    assert run("apply", "out/recipe.json", "net.onnx", "-o", "out") == 2
    assert (tmp_path / "out" / "recipe.json").read_bytes() == kept
    assert run("apply", "out/recipe.json", "net.onnx", "-o", "new") == 0
    assert (tmp_path / "new" / "recipe.json").is_file()


def test_a_job_names_the_file_that_was_compressed_also_later(run: Run, tmp_path: Path) -> None:
    assert run("jobs", "show", "j-7f3a", "-o", "shown") == 0
    assert "<title>resnet20.onnx: Fits" in (tmp_path / "shown" / "report.html").read_text()


def test_who_named_no_folder_is_told_how_to_fetch_the_files(
    run: Run, fake: FakeTightfit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.onnx").write_bytes(b"mine")
    assert run("compress", "net.onnx", *TARGET) == 0
    assert "`tightfit jobs show j-7f3a -o DIR` fetches the files" in capsys.readouterr().out
    assert run("compress", "net.onnx", *TARGET, "-o", "out") == 0
    assert "fetches the files" not in capsys.readouterr().out
    fake.state.load(results.succeeded() | {"state": "FAILED", "best": None})
    assert run("compress", "net.onnx", *TARGET) == 4
    assert "fetches the files" not in capsys.readouterr().out
