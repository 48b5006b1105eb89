"""What every `Executor` does; what only processes can do is in integration/test_worker_processes.py."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from fakes import worker_main
from fakes.artifacts import InMemoryArtifactStore, InMemoryArtifactStores
from fakes.inline_executor import InlineExecutor
from fakes.ray_cluster import RayCluster, needs_ray, ray_warns
from fakes.telemetry import RecordingTelemetry
from tightfit_service.adapters.execution.limits import Confinement
from tightfit_service.adapters.execution.local_processes import LocalProcessExecutor, WorkerProgram
from tightfit_service.adapters.execution.node_worker import NodeOptions
from tightfit_service.adapters.execution.ray_executor import RayExecutor
from tightfit_service.adapters.execution.ray_link import RayLink
from tightfit_service.application.ports import Executor, WorkUnit
from tightfit_service.domain.errors import (
    DivergedError,
    InvalidModelError,
    InvalidRequestError,
    LeaseLostError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnsupportedError,
    WorkFailedError,
)


def ignore_progress(fraction: float, message: str) -> None:
    del fraction, message


# one executor for all tests: starting a worker process is what takes time here
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def artifacts() -> InMemoryArtifactStore:
    """Where inputs come from and outputs go."""
    return InMemoryArtifactStore()


@pytest.fixture(scope="module")
def scratch_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where units run."""
    return tmp_path_factory.mktemp("scratch")


IMPLEMENTATIONS = [
    "inline",
    "processes",
    pytest.param("ray", marks=[needs_ray, ray_warns, pytest.mark.debian]),
]


@pytest_asyncio.fixture(params=IMPLEMENTATIONS, scope="module", loop_scope="module")
async def executor(
    request: pytest.FixtureRequest, artifacts: InMemoryArtifactStore, scratch_dir: Path
) -> AsyncIterator[Executor]:
    """Every implementation, started."""
    made: Executor
    if request.param == "inline":
        made = InlineExecutor(
            handlers=worker_main.HANDLERS,
            artifacts=InMemoryArtifactStores(artifacts),
            scratch_dir=scratch_dir,
        )
    elif request.param == "ray":
        cluster: RayCluster = request.getfixturevalue("ray_cluster")
        made = RayExecutor(
            link=RayLink(address=cluster.address, token_file=cluster.token_file),
            options=NodeOptions(
                arguments=[worker_main.__file__],
                environment={"PYTHONPATH": ":".join(sys.path)},
                folder=str(scratch_dir / "node"),
                cache_bytes=1 << 30,
                threads=1,
                confinement=Confinement(),
            ),
            artifacts=InMemoryArtifactStores(artifacts),
            scratch_dir=scratch_dir / "arriving",
            telemetry=RecordingTelemetry(),
        )
    else:
        made = LocalProcessExecutor(
            program=WorkerProgram(
                command=[sys.executable, worker_main.__file__],
                environment={"PYTHONPATH": ":".join(sys.path)},
            ),
            artifacts=InMemoryArtifactStores(artifacts),
            scratch_dir=scratch_dir,
            telemetry=RecordingTelemetry(),
        )
    await made.start()
    yield made
    await made.stop()


def echo(payload: object = None, **inputs: str) -> WorkUnit:
    return WorkUnit(project="default", kind="echo", payload={"x": payload}, inputs=inputs)


async def test_payload_inputs_and_outputs_travel(
    executor: Executor, artifacts: InMemoryArtifactStore
) -> None:
    model = artifacts.add(b"model bytes")
    payload = {"numbers": [1, 2.5, None], "text": "ü\n", "nested": {"on": True}}
    result = await executor.run(echo(payload, model=model), on_progress=ignore_progress)
    assert result.payload["payload"] == {"x": payload}
    assert result.payload["names"] == ["model"]
    reversed_digest = hashlib.sha256(b"setyb ledom").hexdigest()
    assert result.outputs == {"model": reversed_digest}
    assert result.sizes == {reversed_digest: len(b"model bytes")}
    assert artifacts.contents[reversed_digest] == b"setyb ledom"


async def test_progress_arrives_on_the_event_loop_in_order(executor: Executor) -> None:
    loop = asyncio.get_running_loop()
    seen: list[tuple[float, str]] = []

    def on_progress(fraction: float, message: str) -> None:
        assert asyncio.get_running_loop() is loop
        seen.append((fraction, message))

    await executor.run(echo(), on_progress=on_progress)
    await asyncio.sleep(0)
    assert seen == [(0.0, "begun"), (1.0, "done")]


async def test_an_input_is_fetched_once_for_many_units(
    executor: Executor, artifacts: InMemoryArtifactStore
) -> None:
    dataset = artifacts.add(os.urandom(100))
    before = artifacts.fetch_count
    for number in range(3):
        await executor.run(echo(number, first=dataset, again=dataset), on_progress=ignore_progress)
    assert artifacts.fetch_count == before + 1


