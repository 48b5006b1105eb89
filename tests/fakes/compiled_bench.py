"""One job's search for a target whose files go through a compiler."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from fakes.device_compiler import CompilingExecutor, FakeCompiler
from fakes.search_bench import WHOLE_LATENCY_MS, Bench, latency
from tightfit_service.application.costs.costing import CostModel
from tightfit_service.domain.budget import Constraint, Quantity
from tightfit_service.domain.job import Job
from tightfit_service.domain.trial import Trial, cost_of

LIMIT_MS = 2 * WHOLE_LATENCY_MS
"""About half of what the compiler says of the quantized model."""


class CompiledBench(Bench):
    """A bench whose target has a compiler."""

    def __init__(
        self,
        compiler: FakeCompiler,
        folder: Path,
        patch: pytest.MonkeyPatch,
        *limits: Constraint,
        objective: Quantity = Quantity.ACCURACY,
    ) -> None:
        super().__init__(*(limits or (latency(LIMIT_MS),)), objective=objective)
        self.compiling = CompilingExecutor(self.executor, compiler, folder)
        self.executor.run = self.compiling.run  # type: ignore[method-assign]  # the units under test
        patch.setattr(
            "fakes.search_bench.CostModel", functools.partial(CostModel, compiler=compiler)
        )


def notes(job: Job, code: str) -> list[str]:
    return [note.message for note in job.result.notes if note.code == code]


def latency_of(trial: Trial) -> float:
    assert trial.metrics is not None
    return cost_of(trial.metrics, Quantity.LATENCY)
