"""What the lives of a job that ended without an orderly stop say about it."""

from __future__ import annotations

from collections.abc import Sequence

from tightfit_service.application.ports import LostLife
from tightfit_service.domain.errors import GivenUpError

MOST_LOST_LIVES = 3
"""Lives that may end in a row at one unit of work; then the job is taken to be what ends them."""


def evidence_of(losses: Sequence[LostLife]) -> str:
    """Return who had the job, and from when to when."""
    return "; ".join(
        f"{loss.owner} had it from {loss.since.isoformat(timespec='seconds')} and was last heard of "
        f"before {loss.last_heard.isoformat(timespec='seconds')}"
        for loss in losses
    )


def told_of(loss: LostLife) -> str:
    """Return what users are told when somebody else goes on with the job."""
    waiting = ", waiting for a worker" if loss.only_waited else ""
    return f"taken over at {loss.unit}{waiting}: {evidence_of([loss])}"


def check_losses(losses: Sequence[LostLife]) -> None:
    """Refuse to run a job that ended whoever ran it, again and again.

    Lives that ended while the job only waited for a worker are not its doing and do not count.

    Raises:
        GivenUpError: Three in a row ended at the same unit of work.
    """
    counted = [loss for loss in losses if not loss.only_waited]
    if len(counted) >= MOST_LOST_LIVES:
        raise GivenUpError(
            f"given up at {counted[-1].unit}, where whoever ran the job ended {len(counted)} times "
            f"without an orderly stop: {evidence_of(counted)}",
            remedy="look into the logs of these replicas (out of memory?) before you try again",
        )
