"""The search as a whole, over scripted workers: what it finds, explains, and survives."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fakes import search_bench
from fakes.scripted_work import BASELINE_ACCURACY, ScriptedExecutor
from fakes.search_bench import WHOLE_LATENCY_MS, Bench, latency
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import WorkResult, WorkUnit
from tightfit_service.domain.budget import Constraint, Quantity
from tightfit_service.domain.errors import UnavailableError, WorkFailedError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.job import Job, JobState
from tightfit_service.domain.quantities import wilson_accuracy
from tightfit_service.domain.trial import Trial, TrialRole, TrialState


def max_drop(drop: float) -> Constraint:
    return Constraint(quantity=Quantity.ACCURACY, max_drop=drop)


async def test_half_the_latency_is_met_by_the_upper_end_of_the_estimate() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial is not None
    best = bench.trials()[job.result.best_trial]
    assert best.role is TrialRole.FINALIST
    assert best.metrics is not None
    assert best.metrics.cost.latency_ms.high <= WHOLE_LATENCY_MS / 2
    assert best.metrics.cost.latency_ms.high > 0.8 * WHOLE_LATENCY_MS / 2, "the budget is not used"
    assert best.metrics.accuracy is not None
    assert job.result.pareto_trials
    cut = [layer for layer in job.result.layers if layer.channels_after < layer.channels_before]
    assert cut
    assert all(layer.accuracy_cost is not None for layer in cut)
    for layer in cut:
        assert layer.measured_alone == 1 - layer.channels_after / layer.channels_before
        assert layer.predicted_alone is not None
        assert layer.accuracy_cost is not None
        assert layer.predicted_alone > layer.accuracy_cost, "training regains some of it"


def finalists(bench: Bench) -> list[Trial]:
    return [trial for trial in bench.trials() if trial.role is TrialRole.FINALIST]


async def test_rivals_that_screening_cannot_tell_from_the_winner_are_trained_as_long() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), max_trials=12)
    job = await bench.run()
    first, *rivals = finalists(bench)
    assert rivals
    assert first.fits_unpacked
    screened = [
        trial.recipe.step("structured_pruning")
        for trial in bench.trials()
        if trial.role is TrialRole.SCREENING
    ]
    for rival in rivals:
        assert rival.stage_seconds["recover"] == first.stage_seconds["recover"]
        assert rival.recipe.step("structured_pruning") in screened
    assert job.result.best_trial is not None
    selected = {
        trial.index: trial.metrics.selection_accuracy.value
        for trial in (first, *rivals)
        if trial.metrics is not None and trial.metrics.selection_accuracy is not None
    }
    assert selected[job.result.best_trial] == max(selected.values())


@pytest.mark.parametrize(
    ("max_seconds", "clear_winner"), [(25, False), (600, True)], ids=["no time", "no rival"]
)
async def test_no_rival_is_trained_without_need_or_time(
    max_seconds: float, clear_winner: bool
) -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), max_trials=12, max_seconds=max_seconds)
    if clear_winner:
        bench.executor = _FirstScreenedIsBest()
    await bench.run()
    (only,) = finalists(bench)
    assert only.fits_unpacked


class _FirstScreenedIsBest(ScriptedExecutor):
    """Every trial but the first is worse than it by more than the error of screening."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    def _trial(self, unit: WorkUnit) -> WorkResult:
        result = super()._trial(unit)
        self._seen += 1
        if self._seen <= 2:  # the first is only quantized
            return result
        worse = to_plain(wilson_accuracy(300, 1000))
        return replace(result, payload={**result.payload, "selection_accuracy": worse})


class _NothingMeasuredAlone(ScriptedExecutor):
    """Fails at what only explains a result."""

    def _attribution(self, unit: WorkUnit) -> WorkResult:
        raise WorkFailedError("the worker ran out of memory")


async def test_a_result_counts_where_it_could_not_be_explained() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    bench.executor = _NothingMeasuredAlone()
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert any(note.code == "NOT_ATTRIBUTED" for note in job.result.notes)
    assert all(layer.measured_alone is None for layer in job.result.layers)
    assert any(layer.predicted_alone is not None for layer in job.result.layers)


async def test_only_the_baseline_and_finalists_see_the_evaluation_set() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    await bench.run()
    for trial in bench.trials():
        assert trial.metrics is not None
        assert (trial.metrics.accuracy is None) == (trial.role is TrialRole.SCREENING)


async def test_a_model_that_fits_when_quantized_is_not_pruned() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS * 2))
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial == 0
    (trial,) = bench.trials()
    assert job.result.baseline_int8 == trial.metrics


