"""Worker processes that crash, hang, grow, and outlive their server: none of it is left behind."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fakes import worker_main
from fakes.artifacts import InMemoryArtifactStores
from fakes.processes import PATIENCE_SECONDS, is_running, wait_until_gone
from fakes.telemetry import RecordingTelemetry
from tightfit_service.adapters.execution import sandbox
from tightfit_service.adapters.execution.limits import (
    DEFAULT_OPEN_FILES,
    Confinement,
    WorkerLimits,
    WorkerUser,
)
from tightfit_service.adapters.execution.local_processes import LocalProcessExecutor, WorkerProgram
from tightfit_service.application.ports import WorkUnit
from tightfit_service.domain.errors import (
    InvalidRequestError,
    UnavailableError,
    WorkerDiedError,
    WorkFailedError,
)

Make = Callable[..., LocalProcessExecutor]

ECHO = WorkUnit(project="default", kind="echo", payload={}, inputs={})


def ignore_progress(fraction: float, message: str) -> None:
    del fraction, message


@pytest.fixture
def telemetry() -> RecordingTelemetry:
    return RecordingTelemetry()


@pytest.fixture
async def make(tmp_path: Path, telemetry: RecordingTelemetry) -> AsyncIterator[Make]:
    """Make executors, which are stopped at the end."""
    made: list[LocalProcessExecutor] = []

    def factory(**settings: Any) -> LocalProcessExecutor:
        def taken(kind: type) -> dict[str, Any]:
            return {
                one.name: settings.pop(one.name) for one in fields(kind) if one.name in settings
            }

        program = {
            "command": [sys.executable, worker_main.__file__],
            "environment": {"PYTHONPATH": ":".join(sys.path)},
            **taken(WorkerProgram),
        }
        values: dict[str, Any] = {
            "program": WorkerProgram(**program),
            "confinement": Confinement(**taken(Confinement)),
            "artifacts": InMemoryArtifactStores(),
            "scratch_dir": tmp_path / "scratch",
            "telemetry": telemetry,
        }
        made.append(LocalProcessExecutor(**(values | settings)))
        return made[-1]

    yield factory
    for executor in made:
        await executor.stop()


async def start_hanging(
    executor: LocalProcessExecutor, **settings: Any
) -> tuple[asyncio.Task[Any], list[int]]:
    """Start a unit that never ends; return its task, and its process with two children."""
    begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    unit = WorkUnit(project="default", kind="hang", payload={}, inputs={}, **settings)
    task = asyncio.create_task(
        executor.run(unit, on_progress=lambda _, message: begun.set_result(message))
    )
    pids = [int(pid) for pid in (await begun).split()]
    assert all(is_running(pid) for pid in pids)
    return task, pids


async def worker_pid(executor: LocalProcessExecutor) -> int:
    result = await executor.run(ECHO, on_progress=ignore_progress)
    return int(result.payload["pid"])


async def test_a_worker_is_reused_and_replaced_after_its_share(make: Make) -> None:
    executor = make(units_per_process=2)
    await executor.start()
    pids = [await worker_pid(executor) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_replacing_a_worker_by_plan_is_not_reported(
    make: Make, telemetry: RecordingTelemetry
) -> None:
    executor = make(units_per_process=1)
    await executor.start()
    assert await worker_pid(executor) != await worker_pid(executor)
    assert telemetry.worker_restarts == []


@pytest.mark.parametrize(
    ("kind", "ending"), [("exit_status", "exit status 3"), ("segfault", "SIGSEGV")]
)
async def test_a_crash_is_failed_work_and_the_next_unit_runs(
    make: Make, telemetry: RecordingTelemetry, kind: str, ending: str
) -> None:
    executor = make()
    await executor.start()
    before = await worker_pid(executor)
    with pytest.raises(WorkerDiedError, match=ending) as caught:
        await executor.run(
            WorkUnit(project="default", kind=kind, payload={}, inputs={}),
            on_progress=ignore_progress,
        )
    if kind == "exit_status":
        assert "last words" in str(caught.value)
    assert "echo prints" not in str(caught.value)
    assert await worker_pid(executor) != before
    assert telemetry.worker_restarts == ["crashed"]


async def test_a_failure_shows_what_the_handler_printed(make: Make) -> None:
    executor = make()
    await executor.start()
    unit = WorkUnit(project="default", kind="other_error", payload={}, inputs={})
    with pytest.raises(WorkFailedError) as caught:
        await executor.run(unit, on_progress=ignore_progress)
    assert "about to fail" in str(caught.value)
    assert "Traceback" in str(caught.value)


async def test_cancelling_kills_the_worker_and_its_children_and_frees_the_slot(
    make: Make, telemetry: RecordingTelemetry
) -> None:
    executor = make()
    await executor.start()
    task, pids = await start_hanging(executor)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until_gone(pids)
    assert await worker_pid(executor) not in pids
    assert telemetry.worker_restarts == ["killed"]


async def test_cancelling_while_waiting_for_a_slot_disturbs_nobody(
    make: Make, telemetry: RecordingTelemetry
) -> None:
    executor = make()
    await executor.start()
    running, pids = await start_hanging(executor)
    waiting = asyncio.create_task(executor.run(ECHO, on_progress=ignore_progress))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert all(is_running(pid) for pid in pids)
    assert telemetry.worker_restarts == []
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await worker_pid(executor) not in pids


async def test_being_cancelled_twice_still_kills(make: Make) -> None:
    executor = make()
    await executor.start()
    task, pids = await start_hanging(executor)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until_gone(pids)
    assert await worker_pid(executor) not in pids


async def test_a_unit_out_of_time_is_killed(make: Make, telemetry: RecordingTelemetry) -> None:
    executor = make()
    await executor.start()
    await worker_pid(executor)
    task, pids = await start_hanging(executor, timeout_seconds=0.7)
    with pytest.raises(WorkFailedError, match=r"longer than 0\.7 s"):
        await task
    await wait_until_gone(pids)
    assert await worker_pid(executor) not in pids
    assert telemetry.worker_restarts == ["timeout"]


async def test_a_unit_that_takes_too_much_memory_is_killed(
    make: Make, telemetry: RecordingTelemetry
) -> None:
    executor = make(limits=WorkerLimits(memory_bytes=200 << 20))
    await executor.start()
    unit = WorkUnit(
        project="default",
        kind="hog",
        payload={"step_bytes": 32 << 20},
        inputs={},
        timeout_seconds=60,
    )
    with pytest.raises(WorkFailedError, match="MiB of memory, limit 200 MiB"):
        await executor.run(unit, on_progress=ignore_progress)
    assert await worker_pid(executor)
    assert telemetry.worker_restarts == ["memory"]


async def test_a_unit_that_computes_or_writes_too_much_is_killed(
    make: Make, telemetry: RecordingTelemetry
) -> None:
    executor = make(limits=WorkerLimits(cpu_seconds=0.5, disk_bytes=8 << 20))
    await executor.start()
    payload = {"step_bytes": 1 << 20}
    for kind, words in (
        ("burn", r"s of processor time, limit 0\.5 s.*worker_cpu_seconds"),
        ("fill", r"MiB, limit 8 MiB.*worker_disk_bytes"),
    ):
        unit = WorkUnit(
            project="default", kind=kind, payload=payload, inputs={}, timeout_seconds=60
        )
        with pytest.raises(WorkFailedError, match=words):
            await executor.run(unit, on_progress=ignore_progress)
    assert await worker_pid(executor)
    assert telemetry.worker_restarts == ["cpu", "disk"]


async def probe(executor: LocalProcessExecutor, *paths: str) -> dict[str, Any]:
    unit = WorkUnit(project="default", kind="probe", payload={"paths": list(paths)}, inputs={})
    return dict((await executor.run(unit, on_progress=ignore_progress)).payload)


async def test_a_worker_reaches_no_network_and_not_its_server(make: Make) -> None:
    environment_of_server = f"/proc/{os.getpid()}/environ"
    executor = make(isolation="required")
    await executor.start()
    seen = await probe(executor, environment_of_server)
    assert seen["socket"] == "EPERM"
    assert seen["no_new_privs"]
    assert seen["core"] == 0
    assert seen["open_files"] == min(
        DEFAULT_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    )
    if "user+namespace" in str(executor.isolation):
        assert seen[environment_of_server] == "EACCES"
        assert seen["interfaces"] == 1


async def test_isolation_can_be_turned_off(make: Make) -> None:
    executor = make(isolation="off")
    await executor.start()
    assert (await probe(executor))["socket"] == "made"


async def test_a_platform_that_cannot_isolate_is_refused_where_it_is_required(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    helpless = tmp_path / "sandbox.py"
    source = inspect.getsource(sandbox)
    helpless.write_text(source.replace('sys.platform == "linux"', 'sys.platform == "plan9"'))
    monkeypatch.setattr(sandbox, "__file__", str(helpless))
    executor = make(isolation="required")
    await executor.start()
    with pytest.raises(UnavailableError, match="refuses network namespaces"):
        await worker_pid(executor)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="tightfit-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start workers as another user")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="other users need a Python too")
@pytest.mark.skipif(
    not all(folder.stat().st_mode & 0o001 for folder in Path(__file__).resolve().parents),
    reason="other users may not enter the folder that the repository lies in",
)
async def test_workers_with_a_user_of_their_own_cannot_read_the_state(
    make: Make, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts, database = open_folder / "artifacts", open_folder / "state.db"
    artifacts.mkdir()
    secrets = [artifacts / "model", database]
    for secret in secrets:
        secret.write_text("secret")
    monkeypatch.setenv("TIGHTFIT_S3_SECRET_KEY", "hush-hush")
    user = WorkerUser.named("nobody")
    user.shut_out(open_folder, except_for=("scratch",))
    stores = InMemoryArtifactStores()
    executor = make(
        artifacts=stores,
        # the interpreter of the tests may lie where no other user can go
        command=["/usr/bin/python3", worker_main.__file__],
        scratch_dir=open_folder / "scratch",
        user="nobody",
    )
    await executor.start()
    result = await executor.run(
        WorkUnit(
            project="default",
            kind="echo",
            payload={},
            inputs={"model": stores.default.add(b"bytes")},
        ),
        on_progress=ignore_progress,
    )
    assert stores.default.contents[result.outputs["model"]] == b"setyb"
    environment_of_server = f"/proc/{os.getpid()}/environ"
    seen = await probe(executor, *map(str, secrets), environment_of_server)
    assert seen["uid"] == user.uid
    assert {seen[str(path)] for path in (*secrets, environment_of_server)} == {"EACCES"}
    assert "hush-hush" not in seen["environment"]
    assert not re.findall(r"TIGHTFIT_(?!WORKER_)", seen["environment"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start workers as another user")
async def test_a_data_folder_that_workers_cannot_enter_is_refused(
    make: Make, open_folder: Path
) -> None:
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    executor = make(scratch_dir=closed / "scratch", user="nobody")
    with pytest.raises(UnavailableError, match=r"cannot enter .*closed.*chmod o\+x"):
        await executor.start()


@pytest.mark.parametrize(("name", "words"), [("root", "as root"), ("no-such-user", "no user")])
def test_a_user_that_cannot_confine_is_refused(name: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        WorkerUser.named(name)


async def test_a_worker_that_died_idle_is_replaced_unnoticed(
    make: Make, telemetry: RecordingTelemetry
) -> None:
    executor = make()
    await executor.start()
    pid = await worker_pid(executor)
    os.kill(pid, signal.SIGKILL)
    await wait_until_gone([pid])
    assert await worker_pid(executor) != pid
    assert telemetry.worker_restarts == ["crashed"]


async def test_two_units_run_at_the_same_time_on_two_workers(make: Make) -> None:
    executor = make(worker_count=2)
    await executor.start()
    first, first_pids = await start_hanging(executor)
    second, second_pids = await start_hanging(executor)
    assert first_pids[0] != second_pids[0]
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await wait_until_gone(first_pids)
    assert all(is_running(pid) for pid in second_pids)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_stopping_ends_running_and_waiting_units(make: Make) -> None:
    executor = make()
    await executor.start()
    running, pids = await start_hanging(executor)
    waiting = asyncio.create_task(executor.run(ECHO, on_progress=ignore_progress))
    await asyncio.sleep(0)
    await executor.stop()
    assert not any(is_running(pid) for pid in pids)
    for task in (running, waiting):
        with pytest.raises(UnavailableError):
            await task


async def test_a_worker_sees_no_secrets_and_its_share_of_threads(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIGHTFIT_S3_SECRET_KEY", "secret")
    executor = make(threads=3)
    await executor.start()
    result = await executor.run(ECHO, on_progress=ignore_progress)
    environment = result.payload["environment"]
    assert not [name for name in environment if name.startswith("TIGHTFIT")]
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["TMPDIR"].startswith(str(tmp_path))


@pytest.mark.parametrize(
    "command", [["/does/not/exist"], [sys.executable, "-c", "print('no such module')"]]
)
async def test_a_worker_that_does_not_start_is_an_error_with_a_remedy(
    make: Make, command: list[str]
) -> None:
    executor = make(command=command)

    async def start_and_run() -> None:
        await executor.start()
        await executor.run(ECHO, on_progress=ignore_progress)

    with pytest.raises(UnavailableError) as caught:
        await start_and_run()
    assert "installation" in caught.value.remedy


SERVER = """
import asyncio, sys
from pathlib import Path
from fakes import worker_main
from fakes.artifacts import InMemoryArtifactStores
from fakes.telemetry import RecordingTelemetry
from tightfit_service.adapters.execution.local_processes import LocalProcessExecutor, WorkerProgram
from tightfit_service.application.ports import WorkUnit

