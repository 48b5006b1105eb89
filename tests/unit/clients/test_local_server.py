"""A server of one's own: started on a free port, stopped at the end, its failures told."""

import json
import os
import sys
from pathlib import Path

import pytest

from fakes import local_service
from tightfit import InvalidInputError, UnavailableError
from tightfit import local_server as local
from tightfit.cli import main

COMMAND = [sys.executable, local_service.__file__]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_serves_while_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIGHTFIT_SERVER", "elsewhere:1")
    with local.local_server(tmp_path / "data", command=COMMAND) as address:
        assert address == "127.0.0.1:9"
        pid = int((tmp_path / "data" / "pid").read_text())
        assert is_running(pid)
    assert not is_running(pid)
    seen = json.loads((tmp_path / "data" / "seen.json").read_text())
    assert seen["listen"] == "127.0.0.1:0"
    assert seen["parent"] == str(os.getpid())
    assert "TIGHTFIT_SERVER" not in seen["environment"]


def test_it_is_stopped_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), local.local_server(tmp_path, command=COMMAND):
        raise RuntimeError
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_its_last_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SERVICE", "fail")
    with (
        pytest.raises(UnavailableError, match="the data folder is in use") as caught,
        local.local_server(tmp_path, command=COMMAND),
    ):
        pass
    assert str(tmp_path / "server.log") in caught.value.remedy


def test_it_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SERVICE", "hang")
    with (
        pytest.raises(UnavailableError, match="did not serve within"),
        local.local_server(tmp_path, command=COMMAND, start_seconds=1.0),
    ):
        pass
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InvalidInputError, match="cannot write") as caught,
        local.local_server(tmp_path / "file", command=COMMAND),
    ):
        pass
    assert caught.value.field == "--data-dir"


@pytest.mark.parametrize("arguments", [("targets", "list", "--local"), ("serve",)])
def test_without_the_service_the_remedy_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setattr(local, "SERVICE_MODULE", "no_such_service")
    monkeypatch.setenv("TIGHTFIT_DATA_DIR", str(tmp_path))
    assert main(arguments) == 2
    assert "pip install tightfit-service" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TIGHTFIT_DATA_DIR": "/srv/tf", "XDG_DATA_HOME": "/xdg"}, Path("/srv/tf")),
        ({"XDG_DATA_HOME": "/xdg"}, Path("/xdg/tightfit")),
        ({}, Path.home() / ".local" / "share" / "tightfit"),
    ],
)
def test_state_is_kept_where_xdg_says(environment: dict[str, str], expected: Path) -> None:
    assert local.default_data_dir(environment) == expected
