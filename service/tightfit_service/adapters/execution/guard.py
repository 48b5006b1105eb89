"""A tiny process that kills worker groups when the server is gone.

A worker asks the kernel to die with the server, but its own children cannot, and a server that is
killed has no chance to clean up. The guard reads `+ID` and `-ID` lines on its standard input; when
that ends, it kills the process groups still listed. Run as a script, with the standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


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
