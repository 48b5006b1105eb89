"""Compression jobs: the request, its states, and its result."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tightfit_service.domain.budget import Budget, Objective, Quantity, SearchLimits
from tightfit_service.domain.errors import PreconditionError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat
from tightfit_service.domain.measurement import Verification
from tightfit_service.domain.network import ImportanceCriterion
from tightfit_service.domain.recipe import Recipe
from tightfit_service.domain.trial import Metrics


class JobState(enum.StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    """A model that meets the whole budget was found."""
    INFEASIBLE = "infeasible"
    """The search ended and nothing met the budget; `infeasibility` says why and by how much."""
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job will never change state again."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,
            JobState.SUCCEEDED,
            JobState.INFEASIBLE,
            JobState.FAILED,
            JobState.CANCELLED,
        }
    ),
}


def check_transition(before: JobState, after: JobState) -> None:
    """Refuse a change of state that no job makes.

    RUNNING to QUEUED happens when a server that stops hands its jobs back.

    Raises:
        PreconditionError: `before` is final or `after` does not follow it.
    """
    if after not in _TRANSITIONS.get(before, frozenset()):
        raise PreconditionError(
            f"a job that is {before} cannot become {after}",
            field="state",
            remedy="create a new job" if before.is_final else "",
        )


def states_before(after: JobState) -> frozenset[JobState]:
    """Return the states that a job may have had before it came to be `after`."""
    return frozenset(before for before, following in _TRANSITIONS.items() if after in following)


MAX_TEACHERS = 4
"""Beside the original: each costs one pass over the training set per view of it."""


@dataclass(frozen=True, kw_only=True)
class TeacherModel:
    """A model that recovery training learns from besides the original."""

    name: str
    """Resource name of the model."""
    digest: str


MAX_PRIORITY = 100
"""Jobs may be between minus this and this."""


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What the user asked for; never changes."""

    model_digest: str
    model_name: str
    """Resource name of the model."""
    target: HardwareSpec
    budget: Budget
    dataset_digest: str | None = None
    dataset_name: str = ""
    objective: Objective = field(default_factory=Objective)
    search_limits: SearchLimits = field(default_factory=SearchLimits)
    output_format: ModelFormat | None = None
    """None takes the format of the target's runtime."""
    seed: int = 0
    techniques: tuple[str, ...] = ()
    """Names of the passes that the search may use; empty leaves the choice to the search."""
    recipe: Recipe | None = None
    """Applied as it is, without any search."""
    verification: Verification = Verification.NONE
    priority: int = 0
    """Among the queued jobs of its project the one with the highest starts first; between -100 and 100."""
    teachers: tuple[TeacherModel, ...] = ()
    """Recovery training learns from the mean of their answers and the original's."""
    importance: ImportanceCriterion | None = None
    """What channels are chosen by; None leaves the choice to the search."""
    packed: bool = False
    """Whether a packed file for download is asked for beside the model."""
    runner_labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Labels that a runner must carry to measure for the job."""

    @property
    def is_packed(self) -> bool:
        """Whether models are packed: that is asked for, or the size of the download is limited."""
        return self.packed or self.budget.limit_of(Quantity.DOWNLOAD) is not None

    @property
    def format(self) -> ModelFormat:
        """Format of the exported file."""
        return self.output_format or self.target.output_format


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """The smallest loosening of one constraint alone that would have let a trial through."""

    quantity: Quantity
    limit: float
    """The limit as asked."""
    needed: float | None
    """The limit that would do, the others unchanged; None when no known model meets the others."""
    trial_index: int | None
    """The trial that would then fit; None where `needed` is an estimate of the solver."""


@dataclass(frozen=True, kw_only=True)
class Infeasibility:
    """Why nothing fits, and by how much."""

    binding: tuple[Quantity, ...]
    """The constraints that no trial could meet together, most violated first."""
    closest_trials: tuple[int, ...]
    relaxations: tuple[Relaxation, ...]
    explanation: str


@dataclass(frozen=True, kw_only=True)
class LayerAttribution:
    """What one layer contributes: to cost before and after, and to the loss of accuracy."""

    node: str
    op_type: str
    macs_before: int
    macs_after: int
    latency_ms_before: float
    latency_ms_after: float
    channels_before: int
    channels_after: int
    accuracy_cost: float | None
    """Predicted loss of accuracy (fraction) from what was done to this layer; None where nothing was."""
    number_format: str = ""
    """That the layer computes in."""
    format_cost: float | None = None
    """Loss of accuracy (fraction) from the number format, measured in this layer before any cut; None
    where it was not measured."""
    changes: tuple[str, ...] = ()
    """What was done besides removing channels and rounding: `low rank spatial rank 12`."""
    predicted_alone: float | None = None
    """Loss of accuracy (fraction) that was predicted, before any trial, for what was done to this layer
    if nothing else is done and nothing trained; None where it was not predicted."""
    measured_alone: float | None = None
    """The same as measured; negative where accuracy rose."""
    format_cost_after: float | None = None
    """As `format_cost`, measured in the compressed network."""


@dataclass(frozen=True, kw_only=True)
class PreflightNote:
    """Something worth knowing before the search: what cannot help, what is frozen, what is assumed."""

    code: str
    """Stable code such as INT8_NOT_FASTER, NOT_PRUNABLE, WIDTH_ROUNDED_UP, BUDGET_BELOW_REACH."""
    message: str
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The outcome of a search; also filled, as far as known, while the job runs."""

    baseline: Metrics | None = None
    baseline_int8: Metrics | None = None
    best_trial: int | None = None
    pareto_trials: tuple[int, ...] = ()
    infeasibility: Infeasibility | None = None
    layers: tuple[LayerAttribution, ...] = ()
    notes: tuple[PreflightNote, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request for compression with its state.

    `job_id` is the last segment of the resource name. `revision` grows by one with every stored
    change; watchers resume from it.
    """

    job_id: str
    project: str
    spec: JobSpec
    state: JobState
    create_time: datetime
    update_time: datetime
    start_time: datetime | None = None
    end_time: datetime | None = None
    revision: int = 0
    request_id: str = ""
    error: str = ""
    error_reason: str = ""
    spent_seconds: float = 0.0
    """Search time used up in earlier lives of the server, in seconds."""
    trace_parent: str = ""
    """W3C `traceparent` of the call that made the job; empty where that was not traced."""
    creator: str = ""
    """Who made the job, such as `key:4f1c9a0d2b7e6655`; empty for jobs from before this was known."""
    result: JobResult = field(default_factory=JobResult)


class JobEventKind(enum.StrEnum):
    """What a job event tells."""

    STATE = "state"
    STAGE = "stage"
    PROGRESS = "progress"
    TRIAL = "trial"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One line of a job's course; `sequence` counts from 1 without gaps and is what watchers resume from.

    `stage` is one of: preflight, baseline, sensitivity, solve, trial, finish, package.
    """

    job_id: str
    sequence: int
    time: datetime
    kind: JobEventKind
    message: str
    stage: str = ""
    state: JobState | None = None
    trial_index: int | None = None
    fraction: float | None = None
    """Share of the job done, 0 to 1, an estimate."""
