"""A worker process whose results are made up, for runs that are about processes and stores, not networks.

The units, their payloads, files and results have the form of real ones. Every start and end of a unit is
a line in the ledger, so that a run can tell afterwards what was computed how often. A model whose bytes
hold `POISON` kills the worker of every trial of it. While a file `hold` lies beside the ledger, trials
wait.

    python scripted_worker.py --ledger FILE --unit-seconds S --data-dir DIR
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fakes.scripted_work import ScriptedExecutor
from tightfit_service.adapters.execution.worker import serve
from tightfit_service.application.ports import ProgressCallback, WorkHandler, WorkUnit
from tightfit_service.application.units.kinds import unit_digest
from tightfit_service.application.work.attribution import ATTRIBUTION
from tightfit_service.application.work.baseline import BASELINE
from tightfit_service.application.work.checks import CHECK_DATASET
from tightfit_service.application.work.model_import import IMPORT_MODEL
from tightfit_service.application.work.sensitivity import SENSITIVITY
from tightfit_service.application.work.trial import TRIAL
from tightfit_service.application.work.variants import VARIANTS

POISON = b"kills its worker"
STEPS = 10
QUICK_SECONDS = 0.1
OUTPUT_BYTES = 64 << 10

_ANSWERS = {
    IMPORT_MODEL.name: ScriptedExecutor._import,
    CHECK_DATASET.name: ScriptedExecutor._dataset,
    BASELINE.name: ScriptedExecutor._baseline,
    SENSITIVITY.name: ScriptedExecutor._sensitivity,
    VARIANTS.name: ScriptedExecutor._variants,
    ATTRIBUTION.name: ScriptedExecutor._attribution,
    TRIAL.name: ScriptedExecutor._trial,
}
_FILES = {IMPORT_MODEL.name: ("graph",), TRIAL.name: ("model", "graph")}


@dataclass(frozen=True)
class Ledger:
    """A file that all workers append to, a line at a time."""

    path: Path

    @property
    def hold(self) -> Path:
        """While this file exists, trials wait."""
        return self.path.with_name("hold")

    def write(self, what: str, kind: str, digest: str) -> None:
        """Append a line; lines of this length are written whole or not at all."""
        line = f"{what} {kind} {digest} {time.time():.3f} {os.getpid()}\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def handler(kind: str, ledger: Ledger, seconds: float) -> WorkHandler:
    """Return what runs units of a kind; trials take so many seconds."""

    def run(
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        contents = {name: path.read_bytes() for name, path in inputs.items()}
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        unit = WorkUnit(project="", kind=kind, payload=payload, inputs=digests)
        digest = unit_digest(unit)
        ledger.write("begin", kind, digest)
        while kind == TRIAL.name and ledger.hold.exists():
            # a worker whose server is gone ends here, as it has nobody to tell
            on_progress(0.0, "held")
            time.sleep(QUICK_SECONDS)
        for step in range(STEPS):
            time.sleep((seconds if kind == TRIAL.name else QUICK_SECONDS) / STEPS)
            on_progress(step / STEPS, "computing")
            if kind == TRIAL.name and step == STEPS // 2 and POISON in contents["graph"]:
                os.kill(os.getpid(), signal.SIGKILL)
        result = _ANSWERS[kind](ScriptedExecutor(), unit)
        outputs = {}
        for name in _FILES.get(kind, ()):
            outputs[name] = output_dir / name
            outputs[name].write_bytes(_bytes(f"{digest} {name}"))
            if any(POISON in data for data in contents.values()):
                outputs[name].write_bytes(outputs[name].read_bytes() + POISON)
        ledger.write("end", kind, digest)
        return result.payload, outputs

    return run


def _bytes(seed: str) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(OUTPUT_BYTES)


def main() -> None:
    """Serve units until the server closes the channel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--unit-seconds", type=float, required=True)
    # where a real worker keeps its caches; a node of a cluster says it by the environment
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    ledger = Ledger(arguments.ledger)
    serve({kind: handler(kind, ledger, arguments.unit_seconds) for kind in _ANSWERS})


if __name__ == "__main__":
    main()
