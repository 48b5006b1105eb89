"""In what order the ways to a smaller download are tried, and what each trial says of the others."""

from __future__ import annotations

import math

from tightfit_service.application.work.download import DownloadOffer, DownloadOption

AIM = 0.95
"""Of the limit: sizes are estimated, and training spreads the weights that are left."""

_WORTH_KNOWING = 1.1
"""A smaller relaxation of the limit is looked for while it may be smaller by this factor."""


class DownloadPlan:
    """Chooses among options of one trial's network.

    While options are predicted to meet the limit, they are tried as they are offered; where training made
    a file larger than predicted, others are asked for. Where none meets the limit together
    with all else, what is left shows how far it is from reach: the strongest option, and then
    options between what lost too much and what did not.
    """

    def __init__(self, *, limit: float, packed_bytes: float) -> None:
        """Begin.

        Args:
            limit: On the packed file, bytes.
            packed_bytes: Size of the packed file of the trial that the options are for.
        """
        self._limit = limit
        self._waiting: list[DownloadOption] = []
        self._tried: set[tuple[str, int]] = set()
        self._growth = 1.0
        self._too_lossy, self._good_enough = 0.0, packed_bytes
        self._is_evidence = False
        self._aim: int | None = math.floor(AIM * limit)
        self._least: DownloadOption | None = None

    @property
    def aim(self) -> int | None:
        """Size that options are wanted for, bytes; None while there is something to try, or at the end."""
        return self._aim

    @property
    def least(self) -> DownloadOption | None:
        """The option of the smallest file, where even that is predicted to miss the limit."""
        return self._least

    def take(self, offer: DownloadOffer) -> None:
        """Go on with what was offered for the aim."""
        self._aim = None
        found = list(offer.options[:1] if self._is_evidence else offer.options)
        if not found and not self._is_evidence:
            self._is_evidence, self._least = True, offer.least
            found = [] if offer.least is None else [offer.least]
        self._waiting = [option for option in found if _key(option) not in self._tried]

    def next(self) -> DownloadOption | None:
        """Return what to try now; None when nothing is left."""
        if not self._waiting:
            return None
        option = self._waiting.pop(0)
        self._tried.add(_key(option))
        return option

    def learn(self, option: DownloadOption, *, packed_bytes: float, fits_unpacked: bool) -> None:
        """Learn from a trial that misses something: the limit on the download alone, or more."""
        self._growth = max(self._growth, packed_bytes / option.download_bytes)
        if fits_unpacked:
            self._good_enough = min(self._good_enough, packed_bytes)
        else:
            self._too_lossy = max(self._too_lossy, packed_bytes)
        if fits_unpacked and not self._is_evidence:
            self._waiting = []
            self._aim = math.floor(AIM * self._limit / self._growth)
        elif not self._waiting:
            self._is_evidence = True
            self._look_between()

    def _look_between(self) -> None:
        """Aim between what lost too much and what did not, where there is room."""
        middle = math.sqrt(self._too_lossy * self._good_enough)
        if middle > 0 and self._good_enough / middle >= _WORTH_KNOWING:
            self._aim = math.floor(middle / self._growth)


def _key(option: DownloadOption) -> tuple[str, int]:
    """Return what tells options apart: those by layer may have the same label."""
    return option.label, option.download_bytes
