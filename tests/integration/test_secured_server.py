"""The whole server with TLS and keys, used through the command line; what it logs, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from fakes.access import Authority, write_pair
from running_server import RunningServer
from tightfit import AccessError, AsyncClient, Client, Credentials, InvalidInputError
from tightfit.cli.app import main
from tightfit_service.application.access.authentication import CACHE_SECONDS

SECRETS = re.compile(
    r"tf_[0-9a-f]{16}_[A-Za-z0-9_-]{20,}|[Bb]earer |X-Amz-Signature|BEGIN [A-Z ]*KEY"
)


@dataclass
class Deployment:
    """A server with TLS and keys, and what its users have."""

    server: RunningServer
    ca_file: Path
    admin_token: str

    def run(
        self, *arguments: str, token: str | None = None, tls: bool = True
    ) -> tuple[int, str, str]:
        """Run the command line as somebody; return exit code, stdout and stderr."""
        environment = {
            **_plain_environment(),
            "TIGHTFIT_SERVER": self.server.address,
            "TIGHTFIT_TOKEN": self.admin_token if token is None else token,
            **({"TIGHTFIT_CA_FILE": str(self.ca_file)} if tls else {}),
        }
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, environment, clear=True),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            code = main(arguments)
        return code, out.getvalue(), " ".join(err.getvalue().split())

    def credentials(self, token: str) -> Credentials:
        return Credentials(ca_file=self.ca_file, token=token)


def _plain_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("TIGHTFIT_")}


def _service(*arguments: str, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tightfit_service", *arguments],
        env={**_plain_environment(), **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority()
    certificate, key = write_pair(folder, authority.issue("server"))
    ca_file = folder / "ca.pem"
    ca_file.write_bytes(authority.pem)
    made = _service("create-admin-key", f"--data-dir={folder / 'data'}", settings={})
    assert made.returncode == 0, made.stderr
    settings = {
        "TIGHTFIT_AUTH_REQUIRED": "true",
        "TIGHTFIT_TLS_CERT_FILE": str(certificate),
        "TIGHTFIT_TLS_KEY_FILE": str(key),
    }
    with patch.dict(os.environ, settings):
        server = RunningServer(folder / "data").start()
    yield Deployment(server, ca_file, made.stdout.strip())
    if server.is_running:
        server.stop()


def test_keys_are_made_used_and_revoked_by_the_command_line(deployment: Deployment) -> None:
    code, out, err = deployment.run("auth", "create", "--grant=default=viewer", "--name=dashboard")
    assert code == 0, err
    token = out.strip()
    assert re.fullmatch(r"tf_[0-9a-f]{16}_[\w-]{43}", token)
    assert "not shown again" in err

    code, out, err = deployment.run("auth", "whoami", token=token)
    assert code == 0, err
    assert out.split() == [f"key:{token.split('_')[1]}", "default=viewer"]
    assert deployment.run("jobs", "list", token=token)[0] == 0
    code, _, err = deployment.run("--project=other", "jobs", "list", token=token)
    assert code == 2
    assert "project 'other'" in err

    with Client(deployment.server.address, credentials=deployment.credentials(token)) as client:
        assert list(client.list_jobs()) == []
        with pytest.raises(AccessError) as caught:
            client.cancel_job("none")
        assert caught.value.reason == "PERMISSION_DENIED"
        assert caught.value.remedy
        assert deployment.run("auth", "revoke", token.split("_")[1])[0] == 0
        deadline = time.monotonic() + CACHE_SECONDS + 5
        reason = ""
        while not reason:
            assert time.monotonic() < deadline
            time.sleep(0.2)
            try:
                list(client.list_jobs())
            except AccessError as error:
                reason = error.reason
        assert reason == "CREDENTIALS_REVOKED"

    code, out, _ = deployment.run("auth", "list", "--json")
    states = {key["display_name"]: key["state"] for key in json.loads(out)}
    assert (states["dashboard"], states["first admin"]) == ("revoked", "active")
    code, out, _ = deployment.run("audit", "--all-projects", "--json")
    outcomes = {(e["method"].rpartition("/")[2], e["code"]) for e in json.loads(out)}
    assert {
        ("CreateApiKey", "OK"),
        ("RevokeApiKey", "OK"),
        ("CancelJob", "PERMISSION_DENIED"),
        ("ListJobs", "PERMISSION_DENIED"),
    } <= outcomes
    code, out, _ = deployment.run("audit")
    assert "CancelJob" in out


async def test_the_asyncio_client_shows_credentials_too(
    deployment: Deployment, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(deployment.admin_token + "\n")
    given = Credentials(ca_file=deployment.ca_file, token_file=token_file)
    async with AsyncClient(deployment.server.address, credentials=given) as client:
        caller = await client.get_caller()
        assert caller.grants[0].project == "projects/-"
        token_file.write_text("tf_stale")
        with pytest.raises(AccessError):
            await client.get_caller()
        token_file.unlink()
        with pytest.raises(InvalidInputError, match="token"):
            await client.get_caller()


def test_plain_text_and_strangers_are_turned_away(deployment: Deployment) -> None:
    code, _, err = deployment.run("jobs", "list", tls=False)
    assert code == 5, err
    code, _, err = deployment.run("jobs", "list", token="")
    assert code == 2
    assert "no credentials" in err
    assert "tightfit auth create" in err
    far = Credentials(token=deployment.admin_token)
    with pytest.raises(InvalidInputError, match="plain text"):
        Client("far.example:50051", credentials=far)


def test_nothing_that_is_logged_or_stored_holds_a_secret(deployment: Deployment) -> None:
    for name in (deployment.admin_token, f"{deployment.admin_token[:-4]}AAAA", "a.b.c", "hunter2"):
        deployment.run("jobs", "list", token=name)
        deployment.run("auth", "create", "--grant=default=runner", token=name)
    data = deployment.server.data_dir
    log = (data / "server.log").read_text()
    assert '"event": "audit"' in log
    assert "CREDENTIALS_INVALID" in log
    assert SECRETS.search(log) is None
    assert "hunter2" not in log
    # the secret itself may hold underscores
    secret = deployment.admin_token.split("_", 2)[2].encode()
    for path in data.glob("state.db*"):
        assert secret not in path.read_bytes()


def test_a_port_for_others_needs_more(tmp_path: Path) -> None:
    bare = _service("serve", "--listen=0.0.0.0:0", f"--data-dir={tmp_path}", settings={})
    assert bare.returncode == 5
    assert "without TLS and authentication" in bare.stderr
    assert "TIGHTFIT_ALLOW_INSECURE" in bare.stderr