async def test_where_a_target_has_no_int8_no_model_is_called_int8_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = replace(search_bench.TARGET, number_formats=(NumberFormat.FLOAT32,))
    monkeypatch.setattr(search_bench, "TARGET", without)
    bench = Bench(latency(WHOLE_LATENCY_MS * 8))
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial == 0
    assert job.result.baseline_int8 is None


async def test_an_impossible_budget_ends_with_evidence() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 1000), max_drop(0.0))
    job = await bench.run()
    assert job.state is JobState.INFEASIBLE
    why = job.result.infeasibility
    assert why is not None
    assert why.binding[0] is Quantity.LATENCY
    assert why.closest_trials
    needed = {r.quantity: r.needed for r in why.relaxations}
    # The untouched model is the only one without any loss; nothing meets the latency limit.
    assert needed[Quantity.LATENCY] == pytest.approx(4 * WHOLE_LATENCY_MS * 1.1)
    assert needed[Quantity.ACCURACY] is None
    assert len(bench.trials()) == 2, "no time is spent on what cannot be reached"
    limit = f"the latency limit: it is {WHOLE_LATENCY_MS / 1000:.4g} ms, and the smallest network"
    assert limit in why.explanation
    (note,) = (n.message for n in job.result.notes if n.code == "BUDGET_BELOW_REACH")
    assert note.endswith(" ms by estimate")


async def test_an_accuracy_floor_out_of_reach_is_explained_by_the_best_that_fits() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 4), max_drop(0.0))
    job = await bench.run()
    assert job.state is JobState.INFEASIBLE
    why = job.result.infeasibility
    assert why is not None
    assert Quantity.ACCURACY in why.binding
    needed = {r.quantity: r.needed for r in why.relaxations}
    accuracy = needed[Quantity.ACCURACY]
    assert accuracy is not None
    assert 0 < accuracy < BASELINE_ACCURACY


async def test_a_cost_is_minimised_inside_an_accuracy_limit() -> None:
    bench = Bench(max_drop(0.02), objective=Quantity.LATENCY)
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial is not None
    best = bench.trials()[job.result.best_trial]
    assert best.metrics is not None
    assert best.metrics.cost.latency_ms.value < 0.6 * WHOLE_LATENCY_MS
    assert best.metrics.accuracy is not None
    assert best.metrics.accuracy.value >= BASELINE_ACCURACY - 0.02


@pytest.mark.parametrize("interrupted_at", range(2, 7))
async def test_an_interrupted_job_goes_on_and_repeats_no_finished_trial(
    interrupted_at: int,
) -> None:
    undisturbed = Bench(latency(WHOLE_LATENCY_MS / 2))
    expected = await undisturbed.run()
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    hanging = _HangingExecutor(bench.executor, at=interrupted_at)
    bench.executor.run = hanging.run  # type: ignore[method-assign]  # the interruption under test
    life = asyncio.create_task(bench.run())
    await hanging.reached.wait()
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    finished = {t.input_digest for t in bench.trials() if t.state is TrialState.COMPLETED}
    ran_before = len(bench.executor.trials_run())
    job = await bench.run()
    again = bench.executor.trials_run()[ran_before:]
    assert not finished & set(again)
    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial == expected.result.best_trial
    assert [t.recipe for t in bench.trials()] == [t.recipe for t in undisturbed.trials()]


class _HangingExecutor:
    """Passes units on until the n-th, which it never finishes the first time."""

    def __init__(self, inner: ScriptedExecutor, *, at: int) -> None:
        self._run = inner.run
        self._count, self._at = 0, at
        self.reached = asyncio.Event()

    async def run(
        self, unit: WorkUnit, *, on_progress: object, on_begin: object = None
    ) -> WorkResult:
        self._count += 1
        if self._count == self._at:
            self.reached.set()
            await asyncio.Event().wait()
        return await self._run(unit, on_progress=lambda _share, _text: None)


