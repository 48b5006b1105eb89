"""An image that `build` made, and containers of it, without a daemon: buildah's chroot isolation and namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fakes.ports import free_port

USER = 10001
START_SECONDS = 180.0
STOP_SECONDS = 90.0


@dataclass(frozen=True, kw_only=True)
class BuiltImage:
    """An image in a store of its own."""

    store: Path
    name: str
    build_seconds: int
    size_bytes: int

    def buildah(self, *arguments: str) -> list[str]:
        """Return a command of buildah on the store."""
        places = ["--root", f"{self.store}/layers", "--runroot", f"{self.store}/run"]
        return ["buildah", *places, "--storage-driver", "overlay", *arguments]

    def answer(self, *arguments: str) -> str:
        """Run a command of buildah and return what it prints."""
        done = subprocess.run(
            self.buildah(*arguments), check=True, capture_output=True, text=True, timeout=300
        )
        return done.stdout.strip()

    def config(self) -> dict[str, Any]:
        """Return how containers of the image run: user, environment, command, health check, labels."""
        inspected = json.loads(self.answer("inspect", "--type", "image", self.name))
        config = inspected["Docker"]["config"]
        assert isinstance(config, dict)
        return config

    @contextlib.contextmanager
    def container(self) -> Iterator[Container]:
        """Yield a new container."""
        name = self.answer("from", "--pull-never", self.name)
        try:
            yield Container(image=self, name=name, root=Path(self.answer("mount", name)))
        finally:
            self.answer("umount", name)
            self.answer("rm", name)


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container; `root` is its file system, seen from outside."""

    image: BuiltImage
    name: str
    root: Path

    def run(
        self, *command: str, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as its user and with its environment."""
        options = [f"--env={key}={value}" for key, value in (environment or {}).items()]
        return subprocess.run(
            self.image.buildah("run", "--isolation", "chroot", *options, self.name, "--", *command),
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )

    @contextlib.contextmanager
    def serving(self, folder: Path) -> Iterator[Serving]:
        """Serve with the image's own command; /var/lib/tightfit and /tmp are folders below `folder`."""
        config = self.image.config()
        serving = Serving(folder=folder)
        options = ["--isolation", "chroot"]
        options += [f"--env={key}={value}" for key, value in serving.environment.items()]
        options += ["--volume", f"{serving.data}:/var/lib/tightfit"]
        options += ["--volume", f"{serving.scratch}:/tmp"]
        command = [*config["Entrypoint"], *config["Cmd"]]
        with serving.process(self.image.buildah("run", *options, self.name, "--", *command)):
            yield serving

    @contextlib.contextmanager
    def serving_read_only(self, folder: Path) -> Iterator[Serving]:
        """Serve as `serving` does, with a root that the kernel lets nobody write to."""
        config = self.image.config()
        serving = Serving(folder=folder)
        environment = dict(entry.split("=", 1) for entry in config["Env"]) | serving.environment
        variables = [f"{key}={value}" for key, value in environment.items()]
        script = """
            set -e
            mount --make-rprivate /
            mount --bind "$1" "$1"
            mount -o remount,bind,ro "$1"
            mount --bind "$2" "$1/var/lib/tightfit"
            mount --bind "$3" "$1/tmp"
            mount -t proc proc "$1/proc"
            mount --rbind /dev "$1/dev"
            root=$1 user=$4
            shift 4
            exec chroot --userspec="$user" "$root" env -i "$@"
        """
        places = [str(self.root), str(serving.data), str(serving.scratch), config["User"]]
        command = [*variables, *config["Entrypoint"], *config["Cmd"]]
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        with serving.process([*isolated, "sh", "-c", script, "sh", *places, *command]):
            yield serving


class Serving:
    """A server in a container, on free ports of this machine."""

    def __init__(self, *, folder: Path) -> None:
        self.data, self.scratch = folder / "data", folder / "tmp"
        for place in (self.data, self.scratch):
            place.mkdir(parents=True)
            os.chown(place, USER, USER)
        self.address = f"127.0.0.1:{free_port()}"
        self.health_address = f"127.0.0.1:{free_port()}"
        self.environment = {
            "TIGHTFIT_LISTEN": self.address,
            "TIGHTFIT_METRICS_LISTEN": f"127.0.0.1:{free_port()}",
            "TIGHTFIT_HEALTH_LISTEN": self.health_address,
        }
        self.start_seconds = 0.0
        self.exit_code: int | None = None
        self._log = folder / "server.log"

    @contextlib.contextmanager
    def process(self, command: list[str]) -> Iterator[None]:
        """Run the command until the block ends; stop it as an orchestrator would."""
        started = time.monotonic()
        with self._log.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            self._wait(process)
            self.start_seconds = time.monotonic() - started
            yield
            self._stop(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def log(self) -> str:
        return self._log.read_text()[-4000:]

    def is_serving(self) -> bool:
        """Whether the health service says so."""
        with grpc.insecure_channel(self.health_address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.is_serving():
            assert process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.25)

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        # The server is the process that listens; what started it passes its exit code on.
        for pid in processes_below(process.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if command[0].endswith(b"python") and b"serve" in command:
                os.kill(pid, signal.SIGTERM)
        self.exit_code = process.wait(timeout=STOP_SECONDS)


def processes_below(pid: int) -> list[int]:
    """Return the ids of all processes that a process started, and of theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *processes_below(int(child))]
    return found


def user_of(pid: int) -> int:
    """Return the effective user of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[2])
    raise ValueError(pid)
