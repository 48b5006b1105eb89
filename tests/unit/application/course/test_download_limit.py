"""A limit on the download in a whole search, over scripted workers, and what is refused before."""

from __future__ import annotations

import asyncio

import pytest

from fakes.clock import FakeClock
from fakes.scripted_download import PACKED_SHARE, strength
from fakes.scripted_work import BASELINE_ACCURACY, network
from fakes.search_bench import TARGET, WHOLE_LATENCY_MS, Bench, latency
from tightfit_service.application.course import download_limit
from tightfit_service.application.course.download_limit import check_packable
from tightfit_service.application.course.time_budget import DOWNLOAD_TIME_SHARE, TimeBudget
from tightfit_service.application.plain import from_plain
from tightfit_service.application.ports import QuantizationSettings, RecoverySettings
from tightfit_service.application.recipes.steps import as_carried_out, quantization_of
from tightfit_service.application.use_cases import JobRequest
from tightfit_service.application.work.download_files import with_shared_scales
from tightfit_service.application.work.download_layers import LayerFigures, LayerStudy
from tightfit_service.domain.budget import Budget, Constraint, Quantity, SearchLimits
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.domain.job import Job, JobSpec, JobState
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.domain.trial import Trial, TrialState

PACKED = round((network().weight_count + 1000) * PACKED_SHARE)
"""Bytes of the packed file of the model that is only quantized."""


def download(limit: float) -> Constraint:
    return Constraint(quantity=Quantity.DOWNLOAD, limit=limit)


def max_drop(drop: float) -> Constraint:
    return Constraint(quantity=Quantity.ACCURACY, max_drop=drop)


def best(bench: Bench, job: Job) -> Trial:
    assert job.result.best_trial is not None
    return bench.trials()[job.result.best_trial]


def packed_bytes(trial: Trial) -> int:
    assert trial.metrics is not None
    assert trial.metrics.download_bytes is not None
    return trial.metrics.download_bytes


def kinds(bench: Bench) -> list[str]:
    return [unit.kind for unit in bench.executor.ran]


async def test_weights_are_changed_where_only_the_packed_file_is_too_large() -> None:
    bench = Bench(download(0.7 * PACKED))
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    found = best(bench, job)
    assert packed_bytes(found) <= 0.7 * PACKED
    assert packed_bytes(bench.trials()[0]) == PACKED
    assert strength(found.recipe) != (0.0, 0)
    assert "sensitivity" not in kinds(bench), "the model that is only quantized fits otherwise"
    assert len(bench.trials()) == 2


async def test_zeros_come_first_and_each_step_is_trained_for() -> None:
    bench = Bench(download(0.25 * PACKED))
    found = best(bench, await bench.run())
    names = [step.pass_name for step in found.recipe.steps]
    assert names == ["sparsity", "recovery", "clustering", "recovery", "quantization"]
    assert not quantization_of(found.recipe).per_channel


async def test_the_result_says_which_layer_got_what() -> None:
    job = await Bench(download(0.25 * PACKED)).run()
    changes = {layer.node: " and ".join(layer.changes) for layer in job.result.layers}
    assert "sparsity block ratio" in changes["b"]
    assert "clustering clusters" in changes["b"]
    assert changes["a"] == ""


async def test_a_trial_goes_on_from_the_network_of_the_one_it_improves() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), download(0.25 * PACKED))
    job = await bench.run()
    found = best(bench, job)
    pruned = next(
        trial
        for trial in bench.trials()
        if trial.recipe.step("structured_pruning") and trial.metrics and trial.metrics.accuracy
    )
    assert not pruned.is_feasible
    assert pruned.fits_unpacked
    count = len(pruned.recipe.steps) - 1  # without quantization
    assert found.recipe.steps[:count] == pruned.recipe.steps[:count]
    unit = next(unit for unit in bench.executor.ran if "finished_steps" in unit.payload)
    assert unit.inputs["start"] == pruned.artifacts["graph"]
    assert unit.payload["finished_steps"] == count
    assert unit.payload["packed"] is True


async def test_one_finalist_is_enough_where_only_the_download_misses_its_limit() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), download(0.25 * PACKED))
    await bench.run()
    long = [
        trial
        for trial in bench.trials()[1:]
        if trial.metrics and trial.metrics.accuracy and strength(trial.recipe) == (0.0, 0)
    ]
    assert len(long) == 1


async def test_options_are_asked_for_again_where_training_made_a_file_larger() -> None:
    bench = Bench(download(0.6 * PACKED))
    bench.executor.growth = 1.3
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    asked = [u.payload["aim_bytes"] for u in bench.executor.ran if u.kind == "download_options"]
    assert len(asked) == 2
    assert asked[0] / asked[1] == pytest.approx(1.3, rel=0.01)
    assert len(bench.trials()) == 3


