"""Units of work run in the process of a benchmark, one after the other and with nothing remembered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tightfit_service import bootstrap
from tightfit_service.application.plain import from_plain
from tightfit_service.application.units.kinds import OutcomeT, TaskT, UnitKind, payload_of
from tightfit_service.settings import Settings


class LocalUnits:
    """What a worker can run, composed as in a worker; caches lie below `data_dir`."""

    def __init__(self, data_dir: Path) -> None:
        self._handlers = bootstrap.handler_table(Settings(data_dir=data_dir))

    def run(
        self,
        kind: UnitKind[TaskT, OutcomeT],
        task: TaskT,
        inputs: Mapping[str, Path],
        folder: Path,
    ) -> tuple[OutcomeT, Mapping[str, Path]]:
        """Return the outcome, and the files that were made in `folder`, by name."""
        folder.mkdir(exist_ok=True)
        payload, files = self._handlers[kind.name](
            payload_of(task), inputs, folder, lambda _share, _text: None
        )
        return from_plain(kind.outcome_type, payload), files
