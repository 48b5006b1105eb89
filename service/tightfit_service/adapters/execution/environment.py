"""What worker processes see of the server's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

INHERITED_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
)
"""What a worker sees of the server's environment; secrets of the server are not among it."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def worker_environment(*, threads: int, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of a worker whose numeric libraries use `threads` threads."""
    inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    if "PYTHONPATH" in inherited:
        # workers run in a folder of their own, where relative entries would mean something else
        entries = inherited["PYTHONPATH"].split(os.pathsep)
        inherited["PYTHONPATH"] = os.pathsep.join(str(Path(entry).resolve()) for entry in entries)
    limits = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    # Threads that wait by spinning take the cores from those that compute: a training step of two threads
    # took 1.5 s on busy cores, and 0.5 s with waiting threads asleep. stdout goes to a pipe: unbuffered,
    # or the last words before a crash would be lost.
    return {**inherited, **limits, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", **extra}