async def test_layers_are_measured_once_and_what_was_found_goes_with_each_question() -> None:
    bench = Bench(download(0.6 * PACKED))
    bench.executor.growth = 1.3
    bench.executor.layers = LayerStudy(
        layers=(LayerFigures(node="b", packed_bytes=9.0, zeros=0.0),)
    )
    job = await bench.run()
    (study,) = (unit for unit in bench.executor.ran if unit.kind == "download_layers")
    assert 0 < study.payload["max_seconds"] <= download_limit.STUDY_TIME_SHARE * 600
    asked = [unit.payload for unit in bench.executor.ran if unit.kind == "download_options"]
    assert len(asked) == 2
    assert all(payload["layers"]["layers"][0]["node"] == "b" for payload in asked)
    assert not any(note.code == "UNIFORM_LEVELS" for note in job.result.notes)


@pytest.mark.parametrize("least_seconds", [0.0, 1e9])
async def test_without_time_all_layers_are_treated_alike_and_it_is_said(
    least_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_limit, "LEAST_STUDY_SECONDS", least_seconds)
    bench = Bench(download(0.7 * PACKED))
    bench.executor.layers = LayerStudy(is_cut_short=True)
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    assert ("download_layers" in kinds(bench)) == (least_seconds == 0.0)
    assert [note.code for note in job.result.notes].count("UNIFORM_LEVELS") == 1


async def test_a_limit_out_of_reach_is_named_with_the_least_that_would_do() -> None:
    bench = Bench(download(50))
    job = await bench.run()
    assert job.state is JobState.INFEASIBLE
    why = job.result.infeasibility
    assert why is not None
    assert why.binding == (Quantity.DOWNLOAD,)
    assert "download limit" in why.explanation
    (relaxation,) = why.relaxations
    assert relaxation.quantity is Quantity.DOWNLOAD
    assert relaxation.trial_index is not None
    assert relaxation.needed == packed_bytes(bench.trials()[relaxation.trial_index])
    assert relaxation.needed < 0.1 * PACKED, "the strongest option was not tried"
    assert any(note.code == "DOWNLOAD_BELOW_REACH" for note in job.result.notes)


async def test_an_accuracy_that_no_small_file_keeps_is_explained_by_files_in_between() -> None:
    bench = Bench(download(0.08 * PACKED), max_drop(0.012))
    job = await bench.run()
    assert job.state is JobState.INFEASIBLE
    why = job.result.infeasibility
    assert why is not None
    assert Quantity.ACCURACY in why.binding
    needed = {r.quantity: r.needed for r in why.relaxations}
    least = needed[Quantity.DOWNLOAD]
    assert least is not None
    assert 0.08 * PACKED < least < PACKED, "what lies between was not looked at"
    accuracy = needed[Quantity.ACCURACY]
    assert accuracy is not None
    assert accuracy < BASELINE_ACCURACY - 0.012


async def test_no_relaxation_is_taken_from_a_solver_that_does_not_know_the_download() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), download(0.08 * PACKED), max_drop(0.012))
    why = (await bench.run()).result.infeasibility
    assert why is not None
    assert {r.quantity for r in why.relaxations} == {
        Quantity.LATENCY,
        Quantity.DOWNLOAD,
        Quantity.ACCURACY,
    }
    for relaxation in why.relaxations:
        assert (relaxation.trial_index is None) == (relaxation.needed is None)


async def test_the_gentlest_option_is_tried_first() -> None:
    bench = Bench(download(0.5 * PACKED))
    await bench.run()
    first = bench.trials()[1]
    assert strength(first.recipe) == (0.25, 16)
    assert first.predicted_accuracy is not None


async def test_techniques_confine_what_is_done_to_weights() -> None:
    bench = Bench(download(0.6 * PACKED), techniques=("clustering",))
    found = best(bench, await bench.run())
    assert strength(found.recipe) == (0.0, 16)
    other = Bench(download(0.6 * PACKED), techniques=("structured_pruning",))
    job = await other.run()
    assert job.state is JobState.INFEASIBLE
    assert "download_options" not in kinds(other)


async def test_before_the_search_it_is_said_what_sparsity_does_not_bring() -> None:
    job = await Bench(download(0.7 * PACKED)).run()
    said = [note.message for note in job.result.notes if note.code == "DOWNLOAD_ONLY"]
    assert [text.split()[0] for text in said] == ["sparsity", "clustering"]
    assert all("TFLM: no kernels" in text for text in said)
    unused = await Bench(latency(WHOLE_LATENCY_MS * 2), techniques=("sparsity",)).run()
    assert [note.code for note in unused.result.notes].count("TECHNIQUE_UNUSED") == 1


