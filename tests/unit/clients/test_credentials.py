"""What the client sends, and where it will not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tightfit import AsyncClient, Client, Credentials, InvalidInputError
from tightfit.cli import app as command
from tightfit.cli.auth import grant_of
from tightfit.credentials import is_loopback
from tightfit.local_server import service_environment
from tightfit.v1 import access_options_pb2


@pytest.mark.parametrize(
    ("server", "local"),
    [
        ("localhost:50051", True),
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("unix:/run/tightfit.sock", True),
        ("tightfit.example:443", False),
        ("localhost.example:443", False),
        ("127.0.0.1.example:443", False),
        ("dns:///127.0.0.1:1", False),
        ("10.0.0.1:1", False),
        ("", False),
    ],
)
def test_a_token_in_plain_text_stays_on_this_machine(server: str, local: bool) -> None:
    assert is_loopback(server) is local
    given = Credentials(token="secret")
    if local:
        given.check(server)
    else:
        with pytest.raises(InvalidInputError, match="plain text") as caught:
            given.check(server)
        assert "secret" not in str(caught.value)
        assert "--tls" in caught.value.remedy
    Credentials(token="secret", tls=True).check(server)
    Credentials().check(server)


async def test_both_clients_refuse_to_send_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    given = Credentials(token_file=tmp_path / "token")
    with pytest.raises(InvalidInputError, match="plain text"):
        Client("far.example:50051", credentials=given)
    with pytest.raises(InvalidInputError, match="plain text"):
        AsyncClient("far.example:50051", credentials=given)


def test_the_environment_says_it_too(tmp_path: Path) -> None:
    given = Credentials.from_environment(
        {
            "TIGHTFIT_TLS": "true",
            "TIGHTFIT_CA_FILE": "ca.pem",
            "TIGHTFIT_TOKEN": "t",
            "TIGHTFIT_TOKEN_FILE": str(tmp_path / "none"),
        }
    )
    assert given == Credentials(
        tls=True, ca_file=Path("ca.pem"), token="t", token_file=tmp_path / "none"
    )
    assert Credentials.from_environment({}) == Credentials()
    with pytest.raises(InvalidInputError, match="TIGHTFIT_TLS"):
        Credentials.from_environment({"TIGHTFIT_TLS": "maybe"})


def test_a_token_is_not_shown() -> None:
    assert "hunter2" not in repr(Credentials(token="hunter2"))


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "tökën"])
def test_what_is_no_token_is_not_sent(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(InvalidInputError, match="none"):
        Credentials(token_file=tmp_path / "token").metadata()


def test_files_that_cannot_be_read_are_named() -> None:
    missing = Path("/no/such/file")
    with pytest.raises(InvalidInputError) as caught:
        Credentials(ca_file=missing).channel_credentials()
    assert caught.value.field == "--ca-file"
    with pytest.raises(InvalidInputError) as caught:
        Credentials(token_file=missing).metadata()
    assert caught.value.field == "--token-file"
    with pytest.raises(InvalidInputError, match="needs its key"):
        Credentials(cert_file=Path("c")).check("localhost:1")


def test_a_server_of_ones_own_is_not_told_the_clients_secrets() -> None:
    kept = service_environment(
        {"TIGHTFIT_TOKEN": "t", "TIGHTFIT_KEY_FILE": "k", "TIGHTFIT_WORKER_COUNT": "2", "PATH": "/"}
    )
    assert kept == {"TIGHTFIT_WORKER_COUNT": "2", "PATH": "/"}


def test_grants_are_spelled_by_project_and_role() -> None:
    grant = grant_of("vision=submitter")
    assert (grant.project, grant.role) == (
        "projects/vision",
        access_options_pb2.ROLE_SUBMITTER,
    )
    assert grant_of("*=admin").project == grant_of("-=admin").project == "projects/-"
    for text in ("vision", "=admin", "vision=owner"):
        with pytest.raises(InvalidInputError) as caught:
            grant_of(text)
        assert caught.value.field == "--grant"


def test_a_token_is_no_id_of_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    token = "tf_" + "0" * 16 + "_" + "A" * 43
    assert command.main(["auth", "revoke", token]) == 2
    shown = capsys.readouterr()
    assert "not the token" in shown.err
    assert token not in shown.err + shown.out
