"""Techniques beyond channels: other ways for single nodes, other forms of the network, given recipes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fakes.networks import NETWORKS
from fakes.scripted_work import network, pruning_space
from fakes.search_bench import TARGET, WHOLE_LATENCY_MS, Bench, latency
from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.application.ports import RecoverySettings, WorkResult, WorkUnit
from tightfit_service.application.recipes.making import RecipeMaker, is_in
from tightfit_service.application.recipes.steps import (
    GraphSteps,
    as_carried_out,
    check_recovery,
    quantization_of,
    recovery_of,
)
from tightfit_service.application.recipes.techniques import (
    check_techniques,
    check_writable,
    network_passes,
    node_passes,
    written_target,
)
from tightfit_service.application.work.node_ways import MeasuredAlternative
from tightfit_service.application.work.variants import MeasuredVariant
from tightfit_service.domain.budget import Budget
from tightfit_service.domain.errors import InvalidRequestError, UnsupportedError, WorkFailedError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.domain.job import JobSpec, JobState
from tightfit_service.domain.network import Alternative, Variant
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.domain.trial import TrialRole
from tightfit_service.passes.clustering import ClusteringPass
from tightfit_service.passes.low_rank import LowRankPass
from tightfit_service.passes.sparsity import SparsityPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

LOW_RANK_B = Alternative(
    node="b",
    pass_name="low_rank",
    label="rank 8",
    parameters={"method": "svd", "rank": 8},
    operators=(replace(network().operators[1], macs=network().operators[1].macs // 4),),
    error=0.1,
)
FOUR_BITS = Alternative(
    node="c",
    pass_name="precision",
    label="int4 weights",
    parameters={"number_format": "int4"},
    operators=(replace(network().operators[2], weight_bits=4),),
    error=0.01,
)


def spec(*techniques: str) -> JobSpec:
    return JobSpec(
        model_digest="1" * 64,
        model_name="m",
        target=TARGET,
        budget=Budget(),
        techniques=techniques,
    )


def maker() -> RecipeMaker:
    return RecipeMaker(
        spec=spec(),
        number_format=NumberFormat.INT8,
        tool_versions={"torch": "2"},
        architecture=("a Conv 16x3x3x3",),
    )


async def test_a_node_is_computed_another_way_where_that_loses_less_than_cutting_channels() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    bench.executor.alternatives = [MeasuredAlternative(alternative=LOW_RANK_B, accuracy=0.899)]
    job = await bench.run()
    assert job.result.best_trial is not None
    recipes = [trial.recipe for trial in bench.trials()]
    assert any(is_in(LOW_RANK_B, recipe) for recipe in recipes)
    unit = next(unit for unit in bench.executor.ran if unit.kind == "sensitivity")
    assert unit.payload["space"] == to_plain(pruning_space())


async def test_a_variant_is_searched_where_the_network_itself_cannot_meet_the_budget() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 400))
    small = network()
    small = replace(
        small, operators=tuple(replace(op, macs=op.macs // 16) for op in small.operators)
    )
    variant = Variant(
        pass_name="resolution", label="inputs of 2x2", parameters={"height": 2, "width": 2}
    )
    bench.executor.variants = [
        MeasuredVariant(variant=variant, profile=small, space=pruning_space(), accuracy=0.5)
    ]
    job = await bench.run()
    searched = [trial.recipe.step("resolution") for trial in bench.trials()[1:]]
    assert searched
    assert all(step is not None and step.parameters == variant.parameters for step in searched)
    assert any(note.code == "VARIANT" for note in job.result.notes)


async def test_smaller_images_compete_with_the_network_as_it_came() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    variant = Variant(
        pass_name="resolution",
        label="smaller",
        parameters={"height": 2, "width": 2, "inside": True},
    )
    half = replace(
        network(),
        operators=tuple(replace(op, macs=op.macs // 2) for op in network().operators),
    )
    bench.executor.variants = [
        MeasuredVariant(variant=variant, profile=half, space=pruning_space(), accuracy=0.88)
    ]
    await bench.run()
    screened = [t.recipe for t in bench.trials() if t.role is TrialRole.SCREENING]
    with_variant = [recipe for recipe in screened if recipe.step("resolution") is not None]
    assert 0 < len(with_variant) < len(screened)
    assert all(recipe.steps[0].pass_name == "resolution" for recipe in with_variant)
    (unit,) = [unit for unit in bench.executor.ran if unit.kind == "variants"]
    assert unit.payload["techniques"] == ["resolution"]


async def test_every_form_is_screened_once_though_its_trials_take_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    variants = [
        Variant(
            pass_name="resolution",
            label=f"{size}x{size}",
            parameters={"height": size, "width": size, "inside": True},
        )
        for size in (6, 4)
    ]
    bench.executor.variants = [
        MeasuredVariant(variant=v, profile=network(), space=pruning_space(), accuracy=0.88)
        for v in variants
    ]
    run = bench.executor.run

    async def slow(unit: WorkUnit, **callbacks: Any) -> WorkResult:
        result = await run(unit, **callbacks)
        if unit.kind == "trial":
            bench.clock.advance(65)  # of 600 s
        return result

    monkeypatch.setattr(bench.executor, "run", slow)
    await bench.run()
    screened = [t.recipe for t in bench.trials() if t.role is TrialRole.SCREENING]
    sizes = [step.parameters["height"] if step else None for step in map(_resolution, screened)]
    assert sizes == [None, 6, 4]


def _resolution(recipe: Recipe) -> PassStep | None:
    return recipe.step("resolution")


async def test_a_budget_beyond_all_variants_is_still_infeasible_with_evidence() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 1000))
    bench.executor.variants = [
        MeasuredVariant(
            variant=Variant(pass_name="depth_pruning", label="x", parameters={"blocks": ["x"]}),
            profile=network(),
            space=pruning_space(),
            accuracy=0.5,
        )
    ]
    job = await bench.run()
    assert job.state is JobState.INFEASIBLE
    assert bench.trials()[1].recipe.step("depth_pruning") is None


async def test_a_given_recipe_is_applied_without_any_search() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    found = (await bench.run()).result.best_trial
    assert found is not None
    recipe = bench.trials()[found].recipe
    again = Bench(latency(WHOLE_LATENCY_MS / 2), recipe=recipe)
    job = await again.run()
    assert job.state is JobState.SUCCEEDED
    assert [trial.index for trial in again.trials()] == [0, 1]
    assert again.trials()[1].recipe.steps == recipe.steps
    assert {unit.kind for unit in again.executor.ran} == {"baseline", "trial", "attribution"}


async def test_a_given_recipe_is_the_result_where_quantizing_alone_is_more_accurate() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    found = (await bench.run()).result.best_trial
    assert found is not None
    recipe = bench.trials()[found].recipe
    again = Bench(recipe=recipe)
    job = await again.run()
    quantized, applied = again.trials()
    assert quantized.metrics is not None
    assert applied.metrics is not None
    assert quantized.metrics.selection_accuracy is not None
    assert applied.metrics.selection_accuracy is not None
    assert quantized.metrics.selection_accuracy.value > applied.metrics.selection_accuracy.value
    assert job.state is JobState.SUCCEEDED
    assert job.result.best_trial == applied.index


async def test_a_given_recipe_that_fails_fails_its_job() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    found = (await bench.run()).result.best_trial
    assert found is not None
    again = Bench(recipe=bench.trials()[found].recipe)
    again.executor.fail[3] = WorkFailedError("the worker ran out of memory")
    with pytest.raises(WorkFailedError, match="out of memory"):
        await again.run()


async def test_a_given_recipe_that_misses_the_budget_is_what_is_shown() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2))
    found = (await bench.run()).result.best_trial
    assert found is not None
    again = Bench(latency(WHOLE_LATENCY_MS / 100), recipe=bench.trials()[found].recipe)
    job = await again.run()
    assert job.state is JobState.INFEASIBLE
    assert job.result.infeasibility is not None
    assert job.result.infeasibility.closest_trials == (1,)
    assert any(layer.channels_after < layer.channels_before for layer in job.result.layers)


async def test_a_given_recipe_that_misses_the_budget_ends_infeasible() -> None:
    recipe = maker().make(keep={"a": range(15)})
    job = await Bench(latency(WHOLE_LATENCY_MS / 2), recipe=recipe).run()
    assert job.state is JobState.INFEASIBLE


def test_a_recipe_says_how_long_training_took_and_not_how_long_it_may_take() -> None:
    recipe = maker().make(first=[PassStep(pass_name="recovery", parameters={"max_seconds": 60.0})])
    step = as_carried_out(recipe, [3.25]).step("recovery")
    assert step is not None
    assert step.parameters == {"max_seconds": None, "epochs": 3.25}


def test_precision_travels_in_the_quantization_step() -> None:
    recipe = maker().make(alternatives=[FOUR_BITS, LOW_RANK_B])
    assert [step.pass_name for step in recipe.steps] == ["low_rank", "quantization"]
    assert quantization_of(recipe).node_formats == {"c": NumberFormat.INT4}
    assert is_in(FOUR_BITS, recipe)
    assert is_in(LOW_RANK_B, recipe)
    assert not is_in(FOUR_BITS, maker().make())
    assert from_plain(Recipe, to_plain(recipe)) == recipe


def test_a_recipe_refuses_another_architecture_with_the_first_difference() -> None:
    recipe = maker().make()
    recipe.check_fits(["a Conv 16x3x3x3"])
    with pytest.raises(
        InvalidRequestError, match="node 1: the recipe has a Conv 16x3x3x3"
    ) as caught:
        recipe.check_fits(["a Conv 24x3x3x3"])
    assert caught.value.field == "recipe.architecture"
    with pytest.raises(InvalidRequestError, match="node 2: the recipe has nothing more"):
        recipe.check_fits(["a Conv 16x3x3x3", "b Relu"])
    with pytest.raises(InvalidRequestError, match="version 9"):
        replace(recipe, version=9).check_fits(["a Conv 16x3x3x3"])


def test_techniques_are_chosen_by_name() -> None:
    assert check_techniques(["low_rank", "low_rank"]) == ("low_rank",)
    assert node_passes(spec("low_rank", "resolution")) == ("low_rank",)
    assert network_passes(spec("low_rank", "resolution")) == ("resolution",)
    assert network_passes(spec()) == ("resolution", "depth_pruning")
    with pytest.raises(InvalidRequestError, match="magic") as caught:
        check_techniques(["magic"])
    assert "structured_pruning" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("output_format", "kept"),
    [
        (ModelFormat.ONNX, ("int8", "int16x8", "bfloat16", "float32")),
        (ModelFormat.TFLITE, ("int8", "int16x8", "float32")),
        (ModelFormat.OPENVINO, ("int8", "bfloat16", "float32")),
        (ModelFormat.EXECUTORCH, ("int8", "float32")),
    ],
)
def test_only_number_formats_that_the_file_can_hold_are_searched(
    output_format: ModelFormat, kept: tuple[str, ...]
) -> None:
    formats = tuple(map(NumberFormat, ("int8", "int16x8", "bfloat16", "float32")))
    wide = replace(spec(), target=replace(TARGET, number_formats=formats))
    wide = replace(wide, output_format=output_format)
    assert written_target(wide).number_formats == kept
    assert ("precision" in node_passes(wide)) == (len(kept) > 2)
    asked = Recipe(
        source_digest="0" * 64,
        seed=0,
        target="t",
        output_format="onnx",
        steps=(PassStep(pass_name="quantization", parameters={"number_format": "bfloat16"}),),
    )
    if "bfloat16" in kept:
        check_writable(asked, output_format)
    else:
        with pytest.raises(UnsupportedError) as caught:
            check_writable(asked, output_format)
        assert caught.value.field == "recipe.steps.quantization.number_format"


@pytest.mark.parametrize(
    ("before", "keep_zeros", "share_values"),
    [("sparsity", True, False), ("clustering", False, True), ("low_rank", False, False)],
)
def test_training_does_not_undo_what_was_done_to_weights(
    before: str, keep_zeros: bool, share_values: bool
) -> None:
    settings = recovery_of(PassStep(pass_name="recovery"), [PassStep(pass_name=before)])
    assert (settings.keep_zeros, settings.share_values) == (keep_zeros, share_values)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"epochs": -1.0}, "epochs"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"augmentation": "blur"}, "augmentation"),
    ],
)
def test_training_out_of_range_is_refused_by_name(values: dict[str, Any], field: str) -> None:
    check_recovery(RecoverySettings())
    with pytest.raises(InvalidRequestError) as caught:
        check_recovery(replace(RecoverySettings(), **values))
    assert caught.value.field == f"recipe.steps.recovery.{field}"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("quantization", {"number_format": "int8", "node_formats": {"x": "int3"}}),
        ("recovery", {"epochs": "many"}),
    ],
)
def test_parameters_that_are_no_settings_are_refused_with_their_step(
    name: str, parameters: dict[str, Any]
) -> None:
    steps = GraphSteps(pruning=StructuredPruningPass(), passes={})
    recipe = Recipe(
        source_digest="0" * 64,
        seed=0,
        target="t",
        output_format="tflite",
        steps=(PassStep(pass_name=name, parameters=parameters),),
    )
    with pytest.raises(InvalidRequestError) as caught:
        steps.check(b"", recipe)
    assert caught.value.field == f"recipe.steps.{name}"
    assert "recipe show" in caught.value.remedy


def checked(*steps: tuple[str, dict[str, Any]]) -> None:
    """Check a recipe of these steps against a small network."""
    passes = {item.name: item for item in (LowRankPass(), SparsityPass(), ClusteringPass())}
    recipe = Recipe(
        source_digest="0" * 64,
        seed=0,
        target="t",
        output_format="tflite",
        steps=tuple(PassStep(pass_name=name, parameters=values) for name, values in steps),
    )
    known = GraphSteps(pruning=StructuredPruningPass(), passes=passes)
    known.check(NETWORKS["plain_cnn"](0).SerializeToString(), recipe)


def pruned() -> tuple[str, dict[str, Any]]:
    """Return a step that leaves two units of each group."""
    space = StructuredPruningPass().space(NETWORKS["plain_cnn"](0).SerializeToString())
    return "structured_pruning", {"keep": {group.group_id: [0.0, 1.0] for group in space.groups}}


@pytest.mark.parametrize(
    ("step", "field"),
    [
        (("recovery", {"epoch": 3}), "recipe.steps.recovery.epoch"),
        (("quantization", {"formats": {}}), "recipe.steps.quantization.formats"),
        (("quantization", {"method": "guess"}), "quantization.method"),
        (("quantization", {"percentile": 20.0}), "quantization.percentile"),
        (("structured_pruning", {"kept": {}}), "recipe.steps.structured_pruning.kept"),
        (("structured_pruning", {"keep": [1]}), "recipe.steps.structured_pruning.keep"),
        (
            ("structured_pruning", {"keep": {"conv1": ["a"]}}),
            "recipe.steps.structured_pruning.keep[conv1]",
        ),
        (
            ("structured_pruning", {"keep": {"conv1": [0.5]}}),
            "recipe.steps.structured_pruning.keep[conv1]",
        ),
        (("structured_pruning", {"keep": {"nothing": [0]}}), "keep[nothing]"),
        (("sparsity", {"nodes": {"nothing": {}}}), "parameters.nodes[nothing]"),
        (
            ("clustering", {"nodes": {"fc1": {"clusters": 0}}}),
            "parameters.nodes[fc1].clusters",
        ),
    ],
)
def test_each_step_of_a_recipe_is_checked_before_anything_is_trained(
    step: tuple[str, dict[str, Any]], field: str
) -> None:
    training: tuple[str, dict[str, Any]] = ("recovery", {"epochs": 1.0})
    checked(pruned(), training, ("quantization", {}))
    shared: tuple[str, dict[str, Any]] = ("clustering", {"nodes": {}})
    for steps in ((step,), (training, step), (shared, training, step)):
        with pytest.raises(InvalidRequestError) as caught:
            checked(*steps)
        assert caught.value.field == field
        assert caught.value.remedy


def test_ranks_that_pruning_puts_above_full_rank_are_clipped() -> None:
    whole = ("low_rank", {"nodes": {"fc1": {"method": "svd", "rank": 9}}})
    checked(pruned(), whole)
    over = ("low_rank", {"nodes": {"fc1": {"method": "svd", "rank": 11}}})
    with pytest.raises(InvalidRequestError, match="above full rank 10"):
        checked(over)
