"""A server of one's own: the very same service as a child process on a free port, for as long as needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tightfit.errors import InvalidInputError, UnavailableError

SERVICE_MODULE = "tightfit_service"
START_SECONDS = 120.0
STOP_SECONDS = 20.0
_LOG_TAIL_LINES = 12
_CLIENT_VARIABLES = frozenset(
    f"TIGHTFIT_{name}"
    for name in (
        *("SERVER", "PROJECT", "TLS", "CA_FILE", "CERT_FILE", "KEY_FILE"),
        *("TOKEN", "TOKEN_FILE"),
    )
)


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """Return where a local server keeps its state, by the XDG base directory specification."""
    if environment.get("TIGHTFIT_DATA_DIR"):
        return Path(environment["TIGHTFIT_DATA_DIR"])
    base = environment.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "tightfit"


def service_command() -> list[str]:
    """Return the command that runs the service.

    Raises:
        InvalidInputError: The service is not installed beside the client.
    """
    if importlib.util.find_spec(SERVICE_MODULE) is None:
        raise InvalidInputError(
            "the service is not installed in this Python",
            field="--local",
            remedy="run `pip install tightfit-service`, or give --server HOST:PORT",
        )
    return [sys.executable, "-m", SERVICE_MODULE]


def service_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for the service, without what is the client's alone."""
    return {key: value for key, value in environment.items() if key not in _CLIENT_VARIABLES}


@contextmanager
def local_server(
    data_dir: Path,
    *,
    command: Sequence[str] | None = None,
    show_log: bool = False,
    start_seconds: float = START_SECONDS,
) -> Iterator[str]:
    """Run a server and yield its address; it is stopped at the end, and stops when this process dies.

    Args:
        data_dir: Folder of all state; made if it is missing. A job that was cut short goes on there.
        command: Command that runs the service; found by itself when None.
        show_log: Let the server's log go to standard error instead of `server.log`.
        start_seconds: Longest wait for it to serve.

    Raises:
        InvalidInputError: The service is not installed, or the folder cannot be written.
        UnavailableError: The server did not come up; its last words are in the message.
    """
    arguments = list(command) if command is not None else service_command()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        log = (data_dir / "server.log").open("ab")
    except OSError as error:
        raise InvalidInputError(
            f"cannot write to {data_dir}: {error.strerror or error}",
            field="--data-dir",
            remedy="give a folder that can be written",
        ) from error
    log_start = log.tell()
    with log, tempfile.TemporaryDirectory(prefix="tightfit-") as folder:
        ready_file = Path(folder) / "ready.json"
        # its own session: Ctrl-C reaches the client alone, which first cancels its job
        process = subprocess.Popen(
            [
                *arguments,
                "serve",
                "--listen=127.0.0.1:0",
                "--metrics-listen=127.0.0.1:0",
                f"--data-dir={data_dir}",
                f"--parent-pid={os.getpid()}",
                f"--ready-file={ready_file}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=None if show_log else log,
            stderr=None if show_log else log,
            start_new_session=True,
            env=service_environment(os.environ),
        )
        try:
            yield _await_address(
                process, ready_file, Path(log.name), log_start=log_start, seconds=start_seconds
            )
        finally:
            _stop(process)


def _await_address(
    process: subprocess.Popen[bytes], ready_file: Path, log: Path, *, log_start: int, seconds: float
) -> str:
    deadline = time.monotonic() + seconds
    while not ready_file.exists():
        if process.poll() is not None:
            raise UnavailableError(
                f"the local server ended with code {process.returncode}:\n"
                f"{_log_tail(log, log_start)}",
                remedy=f"its whole log is {log}",
            )
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"the local server did not serve within {seconds:g} seconds",
                remedy=f"its log is {log}",
            )
        time.sleep(0.05)
    address: str = json.loads(ready_file.read_text(encoding="utf-8"))["address"]
    return address


def _log_tail(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL_LINES:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
