"""The hardware targets that projects described, in a SQL database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from sqlalchemy import Engine, Row, delete, insert, select

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.documents import read_document
from tightfit_service.adapters.storage.schema import hardware_targets
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import Page, TargetRecord
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    NotFoundError,
    UnreadableRecordError,
)
from tightfit_service.domain.hardware import HardwareSpec

log = structlog.get_logger(__name__)


class SqlTargetStore:
    """Implements `TargetStore` on any database that SQLAlchemy knows.

    The schema must be up to date (`database.upgrade`). Every method is one transaction and may
    raise, besides what the port says:

    Raises:
        UnavailableError: The database cannot be reached or is locked for too long.
        ResourceExhaustedError: The database has no room left.
    """

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def add_target(self, record: TargetRecord) -> TargetRecord:
        """See `TargetStore`."""
        key = {"project": record.project, "target_name": record.spec.name}
        with transaction(self._engine, writes=True) as connection:
            row = connection.execute(select(hardware_targets).filter_by(**key)).first()
            if row is None:
                connection.execute(
                    insert(hardware_targets).values(
                        create_time=record.create_time, document=to_plain(record.spec), **key
                    )
                )
                return record
        stored = _record(row)
        if stored.spec != record.spec:
            raise AlreadyExistsError(
                f"there is a hardware target {record.spec.name!r} of another description already",
                field="target.name",
                remedy="choose another name, or delete the old one first",
            )
        return stored

    def get_target(self, project: str, name: str) -> TargetRecord:
        """See `TargetStore`."""
        query = select(hardware_targets).filter_by(project=project, target_name=name)
        with transaction(self._engine, writes=False) as connection:
            row = connection.execute(query).first()
        if row is None:
            raise _not_found(name)
        return _record(row)

    def list_targets(self, project: str, page: Page) -> Sequence[TargetRecord]:
        """See `TargetStore`. Records that cannot be read are left out, and named in the log."""
        found: list[TargetRecord] = []
        after, has_more = page.after, True
        while has_more and len(found) < page.size:
            limit = page.size - len(found)
            query = (
                select(hardware_targets)
                .where(
                    hardware_targets.c.project == project, hardware_targets.c.target_name > after
                )
                .order_by(hardware_targets.c.target_name)
                .limit(limit)
            )
            with transaction(self._engine, writes=False) as connection:
                rows = connection.execute(query).all()
            has_more = len(rows) == limit
            for row in rows:
                after = row.target_name
                try:
                    found.append(_record(row))
                except UnreadableRecordError as error:
                    log.warning("targets.unreadable", project=project, error=str(error))
        return found

    def delete_target(self, project: str, name: str) -> None:
        """See `TargetStore`."""
        query = delete(hardware_targets).filter_by(project=project, target_name=name)
        with transaction(self._engine, writes=True) as connection:
            if connection.execute(query).rowcount == 0:
                raise _not_found(name)


def _record(row: Row[Any]) -> TargetRecord:
    return TargetRecord(
        project=row.project,
        spec=read_document(
            HardwareSpec,
            row.document,
            of=f"hardware target {row.target_name!r}",
            remedy="delete it and describe it anew; jobs that were created with it keep it",
        ),
        create_time=row.create_time,
    )


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(
        f"the project has no hardware target of its own named {name!r}",
        field="name",
        remedy="list the targets of the project",
    )
