"""One server among several: what it computes, the others wait for, as long as it is heard of."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from tightfit_service.application.ports import UnitClaims
from tightfit_service.domain.errors import TightfitError

log = structlog.get_logger(__name__)

RENEWALS_PER_CLAIM = 5


@dataclass(frozen=True, kw_only=True)
class UnitClaimer:
    """Claims units of work for this server.

    Attributes:
        claims: Of all servers on the database.
        owner: Name of this one; of this life of it, as what an earlier life left is nobody's.
        seconds: How long others wait for this server when it is not heard of any more.
    """

    claims: UnitClaims
    owner: str
    seconds: float

    def claim(self, project: str, input_digest: str) -> UnitClaim:
        """Return the claim of a unit, not taken yet."""
        return UnitClaim(self, project, input_digest)


class UnitClaim:
    """The claim of one unit: once taken it is renewed until the block ends."""

    def __init__(self, claimer: UnitClaimer, project: str, input_digest: str) -> None:
        self._claimer = claimer
        self._key = (project, input_digest, claimer.owner)
        self._renewal: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to hold what is taken."""
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Let the unit go."""
        if self._renewal is None:
            return
        self._renewal.cancel()
        await asyncio.gather(self._renewal, return_exceptions=True)
        try:
            await asyncio.to_thread(self._claimer.claims.end_unit_claim, *self._key)
        except TightfitError as error:
            # it runs out by itself
            log.warning("unit.claim_not_ended", error=str(error))

    async def take(self) -> bool:
        """Return whether the unit may be computed here: nobody else does, or nobody can tell."""
        if self._renewal is not None and not self._renewal.done():
            return True
        try:
            taken = await asyncio.to_thread(
                self._claimer.claims.claim_unit, *self._key, seconds=self._claimer.seconds
            )
        except TightfitError as error:
            # at worst the unit is computed twice, and by its end the store may be back
            log.warning("unit.not_claimed", error=str(error))
            return True
        if taken:
            self._renewal = asyncio.create_task(self._renew())
        return taken

    async def _renew(self) -> None:
        renewed = True
        while renewed:
            await asyncio.sleep(self._claimer.seconds / RENEWALS_PER_CLAIM)
            try:
                renewed = await asyncio.to_thread(
                    self._claimer.claims.renew_unit_claim, *self._key, seconds=self._claimer.seconds
                )
            except TightfitError as error:
                log.warning("unit.claim_not_renewed", error=str(error))
