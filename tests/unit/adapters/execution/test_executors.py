"""The executor that a deployment asks for, and what its workers are shut out of."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from fakes.artifacts import InMemoryArtifactStores
from fakes.telemetry import RecordingTelemetry
from tightfit_service.adapters.execution.executors import ExecutorOptions, make_executor
from tightfit_service.adapters.execution.limits import Confinement, WorkerUser
from tightfit_service.adapters.execution.local_processes import LocalProcessExecutor
from tightfit_service.adapters.execution.ray_executor import RayExecutor
from tightfit_service.application.ports import Executor
from tightfit_service.domain.errors import InvalidRequestError


def make(data_dir: Path, **settings: Any) -> Executor:
    values: dict[str, Any] = {
        "data_dir": data_dir,
        "worker_count": 1,
        "threads": None,
        "confinement": Confinement(),
    }
    return make_executor(
        ExecutorOptions(**(values | settings)),
        artifacts=InMemoryArtifactStores(),
        telemetry=RecordingTelemetry(),
    )


def test_work_stays_on_this_machine_unless_ray_is_asked_for(tmp_path: Path) -> None:
    assert isinstance(make(tmp_path), LocalProcessExecutor)
    on_ray = make(tmp_path, kind="ray", ray_address="ray://head:10001")
    assert isinstance(on_ray, RayExecutor)


def test_ray_needs_an_address(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="ray_address"):
        make(tmp_path, kind="ray")


def test_an_unknown_isolation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="worker_isolation"):
        make(tmp_path, confinement=Confinement(isolation="maybe"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start workers as another user")
def test_a_user_of_workers_may_enter_what_is_theirs_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch(mode=0o644)
    make(tmp_path, confinement=Confinement(user="nobody"))
    user = WorkerUser.named("nobody")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    theirs = modes.pop("workers")
    assert modes == {"state.db": 0o600, "artifacts": 0o700, "uploads": 0o700, "keys": 0o700}
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o711
    assert theirs & 0o700 == 0o700
    assert (tmp_path / "workers").stat().st_uid == user.uid
