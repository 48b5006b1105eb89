"""What a new user gets wrong: one line that says what and where, one that says what to do, and exit code 2."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import typer

from fakes.tightfit_server import FakeTightfit, rich_status
from tightfit.cli import main
from tightfit.cli.app import app
from tightfit.errors import UnavailableError
from tightfit.rpc_errors import error_from_rpc
from tightfit_service.domain.budget import SearchLimits

Run = Callable[..., int]
TARGET = ("--target", "nucleo-h7a3zi-q")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.onnx").write_bytes(b"a model")
    (tmp_path / "models").mkdir()
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 1, 2, 2)), y=np.zeros(3, int))
    (tmp_path / "dataset.yaml").write_text(
        "arrays: d.npz\nsplits: {evaluation: {input: x, label: y}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    # nobody listens there: what ends otherwise than with 5 was said before anything is called
    monkeypatch.setenv("TIGHTFIT_SERVER", "127.0.0.1:1")

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tightfit", *arguments])
        return main(arguments)

    return run


MISTAKES = [
    # files
    (("compress", "none.onnx", *TARGET), "(MODEL)", "there is no file none.onnx"),
    (("compress", "models", *TARGET), "(MODEL)", "models is a folder"),
    (("estimate", "models", *TARGET), "(MODEL)", "models is a folder"),
    (("estimate", "none.onnx", *TARGET), "(MODEL)", "there is no file none.onnx"),
    (("estimate", "--layers", "models", *TARGET), "(--layers)", "models cannot be read: Is a dir"),
    (("compress", "net.onnx", *TARGET, "--teacher", "models"), "(--teacher)", "is a folder"),
    (("compress", "net.onnx", *TARGET, "--data", "none.yaml"), "(none.yaml)", "no file none.yaml"),
    (("compress", "net.onnx", *TARGET, "--data", "models"), "(models)", "cannot read models: Is a"),
    (("compress", "net.onnx", *TARGET, "--data", "d.npz"), "(d.npz)", "d.npz is no text"),
    (("compress", "net.onnx", *TARGET, "-o", "net.onnx"), "(-o)", "cannot write to net.onnx"),
    (("apply", "none.json", "net.onnx"), "(none.json)", "cannot read none.json"),
    (("recipe", "show", "models"), "(models)", "cannot read models: Is a directory"),
    (("verify", "models"), "(DIR)", "there is no provenance.dsse.json in models"),
    (("unpack", "none.packed", "-o", "out"), "(FILE)", "cannot read none.packed"),
    (("targets", "validate", "none.yaml"), "(none.yaml)", "there is no file none.yaml"),
    # quantities
    (("compress", "net.onnx", *TARGET, "--max-latency", "20"), "(--max-latency)", "has no unit"),
    (("compress", "net.onnx", *TARGET, "--max-latency", "0"), "(--max-latency)", "not a positive"),
    (("compress", "net.onnx", *TARGET, "--max-ram", "1KB2"), "(--max-ram)", "not a number with"),
    (
        ("compress", "net.onnx", *TARGET, "--max-accuracy-drop", "2"),
        "(--max-accuracy-drop)",
        "2 is no fraction",
    ),
    (
        ("compress", "net.onnx", *TARGET, "--max-accuracy-drop", "1%"),
        "(--max-accuracy-drop)",
        "valid number",
    ),
    (("check", "net.onnx", *TARGET, "--max-size", "9"), "(--max-size)", "has no unit"),
    # the command line itself
    (("compress",), "(MODEL)", "MODEL is missing"),
    (("compress", "net.onnx"), "(--target)", "`tightfit targets list`"),
    (
        ("compress", "net.onnx", *TARGET, "--max-latncy", "1ms"),
        "--max-latncy",
        "did you mean --max",
    ),
    (("compress", "net.onnx", *TARGET, "more.onnx"), "more.onnx", "`tightfit compress --help`"),
    (("compres", "net.onnx"), "'compres'", "Did you mean 'compress'"),
    (("jobs", "lst"), "'lst'", "Did you mean 'list'"),
    (("jobs", "list", "--tls"), "(--tls)", "write `tightfit --tls ... jobs list ...`"),
    (("--server", "host:1", "jobs", "list"), "(--server)", "write `tightfit COMMAND --server ...`"),
    (("compress", "net.onnx", "--target"), "(--target)", "requires"),
    (("auth", "create", "--grant", "vision"), "(--grant)", "PROJECT=ROLE"),
]


@pytest.mark.parametrize(
    ("arguments", "field", "message"), MISTAKES, ids=[" ".join(case[0]) for case in MISTAKES]
)
def test_a_mistake_is_named_with_its_remedy(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    field: str,
    message: str,
) -> None:
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out
    lines = printed.err.splitlines()
    assert len(lines) == 2, printed.err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  try: ")
    assert field in lines[0]
    assert message in printed.err


def test_a_server_that_does_not_run_is_said_in_two_lines(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("jobs", "list") == 5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "127.0.0.1:1" in lines[0]
    assert "Connection refused" in lines[0]
    assert "last error" not in lines[0]
    assert "tightfit serve" in lines[1]


def test_a_certificate_that_is_not_trusted_is_named_with_its_option() -> None:
    class Refused(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNAVAILABLE

        def details(self) -> str:
            return (
                "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Tls handshake "
                "failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:"
                "OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: self signed certificate: OK"
            )

        def trailing_metadata(self) -> tuple[()]:
            return ()

    error = error_from_rpc(Refused(), server="build.example:50051")
    assert isinstance(error, UnavailableError)
    assert error.field == "--ca-file"
    assert error.message == (
        "the certificate of the server at build.example:50051 is not trusted: self signed certificate"
    )


def test_a_refused_token_ends_with_2_and_says_whose_it_is_not(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.state.failures["GetJob"] = [
        rich_status(grpc.StatusCode.UNAUTHENTICATED, "the API key is not one of this server")
    ]
    assert run("--token", "tf_1_2", "jobs", "show", "1", "--server", fake.address) == 2
    assert "the API key is not one of this server" in capsys.readouterr().err


def test_a_token_does_not_leave_this_machine_in_plain_text(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--token", "tf_1_2", "jobs", "list", "--server", "host.example:50051") == 2
    assert "(--tls)" in capsys.readouterr().err


def _commands(command: Any, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", {})
    return [(words, command)] + [
        pair for name, item in inner.items() for pair in _commands(item, (*words, name))
    ]


COMMANDS = _commands(typer.main.get_command(app))


@pytest.mark.parametrize(
    ("words", "command"), COMMANDS, ids=[" ".join(words) or "tightfit" for words, _ in COMMANDS]
)
def test_help_says_what_everything_is_for(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], command: Any
) -> None:
    # what `serve` takes is the service's to say
    if words == ("serve",):
        assert "service" in command.help
        return
    for parameter in command.params:
        # Typer's own options for completion say what they do themselves
        assert parameter.help, parameter.name
        assert re.search(r"[.\])]$", parameter.help.strip()), parameter.help
    assert run(*words, "--help") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed, "an option is cut off at 80 columns"


def test_help_states_the_services_defaults(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", "--help") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"[default: {SearchLimits().max_trials}]" in printed
    assert f"[default: {SearchLimits().max_seconds / 60:g}m]" in printed
