"""Finds or starts a real S3 server for tests.

A running one is named by TIGHTFIT_TEST_S3_URL, TIGHTFIT_TEST_S3_ACCESS_KEY and
TIGHTFIT_TEST_S3_SECRET_KEY. Otherwise TIGHTFIT_S3_SERVER may name a script that starts one. It must
know `start PORT DIR`, which prints S3_URL=, S3_ACCESS_KEY= and S3_SECRET_KEY= lines and returns when the
server answers, `kill DIR`, after which `start` finds the data again, and `destroy DIR`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fakes.ports import free_port

START_SECONDS = 240
"""How long a server may take to start, at most: on a busy machine daemons are slow to find each other."""

_START_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class S3Gateway:
    """Where a server answers; `reason_missing` says why there is none."""

    url: str = ""
    access_key: str = ""
    secret_key: str = ""
    reason_missing: str = ""
    script: Path | None = None
    directory: Path = Path()

    def kill(self) -> None:
        """End the server as a crash would; its data stays."""
        assert self.script is not None
        subprocess.run([self.script, "kill", self.directory], check=True, capture_output=True)

    def start_again(self) -> None:
        """Start a killed server at its old address.

        A start that the script gave up is tried again: the daemons of a server that was killed may
        not find each other in time on a busy machine.

        Raises:
            RuntimeError: It did not start, with the end of what the script printed.
        """
        assert self.script is not None
        port = urlsplit(self.url).port
        log = self.directory.with_name(f"{self.directory.name}.log")
        for _ in range(_START_ATTEMPTS):
            with log.open("ab") as output:
                started = subprocess.run(
                    [self.script, "start", str(port), self.directory],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=START_SECONDS,
                    check=False,
                )
            if started.returncode == 0:
                return
            self.kill()
        raise RuntimeError(f"the S3 server did not start again: {log.read_text()[-2000:]}")


@contextmanager
def find_s3_gateway(directory: Path) -> Iterator[S3Gateway]:
    """Yield a gateway, started with its data in `directory` if it must be, and end it again."""
    if url := os.environ.get("TIGHTFIT_TEST_S3_URL"):
        yield S3Gateway(
            url=url,
            access_key=os.environ.get("TIGHTFIT_TEST_S3_ACCESS_KEY", ""),
            secret_key=os.environ.get("TIGHTFIT_TEST_S3_SECRET_KEY", ""),
        )
        return
    named = os.environ.get("TIGHTFIT_S3_SERVER")
    if not named:
        yield S3Gateway(
            reason_missing="no S3 server: neither TIGHTFIT_TEST_S3_URL nor TIGHTFIT_S3_SERVER is set"
        )
        return
    script = Path(named)
    try:
        yield _start(script, directory)
    finally:
        subprocess.run([script, "destroy", directory], check=False, capture_output=True)


def _start(script: Path, directory: Path) -> S3Gateway:
    # output goes to a file: the server inherits it, and a pipe would never end
    log = directory.with_name(f"{directory.name}.log")
    with log.open("wb") as output:
        started = subprocess.run(
            [script, "start", str(free_port()), directory],
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=START_SECONDS,
            check=False,
        )
    lines = log.read_text().splitlines()
    if started.returncode != 0:
        return S3Gateway(
            reason_missing=f"{script} failed: {lines[-1] if lines else started.returncode}"
        )
    values = dict(line.split("=", 1) for line in lines if line.startswith("S3_"))
    return S3Gateway(
        url=values["S3_URL"],
        access_key=values["S3_ACCESS_KEY"],
        secret_key=values["S3_SECRET_KEY"],
        script=script,
        directory=directory,
    )
