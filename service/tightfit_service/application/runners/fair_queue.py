"""A queue of work for devices that no project and no job can occupy alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

FIRST_GUESS_SECONDS = 10.0
"""What an item is taken to cost until some have been seen."""


class Owned(Protocol):
    """Work that belongs to a job of a project."""

    @property
    def project(self) -> str:
        """Project that the time is charged to first."""
        ...

    @property
    def job_id(self) -> str:
        """Job that the time is charged to within the project."""
        ...


T = TypeVar("T", bound=Owned)


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What was charged when an item was taken, until its real cost is known."""

    project: str
    job_id: str
    seconds: float


class FairQueue(Generic[T]):
    """Gives the next item to the project that has had the least device time, then to its job likewise.

    One that comes anew starts level with the least served of those that are there: neither ahead of
    them nor charged for their past (start-time fair queueing; P. Goyal, H. M. Vin, H. Cheng, IEEE/ACM
    Transactions on Networking 5(5), 1997). Items of one job keep their order.
    """

    def __init__(self) -> None:
        self._waiting: list[T] = []
        self._served: dict[tuple[str, ...], float] = {}
        self._taken = 0
        self._typical_seconds = FIRST_GUESS_SECONDS

    def __len__(self) -> int:
        """Return the number of items that wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        """Yield the items that wait, oldest first."""
        return iter(tuple(self._waiting))

    def push(self, item: T, *, is_return: bool = False) -> None:
        """Add an item; one that comes back goes before the others of its job."""
        self._level((item.project,))
        self._level((item.project, item.job_id))
        if is_return:
            self._waiting.insert(0, item)
        else:
            self._waiting.append(item)

    def remove(self, item: T) -> None:
        """Take an item out; one that is not there is no error."""
        self._waiting = [other for other in self._waiting if other is not item]
        self._forget_when_empty()

    def take(self, fits: Callable[[T], bool]) -> tuple[T, Charge] | None:
        """Return the next item that fits, and its charge for `settle`."""
        chosen = min(
            (item for item in self._waiting if fits(item)),
            key=lambda item: (
                self._served[(item.project,)],
                self._served[item.project, item.job_id],
            ),
            default=None,
        )
        if chosen is None:
            return None
        charge = Charge(project=chosen.project, job_id=chosen.job_id, seconds=self._typical_seconds)
        self._taken += 1
        self._add(charge, charge.seconds)
        self._waiting = [other for other in self._waiting if other is not chosen]
        return chosen, charge

    def settle(self, charge: Charge, seconds: float) -> None:
        """Replace what was charged by what the item took."""
        self._taken -= 1
        self._add(charge, seconds - charge.seconds)
        self._typical_seconds += (seconds - self._typical_seconds) / 4
        self._forget_when_empty()

    def ahead_of(self, item: T) -> int:
        """Return how many other items wait that came before this one."""
        return next(i for i, other in enumerate(self._waiting) if other is item)

    def _add(self, charge: Charge, seconds: float) -> None:
        for key in ((charge.project,), (charge.project, charge.job_id)):
            self._served[key] = self._served.get(key, 0.0) + seconds

    def _level(self, key: tuple[str, ...]) -> None:
        peers = {
            other
            for item in self._waiting
            for other in ((item.project,), (item.project, item.job_id))
            if len(other) == len(key) and other[:-1] == key[:-1]
        }
        if key in peers:
            return
        least = min((self._served[other] for other in peers), default=0.0)
        self._served[key] = max(self._served.get(key, 0.0), least)

    def _forget_when_empty(self) -> None:
        if not self._waiting and not self._taken:
            self._served.clear()
