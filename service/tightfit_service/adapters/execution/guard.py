"""A tiny process that kills worker groups when the server is gone, and the server's hold on it.

A worker asks the kernel to die with the server, but its own children cannot, and a server that is
killed has no chance to clean up. The guard reads `+ID` and `-ID` lines on its standard input; when
that ends, it kills the process groups still listed. The file runs as a script: standard library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress


class Guard:
    """Keeps a guard process told of the groups to kill; starts it when it is first needed."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self, group: int) -> None:
        """Have a process group killed when this process ends."""
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Take a group off the list: it has ended."""
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    def stop(self) -> None:
        """End the guard, which kills what is still listed."""
        if self._process is not None:
            # closing would write what is left to a guard that is gone
            with suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None

    def _tell(self, line: str) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
            except BrokenPipeError:
                # somebody killed it: a new one gets the whole list
                self.stop()
            else:
                return
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"+{group}\n" for group in self._groups).encode())
        self._process.stdin.flush()


def main() -> None:
    """Keep the list until the server's end of the pipe closes, then kill what is left."""
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
