"""States of a job."""

from __future__ import annotations

import itertools

import pytest

from tightfit_service.domain.errors import PreconditionError
from tightfit_service.domain.job import JobState, check_transition

ALLOWED = {
    (JobState.QUEUED, JobState.RUNNING),
    (JobState.QUEUED, JobState.CANCELLED),
    (JobState.QUEUED, JobState.FAILED),
    (JobState.RUNNING, JobState.QUEUED),
    (JobState.RUNNING, JobState.SUCCEEDED),
    (JobState.RUNNING, JobState.INFEASIBLE),
    (JobState.RUNNING, JobState.FAILED),
    (JobState.RUNNING, JobState.CANCELLED),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(JobState, JobState)))
def test_only_the_documented_changes_are_made(before: JobState, after: JobState) -> None:
    if (before, after) in ALLOWED:
        check_transition(before, after)
    else:
        with pytest.raises(PreconditionError):
            check_transition(before, after)


def test_final_states_are_left_by_no_change() -> None:
    final = {state for state in JobState if state.is_final}
    assert final == set(JobState) - {before for before, _ in ALLOWED}
