"""Costs by the compiler of a target: plans that aim by its figures, and jobs that go on without it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fakes.compiled_bench import LIMIT_MS, CompiledBench, latency_of, notes
from fakes.device_compiler import CALL_MS, CompilingExecutor, FakeCompiler
from fakes.linear_emulator import LinearEmulator
from fakes.scripted_work import network
from fakes.search_bench import TARGET, WHOLE_LATENCY_MS, Bench, latency
from tightfit_service.application.costs.files import LEAST_RAM_BYTES, within_ram
from tightfit_service.application.ports import WorkResult, WorkUnit
from tightfit_service.application.units.kinds import unit_digest
from tightfit_service.application.work.narrow_file import NARROW_FILE
from tightfit_service.domain.budget import Constraint, Quantity
from tightfit_service.domain.errors import UnavailableError, WorkerDiedError
from tightfit_service.domain.job import JobState
from tightfit_service.domain.trial import TrialRole, TrialState


async def test_the_compiler_has_the_last_word_on_every_exported_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = FakeCompiler()
    bench = CompiledBench(compiler, tmp_path, monkeypatch)
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    (said,) = notes(job, "COSTED_BY_COMPILER")
    assert "fakec 1.2" in said
    for trial in bench.trials():
        assert trial.metrics is not None
        cost = trial.metrics.cost
        assert cost.compiler == "fakec 1.2"
        assert cost.latency_ms.value == pytest.approx(
            sum(layer.latency_ms for layer in cost.layers) + CALL_MS
        )
        assert "cost by fakec 1.2, for the exported file" in trial.notes
    # The file in the artifact is what is compiled, once for each trial, and a narrower one for the plan.
    digests = [trial.artifacts["model"] for trial in bench.trials()]
    digests += [unit_digest(unit) for unit in bench.executor.ran if unit.kind == NARROW_FILE.name]
    assert len(digests) == len(bench.trials()) + 1
    assert sorted(compiler.files) == sorted(digest.upper().encode() for digest in digests)
    # The model as it came is in float, which no compiler takes.
    assert job.result.baseline is not None
    assert not job.result.baseline.cost.compiler


async def test_the_search_aims_by_the_compilers_figures_from_the_first_trial_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = CompiledBench(FakeCompiler(), tmp_path, monkeypatch)
    job = await bench.run()
    screened = [t for t in bench.trials() if t.role is TrialRole.SCREENING]
    assert latency_of(bench.trials()[0]) > LIMIT_MS
    assert 0.85 * LIMIT_MS < latency_of(screened[0]) <= LIMIT_MS
    assert all(latency_of(trial) <= LIMIT_MS for trial in screened)
    # Layers before and after are told by the same figures.
    assert job.result.layers
    before = sum(layer.latency_ms_before for layer in job.result.layers)
    first = bench.trials()[0].metrics
    assert first is not None
    assert before == pytest.approx(first.cost.latency_ms.value - CALL_MS)


async def test_memory_is_planned_by_the_compiler_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LinearEmulator().estimate(network(), TARGET)
    limit = 0.4 * whole.peak_ram_bytes.value
    ram = Constraint(quantity=Quantity.RAM, limit=limit)
    bench = CompiledBench(FakeCompiler(), tmp_path, monkeypatch, ram)
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial is not None
    best = bench.trials()[job.result.best_trial].metrics
    assert best is not None
    assert 0.3 * whole.peak_ram_bytes.value < best.cost.peak_ram_bytes.high <= limit


async def test_without_the_compiler_a_note_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = CompiledBench(
        FakeCompiler(installed=False), tmp_path, monkeypatch, latency(WHOLE_LATENCY_MS / 2)
    )
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    (said,) = notes(job, "COMPILER_MISSING")
    assert "pip install fakec" in said
    assert not bench.compiling.costed
    for trial in bench.trials():
        assert trial.metrics is not None
        assert trial.metrics.cost.provenance == "by hand"


@pytest.mark.parametrize("by_unit", [False, True])
async def test_a_file_that_the_compiler_fails_on_is_estimated_widely_and_the_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_unit: bool
) -> None:
    compiler = FakeCompiler()
    bench = CompiledBench(compiler, tmp_path, monkeypatch)
    if by_unit:
        # A unit whose worker dies is tried three times; the second costs a narrower network.
        died = WorkerDiedError("the worker was killed by signal 11")
        bench.compiling.fail = dict.fromkeys(range(3, 6), died)
    else:
        compiler.refuses = {3}
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    first, second, *_ = bench.trials()
    assert second.state is TrialState.COMPLETED
    assert first.metrics is not None
    assert second.metrics is not None
    cost = second.metrics.cost
    assert not cost.compiler
    reason = "signal 11" if by_unit else "an operator is not known"
    (said,) = [note for note in second.notes if "not from the file" in note]
    assert reason in said
    assert said in cost.warnings
    # The centre is that of the plan, which knows the compiler's figures; the width is the emulator's.
    assert cost.latency_ms.high / cost.latency_ms.value == pytest.approx(1.1)
    planned = first.metrics.cost.latency_ms.value
    assert 0.3 * planned < cost.latency_ms.value < planned
    others = [t for t in bench.trials() if t.index != second.index]
    assert all(t.metrics is not None and t.metrics.cost.compiler for t in others)


async def test_a_quantized_model_that_is_not_compiled_leaves_the_plan_to_the_emulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Bench(latency(WHOLE_LATENCY_MS / 2))
    expected = await undisturbed.run()
    compiler = FakeCompiler()
    compiler.refuses = range(1, 100)
    bench = CompiledBench(compiler, tmp_path, monkeypatch, latency(WHOLE_LATENCY_MS / 2))
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial == expected.result.best_trial
    assert [t.recipe for t in bench.trials()] == [t.recipe for t in undisturbed.trials()]


async def test_a_store_that_is_away_is_no_word_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = CompiledBench(FakeCompiler(), tmp_path, monkeypatch)
    bench.compiling.fail[1] = UnavailableError("the store does not answer")
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert all(t.metrics is not None and t.metrics.cost.compiler for t in bench.trials())


async def test_another_version_in_a_worker_is_not_taken_for_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, worker = FakeCompiler(), FakeCompiler()
    worker.version = "1.3"
    bench = CompiledBench(server, tmp_path, monkeypatch, latency(4 * WHOLE_LATENCY_MS))
    elsewhere = CompilingExecutor(bench.executor, worker, tmp_path)
    monkeypatch.setattr(bench.executor, "run", elsewhere.run)
    await bench.run()
    (said,) = [note for note in bench.trials()[0].notes if "not from the file" in note]
    assert "fakec 1.3" in said
    assert not worker.files


async def test_an_interrupted_job_has_no_file_costed_twice_and_plans_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = CompiledBench(FakeCompiler(), tmp_path, monkeypatch)
    expected = await undisturbed.run()
    bench = CompiledBench(FakeCompiler(), tmp_path, monkeypatch)
    reached = asyncio.Event()
    run = bench.compiling.run

    async def hang(unit: WorkUnit, **callbacks: object) -> WorkResult:
        if len(bench.compiling.costed) == 2 and not reached.is_set():
            reached.set()
            await asyncio.Event().wait()
        return await run(unit, **callbacks)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(bench.executor, "run", hang)
    life = asyncio.create_task(bench.run())
    await reached.wait()
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    job = await bench.run()
    assert job.result.best_trial == expected.result.best_trial
    assert [t.recipe for t in bench.trials()] == [t.recipe for t in undisturbed.trials()]
    digests = [unit.inputs["file"] for unit in bench.compiling.costed]
    assert len(digests) == len(set(digests))


def ram_told(bench: CompiledBench) -> set[int]:
    """What the compiler was told that there is, in bytes."""
    return {unit.payload["target"]["memory"]["ram_bytes"] for unit in bench.compiling.costed}


async def test_the_compiler_is_told_of_the_ram_that_the_budget_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ram = Constraint(quantity=Quantity.RAM, limit=7_000)
    bench = CompiledBench(FakeCompiler(), tmp_path, monkeypatch, ram)
    await bench.run()
    assert ram_told(bench) == {7_000}
    (note,) = [note for note in bench.trials()[0].notes if note.startswith("cost by")]
    assert "within 7000 bytes of RAM" in note
    free = CompiledBench(FakeCompiler(), tmp_path, monkeypatch)
    await free.run()
    assert ram_told(free) == {TARGET.memory.ram_bytes}


async def test_where_ram_is_the_objective_the_compiler_is_to_use_as_little_as_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = CompiledBench(FakeCompiler(), tmp_path, monkeypatch, objective=Quantity.RAM)
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert ram_told(bench) == {LEAST_RAM_BYTES}
    assert "cost by fakec 1.2, for the exported file, compiled for the least RAM" in (
        bench.trials()[0].notes
    )


def test_a_target_never_gains_ram() -> None:
    assert within_ram(TARGET, None) is TARGET
    assert within_ram(TARGET, TARGET.memory.ram_bytes + 1) is TARGET
    assert within_ram(TARGET, 4_096).memory.ram_bytes == 4_096
