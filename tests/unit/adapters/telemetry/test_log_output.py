"""A log that cannot be written costs lines, never the work that writes them."""

from __future__ import annotations

import errno
import io

import structlog

from tightfit_service.adapters.telemetry.log_output import lossy


class FullDisk(io.StringIO):
    """A stream on a disk that is full for a while."""

    is_full = False

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_lines_are_lost_while_the_disk_is_full_and_only_then() -> None:
    disk = FullDisk()
    log = structlog.PrintLoggerFactory(lossy(disk))()
    log.msg("before")
    disk.is_full = True
    log.msg("meanwhile")
    disk.is_full = False
    log.msg("after")
    assert disk.getvalue() == "before\nafter\n"


def test_a_closed_stream_is_no_error() -> None:
    stream = io.StringIO()
    stream.close()
    structlog.PrintLoggerFactory(lossy(stream))().msg("nobody reads this")
