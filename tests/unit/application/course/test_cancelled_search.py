"""A search that is cancelled when the end of a trial is stored, and the job's best not yet, shows that trial."""

from __future__ import annotations

from fakes.linear_emulator import LinearEmulator
from fakes.scripted_work import facts
from fakes.search_bench import TARGET, WHOLE_LATENCY_MS, Bench, latency
from fakes.waiting import until
from tightfit_service.application.costs.costing import CostModel
from tightfit_service.application.course.compression import CompressionRun
from tightfit_service.application.ports import Lease
from tightfit_service.application.scheduling.journal import JobJournal
from tightfit_service.application.scheduling.scheduler import JobScheduler
from tightfit_service.application.trials.book import RunContext
from tightfit_service.application.trials.choice import best_trial
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.errors import UnavailableError
from tightfit_service.domain.job import Job, JobState


def scheduler_of(bench: Bench) -> JobScheduler:
    async def search(journal: JobJournal) -> None:
        context = RunContext(
            project="p",
            store=bench.store,
            units=CachedUnits(
                executor=bench.executor, store=bench.store, telemetry=bench.telemetry
            ),
            telemetry=bench.telemetry,
            clock=bench.clock,
            cost_model=CostModel(
                emulator=LinearEmulator(), target=TARGET, telemetry=bench.telemetry
            ),
            tool_versions={},
            facts=facts(),
            graph_digest="9" * 64,
        )
        await CompressionRun(journal, context).run()

    return JobScheduler(
        store=bench.store,
        queue=bench.store,
        run_job=search,
        hub=bench.hub,
        clock=bench.clock,
        telemetry=bench.telemetry,
        concurrent_jobs=1,
    )


async def test_a_cancelled_search_shows_the_best_of_the_trials_that_ended() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    update = bench.store.update_job
    kept_from: list[int] = []

    def away_for_the_best(job: Job, *, lease: Lease | None = None) -> Job:
        if job.state is JobState.RUNNING and job.result.best_trial is not None:
            kept_from.append(job.result.best_trial)
            raise UnavailableError("the database cannot be reached")
        return update(job, lease=lease)

    bench.store.update_job = away_for_the_best  # type: ignore[method-assign]  # the moment under test
    scheduler = scheduler_of(bench)
    await scheduler.start()
    await until(lambda: kept_from)
    running = bench.store.get_job("p", "j")
    assert running.result.best_trial is None
    job = await scheduler.cancel(running)
    best = best_trial(bench.trials(), Quantity.ACCURACY)
    assert best is not None
    assert (job.state, job.result.best_trial) == (JobState.CANCELLED, best.index)
    await scheduler.stop()
