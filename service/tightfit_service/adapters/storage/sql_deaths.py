"""Units of work that killed their workers, counted for a while."""

from __future__ import annotations

from sqlalchemy import Engine, delete, insert, select

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.schema import unit_deaths
from tightfit_service.adapters.storage.sql_time import seconds_from_now
from tightfit_service.application.ports import UnitDeaths


def find_deaths(
    engine: Engine, project: str, input_digest: str, *, within_seconds: float
) -> UnitDeaths:
    """Return the deaths of a unit; none when the last one is longer ago."""
    query = (
        select(unit_deaths.c.death_count, unit_deaths.c.evidence)
        .filter_by(project=project, input_digest=input_digest)
        .where(unit_deaths.c.last_time >= seconds_from_now(-within_seconds))
    )
    with transaction(engine, writes=False) as connection:
        row = connection.execute(query).first()
    return UnitDeaths() if row is None else UnitDeaths(count=row[0], evidence=row[1])


def add_death(
    engine: Engine, project: str, input_digest: str, evidence: str, *, within_seconds: float
) -> UnitDeaths:
    """Count one more death, and forget those of all units that are longer ago."""
    key = {"project": project, "input_digest": input_digest}
    with transaction(engine, writes=True) as connection:
        connection.execute(
            delete(unit_deaths).where(unit_deaths.c.last_time < seconds_from_now(-within_seconds))
        )
        earlier = connection.execute(
            select(unit_deaths.c.death_count).filter_by(**key).with_for_update()
        ).scalar()
        deaths = UnitDeaths(count=(earlier or 0) + 1, evidence=evidence)
        connection.execute(delete(unit_deaths).filter_by(**key))
        connection.execute(
            insert(unit_deaths).values(
                death_count=deaths.count,
                evidence=evidence,
                last_time=seconds_from_now(0.0),
                **key,
            )
        )
    return deaths
