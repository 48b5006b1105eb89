"""What is refused before a job is made, and what the preflight says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from fakes.clock import FakeClock
from fakes.libraries import make_libraries
from fakes.linear_emulator import LinearEmulator
from fakes.records import START, make_asset
from fakes.scripted_work import BASELINE_ACCURACY, ScriptedExecutor, facts
from fakes.stores import InMemoryStore
from fakes.telemetry import RecordingTelemetry
from tightfit_service.adapters.emulators.vela import VelaCompiler
from tightfit_service.application.access.caller import calling
from tightfit_service.application.assets.quotas import Quotas
from tightfit_service.application.costs.costing import CostModel
from tightfit_service.application.course.preflight import check_report
from tightfit_service.application.jobs.desk import JobDesk
from tightfit_service.application.jobs.requests import JobRequests, OutputFormats
from tightfit_service.application.ports import AssetRecord
from tightfit_service.application.scheduling.journal import EventHub, JobJournal
from tightfit_service.application.scheduling.scheduler import JobScheduler
from tightfit_service.application.use_cases import JobRequest
from tightfit_service.domain.access import Principal
from tightfit_service.domain.budget import Budget, Constraint, Objective, Quantity, SearchLimits
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    InvalidBudgetError,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import (
    HardwareSpec,
    Memory,
    ModelFormat,
    NumberFormat,
    Runtime,
)
from tightfit_service.domain.network import ImportanceCriterion
from tightfit_service.domain.quota import Quota, QuotaOverrides
from tightfit_service.domain.recipe import PassStep, Recipe

WHOLE_MS = facts().macs * 1e-6


def board(core: str = "cortex-m7") -> HardwareSpec:
    return HardwareSpec(
        name="board",
        display_name="A board",
        core=core,
        clock_mhz=100.0,
        memory=Memory(ram_bytes=1 << 16, flash_bytes=1 << 18),
        runtime=Runtime(name="TFLM"),
    )


class OneBoard:
    """A catalogue of one target."""

    def get(self, name: str) -> HardwareSpec:
        if name != "board":
            raise NotFoundError(f"no target {name!r}", field="target", remedy="did you mean board?")
        return board()

    def list(self) -> Sequence[HardwareSpec]:
        return [board()]

    def complete(self, partial: Mapping[str, Any]) -> HardwareSpec:
        return board(**partial)


@pytest.fixture
def desk() -> JobDesk:
    store, telemetry, clock, hub = InMemoryStore(), RecordingTelemetry(), FakeClock(), EventHub()
    executor = ScriptedExecutor()
    for kind, asset_id in (("model", "m"), ("dataset", "d")):
        store.add_asset(
            AssetRecord(
                asset_id=asset_id,
                project="p",
                kind=kind,
                digest=asset_id.encode().hex() * 32,
                size_bytes=1,
                display_name="",
                create_time=START,
            )
        )
    libraries = make_libraries(store=store, executor=executor, catalogue=OneBoard())

    async def never(_: JobJournal) -> None:
        raise AssertionError("no job runs here")

    scheduler = JobScheduler(
        store=store,
        queue=store,
        run_job=never,
        hub=hub,
        clock=clock,
        telemetry=telemetry,
        concurrent_jobs=1,
    )
    store.set_quota("small", QuotaOverrides(trials=5, queued_jobs=1))
    store.add_asset(make_asset(project="full", size_bytes=10))
    store.set_quota("full", QuotaOverrides(stored_bytes=10))
    requests = JobRequests(
        hardware=libraries.hardware,
        costs=libraries.costs,
        models=libraries.models,
        records=store,
        units=libraries.units,
        formats=OutputFormats(
            target_checks={ModelFormat.VELA: VelaCompiler().check},
            missing_extras={ModelFormat.OPENVINO: "tightfit-service[openvino]"},
        ),
    )
    return JobDesk(
        jobs=store,
        requests=requests,
        quotas=Quotas(store=store, default=Quota(queued_jobs=3)),
        scheduler=scheduler,
        hub=hub,
        clock=clock,
        telemetry=telemetry,
    )


def request(*constraints: Constraint, **changes: Any) -> JobRequest:
    values: dict[str, Any] = {
        "model": "m",
        "dataset": "d",
        "target": "board",
        "budget": Budget(constraints=constraints),
        **changes,
    }
    return JobRequest(**values)


def at_most(quantity: Quantity, limit: float) -> Constraint:
    return Constraint(quantity=quantity, limit=limit)


async def test_a_request_id_makes_one_job(desk: JobDesk) -> None:
    first = await desk.create("p", request(request_id="r"))
    again = await desk.create("p", request(request_id="r"))
    assert first.job_id == again.job_id
    with pytest.raises(AlreadyExistsError):
        await desk.create("p", request(request_id="r", seed=1))


async def test_a_job_says_who_made_it(desk: JobDesk) -> None:
    with calling(Principal(name="key:1")):
        mine = await desk.create("p", request(request_id="r"))
    with calling(Principal(name="key:2")):
        again = await desk.create("p", request(request_id="r"))
    assert mine.creator == again.creator == "key:1"
    assert (await desk.create("p", request())).creator == "anonymous"


async def test_validating_makes_no_job(desk: JobDesk) -> None:
    job = await desk.validate("p", request())
    assert job.spec.target == board()
    with pytest.raises(NotFoundError):
        await desk.get("p", job.job_id)


@pytest.mark.parametrize(
    ("wrong", "error", "field"),
    [
        (request(model="x"), NotFoundError, None),
        (request(dataset="x"), NotFoundError, None),
        (request(teachers=("x",)), NotFoundError, "teachers[0]"),
        (request(teachers=("m",)), InvalidRequestError, "teachers[0]"),
        (request(target="bord"), NotFoundError, "target"),
        (request(target={"core": "z80"}), UnsupportedError, "hardware_target"),
        (request(runner_labels={"lab": "a"}), InvalidRequestError, "runner_labels"),
        (request(output_format=ModelFormat.PT2), InvalidRequestError, "output_format"),
        (request(output_format=ModelFormat.OPENVINO), UnsupportedError, "output_format"),
        (request(output_format=ModelFormat.VELA), UnsupportedError, "output_format"),
        (
            request(at_most(Quantity.RAM, 1 << 20)),
            InvalidBudgetError,
            "budget.max_ram_bytes",
        ),
        (
            request(at_most(Quantity.SIZE, 1 << 20)),
            InvalidBudgetError,
            "budget.max_size_bytes",
        ),
        (
            request(objective=Objective(quantity=Quantity.LATENCY)),
            InvalidBudgetError,
            "budget.min_accuracy",
        ),
        (
            request(objective=Objective(quantity=Quantity.DOWNLOAD)),
            InvalidRequestError,
            "objective.quantity",
        ),
        (
            request(at_most(Quantity.DOWNLOAD, 1000), output_format=ModelFormat.C_ARRAY),
            InvalidRequestError,
            "budget.max_download_bytes",
        ),
    ],
)
async def test_what_cannot_be_meant_is_refused_with_a_remedy(
    desk: JobDesk, wrong: JobRequest, error: type[Exception], field: str | None
) -> None:
    with pytest.raises(error) as caught:
        await desk.create("p", wrong)
    assert getattr(caught.value, "remedy", "")
    if field is not None:
        assert getattr(caught.value, "field", "") == field


@pytest.mark.parametrize(
    ("limit", "fits", "reachable"),
    [(2 * WHOLE_MS, True, True), (WHOLE_MS / 2, False, True), (WHOLE_MS / 1000, False, False)],
)
async def test_the_preflight_tells_what_fits_and_what_can_be_reached(
    desk: JobDesk, limit: float, fits: bool, reachable: bool
) -> None:
    report = await desk.check("p", request(at_most(Quantity.LATENCY, limit), dataset=""))
    assert (report.fits_already, report.reachable) == (fits, reachable)
    codes = {note.code for note in report.notes}
    assert "NOT_PRUNABLE" in codes
    assert ("BUDGET_BELOW_REACH" in codes) == (not reachable)
    assert report.baseline_int8 is not None
    assert report.baseline_int8.cost.latency_ms.value == pytest.approx(WHOLE_MS)
    assert report.baseline.cost.latency_ms.value == pytest.approx(4 * WHOLE_MS)


def test_the_preflight_estimates_the_model_once_per_number_format() -> None:
    telemetry = RecordingTelemetry()
    costs = CostModel(emulator=LinearEmulator(), target=board(), telemetry=telemetry)
    asked = request(at_most(Quantity.LATENCY, 2 * WHOLE_MS))
    check_report(asked, costs=costs, facts=facts())
    assert len(telemetry.emulator_calls) == len({NumberFormat.FLOAT32, NumberFormat.INT8})


async def test_the_preflight_measures_the_accuracy_as_it_came_where_there_is_data(
    desk: JobDesk,
) -> None:
    wanted = at_most(Quantity.LATENCY, WHOLE_MS)
    found = (await desk.check("p", request(wanted, dataset="d"))).baseline.accuracy
    assert found is not None
    assert found.value == pytest.approx(BASELINE_ACCURACY, abs=1e-3)
    assert (await desk.check("p", request(wanted, dataset=""))).baseline.accuracy is None


async def test_a_recipe_in_formats_that_the_file_cannot_hold_is_refused(desk: JobDesk) -> None:
    quantization = {"number_format": "int8", "node_formats": {"a": "int16x8"}}
    recipe = Recipe(
        source_digest="1" * 64,
        seed=0,
        target="board",
        output_format="tflite",
        architecture=facts().architecture,
        steps=(PassStep(pass_name="quantization", parameters=quantization),),
    )
    with pytest.raises(UnsupportedError, match="int16x8, which files in executorch") as caught:
        await desk.create("p", request(recipe=recipe, output_format=ModelFormat.EXECUTORCH))
    assert caught.value.field == "recipe.steps.quantization.node_formats[a]"
    assert "int8" in caught.value.remedy


async def test_a_job_beyond_a_quota_names_it_with_use_and_remedy(desk: JobDesk) -> None:
    limits = SearchLimits(max_trials=6, max_seconds=60)
    with pytest.raises(ResourceExhaustedError, match=r"6 trials.*quota is 5") as caught:
        await desk.create("small", request(search_limits=limits))
    assert caught.value.field == "search_limits.max_trials"
    assert caught.value.remedy
    for seed in range(3):
        await desk.create("p", request(seed=seed))
    with pytest.raises(ResourceExhaustedError, match=r"3 jobs.*quota is 3") as caught:
        await desk.create("p", request(seed=3))
    assert caught.value.remedy
    with pytest.raises(ResourceExhaustedError, match=r"hold 10 bytes.*quota is 10") as caught:
        await desk.create("full", request())
    assert caught.value.field == "parent"
    assert caught.value.remedy


async def test_teachers_are_checked_before_a_search(desk: JobDesk) -> None:
    with pytest.raises(NotFoundError) as caught:
        await desk.check("p", request(teachers=("x",)))
    assert caught.value.field == "teachers[0]"


async def test_what_channels_are_chosen_by_is_kept_with_the_job(desk: JobDesk) -> None:
    job = await desk.create("p", request(importance=ImportanceCriterion.TAYLOR))
    assert job.spec.importance is ImportanceCriterion.TAYLOR


async def test_a_priority_is_kept_with_the_job(desk: JobDesk) -> None:
    assert (await desk.create("p", request(priority=7))).spec.priority == 7


async def test_a_check_says_what_a_small_download_does_not_bring(desk: JobDesk) -> None:
    free = await desk.check("p", request())
    limited = await desk.check("p", request(at_most(Quantity.DOWNLOAD, 1000)))
    added = [note for note in limited.notes if note not in free.notes]
    said = [note.message for note in added if note.code == "DOWNLOAD_ONLY"]
    assert [note.code for note in added].count("DOWNLOAD_UNKNOWN") == 1
    assert [text.split()[0] for text in said] == ["sparsity", "clustering"]
    assert all("nothing faster" in text for text in said)
    assert limited.fits_already == free.fits_already