async def test_without_a_limit_nothing_is_packed_unless_it_is_asked_for() -> None:
    plain, packed = (
        Bench(latency(WHOLE_LATENCY_MS / 2)),
        Bench(latency(WHOLE_LATENCY_MS / 2), packed=True),
    )
    first, second = await plain.run(), await packed.run()
    assert first.result.best_trial == second.result.best_trial
    assert [t.recipe for t in plain.trials()] == [t.recipe for t in packed.trials()]
    for unit in plain.executor.ran:
        assert not {"packed", "finished_steps"} & unit.payload.keys()
    assert all(t.metrics and t.metrics.download_bytes is None for t in plain.trials())
    assert all("packed" in t.artifacts and packed_bytes(t) for t in packed.trials())
    assert not {"download_options", "download_notes"} & set(kinds(packed))


@pytest.mark.parametrize("interrupted_at", [4, 5, 6])
async def test_an_interrupted_stage_goes_on_and_repeats_no_finished_trial(
    interrupted_at: int,
) -> None:
    undisturbed = Bench(download(0.6 * PACKED))
    bench = Bench(download(0.6 * PACKED))
    for each in (undisturbed, bench):
        each.executor.growth = 1.3
    expected = await undisturbed.run()
    run, count, reached = bench.executor.run, 0, asyncio.Event()

    async def hang(*arguments: object, **named: object) -> object:
        nonlocal count
        count += 1
        if count == interrupted_at:
            reached.set()
            await asyncio.Event().wait()
        return await run(*arguments, **named)  # type: ignore[arg-type]  # passed on as it came

    bench.executor.run = hang  # type: ignore[method-assign,assignment]  # the interruption under test
    life = asyncio.create_task(bench.run())
    await reached.wait()
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    finished = {t.input_digest for t in bench.trials() if t.state is TrialState.COMPLETED}
    before = len(bench.executor.trials_run())
    job = await bench.run()
    assert not finished & set(bench.executor.trials_run()[before:])
    assert job.result.best_trial == expected.result.best_trial
    assert [t.recipe for t in bench.trials()] == [t.recipe for t in undisturbed.trials()]


def spec(*constraints: Constraint, max_trials: int = 12) -> JobSpec:
    return JobSpec(
        model_digest="1" * 64,
        model_name="m",
        target=TARGET,
        budget=Budget(constraints=constraints),
        search_limits=SearchLimits(max_trials=max_trials, max_seconds=600),
    )


def test_time_and_trials_are_kept_for_the_download_until_its_stage_begins() -> None:
    free = TimeBudget(spec(), FakeClock(), spent_seconds=0.0)
    time = TimeBudget(spec(download(1000)), FakeClock(), spent_seconds=0.0)
    whole, kept = free.left([], shared_by=1), time.left([], shared_by=1)
    assert whole - kept == pytest.approx(DOWNLOAD_TIME_SHARE * 600)
    assert free.trials_left([], keep_for_final=0) - time.trials_left([], keep_for_final=0) == 3
    time.begin_last_stage()
    assert time.left([], shared_by=1) == whole
    assert time.trials_left([], keep_for_final=0) == free.trials_left([], keep_for_final=0)
    single = TimeBudget(spec(download(1000), max_trials=1), FakeClock(), spent_seconds=0.0)
    assert single.trials_left([], keep_for_final=0) == 2


def test_a_recipe_keeps_the_epochs_of_trainings_that_were_carried_out_earlier() -> None:
    def training(epochs: float) -> PassStep:
        return PassStep(pass_name="recovery", parameters={"epochs": epochs, "max_seconds": 9.0})

    recipe = Recipe(
        source_digest="1" * 64,
        seed=0,
        target="board",
        output_format="tflite",
        steps=(training(30), PassStep(pass_name="sparsity"), training(5), training(5)),
    )
    steps = as_carried_out(recipe, [1.5, 2.5]).steps
    epochs = [step.parameters.get("epochs") for step in steps]
    assert epochs == [30, None, 1.5, 2.5]
    assert from_plain(RecoverySettings, steps[-1].parameters).max_seconds is None


def test_equal_values_stay_equal_only_with_one_scale_for_all() -> None:
    assert not with_shared_scales(QuantizationSettings()).per_channel
    narrow = QuantizationSettings(node_formats={"a": NumberFormat.INT4})
    assert with_shared_scales(narrow) == narrow


@pytest.mark.parametrize(
    ("packed", "limits", "field"),
    [
        (True, (), "packed"),
        (False, (download(1000),), "budget.max_download_bytes"),
    ],
)
def test_only_files_that_are_packed_can_be_asked_for(
    packed: bool, limits: tuple[Constraint, ...], field: str
) -> None:
    request = JobRequest(
        model="m", dataset="", target="board", budget=Budget(constraints=limits), packed=packed
    )
    check_packable(request, ModelFormat.TFLITE)
    check_packable(request, ModelFormat.ONNX)
    with pytest.raises(InvalidRequestError, match="c_array") as caught:
        check_packable(request, ModelFormat.C_ARRAY)
    assert caught.value.field == field
    assert "tflite or onnx" in str(caught.value.remedy)
