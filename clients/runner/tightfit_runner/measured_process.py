"""The process that a model runs in; its parent kills it when it takes too long.

It is given its order as JSON in its last argument and reports on stdout, one JSON object a line:
`steady` after the warm-up, then, once the parent has answered with a line on stdin, `done`; or `failed`.
Where the order wants operators, `operators` or `no operators` follows.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from pathlib import Path
from typing import Any

from tightfit_runner import profilers, runtimes, steadiness

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
WARM_UP_SHARE = 0.25
MEASURE_SHARE = 0.5
"""Of the time-out: a slow model is measured by fewer runs than asked for."""
PROFILE_SHARE = 0.1
"""Of the time-out, for runs that tell what operators take."""


def main() -> int:
    """Measure the model of the order; return the exit status."""
    order = json.loads(sys.argv[-1])
    channel = _Channel()
    try:
        _measure(order, channel)
    except MemoryError:
        channel.say("failed", kind="OUT_OF_MEMORY", message="the process ran out of memory")
    except Exception as error:  # noqa: BLE001  # whatever a runtime raises is the answer
        text = f"{type(error).__name__}: {error}"
        is_memory = "alloc" in text.lower() and "memory" in text.lower()
        kind = "OUT_OF_MEMORY" if is_memory else "UNSUPPORTED_MODEL"
        channel.say("failed", kind=kind, message=text[:1_500])
    return 0


def _measure(order: dict[str, Any], channel: _Channel) -> None:
    runtimes.load(order["runtime"])
    gc.collect()
    empty_bytes = _peak_bytes(is_reset=True)
    run = runtimes.open_model(order["runtime"], Path(order["path"]), order["threads"])
    timeout = order["timeout_seconds"]
    warm_up_count, was_steady = steadiness.warm_up(
        run, most_seconds=min(timeout * WARM_UP_SHARE, 30.0)
    )
    channel.say("steady")
    channel.wait()
    seconds = steadiness.measure(
        run,
        min_runs=order["min_runs"],
        min_seconds=order["min_seconds"],
        most_seconds=timeout * MEASURE_SHARE,
    )
    channel.say("stopped", seconds=sum(seconds), run_count=len(seconds))
    summary = steadiness.summarize(seconds)
    peak_bytes = _peak_bytes()
    channel.say(
        "done",
        p10_ms=summary.p10_ms,
        p50_ms=summary.p50_ms,
        p90_ms=summary.p90_ms,
        p99_ms=summary.p99_ms,
        throughput_per_s=summary.throughput_per_s,
        run_count=summary.run_count,
        noise_ratio=summary.noise_ratio,
        warm_up_count=warm_up_count,
        settled=was_steady and summary.noise_ratio <= steadiness.SETTLED_RATIO,
        process_peak_bytes=peak_bytes,
        model_peak_bytes=(
            None if peak_bytes is None or empty_bytes is None else max(0, peak_bytes - empty_bytes)
        ),
    )
    if order["wants_operators"]:
        _profile(order, channel)


def _profile(order: dict[str, Any], channel: _Channel) -> None:
    """Tell what the operators take; a runtime that cannot has been measured all the same."""
    try:
        found = profilers.operator_times(
            order["runtime"],
            Path(order["path"]),
            order["threads"],
            most_seconds=order["timeout_seconds"] * PROFILE_SHARE,
        )
    except Exception as error:  # noqa: BLE001  # likewise
        channel.say("no operators", message=f"{type(error).__name__}: {error}"[:200])
        return
    channel.say(
        "operators",
        operators=[(item.kind, item.latency_ms, item.output_elements) for item in found],
    )


def _peak_bytes(*, is_reset: bool = False) -> int | None:
    """Return the greatest resident memory so far, in bytes; None where the system does not tell.

    With `is_reset` the count begins anew (proc(5), clear_refs), so that a peak while a runtime was
    imported is not taken for the model's.
    """
    if is_reset:
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


class _Channel:
    """The line to the parent; what libraries print goes to stderr."""

    def __init__(self) -> None:
        self._out = sys.stdout
        sys.stdout = sys.stderr

    def say(self, event: str, **facts: Any) -> None:
        self._out.write(json.dumps({"event": event, **facts}) + "\n")
        self._out.flush()

    def wait(self) -> None:
        """Return when the parent is ready."""
        sys.stdin.readline()


if __name__ == "__main__":
    sys.exit(main())
