"""Files whose content is in force until it is replaced by a good one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from tightfit_service.domain.errors import InvalidRequestError, TightfitError

T = TypeVar("T")
LOOK_SECONDS = 1.0
"""Files are looked at no more often than this."""

log = structlog.get_logger(__name__)


class WatchedFiles(Generic[T]):
    """What was read from files; read again when one of them changes. Thread-safe.

    A broken new content is logged once and changes nothing: the server goes on with what it has.

    Args:
        paths: The files that are looked at; all are read together.
        read: Reads and checks them.
        look_seconds: How often they are looked at.

    Raises:
        TightfitError: The first content is broken already.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], T],
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._look_seconds = look_seconds
        self._lock = threading.Lock()
        self._seen = self._state()
        self._looked = time.monotonic()
        self._value = read()
        self.generation = 0

    def value(self) -> T:
        """Return what is in force."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= self._look_seconds:
                self._looked = now
                self._look()
            return self._value

    def _look(self) -> None:
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        names = ", ".join(map(str, self._paths))
        try:
            self._value = self._read()
        except TightfitError as error:
            log.warning(
                "changed files are broken; the old content stays", files=names, error=str(error)
            )
            return
        self.generation += 1
        log.info("changed files read", files=names)

    def _state(self) -> tuple[object, ...]:
        found: list[object] = []
        for path in self._paths:
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)


def read_bytes(path: Path, *, field: str) -> bytes:
    """Return the content of a file.

    Raises:
        InvalidRequestError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(
            f"{path} cannot be read: {error.strerror or error}",
            field=field,
            remedy="check the path and that the server may read it",
        ) from error
