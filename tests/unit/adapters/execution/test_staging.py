"""Folders of units: inputs cached by digest within bounds, outputs only from where they belong."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fakes.artifacts import InMemoryArtifactStore, InMemoryArtifactStores
from tightfit_service.adapters.execution.staging import Staging
from tightfit_service.domain.errors import (
    IntegrityError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    WorkFailedError,
)


@pytest.fixture
def artifacts() -> InMemoryArtifactStore:
    return InMemoryArtifactStore()


@pytest.fixture
def staging(artifacts: InMemoryArtifactStore, tmp_path: Path) -> Staging:
    made = Staging(
        artifacts=InMemoryArtifactStores(artifacts), root=tmp_path / "staging", cache_bytes=250
    )
    made.reset()
    return made


def cached(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "staging" / "cache").iterdir()}


def units(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "staging" / "units").iterdir())


def test_inputs_are_read_only_files_by_name(
    staging: Staging, artifacts: InMemoryArtifactStore
) -> None:
    unit = staging.open_unit(
        "default", {"model": artifacts.add(b"m"), "data.npz": artifacts.add(b"d")}
    )
    assert {name: path.read_bytes() for name, path in unit.inputs.items()} == {
        "model": b"m",
        "data.npz": b"d",
    }
    assert all(path.stat().st_mode & 0o222 == 0 for path in unit.inputs.values())
    assert not list(unit.output_dir.iterdir())


def test_racing_units_fetch_an_input_once(
    staging: Staging, artifacts: InMemoryArtifactStore
) -> None:
    digest = artifacts.add(b"data")
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: staging.open_unit("default", {"data": digest}), range(8)))
    assert artifacts.fetch_count == 1
    assert all(unit.inputs["data"].read_bytes() == b"data" for unit in opened)


def test_the_cache_drops_what_was_used_longest_ago(
    staging: Staging, artifacts: InMemoryArtifactStore, tmp_path: Path
) -> None:
    digests = [artifacts.add(bytes([n]) * 100) for n in range(3)]
    first = staging.open_unit("default", {"data": digests[0]})
    staging.open_unit("default", {"data": digests[1]})
    for age, digest in ((20, digests[0]), (10, digests[1])):
        path = tmp_path / "staging" / "cache" / f"default-{digest}"
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    staging.open_unit("default", {"data": digests[2]})
    assert cached(tmp_path) == {f"default-{digest}" for digest in digests[1:]}
    assert first.inputs["data"].read_bytes() == bytes([0]) * 100


def test_an_input_beyond_the_cache_still_reaches_its_unit(
    staging: Staging, artifacts: InMemoryArtifactStore, tmp_path: Path
) -> None:
    unit = staging.open_unit("default", {"data": artifacts.add(b"x" * 1000)})
    assert unit.inputs["data"].stat().st_size == 1000
    assert cached(tmp_path) == set()


def test_a_unit_that_cannot_be_opened_leaves_nothing(
    staging: Staging, artifacts: InMemoryArtifactStore, tmp_path: Path
) -> None:
    good = artifacts.add(b"x")
    with pytest.raises(NotFoundError):
        staging.open_unit("default", {"good": good, "missing": "0" * 64})
    artifacts.contents[good] = b"damaged"
    staging.reset()
    with pytest.raises(IntegrityError):
        staging.open_unit("default", {"good": good})
    artifacts.is_down = True
    with pytest.raises(UnavailableError):
        staging.open_unit("default", {"good": good})
    assert units(tmp_path) == []
    assert cached(tmp_path) == set()


def test_outputs_are_stored_by_digest(staging: Staging, artifacts: InMemoryArtifactStore) -> None:
    unit = staging.open_unit("default", {})
    (unit.output_dir / "sub").mkdir()
    (unit.output_dir / "sub" / "model").write_bytes(b"result")
    digests = staging.collect(unit, {"model": str(unit.output_dir / "sub" / "model")})
    assert artifacts.contents[digests["model"]] == b"result"


def test_outputs_elsewhere_are_refused(staging: Staging, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    unit = staging.open_unit("default", {})
    (unit.output_dir / "link").symlink_to(secret)
    for path in (secret, unit.output_dir / "link", unit.output_dir, unit.output_dir / "missing"):
        with pytest.raises(WorkFailedError):
            staging.collect(unit, {"out": str(path)})


def test_closing_and_resetting_leave_nothing(staging: Staging, tmp_path: Path) -> None:
    unit = staging.open_unit("default", {})
    (unit.output_dir / "file").write_text("x")
    staging.close_unit(unit)
    assert units(tmp_path) == []
    staging.open_unit("default", {})
    staging.reset()
    assert units(tmp_path) == []


def test_a_full_disk_is_resource_exhausted(
    staging: Staging, artifacts: InMemoryArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    digest = artifacts.add(b"x")
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(ResourceExhaustedError):
        staging.open_unit("default", {"data": digest})
