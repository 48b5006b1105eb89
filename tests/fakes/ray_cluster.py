"""A real Ray cluster on this machine: nodes on loopback addresses, which tests start and kill."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes.ports import free_port
from tightfit_service.adapters.execution.process_tree import kill_all, members

HEAD = "127.0.0.2"
START_SECONDS = 60.0
STARTS = 3
_PR_SET_PDEATHSIG = 1

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or not sys.platform.startswith("linux"),
    reason="Ray is not installed: pip install -c constraints.txt -e '.[ray]'",
)
# Ray's own modules warn about one another
ray_warns = pytest.mark.filterwarnings("ignore")


@dataclass
class RayNode:
    """A node: the process that holds it together, with all of Ray's below it."""

    address: str
    process: subprocess.Popen[bytes]

    def holds(self, pid: int) -> bool:
        """Whether a process runs on this node."""
        return pid in members(self.process.pid)

    def kill(self) -> None:
        """End the node at once with everything on it, as a power failure does."""
        kill_all(self.process.pid)
        self.process.wait()


@dataclass
class RayCluster:
    """A head node with a token, and further nodes."""

    folder: Path
    port: int
    client_port: int
    cpus: int = 2
    nodes: list[RayNode] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What the service is given."""
        return f"ray://{HEAD}:{self.client_port}"

    @property
    def token_file(self) -> str:
        """The file with the cluster's token."""
        return str(self.folder / "token")

    @classmethod
    def start(cls, *, cpus: int = 2) -> RayCluster:
        """Start a head node; nodes have so many CPUs, and one GPU that is not there."""
        # a path below pytest's own is too long for the sockets that Ray puts there
        folder = Path(tempfile.mkdtemp(prefix="ray-"))
        (folder / "token").write_text(secrets.token_hex(32))
        cluster = cls(folder=folder, port=free_port(HEAD), client_port=free_port(HEAD), cpus=cpus)
        cluster.add_node(
            HEAD,
            "--head",
            f"--port={cluster.port}",
            f"--ray-client-server-port={cluster.client_port}",
            "--include-dashboard=false",
            "--disable-usage-stats",
            f"--temp-dir={folder / 'r'}",
        )
        cluster.wait_for_client_server()
        return cluster

    def wait_for_client_server(self) -> None:
        """Wait until the head takes clients, which is some time after it says that it runs."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((HEAD, self.client_port)).close()
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            else:
                return

    def add_node(self, address: str, *options: str) -> RayNode:
        """Start a node; without options one that joins the head."""
        for _ in range(STARTS):
            node = self._start(address, *(options or (f"--address={HEAD}:{self.port}",)))
            if node is not None:
                self.nodes.append(node)
                return node
        raise AssertionError((self.folder / f"{address}.log").read_text()[-2_000:])

    def stop(self) -> None:
        """Kill all nodes and remove what they wrote."""
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, address: str, *options: str) -> RayNode | None:
        log = self.folder / f"{address}.log"
        with log.open("wb") as opened:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
                    *(f"--node-ip-address={address}", f"--num-cpus={self.cpus}", "--num-gpus=1"),
                    *("--min-worker-port=0", "--max-worker-port=0"),
                    *("--object-store-memory=100000000", *options),
                ],
                env={
                    **os.environ,
                    "RAY_AUTH_MODE": "token",
                    "RAY_AUTH_TOKEN_PATH": self.token_file,
                    "RAY_USAGE_STATS_ENABLED": "0",
                },
                stdout=opened,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_tied_and_in_a_hurry,  # noqa: PLW1509  # two calls
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if b"Ray runtime started" in log.read_bytes():
                return RayNode(address, process)
            time.sleep(0.1)
        kill_all(process.pid)
        process.wait()
        return None


def _tied_and_in_a_hurry() -> None:
    # whoever starts nodes may be killed; they take SIGTERM as word to end their processes
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # A node gives up when its own helpers take more than 15 s to start, as they do on a busy machine.
    # Sessions share processors as groups (sched(7), autogroup), so it is the group that must hurry.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("-10")
