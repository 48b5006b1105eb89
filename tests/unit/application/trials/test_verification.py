"""Verification inside a search: the device has the last word, and a job goes on without one."""

from __future__ import annotations

import pytest

from fakes.runners import Measurer, make_measurement
from fakes.search_bench import TARGET, WHOLE_LATENCY_MS, Bench, latency
from fakes.waiting import until
from tightfit_service.application.ports import MeasurementOrder, NoteCallback, no_notes
from tightfit_service.domain.errors import MeasurementFailedError, NoRunnerError
from tightfit_service.domain.job import JobState
from tightfit_service.domain.measurement import Measurement, Verification
from tightfit_service.domain.trial import TrialRole, TrialState

LIMIT_MS = WHOLE_LATENCY_MS / 2
TOO_SHORT_FOR_RIVALS = 25
"""Seconds of a search whose first finalist takes more than half of them."""
GONE = NoRunnerError("no runner of board is connected")


def seen(latency_ms: float) -> Measurement:
    return make_measurement(
        runner="bench",
        measured_latency_ms_p50=0.9 * latency_ms,
        measured_latency_ms_p90=latency_ms,
        measured_latency_ms_p99=latency_ms,
    )


async def test_the_winner_is_measured_and_carries_what_was_seen() -> None:
    measurer = Measurer(seen(0.9 * LIMIT_MS))
    bench = Bench(
        latency(LIMIT_MS),
        verification=Verification.IF_AVAILABLE,
        measurer=measurer,
        max_seconds=TOO_SHORT_FOR_RIVALS,
    )
    job = await bench.run()

    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial is not None
    best = bench.trials()[job.result.best_trial]
    assert best.metrics is not None
    assert best.metrics.measured == seen(0.9 * LIMIT_MS)
    assert any(note.startswith("measured on bench") for note in best.notes)
    (order,) = measurer.orders
    assert order.artifact_digest == best.artifacts["model"]
    assert (order.project, order.job_id, order.target) == ("p", "j", TARGET)
    assert order.macs == best.metrics.cost.macs


async def test_those_who_watch_a_job_learn_what_it_waits_for() -> None:
    class Slow(Measurer):
        async def measure(
            self, order: MeasurementOrder, *, on_note: NoteCallback = no_notes
        ) -> Measurement:
            on_note("waiting for a runner of board, 2 measurements ahead")
            await until(
                lambda: any(
                    "2 measurements ahead" in e.message
                    for e in bench.store.list_events("j", after=0, limit=1_000)
                )
            )
            return await super().measure(order, on_note=on_note)

    measurer = Slow(seen(0.9 * LIMIT_MS))
    bench = Bench(
        latency(LIMIT_MS),
        verification=Verification.IF_AVAILABLE,
        measurer=measurer,
        max_seconds=TOO_SHORT_FOR_RIVALS,
    )
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert len(measurer.orders) == 1


async def test_a_budget_that_the_device_misses_is_missed() -> None:
    measurer = Measurer(seen(1.5 * LIMIT_MS))
    bench = Bench(latency(LIMIT_MS), verification=Verification.IF_AVAILABLE, measurer=measurer)
    job = await bench.run()

    assert job.state is JobState.INFEASIBLE
    finalists = [trial for trial in bench.trials() if trial.role is TrialRole.FINALIST]
    assert finalists
    measured = [trial for trial in finalists if trial.metrics and trial.metrics.measured]
    assert measured
    assert all(trial.violations[0].actual == 1.5 * LIMIT_MS for trial in measured)
    by_estimate = [t for t in measured if t.metrics and t.metrics.cost.latency_ms.high <= LIMIT_MS]
    assert by_estimate, "the estimate alone would have let it through"


async def test_the_search_goes_on_when_the_device_refuses_the_first_finalist() -> None:
    measurer = Measurer(seen(1.1 * LIMIT_MS), seen(0.9 * LIMIT_MS))
    bench = Bench(
        latency(LIMIT_MS),
        verification=Verification.IF_AVAILABLE,
        measurer=measurer,
        max_seconds=TOO_SHORT_FOR_RIVALS,
    )
    job = await bench.run()

    assert job.state is JobState.SUCCEEDED
    assert len(measurer.orders) == 2
    assert job.result.best_trial is not None
    best = bench.trials()[job.result.best_trial]
    assert best.artifacts["model"] == measurer.orders[1].artifact_digest


async def test_without_a_device_estimates_decide_and_the_trial_says_so() -> None:
    bench = Bench(
        latency(LIMIT_MS), verification=Verification.IF_AVAILABLE, measurer=Measurer(GONE)
    )
    job = await bench.run()

    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial is not None
    best = bench.trials()[job.result.best_trial]
    assert best.metrics is not None
    assert best.metrics.measured is None
    assert f"not measured, the figures are estimates: {GONE.message}" in best.notes


async def test_a_job_that_must_be_measured_ends_when_there_is_nobody_to_measure() -> None:
    measurer = Measurer(GONE)
    bench = Bench(latency(LIMIT_MS), verification=Verification.REQUIRED, measurer=measurer)
    with pytest.raises(NoRunnerError, match="requires a measurement") as caught:
        await bench.run()
    assert "--verify if-available" in caught.value.remedy
    assert len(measurer.orders) == 1


async def test_a_candidate_that_the_device_cannot_run_does_not_win_where_that_is_required() -> None:
    measurer = Measurer(MeasurementFailedError("it crashed"), seen(0.9 * LIMIT_MS))
    bench = Bench(latency(LIMIT_MS), verification=Verification.REQUIRED, measurer=measurer)
    job = await bench.run()

    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial is not None
    best = bench.trials()[job.result.best_trial]
    assert best.metrics is not None
    assert best.metrics.measured is not None
    (failed,) = [trial for trial in bench.trials() if trial.state is TrialState.FAILED]
    assert "it crashed" in failed.error


@pytest.mark.parametrize("verification", [Verification.NONE, Verification.IF_AVAILABLE])
async def test_nothing_is_measured_that_nobody_asked_for_or_that_cannot_fit(
    verification: Verification,
) -> None:
    measurer = Measurer(seen(1.0))
    limit = LIMIT_MS if verification is Verification.NONE else WHOLE_LATENCY_MS / 1_000
    bench = Bench(latency(limit), verification=verification, measurer=measurer)
    await bench.run()
    assert measurer.orders == []


async def test_the_order_names_the_labels_that_the_runner_must_carry() -> None:
    measurer = Measurer(seen(0.9 * LIMIT_MS))
    bench = Bench(
        latency(LIMIT_MS),
        verification=Verification.IF_AVAILABLE,
        runner_labels={"lab": "a"},
        measurer=measurer,
        max_seconds=TOO_SHORT_FOR_RIVALS,
    )
    await bench.run()
    assert [dict(order.labels) for order in measurer.orders] == [{"lab": "a"}]
