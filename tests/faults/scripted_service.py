"""The service as it is, whose workers run `scripted_worker.py`, and whose clock may be set wrong.

python scripted_service.py LEDGER UNIT_SECONDS CLOCK_SHIFT_SECONDS COMMAND [OPTIONS]
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tightfit_service import bootstrap
from tightfit_service.__main__ import main
from tightfit_service.adapters.execution import executors

WORKER = Path(__file__).with_name("scripted_worker.py")


def run(ledger: str, unit_seconds: str, shift_seconds: str, *command: str) -> int:
    """Run a command of the service."""
    executors.WORKER = (str(WORKER), "--ledger", ledger, "--unit-seconds", unit_seconds)
    shift = timedelta(seconds=float(shift_seconds))
    if shift:
        clock = type("ShiftedClock", (), {"now": lambda _: datetime.now(UTC) + shift})
        bootstrap.SystemClock.now = clock.now  # type: ignore[attr-defined, method-assign]
    return main(command)


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
