"""A worker process for tests, with handlers that succeed, fail and misbehave."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tightfit_service.adapters.execution.worker import serve
from tightfit_service.application.ports import ProgressCallback, WorkHandler
from tightfit_service.domain.errors import DivergedError, InvalidModelError

Result = tuple[Mapping[str, Any], Mapping[str, Path]]
Payload = Mapping[str, Any]
Inputs = Mapping[str, Path]


def echo(
    payload: Payload, inputs: Inputs, output_dir: Path, on_progress: ProgressCallback
) -> Result:
    """Return the payload, facts about the process, and each input turned around."""
    on_progress(0.0, "begun")
    outputs = {}
    for name, path in inputs.items():
        outputs[name] = output_dir / name
        outputs[name].write_bytes(path.read_bytes()[::-1])
    on_progress(1.0, "done")
    print("echo prints to standard output")
    facts = {"pid": os.getpid(), "environment": dict(os.environ), "names": sorted(inputs)}
    return {"payload": dict(payload), **facts}, outputs


def domain_error(payload: Payload, *_: Any, **__: Any) -> Result:
    """Raise an error of the domain with all its parts."""
    kind = {"model": InvalidModelError, "diverged": DivergedError}[payload["kind"]]
    raise kind("the model is bad", field="model", remedy="send a good one")


def other_error(*_: Any, **__: Any) -> Result:
    """Fail as a bug does."""
    print("about to fail")
    raise ZeroDivisionError("one by zero")


def disk_full(*_: Any, **__: Any) -> Result:
    """Find no room for what it writes."""
    raise OSError(errno.ENOSPC, "No space left on device")


def exit_status(*_: Any, **__: Any) -> Result:
    """End the process without a word."""
    print("last words", flush=True)
    os._exit(3)


def segfault(*_: Any, **__: Any) -> Result:
    """End the process as a bug in native code does."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def hang(
    payload: Payload, inputs: Inputs, output_dir: Path, on_progress: ProgressCallback
) -> Result:
    """Run for ever, with a child in the group and one that left it; tell who they are."""
    sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    children = [
        subprocess.Popen(sleeper),
        subprocess.Popen(sleeper, start_new_session=True),
    ]
    pids = [os.getpid(), *(child.pid for child in children)]
    (output_dir / "begun").write_text("x")
    if "pid_file" in payload:
        partial = Path(payload["pid_file"] + ".partial")
        partial.write_text(" ".join(map(str, pids)))
        partial.rename(payload["pid_file"])
    on_progress(0.5, " ".join(map(str, pids)))
    while True:
        time.sleep(1)


def hang_once(
    payload: Payload, inputs: Inputs, output_dir: Path, on_progress: ProgressCallback
) -> Result:
    """Run for ever the first time, and end at once the next."""
    try:
        Path(payload["marker"]).touch(exist_ok=False)
    except FileExistsError:
        return {"pid": os.getpid()}, {}
    return hang(payload, inputs, output_dir, on_progress)


def hog(payload: Payload, *_: Any, **__: Any) -> Result:
    """Take memory in steps and hold it."""
    held = []
    while True:
        held.append(b"\1" * payload["step_bytes"])
        time.sleep(0.05)


def burn(*_: Any, **__: Any) -> Result:
    """Compute for ever."""
    while True:
        sum(range(10_000))


def fill(payload: Payload, inputs: Inputs, output_dir: Path, *_: Any, **__: Any) -> Result:
    """Write small files for ever."""
    number = 0
    while True:
        (output_dir / str(number)).write_bytes(b"\1" * payload["step_bytes"])
        number += 1
        time.sleep(0.02)


def probe(payload: Payload, *_: Any, **__: Any) -> Result:
    """Tell what this process may do: read files, make sockets, become more."""
    reports: dict[str, Any] = {
        "uid": os.getuid(),
        "environment": Path("/proc/self/environ").read_text(),
    }
    reports["interfaces"] = Path("/proc/net/dev").read_text().count(":")
    reports["open_files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    reports["core"] = resource.getrlimit(resource.RLIMIT_CORE)[0]
    try:
        socket.socket().close()
        reports["socket"] = "made"
    except OSError as error:
        reports["socket"] = errno.errorcode[error.errno or 0]
    status = Path("/proc/self/status").read_text().splitlines()
    reports["no_new_privs"] = "NoNewPrivs:\t1" in status
    for path in payload["paths"]:
        try:
            reports[path] = str(len(Path(path).read_bytes()))
        except OSError as error:
            reports[path] = errno.errorcode[error.errno or 0]
    return reports, {}


def stray_output(payload: Payload, inputs: Inputs, output_dir: Path, *_: Any, **__: Any) -> Result:
    """Claim a file outside the output folder."""
    return {}, {"stray": output_dir.parent.parent / "secret"}


def not_plain(*_: Any, **__: Any) -> Result:
    """Return what JSON cannot say."""
    return {"data": b"bytes"}, {}


HANDLERS: dict[str, WorkHandler] = {
    "echo": echo,
    "domain_error": domain_error,
    "other_error": other_error,
    "disk_full": disk_full,
    "exit_status": exit_status,
    "segfault": segfault,
    "hang": hang,
    "hang_once": hang_once,
    "hog": hog,
    "burn": burn,
    "fill": fill,
    "probe": probe,
    "stray_output": stray_output,
    "not_plain": not_plain,
}

if __name__ == "__main__":
    serve(HANDLERS)
