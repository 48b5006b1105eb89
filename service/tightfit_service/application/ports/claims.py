"""Which of several servers computes a unit of work."""

from __future__ import annotations

from typing import Protocol


class UnitClaims(Protocol):
    """Who computes which unit of work at present. Every method is one transaction; times are the store's own.

    A claim saves work and guards nothing: results are the same whoever computes them, and one that was
    computed without a claim is as good.
    """

    def claim_unit(self, project: str, input_digest: str, owner: str, *, seconds: float) -> bool:
        """Claim a unit that nobody else has claimed, or whose claim ran out.

        Args:
            project: Of the unit.
            input_digest: The unit.
            owner: Who claims it.
            seconds: How long the claim holds unless it is renewed.

        Returns:
            Whether it is the owner's now.
        """
        ...

    def renew_unit_claim(
        self, project: str, input_digest: str, owner: str, *, seconds: float
    ) -> bool:
        """Prolong a claim; return whether it still was the owner's."""
        ...

    def end_unit_claim(self, project: str, input_digest: str, owner: str) -> None:
        """Let a unit go, if it is the owner's."""
        ...
