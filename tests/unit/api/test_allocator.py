"""Freed buffers of messages stay with the process, so that the next message costs no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# 1. Blocks as large as parts of uploads come and go. 2. The page faults they cost are counted.
SCRIPT = """
import resource, sys
from tightfit_service.api.allocator import reuse_message_buffers
if sys.argv[1] == "tuned":
    assert reuse_message_buffers()
def churn():
    for _ in range(100):
        held = [bytes(1 << 20) for _ in range(3)]
        del held
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_buffers_are_reused() -> None:
    assert _page_faults("tuned") * 10 < _page_faults("plain")