@pytest.mark.parametrize(
    ("kind", "error"), [("model", InvalidModelError), ("diverged", DivergedError)]
)
async def test_errors_of_the_domain_arrive_as_themselves(
    executor: Executor, kind: str, error: type[Exception]
) -> None:
    unit = WorkUnit(project="default", kind="domain_error", payload={"kind": kind}, inputs={})
    with pytest.raises(error) as caught:
        await executor.run(unit, on_progress=ignore_progress)
    assert type(caught.value) is error
    assert str(caught.value) == "the model is bad [model] (send a good one)"


async def test_other_errors_become_failed_work_that_names_unit_and_cause(
    executor: Executor,
) -> None:
    unit = WorkUnit(
        project="default", kind="other_error", payload={}, inputs={}, label="job 7 trial 3"
    )
    with pytest.raises(WorkFailedError, match=r"job 7 trial 3.*ZeroDivisionError: one by zero"):
        await executor.run(unit, on_progress=ignore_progress)
    assert (await executor.run(echo(), on_progress=ignore_progress)).payload
    await executor.check()


async def test_a_full_disk_is_no_fault_of_the_work(executor: Executor) -> None:
    unit = WorkUnit(project="default", kind="disk_full", payload={}, inputs={})
    with pytest.raises(ResourceExhaustedError, match="free disk space"):
        await executor.run(unit, on_progress=ignore_progress)


@pytest.mark.parametrize("kind", ["stray_output", "not_plain"])
async def test_a_result_that_cannot_travel_is_failed_work(executor: Executor, kind: str) -> None:
    with pytest.raises(WorkFailedError):
        await executor.run(
            WorkUnit(project="default", kind=kind, payload={}, inputs={}),
            on_progress=ignore_progress,
        )


async def test_an_unknown_kind_is_unsupported(executor: Executor) -> None:
    with pytest.raises(UnsupportedError):
        await executor.run(
            WorkUnit(project="default", kind="unheard of", payload={}, inputs={}),
            on_progress=ignore_progress,
        )


async def test_a_missing_input_is_not_found(executor: Executor) -> None:
    with pytest.raises(NotFoundError):
        await executor.run(echo(model="0" * 64), on_progress=ignore_progress)


async def test_an_input_name_that_is_no_file_name_is_refused(
    executor: Executor, artifacts: InMemoryArtifactStore
) -> None:
    unit = WorkUnit(
        project="default", kind="echo", payload={}, inputs={"../model": artifacts.add(b"x")}
    )
    with pytest.raises(InvalidRequestError):
        await executor.run(unit, on_progress=ignore_progress)


async def test_more_units_than_workers_wait_their_turn(executor: Executor) -> None:
    units = [executor.run(echo(number), on_progress=ignore_progress) for number in range(5)]
    results = await asyncio.gather(*units)
    assert [result.payload["payload"]["x"] for result in results] == list(range(5))


async def test_a_unit_begins_when_a_worker_is_there_and_before_it_has_it(
    executor: Executor,
) -> None:
    told: list[tuple[int, str]] = []
    free = asyncio.Event()

    async def run(number: int) -> None:
        async def on_begin() -> None:
            told.append((number, "has a worker"))
            await free.wait()
            await asyncio.sleep(0.05)
            told.append((number, "may begin"))

        def on_progress(fraction: float, message: str) -> None:
            del fraction
            told.append((number, message))

        await executor.run(echo(number), on_progress=on_progress, on_begin=on_begin)

    units = [asyncio.create_task(run(number)) for number in range(2)]
    while not told:  # noqa: ASYNC110  # executors tell nobody else
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    assert len(told) == 1, "there is one worker"
    free.set()
    await asyncio.gather(*units)
    first = told[0][0]
    course = ["has a worker", "may begin", "begun", "done"]
    assert told == [(number, text) for number in (first, 1 - first) for text in course]


async def test_what_is_raised_before_a_unit_begins_ends_it(executor: Executor) -> None:
    async def on_begin() -> None:
        raise LeaseLostError("somebody else has the job")

    with pytest.raises(LeaseLostError):
        await executor.run(echo(), on_progress=ignore_progress, on_begin=on_begin)
    assert (await executor.run(echo(), on_progress=ignore_progress)).payload


async def test_nothing_of_a_unit_stays_in_the_scratch_folder(
    executor: Executor, artifacts: InMemoryArtifactStore, scratch_dir: Path
) -> None:
    await executor.run(echo(model=artifacts.add(b"x")), on_progress=ignore_progress)
    await executor.stop()
    assert not await asyncio.to_thread(lambda: list(scratch_dir.glob("**/units/*")))
    await executor.start()


async def test_a_stopped_executor_is_unavailable_and_starts_again(executor: Executor) -> None:
    await executor.stop()
    with pytest.raises(UnavailableError):
        await executor.run(echo(), on_progress=ignore_progress)
    with pytest.raises(UnavailableError):
        await executor.check()
    await executor.start()
    assert (await executor.run(echo(), on_progress=ignore_progress)).payload
