"""Which server computes which unit of work, by the database's clock."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Engine, and_, delete, or_, update

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.schema import unit_claims
from tightfit_service.adapters.storage.sql_chain import upsert
from tightfit_service.adapters.storage.sql_errors import repeated
from tightfit_service.adapters.storage.sql_time import seconds_from_now


class SqlUnitClaims:
    """Implements `UnitClaims` on any database that SQLAlchemy knows; the schema must be up to date.

    Every method may raise:

    Raises:
        UnavailableError: The database cannot be reached or is locked for too long.
        ResourceExhaustedError: The database has no room left.
    """

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    @repeated
    def claim_unit(self, project: str, input_digest: str, owner: str, *, seconds: float) -> bool:
        """See `UnitClaims`."""
        with transaction(self._engine, writes=True, in_one_statement=True) as connection:
            claimed = upsert(
                connection.dialect.name,
                unit_claims,
                {
                    "project": project,
                    "input_digest": input_digest,
                    "owner": owner,
                    "expire_time": seconds_from_now(seconds),
                },
                replaced=("owner", "expire_time"),
                where=or_(
                    unit_claims.c.owner == owner,
                    unit_claims.c.expire_time < seconds_from_now(0.0),
                ),
            ).returning(unit_claims.c.owner)
            return connection.execute(claimed).first() is not None

    @repeated
    def renew_unit_claim(
        self, project: str, input_digest: str, owner: str, *, seconds: float
    ) -> bool:
        """See `UnitClaims`."""
        renewed = (
            update(unit_claims)
            .where(_is_of(project, input_digest, owner))
            .values(expire_time=seconds_from_now(seconds))
        )
        with transaction(self._engine, writes=True, in_one_statement=True) as connection:
            return connection.execute(renewed).rowcount > 0

    @repeated
    def end_unit_claim(self, project: str, input_digest: str, owner: str) -> None:
        """See `UnitClaims`."""
        ended = delete(unit_claims).where(_is_of(project, input_digest, owner))
        with transaction(self._engine, writes=True, in_one_statement=True) as connection:
            connection.execute(ended)


def _is_of(project: str, input_digest: str, owner: str) -> ColumnElement[bool]:
    return and_(
        unit_claims.c.project == project,
        unit_claims.c.input_digest == input_digest,
        unit_claims.c.owner == owner,
    )
