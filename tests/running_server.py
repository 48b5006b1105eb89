"""A real server in a process of its own, which tests may kill and start again on the same folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tightfit import Client

START_SECONDS = 120.0


class RunningServer:
    """`python -m tightfit_service serve` on free loopback ports.

    `program` is what Python is given instead of `-m tightfit_service`, `environment` what the server
    sees besides this process's.
    """

    def __init__(
        self,
        data_dir: Path,
        *options: str,
        program: Sequence[str] = ("-m", "tightfit_service"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self._options = options
        self._program = program
        self._environment = dict(environment or {})
        self._ready_file = data_dir / "ready.json"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.metrics_address = ""

    def start(self) -> RunningServer:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._ready_file.unlink(missing_ok=True)
        with (self.data_dir / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *self._program,
                    "serve",
                    "--listen=127.0.0.1:0",
                    "--metrics-listen=127.0.0.1:0",
                    f"--data-dir={self.data_dir}",
                    f"--ready-file={self._ready_file}",
                    f"--parent-pid={os.getpid()}",
                    *self._options,
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready_file.exists():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        addresses = json.loads(self._ready_file.read_text())
        self.address, self.metrics_address = addresses["address"], addresses["metrics_address"]
        return self

    def client(self) -> Client:
        return Client(self.address)

    def log(self) -> str:
        return (self.data_dir / "server.log").read_text()[-4000:]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> int:
        """End it as an orchestrator would; return its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout=60)
        self._process = None
        return code
