"""Where log lines go: a stream that may fail without harm to who writes."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TextIO, cast


def lossy(stream: TextIO) -> TextIO:
    """Return an output that writes to the stream, and loses what the stream does not take."""
    return cast("TextIO", _LossyOutput(stream))


class _LossyOutput(io.TextIOBase):
    """A log on a full disk, or in a pipe that nobody reads any more, must not end the work it tells of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()
