"""Processes that have a runtime loaded from their first moment on.

Every measurement has a process of its own, and most of what that would take on a small device is starting
Python and importing a runtime: seconds, where a run takes a millisecond. So one process per runtime
imports it, waits, and forks for each order. What is forked starts as it was after the import, whatever
the one before it did.

    parent                              server                          forked
    order, its stdin, stdout, stderr ->
                                        fork, own process group ->      runs the program
                                     <- pid
    reports, answers               <-------------------------------->   stdout, stdin
                                     <- status                          ends, or is killed
    done with it ->                     lets its pid go
"""

from __future__ import annotations

import contextlib
import os
import runpy
import socket
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tightfit_runner import measured_process, runtimes
from tightfit_runner.failures import MeasurementError

MOST_ORDER_BYTES = 65_536
PROGRAM = Path(measured_process.__file__)
_DONE = b"."
_FAILED = 1
"""Exit status of a program that raised."""


@dataclass(frozen=True)
class Forked:
    """A process that a server has forked.

    Attributes:
        pid: Of the process, and of its group.
        answers: What it reads.
        reports: What it writes.
    """

    pid: int
    answers: IO[str]
    reports: IO[str]


class ForkServer:
    """A process that has imported a runtime; forks one at a time."""

    def __init__(self, runtime: str, program: Path = PROGRAM) -> None:
        """Start it.

        Args:
            runtime: Which is imported.
            program: What forked processes run, with the order as their last argument.
        """
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                (sys.executable, "-m", __name__, str(theirs.fileno()), runtime, str(program)),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # what a terminal sends to the agent is not meant for what it measures
                start_new_session=True,
                # numpy would start threads, and those are lost where a process forks
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        self._replies = self._line.makefile("r")
        self.fork_count = 0
        """Processes that it was asked for."""
        self._end = weakref.finalize(self, _ended, self._line, self._replies, self._process)

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked for another process."""
        return self._end.alive and self._process.poll() is None

    def fork(self, order: str, errors: IO[bytes]) -> Forked:
        """Return a process that has an order; the one before must have ended.

        Args:
            order: Its last argument.
            errors: Where its stderr goes.

        Raises:
            MeasurementError: The server is gone.
        """
        self.fork_count += 1
        own_read, their_write = os.pipe()
        their_read, own_write = os.pipe()
        answers, reports = os.fdopen(own_write, "w"), os.fdopen(own_read)
        try:
            socket.send_fds(
                self._line, [order.encode()], [their_read, their_write, errors.fileno()]
            )
            pid = int(self._replies.readline())
        except (OSError, ValueError) as error:
            answers.close()
            reports.close()
            self.close()
            raise MeasurementError("INTERNAL", "the process that measures did not start") from error
        finally:
            os.close(their_read)
            os.close(their_write)
        return Forked(pid=pid, answers=answers, reports=reports)

    def wait(self) -> int:
        """Return the exit status of what was forked last when it has ended; minus the signal if one killed it."""
        reply = self._replies.readline()
        if not reply:
            # it is gone, or about to be: another must be asked for the next process
            self.close()
            return _FAILED
        return int(reply)

    def let_go(self) -> None:
        """Give the pid of what has ended back to the system; until then it means no other process."""
        with contextlib.suppress(OSError):
            self._line.sendall(_DONE)

    def close(self) -> None:
        """End it; what it forked ends by itself, or by who forked it."""
        self._end()


def _ended(line: socket.socket, replies: IO[str], process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
    replies.close()
    line.close()
    process.kill()
    process.wait()


def serve(line: socket.socket, program: str) -> None:
    """Fork for every order that comes, until nobody is at the other end."""
    while True:
        order, descriptors, _, _ = socket.recv_fds(line, MOST_ORDER_BYTES, 3)
        if not order:
            return
        pid = os.fork()
        if pid == 0:
            line.close()
            _run(program, order.decode(), descriptors)
        with contextlib.suppress(OSError):
            # both do it, for either may be the first: who is told the pid may kill the group
            os.setpgid(pid, pid)
        for descriptor in descriptors:
            os.close(descriptor)
        line.sendall(b"%d\n" % pid)
        line.sendall(b"%d\n" % _ended_with(pid))
        line.recv(len(_DONE))
        os.waitpid(pid, 0)


def _ended_with(pid: int) -> int:
    """Wait for the end of a process, whose pid stays taken, and return its status as `Popen` has it."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    is_exit = found.si_code == os.CLD_EXITED
    return found.si_status if is_exit else -found.si_status


def _run(program: str, order: str, descriptors: list[int]) -> None:
    """Run a program in the process that was forked, which ends with it."""
    status = _FAILED
    try:
        os.setpgid(0, 0)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.argv = [program, order]
        runpy.run_path(program, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else _FAILED
    except BaseException:  # noqa: BLE001  # it must not return into the server's loop
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def main() -> int:
    """Import the runtime and serve; return the exit status."""
    descriptor, runtime, program = sys.argv[1:]
    with contextlib.suppress(Exception):
        # one that cannot be imported is the answer of the process that is to use it
        runtimes.load(runtime)
    with socket.socket(fileno=int(descriptor)) as line:
        serve(line, program)
    return 0


if __name__ == "__main__":
    sys.exit(main())
