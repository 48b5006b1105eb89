"""The training loop of recovery: one-cycle SGD with distillation, watched and rolled back when it fails."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from tightfit_service.adapters.training.module import GraphModule
from tightfit_service.adapters.training.number_format import TrainingFormat
from tightfit_service.adapters.training.scoring import Score
from tightfit_service.adapters.training.teacher import TeacherCache
from tightfit_service.application.ports import ProgressCallback, RecoverySettings
from tightfit_service.application.samples import IntArray, Samples

State = dict[str, torch.Tensor]

DEFAULT_LEARNING_RATE = 0.06
"""Peak for batches of 128, in proportion to the batch; measured by benchmarks/recovery.py."""

_WARM_UP_SHARE = 0.15
_MOMENTUM = 0.9
_MAX_GRADIENT_NORM = 5.0
_ROLLBACK_FACTOR = 0.3
_MAX_ROLLBACKS = 3
_INTERIM_SAMPLES = 1000
_RECALIBRATION_SAMPLES = 1024


class _BlownUpError(Exception):
    """The loss or the score says that this learning rate does not work."""


@dataclass(kw_only=True)
class RecoveryRun:
    """One recovery of a module, from its present state to the best state found.

    Attributes:
        logits: Name of the tensor that is held against the teacher's logits.
        input_scale: Inputs are divided by it before they reach the module.
        start_score: Score of the present state.
        deadline: Value of `time.monotonic` at which the schedule has to be at its end, or None.
    """

    module: GraphModule
    logits: str
    cache: TeacherCache
    view_count: int
    train: Samples
    score: Score
    settings: RecoverySettings
    form: TrainingFormat
    input_scale: float
    on_progress: ProgressCallback
    start_score: float
    deadline: float | None = None
    history: list[Mapping[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    steps_done: int = 0
    samples_seen: int = 0
    rollback_count: int = 0
    has_failed: bool = False

    def __post_init__(self) -> None:
        """Fix the batch size and the length of the schedule."""
        self.batch_size = max(1, min(self.settings.batch_size, len(self.train)))
        epochs = max(0.0, self.settings.epochs)
        # batch statistics need two samples
        enough = self.batch_size >= 2
        self.step_count = round(epochs * len(self.train) / self.batch_size) if enough else 0
        self._reported = 0.0

    def run(self) -> float:
        """Train and leave the best state in the module; return its score on all selection samples.

        The rate ends at zero, so the last state is the best of its training; it is kept if it is no
        worse than the starting one. A training that blows up starts again there, at a lower rate and
        with half the steps.
        """
        best, best_score = self._state(), self.start_score
        self._record(0.0, math.nan, 0.0, best_score)
        rate = self.learning_rate
        while self.step_count > 0:
            try:
                self._train(rate)
                recalibrate(
                    self.module, self.logits, self.form, self.train, self.input_scale,
                    seed=self.settings.seed,
                )  # fmt: skip
            except _BlownUpError as error:
                self._restore(best)
                self.rollback_count += 1
                rate *= _ROLLBACK_FACTOR
                self.notes.append(f"training was rolled back: {error}; retried at rate {rate:.2g}")
                if self.rollback_count > _MAX_ROLLBACKS or self._is_late():
                    self.has_failed = True
                    break
                self.step_count = max(self.step_count // 2, 1)
                continue
            score = self.score.of(self.module, self.logits, self.form)
            self._record(self.epochs_done, math.nan, 0.0, score)
            if score >= best_score:
                best, best_score = self._state(), score
            else:
                self.notes.append(
                    f"training ended at {score:.3f}, below its start at {best_score:.3f}, "
                    "which is kept"
                )
            break
        self._restore(best)
        return best_score

    @property
    def learning_rate(self) -> float:
        """Peak of the schedule."""
        if self.settings.learning_rate is not None:
            return self.settings.learning_rate
        return DEFAULT_LEARNING_RATE * self.batch_size / 128

    @property
    def epochs_done(self) -> float:
        """Passes over the training set so far."""
        return self.samples_seen / len(self.train)

    def _train(self, peak: float) -> None:
        """Run the whole schedule once."""
        optimiser = _optimiser(self.module, self.settings, peak)
        begun = time.monotonic()
        floor = self._collapse_level()
        loss_average: float | None = None
        uniform_average: float | None = None
        interval = max(1, min(len(self.train) // self.batch_size, self.step_count // 3))
        for done, (indices, view) in enumerate(self._batches(), start=1):
            progress = self._progress(done - 1, begun)
            if progress >= 1.0:
                break
            rate = _one_cycle(progress, peak)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss, uniform = self._step(optimiser, indices, view)
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
                score = self.score.of(self.module, self.logits, self.form, at_most=_INTERIM_SAMPLES)
                self._record(self.epochs_done, loss_average, rate, score)
                if score < floor:
                    raise _BlownUpError(f"the score on the selection set fell to {score:.3f}")
            self._report(progress, loss_average)

    def _step(
        self, optimiser: torch.optim.Optimizer, indices: IntArray, view: int
    ) -> tuple[float, float]:
        """Take one step and return its loss and the loss of uniform answers on the same batch."""
        inputs, answers = self.cache.batch(indices, view)
        targets = torch.from_numpy(answers).to(self.form.device).reshape(len(indices), -1)
        labels = None
        if self.train.labels is not None:
            labels = torch.from_numpy(self.train.labels[indices]).to(self.form.device)
        self.module.train()
        scaled = self.form.inputs(inputs / np.float32(self.input_scale))
        with self.form.context():
            logits = self.module.run_to([self.logits], scaled)[0]
        logits = logits.float().reshape(len(indices), -1)
        loss = distillation_loss(logits, targets, labels, self.settings)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), _MAX_GRADIENT_NORM)
        optimiser.step()
        with torch.no_grad():
            uniform = distillation_loss(torch.zeros_like(logits), targets, labels, self.settings)
        return float(loss.detach()), float(uniform)

    def _batches(self) -> Iterator[tuple[IntArray, int]]:
        """Yield sample indices and view, epoch by epoch without end; the last short batch is left out."""
        random = np.random.default_rng(self.settings.seed + 104729 * self.rollback_count)
        epoch = 0
        while True:
            order = random.permutation(len(self.train))
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

    def _state(self) -> State:
        return copy.deepcopy(self.module.state_dict())

    def _restore(self, state: State) -> None:
        self.module.load_state_dict(state)


def distillation_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    labels: torch.Tensor | None,
    settings: RecoverySettings,
) -> torch.Tensor:
    """Return the loss against the teacher's logits and the labels (Hinton et al., 2015).

    A single output has no softmax: it is held against the teacher's by squared error.
    """
    if logits.shape[1] == 1:
        return functional.mse_loss(logits, targets)
    heat = settings.temperature
    soft = functional.kl_div(
        functional.log_softmax(logits / heat, dim=1),
        functional.log_softmax(targets / heat, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    soft = soft * heat**2
    if labels is None:
        return soft
    share = settings.distillation_weight
    return share * soft + (1 - share) * functional.cross_entropy(logits, labels)


def recalibrate(
    module: GraphModule,
    logits: str,
    form: TrainingFormat,
    train: Samples,
    input_scale: float,
    *,
    seed: int,
) -> None:
    """Replace the running statistics of all BatchNorms by averages over clean training samples."""
    if not module.statistics() or len(train) < 2:
        return
    random = np.random.default_rng(seed)
    count = min(len(train), _RECALIBRATION_SAMPLES)
    chosen = np.sort(random.permutation(len(train))[:count])
    size = min(256, count)
    module.train()
    with torch.no_grad():
        for number, start in enumerate(range(0, count - size + 1, size)):
            module.run_state.momentum = 1.0 / (number + 1)
            inputs = train.inputs(chosen[start : start + size]) / np.float32(input_scale)
            with form.context():
                module.run_to([logits], form.inputs(inputs))
    module.run_state.momentum = 0.1
    module.eval()


def _optimiser(
    module: GraphModule, settings: RecoverySettings, peak: float
) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum; only weights decay, not scales and biases."""
    weights = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [
            {"params": weights, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=peak,
        momentum=_MOMENTUM,
        nesterov=True,
    )


def _one_cycle(progress: float, peak: float) -> float:
    """Return the rate: a linear rise, then a cosine to zero (Smith and Topin, 2018)."""
    if progress < _WARM_UP_SHARE:
        return peak * max(progress / _WARM_UP_SHARE, 0.02)
    rest = (progress - _WARM_UP_SHARE) / (1 - _WARM_UP_SHARE)
    return peak * 0.5 * (1 + math.cos(math.pi * rest))