async def main():
    executor = LocalProcessExecutor(
        program=WorkerProgram(
            command=[sys.executable, worker_main.__file__],
            environment={"PYTHONPATH": ":".join(sys.path)},
        ),
        artifacts=InMemoryArtifactStores(),
        scratch_dir=Path(sys.argv[1]),
        telemetry=RecordingTelemetry(),
    )
    await executor.start()
    unit = WorkUnit(project="default", kind="hang", payload={"pid_file": sys.argv[2]}, inputs={})
    await executor.run(unit, on_progress=lambda *_: None)

asyncio.run(main())
"""


@pytest.fixture
def hanging_server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A server process with a unit that never ends, and that unit's processes."""
    pid_file = tmp_path / "pids"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, tmp_path / "scratch", pid_file],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not pid_file.exists():
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pids = [int(pid) for pid in pid_file.read_text().split()]
    yield server, pids
    # the last one made a session of its own; with its server dead nobody knows of it any more
    os.kill(pids[-1], signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_server_that_is_killed_leaves_no_worker_behind(
    hanging_server: tuple[subprocess.Popen[bytes], list[int]], number: signal.Signals
) -> None:
    server, (worker, child, _) = hanging_server
    server.send_signal(number)
    server.wait()
    await wait_until_gone([worker, child])
