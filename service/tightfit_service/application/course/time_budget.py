"""How a job's time is shared out between screening, long trainings, and what comes after them."""

from __future__ import annotations

from collections.abc import Sequence

from tightfit_service.application.ports import Clock, RecoverySettings
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.job import JobSpec
from tightfit_service.domain.trial import Trial

SCREENING_EPOCHS = 1.0
FINAL_EPOCHS = 30.0
"""Beyond about 30 epochs of distillation the gain per epoch is below the evaluation's error."""

SCREENING_TIME_SHARE = 0.2
"""Share of the search time that screening may take in all."""

FORMS_TIME_SHARE = 0.35
"""The same while a form of the network was not screened yet: which form does best is decided by
trials, and choosing the wrong one costs more than a shorter last training."""

RESERVE_SECONDS = 5.0

DOWNLOAD_TIME_SHARE = 0.35
"""Share of the search time that is kept for making the download smaller, where its size is limited."""

DOWNLOAD_TRIALS = 3
"""Trials that are kept for it; of few trials, half."""


class TimeBudget:
    """Seconds of one job's search, those spent in its earlier lives included."""

    def __init__(self, spec: JobSpec, clock: Clock, *, spent_seconds: float) -> None:
        self._spec = spec
        self._clock = clock
        self._began = clock.monotonic() - spent_seconds
        limits = spec.search_limits
        is_limited = spec.budget.limit_of(Quantity.DOWNLOAD) is not None
        self._kept_seconds = DOWNLOAD_TIME_SHARE * limits.max_seconds if is_limited else 0.0
        self._kept_trials = min(DOWNLOAD_TRIALS, limits.max_trials // 2) if is_limited else 0

    def begin_last_stage(self) -> None:
        """Let what comes now use what was kept for it."""
        self._kept_seconds, self._kept_trials = 0.0, 0

    @property
    def elapsed(self) -> float:
        """Seconds spent so far."""
        return self._clock.monotonic() - self._began

    def screening_seconds(self, *, form_is_new: bool = False) -> float:
        """Return the seconds that screening may take in all, before a form's first candidate or after."""
        share = FORMS_TIME_SHARE if form_is_new else SCREENING_TIME_SHARE
        return self._spec.search_limits.max_seconds * share

    def may_start_trial(self, trials: Sequence[Trial], *, keep_for_final: int) -> bool:
        """Whether limits on trials and time leave room for one more, so many for the end set aside."""
        has_trials = self.trials_left(trials, keep_for_final=keep_for_final) > 0
        return has_trials and self.left(trials, shared_by=1) > RESERVE_SECONDS

    def trials_left(self, trials: Sequence[Trial], *, keep_for_final: int) -> int:
        """Return how many more trials the limit allows, so many for the end set aside."""
        used = len(trials) - 1  # the quantized-only model is no search trial
        most = self._spec.search_limits.max_trials - self._kept_trials
        return max(0, most - used - keep_for_final)

    def left(self, trials: Sequence[Trial], *, shared_by: int) -> float:
        """Return the seconds that one more training may take, export and evaluation set aside."""
        ran = [trial.stage_seconds for trial in trials if trial.stage_seconds]
        last = ran[-1] if ran else {}
        # The first export loads the libraries, so the latest trial tells best what the next costs.
        # Evaluating the evaluation set comes on top of what screening trials did.
        overhead = RESERVE_SECONDS + 1.5 * sum(
            seconds for stage, seconds in last.items() if stage != "recover"
        )
        left = self._spec.search_limits.max_seconds - self._kept_seconds - self.elapsed
        return max(1.0, round(left / shared_by - overhead, 1))

    def has_as_much_as(self, trial: Trial, trials: Sequence[Trial]) -> bool:
        """Whether another training may take as long as that of a trial, if it was trained, took."""
        seconds = trial.stage_seconds.get("recover", 0.0)
        return seconds > 0 and self.left(trials, shared_by=1) >= seconds

    def short_training(self) -> RecoverySettings:
        """Return the training of a candidate that is only compared with others."""
        return RecoverySettings(
            epochs=SCREENING_EPOCHS,
            max_seconds=round(self.screening_seconds() / 4, 1),
            seed=self._spec.seed,
        )

    def long_training(
        self, trials: Sequence[Trial], *, shared_by: int, quantization_aware: bool
    ) -> RecoverySettings:
        """Return the training of a candidate that may win."""
        return RecoverySettings(
            epochs=FINAL_EPOCHS,
            max_seconds=self.left(trials, shared_by=shared_by),
            quantization_aware=quantization_aware,
            seed=self._spec.seed,
        )
