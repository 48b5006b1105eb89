"""A worker on a node, asked directly: an engine only carries the calls."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import worker_main
from tightfit_service.adapters.execution.limits import Confinement
from tightfit_service.adapters.execution.messages import Message, error_from
from tightfit_service.adapters.execution.node_worker import NodeOptions, NodeWorker
from tightfit_service.application.ports import WorkUnit
from tightfit_service.domain.errors import IntegrityError, NotFoundError, WorkerDiedError

Make = Callable[..., NodeWorker]

DATA = b"model bytes"
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Make workers of one node, which are stopped at the end."""
    made: list[NodeWorker] = []

    def factory(**settings: Any) -> NodeWorker:
        values: dict[str, Any] = {
            "arguments": [worker_main.__file__],
            "environment": {"PYTHONPATH": ":".join(sys.path)},
            "folder": str(tmp_path),
            "cache_bytes": 1 << 20,
            "threads": 1,
            "confinement": Confinement(),
        }
        made.append(NodeWorker(NodeOptions(**(values | settings))))
        return made[-1]

    yield factory
    for worker in made:
        await worker.stop()


async def story_of(worker: NodeWorker, run_id: str, kind: str, **inputs: str) -> list[Message]:
    """Run a unit and return all that is told of it, the end last."""
    await worker.begin(
        run_id, WorkUnit(project="default", kind=kind, payload={"x": 1}, inputs=inputs)
    )
    told: list[Message] = []
    while not told or told[-1]["type"] not in {"result", "error"}:
        told += await worker.next(run_id)
    return told


async def end_of(worker: NodeWorker, run_id: str, kind: str, **inputs: str) -> Message:
    """Run a unit and return the last thing that is told of it."""
    return (await story_of(worker, run_id, kind, **inputs))[-1]


async def send(worker: NodeWorker, run_id: str, data: bytes = DATA, digest: str = DIGEST) -> Any:
    assert not await worker.holds(run_id, "default", digest)
    await worker.receive(run_id, "default", digest, data[:5], is_last=False)
    return await worker.receive(run_id, "default", digest, data[5:], is_last=True)


async def test_inputs_come_in_chunks_and_outputs_are_read_back(make: Make) -> None:
    worker = make()
    assert (await worker.start())["type"] == "started"
    assert await send(worker, "run") is None
    result = await end_of(worker, "run", "echo", model=DIGEST)
    digest = result["outputs"]["model"]
    assert result["sizes"] == {digest: len(DATA)}
    parts = [await worker.read(digest, at, 4) for at in range(0, len(DATA), 4)]
    assert b"".join(parts) == DATA[::-1]
    await worker.close("run")
    with pytest.raises(FileNotFoundError):
        await worker.read(digest, 0, 4)


async def test_workers_of_a_node_share_inputs_but_not_between_projects(make: Make) -> None:
    first, second = make(), make()
    await send(first, "run")
    assert await second.holds("other", "default", DIGEST)
    assert not await second.holds("other", "stranger", DIGEST)


async def test_bytes_that_are_not_what_they_are_called_are_refused(make: Make) -> None:
    worker = make()
    error = error_from(await send(worker, "run", data=b"something else"))
    assert isinstance(error, IntegrityError)
    assert not await worker.holds("run", "default", DIGEST)


async def test_an_input_that_was_not_sent_is_not_found(make: Make) -> None:
    worker = make()
    await worker.start()
    error = error_from(await end_of(worker, "run", "echo", model=DIGEST))
    assert isinstance(error, NotFoundError)


async def test_inputs_in_use_outlive_a_full_cache(make: Make) -> None:
    worker = make(cache_bytes=0)
    await worker.start()
    await send(worker, "run")
    assert (await end_of(worker, "run", "echo", model=DIGEST))["type"] == "result"
    await worker.close("run")
    assert not await worker.holds("again", "default", DIGEST)


async def test_a_dead_process_is_told_with_the_restart(make: Make) -> None:
    worker = make()
    await worker.start()
    told = await story_of(worker, "run", "segfault")
    assert isinstance(error_from(told[-1]), WorkerDiedError)
    await worker.close("run")
    # the process may be replaced after its unit was told to have failed
    told += await story_of(worker, "next", "echo")
    assert [message for message in told if message["type"] == "restart"] == [
        {"type": "restart", "reason": "crashed"}
    ]


async def test_an_unknown_run_is_said_to_be_unknown(make: Make) -> None:
    assert await make().next("never begun") == [{"type": "unknown"}]


LEAVES = """
import os, signal, sys
from pathlib import Path
from tightfit_service.adapters.execution.limits import Confinement
from tightfit_service.adapters.execution.node_worker import NodeOptions, NodeWorker

worker = NodeWorker(NodeOptions(arguments=[], folder=sys.argv[1], cache_bytes=0, threads=1,
                                confinement=Confinement()))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_worker_left_is_cleared_and_what_a_living_one_has_stays(
    make: Make, tmp_path: Path
) -> None:
    make()
    kept = set((tmp_path / "slots").iterdir())
    ended = subprocess.run([sys.executable, "-c", LEAVES, tmp_path], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(set((tmp_path / "slots").iterdir()) - kept) == 1
    make()
    slots = set((tmp_path / "slots").iterdir())
    assert kept < slots
    assert len(slots) == 2
