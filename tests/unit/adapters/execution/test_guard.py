"""The guard kills the groups on its list when its server is gone, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tightfit_service.adapters.execution import guard
from tightfit_service.adapters.execution.guard import Guard

Sleeper = subprocess.Popen[bytes]


@pytest.fixture
def sleepers() -> Iterator[list[Sleeper]]:
    """Two processes in groups of their own."""
    command = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
    made = [subprocess.Popen(command, start_new_session=True) for _ in range(2)]
    yield made
    for sleeper in made:
        sleeper.kill()
        sleeper.wait()


def test_the_script_kills_what_is_listed_at_the_end(sleepers: list[Sleeper]) -> None:
    doomed, spared = sleepers
    gone = "+999999999\n"
    lines = f"+{spared.pid}\n{gone}+{doomed.pid}\n-{spared.pid}\n"
    subprocess.run(
        [sys.executable, "-I", "-S", guard.__file__], input=lines.encode(), check=True, timeout=30
    )
    assert doomed.wait(30) == -signal.SIGKILL
    assert spared.poll() is None


def test_a_guard_that_was_killed_is_replaced(sleepers: list[Sleeper]) -> None:
    first, second = sleepers
    watcher = Guard()
    watcher.watch(first.pid)
    assert watcher._process is not None
    os.kill(watcher._process.pid, signal.SIGKILL)
    watcher._process.wait()
    watcher.watch(second.pid)
    watcher.stop()
    assert [sleeper.wait(30) for sleeper in sleepers] == [-signal.SIGKILL] * 2


def test_a_guard_with_an_empty_list_kills_nobody(sleepers: list[Sleeper]) -> None:
    watcher = Guard()
    watcher.watch(sleepers[0].pid)
    watcher.forget(sleepers[0].pid)
    watcher.stop()
    assert sleepers[0].poll() is None
