"""A real PostgreSQL of its own, as a child process on loopback, which tests may kill and start again."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fakes.ports import free_port

START_SECONDS = 60.0

Survives = Literal["nothing", "kill", "power cut"]

_OPTIONS: dict[Survives, tuple[str, ...]] = {
    "nothing": ("fsync=off", "full_page_writes=off", "synchronous_commit=off"),
    "kill": ("fsync=off", "full_page_writes=off"),
    "power cut": (),
}


class PostgresServer:
    """`initdb` and `postgres` of the newest version that Debian's packages brought."""

    def __init__(self, directory: Path, *, survives: Survives = "nothing") -> None:
        """Make a cluster below `directory`; what was committed survives a SIGKILL of the server, or a power cut.

        Tests that do not kill it are several times faster without. Of one that would survive a power cut
        each of thousands of files is written out when it starts after a SIGKILL, which takes minutes on
        a slow disk: that is for benchmarks.
        """
        self.port = free_port()
        self._password = secrets.token_hex(8)
        self._data = directory / "data"
        self._log = directory / "postgres.log"
        self._survives = survives
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        secret = directory / "password"
        secret.write_text(self._password)
        self._data.mkdir(mode=0o700)
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            # PostgreSQL refuses to run as root
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            for path in (directory, self._data, secret):
                shutil.chown(path, "postgres", "postgres")
        subprocess.run(
            [
                *(_program("initdb"), "-D", self._data, "-U", "app", "--pwfile", secret),
                *("-A", "scram-sha-256", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"),
            ],
            check=True,
            capture_output=True,
            cwd="/",
            **self._user,
        )

    def start(self) -> PostgresServer:
        """Start it and wait until it answers."""
        options = [
            "listen_addresses=127.0.0.1",
            f"port={self.port}",
            f"unix_socket_directories={self._data}",
            "max_connections=200",
            *_OPTIONS[self._survives],
        ]
        command = [_program("postgres"), "-D", str(self._data)]
        for option in options:
            command += ["-c", option]
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self._process is None or self._process.poll() is not None:
                # after a SIGKILL its orphaned processes hold the shared memory for a moment
                with self._log.open("ab") as log:
                    self._process = subprocess.Popen(
                        command, stdout=log, stderr=log, cwd="/", **self._user
                    )
            if self._answers():
                return self
            assert time.monotonic() < deadline, self._log.read_text()[-2000:]
            time.sleep(0.05)

    def database(self) -> str:
        """Return the URL of a new, empty database."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://app:{self._password}@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str, *, name: str = "postgres") -> str:
        """Run a statement with psql and return what it printed."""
        done = subprocess.run(
            [_program("psql"), "-X", "-q", "-t", "-A", "-d", self.url(name), "-c", statement],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=30)

    def _answers(self) -> bool:
        ready = [_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0


def reason_missing() -> str:
    """Return why there is no PostgreSQL on this machine, or ""."""
    return "" if _folder() else "PostgreSQL is not installed (Debian package postgresql-15)"


@contextmanager
def running_postgres(*, survives: Survives = "nothing") -> Iterator[PostgresServer]:
    """Yield a server in a folder that its own user can reach, and end it again."""
    # pytest's folders belong to their user alone, and the server may run as another
    with tempfile.TemporaryDirectory(prefix="tightfit-postgres-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        server = PostgresServer(root / "server", survives=survives).start()
        try:
            yield server
        finally:
            server.stop()


def _folder() -> str:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))  # noqa: PTH207  # one pattern
    return str(Path(found[-1]).parent) if found else ""


def _program(name: str) -> str:
    return f"{_folder()}/{name}"
