"""Targets of projects in memory."""

from __future__ import annotations

from collections.abc import Sequence

from tightfit_service.application.ports import Page, TargetRecord
from tightfit_service.domain.errors import AlreadyExistsError, NotFoundError


class InMemoryTargetStore:
    """Implements `TargetStore`."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], TargetRecord] = {}

    def add_target(self, record: TargetRecord) -> TargetRecord:
        stored = self.records.setdefault((record.project, record.spec.name), record)
        if stored.spec != record.spec:
            raise AlreadyExistsError("another description", field="target.name")
        return stored

    def get_target(self, project: str, name: str) -> TargetRecord:
        if (project, name) not in self.records:
            raise NotFoundError(f"no target {name!r}", field="name")
        return self.records[project, name]

    def list_targets(self, project: str, page: Page) -> Sequence[TargetRecord]:
        names = sorted(name for owner, name in self.records if owner == project)
        after = [name for name in names if name > page.after]
        return [self.records[project, name] for name in after[: page.size]]

    def delete_target(self, project: str, name: str) -> None:
        self.get_target(project, name)
        del self.records[project, name]
