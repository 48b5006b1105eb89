"""What a project may use, and what it uses."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from tightfit_service.domain.errors import ResourceExhaustedError

_HELD = "the project's models, datasets and results"
_MAKE_ROOM = (
    "delete jobs, models or datasets that are no longer needed, or ask the operator for more"
)


@dataclass(frozen=True, kw_only=True)
class Quota:
    """Upper limits of one project; 0 is no limit."""

    running_jobs: int = 0
    """Jobs that run at a time; further ones wait in the queue."""
    queued_jobs: int = 0
    """Jobs that wait."""
    trials: int = 0
    """Trials that one job may ask for."""
    stored_bytes: int = 0
    """Bytes of uploaded models and datasets and of the files of results."""

    def with_overrides(self, overrides: QuotaOverrides) -> Quota:
        """Return this quota with what an operator set for a project."""
        given = {field.name: getattr(overrides, field.name) for field in fields(overrides)}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class QuotaOverrides:
    """What an operator set for one project; None takes the deployment's default."""

    running_jobs: int | None = None
    queued_jobs: int | None = None
    trials: int | None = None
    stored_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a project uses at present."""

    running_jobs: int = 0
    queued_jobs: int = 0
    stored_bytes: int = 0


def check_queued_jobs(quota: Quota, queued: int) -> None:
    """Refuse one more job in the queue.

    Raises:
        ResourceExhaustedError: As many wait as may.
    """
    if quota.queued_jobs and queued >= quota.queued_jobs:
        raise ResourceExhaustedError(
            f"{queued} jobs of the project are queued, and the quota is {quota.queued_jobs}",
            field="parent",
            remedy="wait until some have started, cancel some, or ask the operator for more",
        )


def check_trials(quota: Quota, trials: int) -> None:
    """Refuse a job that may run too many trials.

    Raises:
        ResourceExhaustedError: It asks for more than the project's jobs may run.
    """
    if quota.trials and trials > quota.trials:
        raise ResourceExhaustedError(
            f"the job asks for {trials} trials, and the project's quota is {quota.trials} a job",
            field="search_limits.max_trials",
            remedy=f"ask for {quota.trials} or fewer, or ask the operator for more",
        )


def check_stored_bytes(quota: Quota, stored: int, size_bytes: int) -> None:
    """Refuse an upload.

    Raises:
        ResourceExhaustedError: The project would hold more bytes than it may.
    """
    if quota.stored_bytes and stored + size_bytes > quota.stored_bytes:
        raise ResourceExhaustedError(
            f"{_HELD} hold {stored} bytes; {size_bytes} more would exceed the quota of "
            f"{quota.stored_bytes}",
            field="size_bytes",
            remedy=_MAKE_ROOM,
        )


def check_room(quota: Quota, stored: int) -> None:
    """Refuse a job, whose results would be stored; how large they come out nobody knows before.

    Raises:
        ResourceExhaustedError: The project holds as many bytes as it may.
    """
    if quota.stored_bytes and stored >= quota.stored_bytes:
        raise ResourceExhaustedError(
            f"{_HELD} hold {stored} bytes, and the quota is {quota.stored_bytes}",
            field="parent",
            remedy=_MAKE_ROOM,
        )
