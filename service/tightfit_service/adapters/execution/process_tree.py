"""Which processes belong to a worker, and what they use, read from Linux' /proc."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def members(leader: int) -> set[int]:
    """Return the ids of a session leader, of its session, and of all descendants.

    Descendants count even when they made a session of their own. Empty where there is no /proc.
    """
    found = {leader}
    stats = list(_stats())
    # a child is listed after its parent in most cases; repeat until nothing is added
    while True:
        more = {
            pid
            for pid, parent, session in stats
            if pid not in found and (session == leader or parent in found)
        }
        if not more:
            return found
        found |= more


def descendants(leader: int) -> set[int]:
    """Return the ids of a process and of all below it, at a cost that other processes do not add to.

    For measuring: who is born or loses a parent meanwhile may be missed (proc(5),
    `/proc/PID/task/TID/children`). Where the kernel has no such files these are the `members`.
    """
    if not (_PROC / "thread-self" / "children").exists():
        return members(leader)
    found, unread = {leader}, [leader]
    while unread:
        children = set(_children(unread.pop())) - found
        found |= children
        unread += children
    return found


def kill_all(leader: int) -> None:
    """Send SIGKILL to a leader that was not reaped yet, to its process group, and to all members."""
    others = members(leader)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    _kill(others)


def kill_left_behind(leader: int) -> None:
    """Send SIGKILL to what remains of the session of a leader that is gone."""
    _kill(members(leader) - {leader})


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        # one that runs as another user cannot be killed; that must not save the others
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def memory_bytes(pids: Iterable[int]) -> int:
    """Return the memory that only these processes hold: anonymous and shared, not mapped files."""
    return sum(_own_memory(pid) for pid in pids)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time that these processes and their children that ended have used."""
    return sum(_own_cpu(pid) for pid in pids)


def file_bytes(folders: Iterable[Path]) -> int:
    """Return the disk space of all files below some folders."""
    return sum(
        _blocks(Path(root) / name)
        for top in folders
        for root, _, names in os.walk(top)
        for name in names
    )


def _stats() -> Iterator[tuple[int, int, int]]:
    """Yield (pid, parent, session) of all processes."""
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdigit():
            with suppress(OSError):
                # the command's name, in parentheses, may hold anything
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), int(fields[1]), int(fields[3])


def _children(pid: int) -> Iterator[int]:
    """Yield the ids of the processes that the threads of one have made and not reaped."""
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  # called often; names are enough
            with suppress(OSError):
                yield from map(int, (_PROC / f"{pid}/task/{thread}/children").read_text().split())


def _own_memory(pid: int) -> int:
    with suppress(OSError):
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
        return sum(
            int(line.split()[1]) * 1024
            for line in lines
            if line.startswith(("RssAnon:", "RssShmem:"))
        )
    return 0


def _own_cpu(pid: int) -> float:
    with suppress(OSError):
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _blocks(file: Path) -> int:
    with suppress(OSError):
        return file.lstat().st_blocks * 512
    return 0
