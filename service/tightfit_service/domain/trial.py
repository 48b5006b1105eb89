"""Trials: one evaluation of a recipe, with its measurements and verdict."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tightfit_service.domain.budget import Budget, Quantity
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.measurement import Measurement
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.recipe import Recipe


class TrialState(enum.StrEnum):
    """Where a trial stands. Final states are COMPLETED, STOPPED and FAILED."""

    PROPOSED = "proposed"
    RUNNING = "running"
    COMPLETED = "completed"
    """Ran to the end of its fidelity; metrics are there."""
    STOPPED = "stopped"
    """Ended early because others are better; metrics may be partial."""
    FAILED = "failed"
    """Could not be finished; `error` says why. The job goes on."""


class TrialRole(enum.StrEnum):
    """Why a trial was run."""

    BASELINE = "baseline"
    """The model as it came."""
    BASELINE_INT8 = "baseline_int8"
    """Only quantized: what a user would otherwise ship."""
    SCREENING = "screening"
    """Short recovery, to compare candidates."""
    FINALIST = "finalist"
    """Long recovery; may be the winner."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What is known of one model file on the target.

    `accuracy` is measured on the exported file in its runtime over the evaluation set; None where it
    was not evaluated there (screening trials see the selection set only) or there is no dataset.
    `selection_accuracy` is measured on the selection set and ranks trials.
    `measured` is what a device said of the file; None where none was asked, or none answered.
    `download_bytes` is the size of the packed file; None where none was made.
    """

    cost: CostEstimate
    file_bytes: int
    accuracy: Accuracy | None = None
    selection_accuracy: Accuracy | None = None
    measured: Measurement | None = None
    download_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A limit that a trial misses."""

    quantity: Quantity
    limit: float
    actual: float
    """What was measured, or else the upper end of the estimate for costs; the value for accuracy."""

    @property
    def excess_ratio(self) -> float:
        """How far beyond the limit, relative to the limit; 0.1 is ten percent too much."""
        if self.quantity is Quantity.ACCURACY:
            return (self.limit - self.actual) / self.limit
        return (self.actual - self.limit) / self.limit


def cost_of(metrics: Metrics, quantity: Quantity) -> float:
    """Return what a limit on a cost quantity is held against: measured, or else the estimate's upper end.

    A measured latency is the 90th percentile: a limit is met when nine of ten inferences meet it.
    Memory stays an estimate: what a process holds has the runtime's own in it, which emulators leave out.
    For SIZE that is the larger of the flash occupied and the exported file: runtimes that compile the
    model keep less than the file, but who limits the size of a model expects the file to meet it.
    DOWNLOAD is the packed file, or the file itself where none was packed.
    """
    cost = metrics.cost
    measured = _measured(metrics.measured, quantity)
    if measured is not None:
        return measured
    if quantity is Quantity.SIZE:
        return max(cost.flash_bytes.high, float(metrics.file_bytes))
    if quantity is Quantity.DOWNLOAD:
        known = metrics.download_bytes
        return float(metrics.file_bytes if known is None else known)
    return {
        Quantity.LATENCY: cost.latency_ms,
        Quantity.ENERGY: cost.energy_mj,
        Quantity.RAM: cost.peak_ram_bytes,
    }[quantity].high


def _measured(measurement: Measurement | None, quantity: Quantity) -> float | None:
    if measurement is None:
        return None
    energy = measurement.energy
    return {
        Quantity.LATENCY: measurement.measured_latency_ms_p90,
        Quantity.ENERGY: None if energy is None else energy.energy_mj,
    }.get(quantity)


COST_QUANTITIES = (Quantity.LATENCY, Quantity.ENERGY, Quantity.RAM, Quantity.SIZE)
"""What widths and ways to compute decide, and emulators estimate."""

MAXIMA = (*COST_QUANTITIES, Quantity.DOWNLOAD)
"""Everything that a budget can set a maximum for."""


def violations(
    metrics: Metrics, budget: Budget, *, baseline_accuracy: float | None
) -> tuple[Violation, ...]:
    """Return the limits of the budget that the metrics miss, costs first.

    A cost is met when what was measured, or else the upper end of its interval, meets the limit. Accuracy is met when the
    evaluation accuracy (or, before that is known, the selection accuracy) reaches the floor; its
    interval is reported beside it. An accuracy floor without any accuracy is missed.
    """
    missed: list[Violation] = []
    for quantity in MAXIMA:
        limit = budget.limit_of(quantity)
        if limit is not None and (actual := cost_of(metrics, quantity)) > limit:
            missed.append(Violation(quantity=quantity, limit=limit, actual=actual))
    floor = budget.accuracy_floor(baseline_accuracy)
    if floor is not None:
        known = metrics.accuracy or metrics.selection_accuracy
        value = known.value if known is not None else 0.0
        if value < floor - 1e-12:
            missed.append(Violation(quantity=Quantity.ACCURACY, limit=floor, actual=value))
    return tuple(missed)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One evaluation of a recipe.

    Attributes:
        index: Position in the job, from 0; also the trial's id.
        predicted_accuracy: What the sensitivity model expected before the trial ran.
        artifacts: Name ("model", "float_onnx", "history") to digest of what the trial produced.
        stage_seconds: Seconds per stage (prune, recover, export, evaluate).
        input_digest: Digest of everything that determines the trial's outcome; the cache key.
        notes: What the user should know: rollbacks, where figures are from.
        format_notes: Which nodes of the file compute in other numbers than the rest, and why.
    """

    index: int
    role: TrialRole
    state: TrialState
    recipe: Recipe
    metrics: Metrics | None = None
    predicted_accuracy: float | None = None
    violations: tuple[Violation, ...] = ()
    artifacts: Mapping[str, str] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    input_digest: str = ""
    error: str = ""
    notes: tuple[str, ...] = ()
    format_notes: tuple[str, ...] = ()

    @property
    def is_feasible(self) -> bool:
        """Whether the trial ran to its end and misses no limit."""
        return (
            self.state is TrialState.COMPLETED and self.metrics is not None and not self.violations
        )

    @property
    def fits_unpacked(self) -> bool:
        """Whether the trial ran to its end and misses no limit, but perhaps that on the download."""
        return (
            self.state is TrialState.COMPLETED
            and self.metrics is not None
            and all(missed.quantity is Quantity.DOWNLOAD for missed in self.violations)
        )
