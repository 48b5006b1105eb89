"""Jobs over a real gRPC connection: create, check, list, watch, cancel, delete, trials."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from fakes.grpc_service import Service
from fakes.records import make_job
from fakes.rpc_errors import info_of
from fakes.waiting import until
from tightfit.v1 import (
    budget_pb2,
    compression_pb2,
    hardware_pb2,
    job_pb2,
    metrics_pb2,
    recipe_pb2,
)
from tightfit.v1.compression_pb2_grpc import CompressionServiceStub
from tightfit_service.api.codec.trial import recipe_to_proto
from tightfit_service.domain.budget import Quantity, SearchLimits
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.job import JobState
from tightfit_service.domain.recipe import PassStep, Recipe

State = job_pb2.CompressionJob.State
UNKNOWN: Any = 99
"""A number that no version of the enums knows."""


def _spec(**changes: Any) -> job_pb2.CompressionSpec:
    values: dict[str, Any] = {
        "model": "projects/p/models/m",
        "dataset": "projects/p/datasets/d",
        "hardware_target": "hardwareTargets/board-a",
        "budget": budget_pb2.Budget(max_latency_ms=20.0, max_accuracy_drop=0.01),
        "objective": budget_pb2.Objective(quantity=metrics_pb2.QUANTITY_ENERGY),
        "search_limits": budget_pb2.SearchLimits(max_trials=3, max_time=Duration(seconds=60)),
        "output_format": hardware_pb2.MODEL_FORMAT_ONNX,
        "seed": 7,
    }
    values |= changes
    if "hardware_spec" in changes:
        del values["hardware_target"]
    return job_pb2.CompressionSpec(**values)


def _create(**changes: Any) -> compression_pb2.CreateJobRequest:
    return compression_pb2.CreateJobRequest(
        parent="projects/p", job=job_pb2.CompressionJob(spec=_spec(**changes))
    )


async def test_a_job_is_created_as_asked(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)
    request = _create()
    request.request_id = "once"

    job = await stub.CreateJob(request)

    (asked,) = service.jobs.requests
    assert (asked.model, asked.dataset, asked.target) == ("m", "d", "board-a")
    assert asked.budget.limit_of(Quantity.LATENCY) == 20.0
    assert asked.budget.accuracy_floor(0.9) == pytest.approx(0.89)
    assert asked.objective.quantity is Quantity.ENERGY
    assert (asked.search_limits.max_trials, asked.search_limits.max_seconds) == (3, 60.0)
    assert (asked.output_format, asked.seed) == (ModelFormat.ONNX, 7)
    assert asked.request_id == "once"
    assert job.name == "projects/p/jobs/job-0"
    assert job.state == State.STATE_QUEUED
    assert job.spec.model == "projects/p/models/m"
    assert job.spec.hardware_spec.name == "test-board"
    assert await stub.GetJob(compression_pb2.GetJobRequest(name=job.name)) == job


async def test_validate_only_makes_no_job(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)
    request = _create()
    request.validate_only = True

    job = await stub.CreateJob(request)

    assert job.name == ""
    assert job.spec.seed == 7
    assert service.jobs.jobs == {}


async def test_a_described_target_arrives_with_what_was_said_and_no_more(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)
    described = hardware_pb2.HardwareSpec(
        core="cortex-m4", clock_mhz=80, memory=hardware_pb2.Memory(ram_bytes=1 << 17)
    )

    await stub.CreateJob(_create(hardware_spec=described))

    assert service.jobs.requests[0].target == {
        "core": "cortex-m4",
        "clock_mhz": 80.0,
        "memory": {"ram_bytes": 1 << 17},
    }


async def test_what_is_absent_takes_the_defaults(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)
    spec = job_pb2.CompressionSpec(
        model="projects/p/models/m", hardware_target="hardwareTargets/board-a"
    )

    await stub.CreateJob(
        compression_pb2.CreateJobRequest(parent="projects/p", job=job_pb2.CompressionJob(spec=spec))
    )

    (asked,) = service.jobs.requests
    assert asked.dataset == ""
    assert asked.budget.constraints == ()
    assert asked.objective.quantity is Quantity.ACCURACY
    assert asked.search_limits == SearchLimits()
    assert asked.output_format is None


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"model": ""}, "INVALID_REQUEST", "model"),
        ({"model": "projects/q/models/m"}, "INVALID_REQUEST", "model"),
        ({"dataset": "d"}, "INVALID_REQUEST", "dataset"),
        ({"hardware_target": "board-a"}, "INVALID_REQUEST", "target"),
        ({"hardware_spec": hardware_pb2.HardwareSpec()}, "INVALID_TARGET", "target.core"),
        (
            {"hardware_spec": hardware_pb2.HardwareSpec(core="x", clock_mhz=float("nan"))},
            "INVALID_TARGET",
            "target.clock_mhz",
        ),
        (
            {
                "hardware_spec": hardware_pb2.HardwareSpec(
                    core="x", memory=hardware_pb2.Memory(ram_bytes=-1)
                )
            },
            "INVALID_TARGET",
            "target.memory.ram_bytes",
        ),
        (
            {"hardware_spec": hardware_pb2.HardwareSpec(core="x", number_formats=[UNKNOWN])},
            "INVALID_REQUEST",
            "target.number_formats",
        ),
        (
            {"budget": budget_pb2.Budget(max_latency_ms=0)},
            "INVALID_BUDGET",
            "budget.max_latency_ms",
        ),
        (
            {"budget": budget_pb2.Budget(max_ram_bytes=-1)},
            "INVALID_BUDGET",
            "budget.max_ram_bytes",
        ),
        (
            {"budget": budget_pb2.Budget(max_energy_mj=float("nan"))},
            "INVALID_BUDGET",
            "budget.max_energy_mj",
        ),
        (
            {"budget": budget_pb2.Budget(min_accuracy=95)},
            "INVALID_BUDGET",
            "budget.min_accuracy",
        ),
        (
            {"budget": budget_pb2.Budget(max_accuracy_drop=1)},
            "INVALID_BUDGET",
            "budget.max_accuracy_drop",
        ),
        (
            {"budget": budget_pb2.Budget(min_accuracy=0.9, max_accuracy_drop=0.1)},
            "INVALID_BUDGET",
            "budget.max_accuracy_drop",
        ),
        (
            {"search_limits": budget_pb2.SearchLimits(max_trials=0)},
            "INVALID_BUDGET",
            "search_limits.max_trials",
        ),
        (
            {"search_limits": budget_pb2.SearchLimits(max_time=Duration())},
            "INVALID_BUDGET",
            "search_limits.max_time",
        ),
        ({"output_format": 99}, "INVALID_REQUEST", "output_format"),
        (
            {"objective": budget_pb2.Objective(quantity=UNKNOWN)},
            "INVALID_REQUEST",
            "objective.quantity",
        ),
        ({"seed": -1}, "INVALID_REQUEST", "seed"),
    ],
)
async def test_bad_requests_name_the_field(
    service: Service, change: dict[str, Any], reason: str, field: str
) -> None:
    stub = CompressionServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateJob(_create(**change))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    given_reason, metadata = info_of(caught.value)
    assert (given_reason, metadata["field"]) == (reason, field)
    assert metadata["remedy"]
    assert service.jobs.jobs == {}


async def test_a_job_without_a_target_is_refused(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)
    spec = job_pb2.CompressionSpec(model="projects/p/models/m")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CheckJob(compression_pb2.CheckJobRequest(parent="projects/p", spec=spec))

    assert info_of(caught.value)[1]["field"] == "target"


@pytest.mark.parametrize("request_id", ["x" * 129, "a\nb"])
async def test_an_unusable_request_id_is_refused(service: Service, request_id: str) -> None:
    stub = CompressionServiceStub(service.channel)
    request = _create()
    request.request_id = request_id

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateJob(request)

    assert info_of(caught.value)[1]["field"] == "request_id"


async def test_a_check_brings_the_report(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)

    report = await stub.CheckJob(compression_pb2.CheckJobRequest(parent="projects/p", spec=_spec()))

    assert (report.fits_already, report.reachable) == (True, True)
    assert report.baseline.cost.estimated_latency_ms.value == 10.0
    assert not report.baseline.HasField("accuracy")
    assert not report.HasField("baseline_int8")


async def test_jobs_are_listed_by_state_in_pages(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)
    for number in range(6):
        state = JobState.QUEUED if number % 2 else JobState.FAILED
        service.jobs.add("p", make_job(f"j{number}", project="p", state=state))
    first = await stub.ListJobs(
        compression_pb2.ListJobsRequest(
            parent="projects/p", page_size=2, states=[State.STATE_QUEUED]
        )
    )
    second = await stub.ListJobs(
        compression_pb2.ListJobsRequest(
            parent="projects/p",
            page_size=2,
            states=[State.STATE_QUEUED],
            page_token=first.next_page_token,
        )
    )

    assert [job.name[-2:] for job in first.jobs] == ["j5", "j3"]
    assert [job.name[-2:] for job in second.jobs] == ["j1"]
    assert second.next_page_token == ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListJobs(
            compression_pb2.ListJobsRequest(parent="projects/p", page_token=first.next_page_token)
        )
    assert info_of(caught.value)[1]["field"] == "page_token"


@pytest.mark.parametrize("state", [0, 99])
async def test_an_unknown_state_is_refused(service: Service, state: Any) -> None:
    stub = CompressionServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListJobs(compression_pb2.ListJobsRequest(parent="projects/p", states=[state]))

    _, metadata = info_of(caught.value)
    assert metadata["field"] == "states"
    assert "STATE_QUEUED" in metadata["remedy"]


async def test_a_watch_tells_all_events_and_ends_with_the_job(service: Service) -> None:
    service.jobs.add("p", make_job("j", project="p"))
    await service.jobs.tell("p", "j", "stored")
    stub = CompressionServiceStub(service.channel)

    async def watch() -> list[job_pb2.JobEvent]:
        request = compression_pb2.WatchJobRequest(name="projects/p/jobs/j")
        return [event async for event in stub.WatchJob(request)]

    watching = asyncio.create_task(watch())
    await until(lambda: service.jobs.watchers)
    await service.jobs.tell("p", "j", "live")
    await service.jobs.tell("p", "j", "done", state=JobState.SUCCEEDED)
    events = await watching

    assert [(event.sequence, event.message) for event in events] == [
        (1, "stored"),
        (2, "live"),
        (3, "done"),
    ]
    assert events[2].state == State.STATE_SUCCEEDED
    assert events[0].job == "projects/p/jobs/j"


async def test_a_watch_resumes_after_a_sequence_number(service: Service) -> None:
    service.jobs.add("p", make_job("j", project="p"))
    for message in ("one", "two", "three"):
        await service.jobs.tell("p", "j", message)
    await service.jobs.tell("p", "j", "done", state=JobState.FAILED)
    stub = CompressionServiceStub(service.channel)
    request = compression_pb2.WatchJobRequest(name="projects/p/jobs/j", after_sequence=2)

    events = [event async for event in stub.WatchJob(request)]

    assert [event.sequence for event in events] == [3, 4]


async def test_a_negative_sequence_is_refused(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)
    request = compression_pb2.WatchJobRequest(name="projects/p/jobs/j", after_sequence=-1)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [event async for event in stub.WatchJob(request)]

    assert info_of(caught.value)[1]["field"] == "after_sequence"


async def test_cancel_then_delete(service: Service) -> None:
    service.jobs.add("p", make_job("j", project="p"))
    stub = CompressionServiceStub(service.channel)
    name = "projects/p/jobs/j"

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.DeleteJob(compression_pb2.DeleteJobRequest(name=name))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    job = await stub.CancelJob(compression_pb2.CancelJobRequest(name=name))
    assert job.state == State.STATE_CANCELLED
    await stub.DeleteJob(compression_pb2.DeleteJobRequest(name=name))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetJob(compression_pb2.GetJobRequest(name=name))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_trials_are_listed_in_pages_and_found_by_name(service: Service) -> None:
    service.jobs.add("p", make_job("j", project="p"), trial_count=3)
    stub = CompressionServiceStub(service.channel)
    parent = "projects/p/jobs/j"

    first = await stub.ListTrials(compression_pb2.ListTrialsRequest(parent=parent, page_size=2))
    second = await stub.ListTrials(
        compression_pb2.ListTrialsRequest(
            parent=parent, page_size=2, page_token=first.next_page_token
        )
    )

    names = [trial.name for trial in (*first.trials, *second.trials)]
    assert names == [f"{parent}/trials/{index}" for index in range(3)]
    for index, name in enumerate(names):
        trial = await stub.GetTrial(compression_pb2.GetTrialRequest(name=name))
        assert trial.index == index
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetTrial(compression_pb2.GetTrialRequest(name=f"{parent}/trials/3"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_recipe_reaches_the_job_as_it_was_stored(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)
    steps = (
        PassStep(pass_name="structured_pruning", parameters={"keep": {"conv1": [0, 2, 5]}}),
        PassStep(pass_name="recovery", parameters={"epochs": 2.5, "max_seconds": None}),
    )
    recipe = Recipe(
        source_digest="1" * 64,
        seed=7,
        target="board",
        output_format="tflite",
        steps=steps,
        tool_versions={"torch": "2.13"},
        architecture=("conv1 Conv 16x3x3x3",),
    )

    await stub.ApplyRecipe(
        compression_pb2.ApplyRecipeRequest(
            parent="projects/p", spec=_spec(), recipe=recipe_to_proto(recipe), request_id="again"
        )
    )

    (request,) = service.jobs.requests
    assert request.recipe == recipe
    assert request.request_id == "again"


async def test_a_recipe_without_steps_is_refused(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ApplyRecipe(
            compression_pb2.ApplyRecipeRequest(
                parent="projects/p", spec=_spec(), recipe=recipe_pb2.Recipe(version=1)
            )
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(caught.value)[1]["field"] == "recipe.steps"
