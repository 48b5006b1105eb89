"""A narrower file beside the quantized one: what stays in it, what it changes in plans, and jobs without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fakes.compiled_bench import CompiledBench, latency_of, notes
from fakes.device_compiler import FakeCompiler
from fakes.scripted_work import pruning_space
from fakes.search_bench import WHOLE_LATENCY_MS, latency
from tightfit_service.application.course.narrow_file import narrow_widths
from tightfit_service.application.ports import WorkUnit
from tightfit_service.application.work.narrow_file import NARROW_FILE
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import UnavailableError, UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.job import JobState
from tightfit_service.domain.network import PruningSpace
from tightfit_service.domain.quantities import Interval
from tightfit_service.domain.trial import Trial, TrialRole

LAYER_MS = 0.1 * WHOLE_LATENCY_MS


class SlowStarter(FakeCompiler):
    """Each layer takes a time of its own at any width."""

    def refine(self, data: bytes, target: HardwareSpec, cost: CostEstimate) -> CostEstimate:
        said = super().refine(data, target, cost)
        layers = tuple(
            replace(layer, latency_ms=layer.latency_ms + LAYER_MS) for layer in cost.layers
        )
        return replace(
            said,
            layers=layers,
            latency_ms=Interval.exact(sum(layer.latency_ms for layer in layers)),
        )


LIMIT_MS = 3 * LAYER_MS + 0.4 * WHOLE_LATENCY_MS
"""What layers take at any width, and less than half of what they take beyond that."""


def narrow_units(bench: CompiledBench) -> list[WorkUnit]:
    return [unit for unit in bench.executor.ran if unit.kind == NARROW_FILE.name]


def screened(bench: CompiledBench) -> list[Trial]:
    return [trial for trial in bench.trials() if trial.role is TrialRole.SCREENING]


def bench_of(
    compiler: FakeCompiler, folder: Path, patch: pytest.MonkeyPatch, limit_ms: float = LIMIT_MS
) -> CompiledBench:
    return CompiledBench(compiler, folder, patch, latency(limit_ms))


def test_about_half_of_each_group_stays_in_the_targets_multiples() -> None:
    space = pruning_space()
    widths = {group: len(kept) for group, kept in narrow_widths(space, 1).items()}
    assert widths == {"a": 8, "b": 16}
    widths = {group: len(kept) for group, kept in narrow_widths(space, 12).items()}
    assert widths == {"a": 12, "b": 12}
    assert set(narrow_widths(space, 16)) == {"b"}
    assert narrow_widths(space, 32) == {}
    assert narrow_widths(PruningSpace(groups=()), 1) == {}


async def test_plans_know_what_layers_take_at_any_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(SlowStarter(), tmp_path, monkeypatch)
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    (unit,) = narrow_units(bench)
    keep = unit.payload["recipe"]["steps"][0]["parameters"]["keep"]
    assert {group: len(kept) for group, kept in keep.items()} == {"a": 8, "b": 16}
    first = screened(bench)[0]
    assert 0.9 * LIMIT_MS < latency_of(first) <= LIMIT_MS
    assert not notes(job, "COSTED_AT_ONE_WIDTH")


@pytest.mark.parametrize("by_unit", [False, True])
async def test_without_the_narrow_file_plans_go_by_one_ratio_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_unit: bool
) -> None:
    compiler = SlowStarter()
    bench = bench_of(compiler, tmp_path, monkeypatch)
    if by_unit:
        run = bench.executor.run

        async def refuse(unit: WorkUnit, **callbacks: object) -> object:
            if unit.kind == NARROW_FILE.name:
                raise UnsupportedError("an operator is not known", field="model", remedy="none")
            return await run(unit, **callbacks)  # type: ignore[arg-type]  # passed on as they came

        monkeypatch.setattr(bench.executor, "run", refuse)
    else:
        compiler.refuses = {2}
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    (said,) = notes(job, "COSTED_AT_ONE_WIDTH")
    assert "an operator is not known" in said
    # The plan hopes for less than the compiler then says, and later ones know.
    first = screened(bench)[0]
    assert latency_of(first) > LIMIT_MS


async def test_a_store_that_is_away_is_no_word_on_the_narrow_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(SlowStarter(), tmp_path, monkeypatch)
    bench.compiling.fail[2] = UnavailableError("the store does not answer")
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert not notes(job, "COSTED_AT_ONE_WIDTH")


async def test_nothing_is_narrowed_where_it_would_tell_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = bench_of(FakeCompiler(), tmp_path, monkeypatch, 10 * WHOLE_LATENCY_MS)
    await fits.run()
    assert not narrow_units(fits), "nothing is searched"
    missing = bench_of(FakeCompiler(installed=False), tmp_path, monkeypatch, 0.5 * WHOLE_LATENCY_MS)
    job = await missing.run()
    assert job.state is JobState.SUCCEEDED
    assert not narrow_units(missing)
    assert screened(missing)
