"""Two real Ray nodes on this machine: work on both, a node that dies, a unit that is cancelled."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import worker_main
from fakes.artifacts import InMemoryArtifactStores
from fakes.processes import is_running, wait_until_gone
from fakes.ray_cluster import RayCluster, RayNode, needs_ray, ray_warns
from fakes.stores import InMemoryStore
from fakes.telemetry import RecordingTelemetry
from tightfit_service.adapters.execution.limits import Confinement, WorkerLimits
from tightfit_service.adapters.execution.node_worker import NodeOptions
from tightfit_service.adapters.execution.ray_executor import RayExecutor
from tightfit_service.adapters.execution.ray_link import RayLink
from tightfit_service.application.ports import WorkResult, WorkUnit
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.domain.errors import InvalidRequestError, UnavailableError

pytestmark = [needs_ray, ray_warns, pytest.mark.debian]

SECOND = "127.0.0.3"
PATIENCE_SECONDS = 90.0

Make = Callable[..., RayExecutor]


@pytest.fixture(scope="module")
def second_node(ray_cluster: RayCluster) -> Iterator[RayNode]:
    """A node beside the head."""
    node = ray_cluster.add_node(SECOND)
    yield node
    node.kill()


@pytest.fixture
def telemetry() -> RecordingTelemetry:
    return RecordingTelemetry()


@pytest.fixture
async def make(
    ray_cluster: RayCluster, telemetry: RecordingTelemetry, tmp_path: Path
) -> AsyncIterator[Make]:
    """Make and start executors, which are stopped at the end."""
    made: list[RayExecutor] = []

    def factory(*, limits: WorkerLimits | None = None, **settings: Any) -> RayExecutor:
        values: dict[str, Any] = {
            "link": RayLink(address=ray_cluster.address, token_file=ray_cluster.token_file),
            "options": NodeOptions(
                arguments=[worker_main.__file__],
                environment={"PYTHONPATH": ":".join(sys.path)},
                folder=str(tmp_path / "node"),
                cache_bytes=1 << 30,
                threads=1,
                confinement=Confinement(limits=limits or WorkerLimits()),
            ),
            "artifacts": InMemoryArtifactStores(),
            "scratch_dir": tmp_path / "arriving",
            "telemetry": telemetry,
            "worker_count": 2,
        }
        made.append(RayExecutor(**(values | settings)))
        return made[-1]

    yield factory
    for executor in made:
        await executor.stop()


class Hanging:
    """A unit that does not end by itself, and the processes that it runs in."""

    def __init__(self, executor: RayExecutor, marker: Path) -> None:
        self._begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._store = InMemoryStore()
        unit = WorkUnit(
            project="default", kind="hang_once", payload={"marker": str(marker)}, inputs={}
        )
        units = CachedUnits(executor=executor, store=self._store, telemetry=RecordingTelemetry())
        self.task: asyncio.Task[WorkResult] = asyncio.create_task(
            units.run(
                unit,
                on_progress=lambda _, message: self._begun.set_result(message),
            )
        )

    async def pids(self) -> list[int]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return [int(pid) for pid in (await self._begun).split()]


async def test_units_spread_over_nodes_and_a_lost_node_costs_only_its_own(
    make: Make,
    ray_cluster: RayCluster,
    second_node: RayNode,
    telemetry: RecordingTelemetry,
    tmp_path: Path,
) -> None:
    executor = make(gpus_per_unit=0.5)
    await executor.start()
    echo = WorkUnit(project="default", kind="echo", payload={}, inputs={})
    echoed = await executor.run(echo, on_progress=lambda *_: None)
    assert echoed.payload["environment"]["CUDA_VISIBLE_DEVICES"] == "0"
    units = [Hanging(executor, tmp_path / str(number)) for number in range(2)]
    pids = [await unit.pids() for unit in units]
    head = ray_cluster.nodes[0]
    lost = next(place for place in range(2) if second_node.holds(pids[place][0]))
    kept = 1 - lost
    assert head.holds(pids[kept][0])

    second_node.kill()
    await wait_until_gone(pids[lost])
    # the unit of the lost node is run again where there is room, which is on the head
    async with asyncio.timeout(PATIENCE_SECONDS):
        result = await units[lost].task
    assert head.holds(int(result.payload["pid"]))
    assert telemetry.worker_restarts == ["node_lost"]
    assert not units[kept].task.done()
    assert is_running(pids[kept][0])

    # two seconds on an idle machine; here it only must not be the minute that the unit would hang
    async with asyncio.timeout(PATIENCE_SECONDS):
        units[kept].task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await units[kept].task
        await wait_until_gone(pids[kept])


async def test_a_cluster_without_room_says_what_a_worker_asks_for(make: Make) -> None:
    executor = make(gpus_per_unit=0.5, limits=WorkerLimits(memory_bytes=1 << 50))
    await executor.start()
    with pytest.raises(UnavailableError, match=r"1 CPUs, 0\.5 GPUs and 1073741824 MiB"):
        await executor.check()


async def test_a_cluster_that_is_not_there_is_unavailable_with_a_remedy(make: Make) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        port = probe.getsockname()[1]
    executor = make(link=RayLink(address=f"ray://127.0.0.2:{port}", token_file=""))
    with pytest.raises(UnavailableError, match=r"ray_address.*client server"):
        await executor.start()


@pytest.mark.parametrize("address", ["ray-head:6379", "http://ray-head:10001", "ray://"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequestError, match="ray_address"):
        RayLink(address=address, token_file="")


def test_a_token_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="ray_token_file"):
        RayLink(address="ray://head:10001", token_file=str(tmp_path / "missing"))
