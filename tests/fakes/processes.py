"""Whether processes run, as tests see it."""

from __future__ import annotations

import asyncio
from pathlib import Path

PATIENCE_SECONDS = 20.0


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def wait_until_gone(pids: list[int]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while any(is_running(pid) for pid in pids):  # noqa: ASYNC110  # processes send no events
            await asyncio.sleep(0.02)
