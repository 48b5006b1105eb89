"""The corrected emulators of projects, in a SQL database."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine, delete, insert, select

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.documents import read_document
from tightfit_service.adapters.storage.schema import calibrations
from tightfit_service.application.plain import to_plain
from tightfit_service.domain.calibration import Calibration


class SqlCalibrationStore:
    """Implements `CalibrationStore` on any database that SQLAlchemy knows.

    The schema must be up to date (`database.upgrade`). Every method is one transaction and may raise:

    Raises:
        UnavailableError: The database cannot be reached or is locked for too long.
        ResourceExhaustedError: The database has no room left.
    """

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def save_calibration(self, calibration: Calibration) -> None:
        """See `CalibrationStore`."""
        key = {
            "project": calibration.project,
            "target_name": calibration.target_name,
            "runtime_name": calibration.runtime_name,
        }
        with transaction(self._engine, writes=True) as connection:
            connection.execute(delete(calibrations).filter_by(**key))
            connection.execute(
                insert(calibrations).values(
                    create_time=calibration.create_time, document=to_plain(calibration), **key
                )
            )

    def find_calibration(
        self, project: str, target_name: str, runtime_name: str
    ) -> Calibration | None:
        """See `CalibrationStore`.

        Raises:
            UnreadableRecordError: It is damaged, or was written by another version of tightfit.
        """
        query = select(calibrations.c.document).filter_by(
            project=project, target_name=target_name, runtime_name=runtime_name
        )
        with transaction(self._engine, writes=False) as connection:
            document = connection.execute(query).scalar()
        if document is None:
            return None
        return read_document(
            Calibration,
            document,
            of=f"the calibration of target {target_name}",
            remedy="calibrate the target again, or delete it",
        )

    def calibration_time(
        self, project: str, target_name: str, runtime_name: str
    ) -> datetime | None:
        """See `CalibrationStore`."""
        query = select(calibrations.c.create_time).filter_by(
            project=project, target_name=target_name, runtime_name=runtime_name
        )
        with transaction(self._engine, writes=False) as connection:
            made: datetime | None = connection.execute(query).scalar()
        return made

    def delete_calibration(self, project: str, target_name: str) -> None:
        """See `CalibrationStore`."""
        query = delete(calibrations).filter_by(project=project, target_name=target_name)
        with transaction(self._engine, writes=True) as connection:
            connection.execute(query)
