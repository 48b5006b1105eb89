"""A budget that nothing can reach: what is told and tried is the form of the network that comes nearest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.linear_emulator import LinearEmulator
from fakes.scripted_work import network, pruning_space
from fakes.search_bench import WHOLE_LATENCY_MS, Bench, latency
from tightfit_service.application.work.variants import MeasuredVariant
from tightfit_service.domain.budget import Quantity, quantity_text
from tightfit_service.domain.cost import OperatorCost
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.job import JobState
from tightfit_service.domain.network import Operator, Variant

LIMIT_MS = WHOLE_LATENCY_MS / 10_000


def form_of(share: float) -> MeasuredVariant:
    """Return a form of the network that takes a share of its products."""
    operators = tuple(
        replace(op, macs=max(1, round(op.macs * share))) for op in network().operators
    )
    return MeasuredVariant(
        variant=Variant(
            pass_name="resolution",
            label=f"{share:g} of it",
            parameters={"height": 2, "width": 2, "inside": True},
        ),
        profile=replace(network(), operators=operators),
        space=pruning_space(),
        accuracy=0.5,
    )


@pytest.mark.parametrize(("share", "is_nearer"), [(0.25, True), (4.0, False)])
async def test_the_nearest_form_is_tried_and_told(share: float, is_nearer: bool) -> None:
    bench = Bench(latency(LIMIT_MS))
    bench.executor.variants = [form_of(share)]
    job = await bench.run()
    assert job.state is JobState.INFEASIBLE
    assert job.result.infeasibility is not None
    _, smallest = bench.trials()
    assert (smallest.recipe.step("resolution") is not None) == is_nearer
    (note,) = (n.message for n in job.result.notes if n.code == "BUDGET_BELOW_REACH")
    told = note.partition("may need ")[2].removesuffix(" by estimate")
    assert f"estimated at {told} at most" in job.result.infeasibility.explanation
    assert quantity_text(Quantity.LATENCY, LIMIT_MS) in note


def padded_ms(out_channels: int) -> float:
    """Return what a convolution takes whose channels fill tiles of eight, or are padded to sixty-four."""
    return WHOLE_LATENCY_MS * (out_channels if out_channels % 8 == 0 else 64) / 1000


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the device compute whole tiles of channels at their price, and others at a higher one."""
    linear = LinearEmulator.operator_cost

    def cost(self: LinearEmulator, operator: Operator, target: HardwareSpec) -> OperatorCost:
        latency_ms = 0.0 if operator.node == "c" else padded_ms(operator.out_channels)
        return replace(linear(self, operator, target), latency_ms=latency_ms)

    monkeypatch.setattr(LinearEmulator, "operator_cost", cost)


@pytest.mark.usefixtures("tiles")
async def test_what_only_wider_layers_meet_is_searched_for() -> None:
    job = await Bench(latency(1.2 * 2 * padded_ms(8))).run()
    assert job.state is JobState.SUCCEEDED
    assert "BUDGET_BELOW_REACH" not in [note.code for note in job.result.notes]


@pytest.mark.usefixtures("tiles")
async def test_where_nothing_fits_the_cheapest_widths_are_tried_not_the_least() -> None:
    bench = Bench(latency(padded_ms(8)))
    job = await bench.run()
    assert job.state is JobState.INFEASIBLE
    _, nearest = bench.trials()
    step = nearest.recipe.step("structured_pruning")
    assert step is not None
    assert {group: len(kept) for group, kept in step.parameters["keep"].items()} == {"a": 8, "b": 8}