async def test_the_best_so_far_is_not_forgotten_while_another_life_catches_up() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), max_drop(0.02), objective=Quantity.LATENCY)
    run, has_a_best = bench.executor.run, asyncio.Event()

    async def hang_after_that(unit: WorkUnit, **options: Any) -> WorkResult:
        if bench.store.get_job("p", "j").result.best_trial is not None:
            has_a_best.set()
            await asyncio.Event().wait()
        return await run(unit, **options)

    bench.executor.run = hang_after_that  # type: ignore[method-assign]  # the interruption under test
    life, best = asyncio.create_task(bench.run()), asyncio.create_task(has_a_best.wait())
    await asyncio.wait({life, best}, return_when=asyncio.FIRST_COMPLETED)
    assert best.done()
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    bench.executor.run = run  # type: ignore[method-assign]
    update, stored = bench.store.update_job, list[int | None]()

    def noted(job: Job, **options: Any) -> Job:
        stored.append(job.result.best_trial)
        return update(job, **options)

    bench.store.update_job = noted  # type: ignore[method-assign]
    assert (await bench.run()).state is JobState.SUCCEEDED
    assert stored
    assert None not in stored


async def test_a_failed_trial_does_not_end_the_job() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    bench.executor.fail[5] = WorkFailedError("the worker ran out of memory")
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    failed = [t for t in bench.trials() if t.state is TrialState.FAILED]
    assert len(failed) == 1
    assert "memory" in failed[0].error


async def test_the_network_as_it_came_is_searched_where_its_other_forms_cannot_be_made() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    bench.executor.fail[4] = WorkFailedError("the worker ran out of memory")
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert any(note.code == "NO_VARIANTS" for note in job.result.notes)


async def test_trials_are_limited() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), max_trials=2)
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert len([t for t in bench.trials() if t.role is not TrialRole.BASELINE_INT8]) == 2


async def test_a_store_that_is_away_for_a_moment_is_waited_for() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    bench.executor.fail[2] = UnavailableError("the store does not answer")
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert all(t.state is TrialState.COMPLETED for t in bench.trials())


async def test_the_same_seed_gives_the_same_search() -> None:
    one, other = (Bench(latency(WHOLE_LATENCY_MS / 2)) for _ in range(2))
    first, second = await one.run(), await other.run()
    assert replace(first, result=first.result) == replace(second, result=second.result)
    assert one.trials() == other.trials()


async def test_trials_of_a_screening_round_run_side_by_side_and_give_the_same() -> None:
    alone, abreast = (
        Bench(latency(WHOLE_LATENCY_MS / 2)),
        Bench(latency(WHOLE_LATENCY_MS / 2), parallel_trials=3),
    )
    abreast.executor.pause_seconds = 0.01
    first, second = await alone.run(), await abreast.run()
    assert alone.executor.most_running == 1
    assert 2 <= abreast.executor.most_running <= 3
    assert [trial.index for trial in abreast.trials()] == list(range(len(abreast.trials())))
    assert [t.recipe for t in alone.trials()] == [t.recipe for t in abreast.trials()]
    assert first.result.best_trial == second.result.best_trial


async def test_trials_abreast_keep_to_the_limit_on_trials() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), max_trials=2, parallel_trials=8)
    await bench.run()
    roles = [trial.role for trial in bench.trials()]
    assert roles.count(TrialRole.SCREENING) == 1
    assert roles.count(TrialRole.FINALIST) == 1


async def test_a_trial_that_ends_the_job_takes_those_beside_it_along() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), parallel_trials=3)
    bench.executor.pause_seconds = 0.01
    begun = len((await _units_until_trials(bench)).ran)
    for number in range(begun + 1, begun + 8):
        bench.executor.fail[number] = WorkFailedError("the worker died")
    with pytest.raises(WorkFailedError):
        await bench.run()
    assert bench.executor.running == 0
    states = [trial.state for trial in bench.trials()]
    assert states.count(TrialState.FAILED) >= 3


async def _units_until_trials(bench: Bench) -> ScriptedExecutor:
    """Return an executor that ran everything up to the first screening trial."""
    other = Bench(latency(WHOLE_LATENCY_MS / 2), max_trials=1)
    await other.run()
    trials = other.executor.trials_run()
    ran = ScriptedExecutor()
    ran.ran = other.executor.ran[: len(other.executor.ran) - len(trials) + 1]
    return ran


@pytest.mark.parametrize(("more", "is_told"), [(0.01, True), (0.0, False), (-0.01, False)])
async def test_a_floor_above_the_model_as_it_came_is_said_before_the_search(
    more: float, is_told: bool
) -> None:
    floor = Constraint(quantity=Quantity.ACCURACY, limit=BASELINE_ACCURACY + more)
    bench = Bench(latency(WHOLE_LATENCY_MS * 2), floor)
    job = await bench.run()
    told = [note.message for note in job.result.notes if note.code == "FLOOR_ABOVE_BASELINE"]
    assert bool(told) == is_told
    assert all(f"has {BASELINE_ACCURACY:.4f}" in message for message in told)
