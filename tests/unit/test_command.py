"""Tests of the service's command."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from fakes.networks import NETWORKS
from tightfit.packed_file import unpack
from tightfit_service.__main__ import main


@pytest.mark.parametrize("name", ["model.onnx", "model.bin"])
def test_files_are_packed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = NETWORKS["residual"](1).SerializeToString()
    (tmp_path / name).write_bytes(data)
    assert main(["pack", str(tmp_path / name), "-o", str(tmp_path / "model.packed")]) == 0
    assert unpack((tmp_path / "model.packed").read_bytes()) == data
    assert "times smaller" in capsys.readouterr().out


def test_what_cannot_be_packed_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    output = str(tmp_path / "model.packed")
    assert main(["pack", str(tmp_path / "model.onnx"), "-o", output]) == 2
    assert main(["pack", str(tmp_path / "missing.onnx"), "-o", output]) == 2
    assert "missing.onnx" in capsys.readouterr().err
    assert not (tmp_path / "model.packed").exists()


def test_the_database_is_brought_up_to_date(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    for _ in range(2):
        assert main(["migrate", "--data-dir", str(tmp_path), "--database-url", url]) == 0
    with sqlite3.connect(tmp_path / "state.db") as connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master")}
    connection.close()
    assert {"jobs", "trials", "alembic_version"} <= tables


def test_a_database_of_a_newer_version_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "--data-dir", str(tmp_path)]) == 0
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    assert main(["migrate", "--data-dir", str(tmp_path)]) == 5
    assert "9999" in capsys.readouterr().err


def test_quotas_are_set_shown_and_taken_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIGHTFIT_QUOTA_QUEUED_JOBS", "7")
    where = ["--data-dir", str(tmp_path)]
    assert main(["migrate", *where]) == 0
    assert main(["quota", "set", "p", "--trials", "5", "--stored-bytes", "1000", *where]) == 0
    assert main(["quota", "set", "p", "--stored-bytes", "default", *where]) == 0
    capsys.readouterr()
    assert main(["quota", "show", "p", *where]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["trials", "5", "per", "job"] in rows
    assert ["stored", "bytes", "none", "(default)", "0"] in rows
    assert ["queued", "jobs", "7", "(default)", "0"] in rows
    assert main(["quota", "set", "p", "--trials", "many", *where]) == 2
    assert "--trials" in capsys.readouterr().err


def test_what_operators_change_is_in_the_audit_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data-dir", str(tmp_path)]
    assert main(["create-admin-key", *where]) == 0
    key_id = capsys.readouterr().out.split("_")[1]
    assert main(["quota", "set", "p", "--trials", "5", *where]) == 0
    assert main(["quota", "show", "p", *where]) == 0
    with sqlite3.connect(tmp_path / "state.db") as connection:
        query = "select principal, method, project, resource from audit_events order by event_id"
        (made, changed) = connection.execute(query).fetchall()
    connection.close()
    assert made[0] == changed[0]
    assert made[0].startswith("operator:")
    assert made[1:] == ("tightfit-service create-admin-key", "", f"apiKeys/{key_id}")
    assert changed[1:] == ("tightfit-service quota set", "p", "projects/p")


def test_old_events_of_the_audit_log_go_to_a_file_and_then_out_of_the_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data-dir", str(tmp_path)]
    assert main(["migrate", *where]) == 0
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.executemany(
            "insert into audit_events values (?, ?, 'key:1', 'm', 'p', 'r', 'OK', '', '')",
            [(1, "2020-01-01 00:00:00"), (2, "2020-01-02 00:00:00"), (3, "2999-01-01 00:00:00")],
        )
    connection.close()
    old = ["--older-than-days", "30", *where]
    capsys.readouterr()
    assert main(["audit", "export", *old, "--output", "-"]) == 0
    shown = capsys.readouterr()
    assert [json.loads(line)["event_id"] for line in shown.out.splitlines()] == [1, 2]
    assert "written: 2 events" in shown.err
    output = tmp_path / "audit.jsonl"
    assert main(["audit", "expire", *old, "--output", str(output)]) == 0
    assert "dropped: 2 events" in capsys.readouterr().err
    assert output.read_text() == shown.out
    assert output.stat().st_mode & 0o077 == 0
    with sqlite3.connect(tmp_path / "state.db") as connection:
        rows = connection.execute("select event_id, method from audit_events").fetchall()
    connection.close()
    assert rows == [(3, "m"), (4, "tightfit-service audit expire")]
    assert main(["audit", "expire", *old, "--output", str(output)]) == 2, "it is there already"
    assert str(output) in capsys.readouterr().err
    young = ["--older-than-days", "0.5", *where, "--output", str(tmp_path / "new")]
    assert main(["audit", "expire", *young]) == 2
    assert "--older-than-days" in capsys.readouterr().err
