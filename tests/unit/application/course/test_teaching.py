"""Teachers beside the original: which are refused, what is said of them, and which trials they teach."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.records import make_asset
from fakes.scripted_work import BASELINE_ACCURACY, ScriptedExecutor, facts
from fakes.search_bench import WHOLE_LATENCY_MS, Bench, latency
from fakes.stores import InMemoryStore
from fakes.telemetry import RecordingTelemetry
from tightfit_service.application.assets.imported_models import ImportedModel, ImportedModels
from tightfit_service.application.course.teaching import find_teachers
from tightfit_service.application.ports import TensorSignature
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.domain.errors import InvalidRequestError, NotFoundError, UnsupportedError
from tightfit_service.domain.job import JobState, TeacherModel
from tightfit_service.domain.network import ImportanceCriterion
from tightfit_service.domain.recipe import PassStep, Recipe

MODEL = "0" * 64
TEACHERS = tuple(TeacherModel(name=f"t{n}", digest=f"{n}" * 64) for n in (3, 4))


def _signature(name: str, *shape: int) -> TensorSignature:
    return TensorSignature(name=name, shape=(-1, *shape), dtype="float32")


def _inputs(*inputs: TensorSignature) -> ModelFacts:
    return replace(facts(), inputs=inputs)


def _outputs(*outputs: TensorSignature) -> ModelFacts:
    return replace(facts(), outputs=outputs)


async def _found(
    *names: str, teacher: ModelFacts | None = None, model: ModelFacts | None = None
) -> tuple[TeacherModel, ...]:
    """Find teachers among the models `model`, and `a` to `f`, of which `a` has the given facts."""
    store, executor = InMemoryStore(), ScriptedExecutor()
    for number, name in enumerate(["model", *"abcdef"]):
        store.add_asset(make_asset(name, project="p", digest=f"{number}" * 64))
    store.add_asset(make_asset("copy", project="p", digest="1" * 64))
    executor.models = {"1" * 64: teacher or facts()}
    return await find_teachers(
        names,
        project="p",
        model=ImportedModel(digest=MODEL, graph_digest="8" * 64, facts=model or facts()),
        models=ImportedModels(
            records=store,
            units=CachedUnits(executor=executor, store=store, telemetry=RecordingTelemetry()),
        ),
    )


async def test_teachers_are_found_in_order() -> None:
    assert await _found("b", "a") == (
        TeacherModel(name="b", digest="2" * 64),
        TeacherModel(name="a", digest="1" * 64),
    )
    assert await _found() == ()


@pytest.mark.parametrize(
    ("names", "field", "what"),
    [
        ("abcde", "teachers", "5 teachers"),
        (["a", "model"], "teachers[1]", "the model itself"),
        (["b", "a", "copy"], "teachers[2]", "twice"),
    ],
)
async def test_what_teaches_nothing_more_is_refused(
    names: list[str], field: str, what: str
) -> None:
    with pytest.raises(InvalidRequestError, match=what) as caught:
        await _found(*names)
    assert caught.value.field == field
    assert caught.value.remedy


async def test_an_unknown_teacher_is_named() -> None:
    with pytest.raises(NotFoundError) as caught:
        await _found("a", "nobody")
    assert caught.value.field == "teachers[1]"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("teacher", "model", "what"),
    [
        (replace(facts(), is_quantized=True), facts(), "quantized"),
        (_inputs(_signature("input", 1, 8, 8)), facts(), r"\(1x8x8\), the model input \(3x8x8\)"),
        (_outputs(_signature("logits", 7)), facts(), r"logits \(7\), the model logits \(10\)"),
        (_outputs(_signature("a", 10), _signature("b", 10)), facts(), "answers a"),
        (
            _inputs(_signature("x", 4), _signature("z", 4)),
            _inputs(_signature("x", 4), _signature("y", 4)),
            "takes x",
        ),
    ],
)
async def test_a_teacher_that_does_not_fit_is_refused_with_a_remedy(
    teacher: ModelFacts, model: ModelFacts, what: str
) -> None:
    with pytest.raises(InvalidRequestError, match=what) as caught:
        await _found("a", teacher=teacher, model=model)
    assert caught.value.field == "teachers[0]"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("teacher", "model"),
    [
        (_inputs(_signature("image", 3, 8, 8)), facts()),
        (_outputs(_signature("scores", 10, 1, 1)), facts()),
        (
            _inputs(_signature("y", 2), _signature("x", 4)),
            _inputs(_signature("x", 4), _signature("y", 2)),
        ),
    ],
)
async def test_names_of_lone_inputs_sizes_of_one_and_order_do_not_matter(
    teacher: ModelFacts, model: ModelFacts
) -> None:
    assert await _found("a", teacher=teacher, model=model)


async def test_teachers_are_inputs_of_trials_that_train_and_named_in_their_recipes() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), teachers=TEACHERS)
    job = await bench.run()
    assert job.state is JobState.SUCCEEDED
    units = [unit for unit in bench.executor.ran if unit.kind == "trial"]
    given = [{k: v for k, v in unit.inputs.items() if k.startswith("teacher")} for unit in units]
    assert given[0] == {}
    assert all(g == {"teacher0": "3" * 64, "teacher1": "4" * 64} for g in given[1:])
    assert len(given) > 2
    for trial in bench.trials()[1:]:
        step = trial.recipe.step("recovery")
        assert step is not None
        assert step.parameters["teachers"] == ["3" * 64, "4" * 64]


async def test_trials_of_other_teachers_are_other_work() -> None:
    ran = []
    for teachers in ((), TEACHERS[:1], TEACHERS):
        bench = Bench(latency(WHOLE_LATENCY_MS / 2), teachers=teachers)
        await bench.run()
        ran.append(bench.executor.trials_run())
    assert len({trials[0] for trials in ran}) == 1  # nobody teaches there
    assert len({trials[1] for trials in ran}) == len(ran)


@pytest.mark.parametrize(
    ("accuracy", "code"), [(BASELINE_ACCURACY + 0.02, "TEACHER"), (0.5, "WEAK_TEACHER")]
)
async def test_a_job_says_how_each_teacher_does(accuracy: float, code: str) -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), teachers=TEACHERS)
    bench.executor.teacher_accuracy = accuracy
    job = await bench.run()
    said = [note.message for note in job.result.notes if note.code == code]
    assert len(said) == 2
    assert f"teacher t3 has an accuracy of {accuracy:.1%}" in said[0]


async def test_a_teacher_that_cannot_be_listened_to_is_named() -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), teachers=TEACHERS)
    kinds = ["baseline", "trial", "teacher"]
    bench.executor.fail[3] = UnsupportedError("it sleeps", field="x", remedy="wake it")
    with pytest.raises(UnsupportedError, match="teacher t3: it sleeps") as caught:
        await bench.run()
    assert [unit.kind for unit in bench.executor.ran] == kinds
    assert (caught.value.field, caught.value.remedy) == ("teachers[0]", "wake it")


def _recipe(*teachers: str) -> Recipe:
    parameters = {"epochs": 1.0, "teachers": list(teachers)}
    return Recipe(
        source_digest="7" * 64,
        seed=0,
        target="board",
        output_format="tflite",
        steps=(PassStep(pass_name="recovery", parameters=parameters),),
    )


@pytest.mark.parametrize(
    ("recorded", "missing"),
    [((), False), (("3" * 64,), False), (("3" * 64, "5" * 64), True), (("5" * 64,), True)],
)
async def test_a_recipe_is_applied_with_the_teachers_of_the_job(
    recorded: tuple[str, ...], missing: bool
) -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS), recipe=_recipe(*recorded), teachers=TEACHERS[:1])
    job = await bench.run()
    step = bench.trials()[1].recipe.step("recovery")
    assert step is not None
    assert list(step.parameters["teachers"]) == ["3" * 64]
    codes = [note.code for note in job.result.notes]
    assert ("MISSING_TEACHERS" in codes) == missing
    assert "TEACHER" in codes


async def test_nobody_is_asked_where_nothing_is_trained() -> None:
    bench = Bench(latency(2 * WHOLE_LATENCY_MS), teachers=TEACHERS)
    await bench.run()
    assert "teacher" not in [unit.kind for unit in bench.executor.ran]


@pytest.mark.parametrize(
    ("wanted", "used"),
    [(None, "fisher"), *((criterion, str(criterion)) for criterion in ImportanceCriterion)],
)
async def test_channels_are_scored_by_what_the_job_asks_for(
    wanted: ImportanceCriterion | None, used: str
) -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS / 2), importance=wanted)
    await bench.run()
    (unit,) = (unit for unit in bench.executor.ran if unit.kind == "sensitivity")
    assert unit.payload["importance"] == used
