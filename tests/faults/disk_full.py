"""Fill the disk under a server while jobs run, free it, and see what the server made of that.

    PYTHONPATH=tests python tests/faults/disk_full.py [--jobs 4] [--seconds 10] [--json FILE]

The data folder of one server with SQLite and a folder of artifacts lies on a tmpfs in a mount namespace of its
own (as root, on Linux), which a file fills to the last byte. While it is full, uploads must be refused with
a remedy and calls that only read be answered; afterwards all jobs must end in order.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fakes.ports import free_port
from faults.deployment import EXAMPLE, FINAL, ORDERLY, SERVICE, State, merge, spec, until
from running_server import RunningServer
from tightfit import Client
from tightfit.connection import Patience
from tightfit.errors import TightfitError
from tightfit.v1 import model_pb2

INSIDE = "TIGHTFIT_FAULTS_MOUNTS"
DISK_BYTES = 256 << 20
MODEL_BYTES = 1 << 20
UNIT_SECONDS = 2.0
TRIALS = 6


def reason_missing() -> str:
    """Return why no disk can be made on this machine, or ""."""
    if os.getuid() != 0 or not sys.platform.startswith("linux"):
        return "a mount namespace needs root on Linux"
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        return "this kernel grants no mount namespace"
    return ""


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """Mount a small file system, in this process's mount namespace."""
    assert os.environ.get(INSIDE), "only in a namespace of its own"
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(ballast: Path) -> None:
    """Write until nothing more fits."""
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            if file.write(b"\0" * 4096) < 4096:
                break
    assert os.statvfs(ballast.parent).f_bavail == 0, errno.errorcode[errno.ENOSPC]


def upload(client: Client, folder: Path, number: int) -> model_pb2.Model:
    path = folder / f"model-{number}.onnx"
    path.write_bytes(hashlib.shake_256(bytes([number])).digest(MODEL_BYTES))
    return client.upload_model(path)


def refusal(server: RunningServer, folder: Path) -> str:
    """Return how an upload ends while the disk is full."""
    with Client(server.address, patience=Patience(total_seconds=1.0)) as client:
        try:
            upload(client, folder, 99)
        except TightfitError as error:
            return f"{type(error).__name__}: {error}"
    return "accepted"


def run(folder: Path, *, jobs: int, seconds: float) -> dict[str, Any]:
    """Fill the disk for so long, and return what was found."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    with disk(folder / "disk") as small:
        server = RunningServer(
            small / "data",
            f"--listen=127.0.0.1:{free_port()}",
            program=(SERVICE, str(elsewhere / "ledger"), str(UNIT_SECONDS), "0"),
            environment={"TIGHTFIT_CONCURRENT_JOBS": str(jobs), "TIGHTFIT_WORKER_COUNT": "2"},
        ).start()
        with server.client() as client:
            dataset = client.upload_dataset(EXAMPLE / "dataset.yaml")
            models = [upload(client, elsewhere, number) for number in range(jobs)]
            names = [client.create_job(spec(m, dataset, trials=TRIALS)).name for m in models]
            until(
                lambda: any(True for _ in client.list_trials(names[0])),
                seconds=60,
                what="the first trial",
            )
            began = time.monotonic()
            ballast = small / "ballast"
            while (left := seconds - (time.monotonic() - began)) > 0:
                # what workers give up is taken at once
                fill(ballast)
                refused = refusal(server, elsewhere)
                read = client.get_job(names[0]).name == names[0]
                time.sleep(min(1.0, max(left, 0)))
            full = time.monotonic() - began
            at_work = sum(client.get_job(name).state not in FINAL for name in names)
            ballast.unlink()
            mended = time.monotonic()
            until(
                lambda: all(client.get_job(name).state in FINAL for name in names),
                seconds=240,
                what="the end of all jobs",
            )
            until_end = time.monotonic() - mended
            ended = [client.get_job(name) for name in names]
            after = upload(client, elsewhere, 100).name
        alive = server.is_running
        corrupt = [
            path.name
            for path in (small / "data" / "artifacts").glob("*/??/??/*")
            if hashlib.sha256(path.read_bytes()).hexdigest() != path.name
        ]
        server.stop()
    problems = [
        f"{job.name}: {job.error.message}" for job in ended if job.state not in ORDERLY
    ] + corrupt
    if "ResourceExhausted" not in refused or not read or not after or not alive or not at_work:
        problems.append(f"refused: {refused}, read: {read}, alive: {alive}, at work: {at_work}")
    return {
        "disk_bytes": DISK_BYTES,
        "seconds_full": round(full, 1),
        "jobs": jobs,
        "jobs_at_work_when_freed": at_work,
        "upload_meanwhile": refused,
        "all_jobs_ended_after_seconds": round(until_end, 1),
        "states": {
            State.Name(state): sum(job.state == state for job in ended)
            for state in {job.state for job in ended}
        },
        "artifacts_corrupt": corrupt,
        "problems": problems,
    }


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description="Fill the disk under a server.")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(given)
    if reason := reason_missing():
        print(reason, file=sys.stderr)
        return 1
    if not os.environ.get(INSIDE):
        command = ["unshare", "-m", sys.executable, __file__, *given]
        return subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="tightfit-disk-") as folder:
        found = run(Path(folder), jobs=arguments.jobs, seconds=arguments.seconds)
    print(found)
    if arguments.json:
        merge(arguments.json, "disk full", found)
    return int(bool(found["problems"]))


if __name__ == "__main__":
    sys.exit(main())
