"""Which layer pays what: only what is known is told, and formats that differ say why."""

from __future__ import annotations

from typing import Any

from fakes.linear_emulator import LinearEmulator
from fakes.scripted_work import network, pruning_space
from fakes.search_bench import TARGET
from tightfit_service.application.recipes.attribution import (
    ChangeLosses,
    ExplainedLosses,
    attribute_layers,
)
from tightfit_service.domain.job import LayerAttribution
from tightfit_service.domain.recipe import PassStep, Recipe

SPACE = pruning_space()
GROUP = SPACE.groups[0]


def predicted(**losses: Any) -> ExplainedLosses:
    return ExplainedLosses(trained=ChangeLosses(**losses))


def attributed(
    losses: ExplainedLosses, *others: PassStep, **quantization: Any
) -> dict[str, LayerAttribution]:
    keep = {GROUP.group_id: list(range(GROUP.unit_count - 1))}
    recipe = Recipe(
        source_digest="0" * 64,
        seed=0,
        target="board",
        output_format="tflite",
        steps=(
            PassStep(pass_name="structured_pruning", parameters={"keep": keep}),
            *others,
            PassStep(pass_name="quantization", parameters=quantization),
        ),
    )
    cost = LinearEmulator().estimate(network(), TARGET)
    rows = attribute_layers(
        before=network(),
        before_cost=cost,
        after=network(),
        after_cost=cost,
        space=SPACE,
        recipe=recipe,
        losses=losses,
    )
    return {row.node: row for row in rows}


def test_a_cut_costs_what_is_predicted_and_nothing_is_said_where_nothing_is() -> None:
    (producer, *_) = GROUP.producers
    known = attributed(predicted(groups={GROUP.group_id: 0.02}))
    shared = [known[node].accuracy_cost for node in GROUP.producers]
    assert sum(cost for cost in shared if cost is not None) == 0.02
    # a recipe that was given brings no predictions: its cuts are not free
    assert attributed(predicted())[producer].accuracy_cost is None


def test_a_layer_in_another_format_says_what_the_ordinary_one_would_cost_there() -> None:
    losses = predicted(formats={"a": 0.0125, "b": 0.001})
    rows = attributed(losses, number_format="int8", node_formats={"a": "float32", "c": "int4"})
    assert (rows["a"].number_format, rows["a"].format_cost) == ("float32", None)
    assert rows["a"].changes == ("float32 instead of int8, which costs 1.25 points here",)
    assert (rows["b"].number_format, rows["b"].format_cost) == ("int8", 0.001)
    assert rows["b"].changes == ()
    assert rows["c"].changes == ("int4 instead of int8",)


def test_what_was_predicted_of_a_layer_alone_stands_beside_what_was_measured() -> None:
    low_rank = PassStep(
        pass_name="low_rank", parameters={"nodes": {"b": {"method": "svd", "rank": 4}}}
    )
    cut = {GROUP.group_id: 0.02}
    losses = ExplainedLosses(
        trained=ChangeLosses(groups=cut),
        untrained=ChangeLosses(groups={GROUP.group_id: 0.2}, nodes={"b": 0.03}),
        measured=ChangeLosses(groups={GROUP.group_id: 0.25}, formats={"a": 0.004, "b": 0.005}),
    )
    rows = attributed(losses, low_rank, number_format="int8", node_formats={"b": "float32"})
    (producer,) = GROUP.producers
    assert producer == "a"
    assert (rows["a"].predicted_alone, rows["a"].measured_alone) == (0.2, 0.25)
    # a part of what was done to a layer says nothing of the whole
    assert (rows["b"].predicted_alone, rows["b"].measured_alone) == (0.03, None)
    assert (rows["a"].format_cost_after, rows["b"].format_cost_after) == (0.004, None)
    assert (rows["c"].predicted_alone, rows["c"].measured_alone) == (None, None)


def test_a_low_rank_layer_that_became_too_narrow_for_it_says_so() -> None:
    low_rank = PassStep(
        pass_name="low_rank", parameters={"nodes": {"b": {"method": "svd", "rank": 4}}}
    )
    (change,) = attributed(predicted(), low_rank)["b"].changes
    assert change == "low rank svd rank 4, left out: too few channels are left for it"
