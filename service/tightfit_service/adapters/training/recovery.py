"""The training loop of recovery: one-cycle SGD with distillation, watched and rolled back when it fails."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from tightfit_service.adapters.training.batch_shards import BatchShards, Figures, shards_of
from tightfit_service.adapters.training.constraints import WeightConstraints
from tightfit_service.adapters.training.features import FeatureGuide
from tightfit_service.adapters.training.learner import Learner
from tightfit_service.adapters.training.losses import DistillationLoss
from tightfit_service.adapters.training.scoring import Score
from tightfit_service.adapters.training.training_set import Batch, TrainingSet
from tightfit_service.application.ports import ProgressCallback, RecoverySettings
from tightfit_service.application.samples import IntArray, Samples

DEFAULT_LEARNING_RATE = 0.02
"""Peak for batches of 128, in proportion to the batch; measured by benchmarks/recovery.py."""

_WARM_UP_SHARE = 0.15
_MOMENTUM = 0.9
_RANGE_RATE = 0.01
"""Largest relative change of an activation range per step."""
_MAX_GRADIENT_NORM = 5.0
_ROLLBACK_FACTOR = 0.3
_MAX_ROLLBACKS = 3
_INTERIM_SAMPLES = 1000
_RECALIBRATION_SAMPLES = 1024


class _BlownUpError(Exception):
    """The loss or the score says that this learning rate does not work."""


@dataclass(kw_only=True)
class RecoveryRun:
    """One training of a learner, from its present state to the best state found.

    Attributes:
        clean: Samples that the statistics of BatchNorms are taken from afterwards.
        epochs: Passes over `data`.
        rate_share: Share of the learning rate that `settings` give, or of the usual one.
        start_score: Score of the present state.
        guide: Compares inner activations with the original's, or None.
        deadline: Value of `time.monotonic` at which the schedule has to be at its end, or None.
    """

    learner: Learner
    data: TrainingSet
    clean: Samples
    view_count: int
    loss: DistillationLoss
    score: Score
    settings: RecoverySettings
    epochs: float
    constraints: WeightConstraints
    on_progress: ProgressCallback
    start_score: float
    rate_share: float = 1.0
    guide: FeatureGuide | None = None
    deadline: float | None = None
    history: list[Mapping[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    steps_done: int = 0
    samples_seen: int = 0
    rollback_count: int = 0
    has_failed: bool = False

    def __post_init__(self) -> None:
        """Fix the batch size and the length of the schedule."""
        self.batch_size = max(1, min(self.settings.batch_size, len(self.data)))
        epochs = max(0.0, self.epochs)
        # batch statistics need two samples
        enough = self.batch_size >= 2
        self.step_count = round(epochs * len(self.data) / self.batch_size) if enough else 0
        self._reported = 0.0

    def run(self) -> float:
        """Train and leave the best state in the module; return its score on all selection samples.

        The rate ends at zero, so the last state is the best of its training; it is kept if it is no
        worse than the starting one. A training that blows up starts again there, at a lower rate and
        with half the steps.
        """
        best, best_score = self.learner.state(), self.start_score
        self._record(self.epochs_done, math.nan, 0.0, best_score)
        rate = self.learning_rate
        while self.step_count > 0:
            try:
                self._train(rate)
                recalibrate(self.learner, self.clean, seed=self.settings.seed)
            except _BlownUpError as error:
                self.learner.restore(best)
                self.rollback_count += 1
                rate *= _ROLLBACK_FACTOR
                self.notes.append(f"training was rolled back: {error}; retried at rate {rate:.2g}")
                if self.rollback_count > _MAX_ROLLBACKS or self._is_late():
                    self.has_failed = True
                    break
                self.step_count = max(self.step_count // 2, 1)
                continue
            if self.learner.quantizer is not None:
                self.learner.quantizer.refresh()
            score = self.score.of(self.learner)
            self._record(self.epochs_done, math.nan, 0.0, score)
            if score >= best_score:
                best, best_score = self.learner.state(), score
            else:
                self.notes.append(
                    f"training ended at {score:.3f}, below its start at {best_score:.3f}, "
                    "which is kept"
                )
            break
        self.learner.restore(best)
        return best_score

    @property
    def learning_rate(self) -> float:
        """Peak of the schedule."""
        if self.settings.learning_rate is not None:
            return self.rate_share * self.settings.learning_rate
        return self.rate_share * DEFAULT_LEARNING_RATE * self.batch_size / 128

    @property
    def epochs_done(self) -> float:
        """Passes over the training set so far."""
        return self.samples_seen / len(self.data)

    def _train(self, peak: float) -> None:
        """Run the whole schedule once."""
        with shards_of(self.learner) as shards:
            self._run_schedule(peak, shards)

    def _run_schedule(self, peak: float, shards: BatchShards) -> None:
        optimisers = _optimisers(self.learner, self.settings, peak)
        begun = time.monotonic()
        floor = self._collapse_level()
        loss_average: float | None = None
        uniform_average: float | None = None
        interval = max(1, min(len(self.data) // self.batch_size, self.step_count // 3))
        for done, (indices, view) in enumerate(self._batches(), start=1):
            progress = self._progress(done - 1, begun)
            if progress >= 1.0:
                break
            rate = _one_cycle(progress, peak)
            for group in (g for optimiser in optimisers for g in optimiser.param_groups):
                group["lr"] = _one_cycle(progress, group["peak"])
            loss, uniform = self._step(shards, optimisers, self.data.batch(indices, view))
            self.steps_done += 1
            self.samples_seen += len(indices)
            if not math.isfinite(loss):
                raise _BlownUpError("the loss is no number any more")
            loss_average = loss if loss_average is None else 0.9 * loss_average + 0.1 * loss
            uniform_average = (
                uniform if uniform_average is None else 0.9 * uniform_average + 0.1 * uniform
            )
            if done > 20 and loss_average > 1.5 * uniform_average:
                raise _BlownUpError("the loss is above that of knowing nothing")
            if done % interval == 0 and progress < 0.95:
                score = self.score.of(self.learner, at_most=_INTERIM_SAMPLES)
                self._record(self.epochs_done, loss_average, rate, score)
                if score < floor:
                    raise _BlownUpError(f"the score on the selection set fell to {score:.3f}")
            self._report(progress, loss_average)

    def _step(
        self, shards: BatchShards, optimisers: list[torch.optim.Optimizer], batch: Batch
    ) -> Figures:
        """Take one step and return its loss and the loss of uniform answers on the same batch."""
        trained = [p for o in optimisers for group in o.param_groups for p in group["params"]]
        found = shards.gradients(batch, trained, self._losses)
        self.constraints.project_gradients()
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), _MAX_GRADIENT_NORM)
        for optimiser in optimisers:
            optimiser.step()
        self.constraints.project_weights()
        return found

    def _losses(self, learner: Learner, batch: Batch) -> tuple[torch.Tensor, Figures]:
        """Return what is minimised over a batch, or a part of it; its loss and that of uniform answers."""
        device = learner.form.device
        answers = [
            [torch.from_numpy(value).to(device) for value in of_teacher]
            for of_teacher in batch.answers
        ]
        labels = torch.from_numpy(batch.labels).to(device)
        features = () if self.guide is None else self.guide.names
        found = learner.outputs(batch.inputs, training=not learner.holds_statistics, also=features)
        outputs, inner = found[: len(answers[0])], found[len(answers[0]) :]
        loss = total = self.loss(outputs, answers, labels)
        if self.guide is not None:
            total = loss + self.settings.feature_weight * self.guide.loss(inner, batch.inputs)
        with torch.no_grad():
            uniform = self.loss([torch.zeros_like(output) for output in outputs], answers, labels)
        return total, (float(loss.detach()), float(uniform))

    def _batches(self) -> Iterator[tuple[IntArray, int]]:
        """Yield sample indices and view, epoch by epoch without end; the last short batch is left out."""
        random = np.random.default_rng(self.settings.seed + 104729 * self.rollback_count)
        epoch = 0
        while True:
            order = random.permutation(len(self.data))
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                # sorted: neighbours in a memory-mapped file are read together
                yield np.sort(order[start : start + self.batch_size]), epoch % self.view_count
            epoch += 1

    def _progress(self, done: int, begun: float) -> float:
        """Return how much of the schedule is over, by steps or by time, whichever is further."""
        by_steps = done / self.step_count
        if self.deadline is None:
            return by_steps
        available = max(self.deadline - begun, 1e-3)
        return max(by_steps, (time.monotonic() - begun) / available)

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _collapse_level(self) -> float:
        """Return the score below which a network that knew something counts as lost."""
        return self.start_score / 4

    def _record(self, epoch: float, loss: float, rate: float, score: float) -> None:
        entry = {"epoch": epoch, "learning_rate": rate, self.score.metric: score}
        if math.isfinite(loss):
            entry["loss"] = loss
        self.history.append(entry)

    def _report(self, progress: float, loss: float) -> None:
        now = time.monotonic()
        if now - self._reported >= 1.0:
            self._reported = now
            self.on_progress(min(progress, 1.0), f"epoch {self.epochs_done:.1f}, loss {loss:.3f}")


def recalibrate(learner: Learner, train: Samples, *, seed: int) -> None:
    """Replace the running statistics of all BatchNorms by averages over clean training samples.

    Where rounding needs variances as they are, only means are replaced: rounding shifts them.
    """
    module = learner.module
    statistics = module.statistics()
    held = [variance.clone() for _, variance in statistics] if learner.holds_statistics else []
    if not statistics or len(train) < 2:
        return
    random = np.random.default_rng(seed)
    count = min(len(train), _RECALIBRATION_SAMPLES)
    chosen = np.sort(random.permutation(len(train))[:count])
    size = min(256, count)
    with torch.no_grad():
        for number, start in enumerate(range(0, count - size + 1, size)):
            module.run_state.momentum = 1.0 / (number + 1)
            learner.outputs(train.inputs(chosen[start : start + size]), training=True)
            # at once: the next pass rounds by them
            for (_, variance), before in zip(statistics, held, strict=False):
                variance.copy_(before)
    module.run_state.momentum = 0.1
    module.eval()


def _optimisers(
    learner: Learner, settings: RecoverySettings, peak: float
) -> list[torch.optim.Optimizer]:
    """Return SGD with Nesterov momentum, only weights decaying; and Adam for ranges of activations."""
    weights = [p for p in learner.parameters() if p.ndim > 1]
    others = [p for p in learner.parameters() if p.ndim <= 1]
    found: list[torch.optim.Optimizer] = [
        torch.optim.SGD(
            [
                {"params": weights, "weight_decay": settings.weight_decay, "peak": peak},
                {"params": others, "weight_decay": 0.0, "peak": peak},
            ],
            lr=peak,
            momentum=_MOMENTUM,
            nesterov=True,
        )
    ]
    if learner.quantizer is not None:
        ends = {"params": [learner.quantizer.ends], "peak": _RANGE_RATE}
        found.append(torch.optim.Adam([ends], lr=_RANGE_RATE))
    return found


def _one_cycle(progress: float, peak: float) -> float:
    """Return the rate: a linear rise, then a cosine to zero (Smith and Topin, 2018)."""
    if progress < _WARM_UP_SHARE:
        return peak * max(progress / _WARM_UP_SHARE, 0.02)
    rest = (progress - _WARM_UP_SHARE) / (1 - _WARM_UP_SHARE)
    return peak * 0.5 * (1 + math.cos(math.pi * rest))
