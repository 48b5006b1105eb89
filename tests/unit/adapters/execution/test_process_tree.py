"""Which processes are counted as a worker's: children of any thread, and theirs, in whatever session."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tightfit_service.adapters.execution import process_tree
from tightfit_service.adapters.execution.process_tree import descendants, kill_all, members

SCRIPT = """
import subprocess, sys, threading

SLEEP = [sys.executable, "-S", "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
PARENT = [sys.executable, "-S", "-c", '''
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
''', *SLEEP]
told = []


def start(command, **settings):
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **settings
    )
    line = process.stdout.readline().strip()
    told.extend([process.pid] + ([int(line)] if line.isdigit() else []))
    stay.wait()


stay = threading.Event()
threads = [
    threading.Thread(target=start, args=(PARENT,), kwargs={"start_new_session": True}, daemon=True),
    threading.Thread(target=start, args=(SLEEP,), daemon=True),
]
for thread in threads:
    thread.start()
while len(told) < 3:
    threading.Event().wait(0.01)
print(*told, flush=True)
sys.stdin.read()
"""


@contextmanager
def family() -> Iterator[tuple[int, set[int]]]:
    """Yield the id of a process, and those of it and the three below it, two in another session."""
    leader = subprocess.Popen(
        [sys.executable, "-S", "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert leader.stdout is not None
        yield leader.pid, {leader.pid, *map(int, leader.stdout.readline().split())}
    finally:
        kill_all(leader.pid)
        leader.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_descendants_are_children_of_any_thread_and_theirs() -> None:
    with family() as (leader, pids):
        assert descendants(leader) == members(leader) == pids


@pytest.mark.skipif(
    not Path("/proc/thread-self/children").exists(), reason="this kernel does not list children"
)
def test_other_processes_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with family() as (leader, pids), monkeypatch.context() as patch:
        patch.setattr(process_tree, "_stats", lambda: pytest.fail("all were looked at"))
        assert descendants(leader) == pids


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_where_the_kernel_does_not_list_children_all_processes_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number, parent in ((7, 1), (8, 7), (9, 1)):
        stat = tmp_path / str(number) / "stat"
        stat.parent.mkdir()
        stat.write_text(f"{number} (a name) S {parent} {number} {number} 0")
    monkeypatch.setattr(process_tree, "_PROC", tmp_path)
    assert descendants(7) == {7, 8}


def test_of_a_process_that_is_gone_nothing_is_left_but_its_id() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    assert descendants(process.pid) == {process.pid}
