"""Units of work that killed their workers, counted for a while."""

from __future__ import annotations

from sqlalchemy import Engine, delete

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.schema import unit_deaths
from tightfit_service.adapters.storage.sql_chain import upsert
from tightfit_service.adapters.storage.sql_time import seconds_from_now
from tightfit_service.application.ports import UnitDeaths


def add_death(
    engine: Engine, project: str, input_digest: str, evidence: str, *, within_seconds: float
) -> UnitDeaths:
    """Count one more death, and forget those of all units that are longer ago."""
    with transaction(engine, writes=True) as connection:
        connection.execute(
            delete(unit_deaths).where(unit_deaths.c.last_time < seconds_from_now(-within_seconds))
        )
        counted = upsert(
            connection.dialect.name,
            unit_deaths,
            {
                "project": project,
                "input_digest": input_digest,
                "death_count": 1,
                "evidence": evidence,
                "last_time": seconds_from_now(0.0),
            },
            replaced=("evidence", "last_time"),
            changes={"death_count": unit_deaths.c.death_count + 1},
        ).returning(unit_deaths.c.death_count)
        count = connection.execute(counted).scalar_one()
    return UnitDeaths(count=count, evidence=evidence)
