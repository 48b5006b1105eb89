"""A folder of artifacts when the disk is full, damaged, or gone."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tightfit_service.adapters.storage.folder_artifacts import FolderArtifacts, FolderArtifactStores
from tightfit_service.domain.errors import (
    IntegrityError,
    ResourceExhaustedError,
    UnavailableError,
)

DATA = bytes(range(256)) * 8192
DIGEST = hashlib.sha256(DATA).hexdigest()

Store = FolderArtifacts


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


def files_in(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("link_sources", [False, True])
@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, ResourceExhaustedError),
        (errno.EDQUOT, ResourceExhaustedError),
        (errno.EIO, UnavailableError),
    ],
)
def test_a_disk_that_fails_in_the_middle_leaves_nothing(
    root: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    link_sources: bool,
    number: int,
    error: type[Exception],
) -> None:
    store = Store(root=root, link_sources=link_sources)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(number))
        with pytest.raises(error):
            store.put(source, DIGEST)
    assert files_in(root) == []
    assert store.size(DIGEST) is None
    assert source.read_bytes() == DATA
    store.put(source, DIGEST)
    assert b"".join(store.read(DIGEST)) == DATA


def test_a_full_disk_is_found_by_the_check(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = FolderArtifactStores(root=root)
    monkeypatch.setattr(Path, "write_bytes", failing(errno.ENOSPC))
    with pytest.raises(ResourceExhaustedError):
        stores.check()


def test_linking_takes_over_the_blocks_and_copying_does_not(root: Path, source: Path) -> None:
    for link_sources, links in ((True, 2), (False, 1)):
        store = Store(root=root / str(link_sources), link_sources=link_sources)
        store.put(source, DIGEST)
        (stored,) = files_in(root / str(link_sources))
        assert stored.stat().st_nlink == links
        source.unlink()
        assert b"".join(store.read(DIGEST)) == DATA
        source.write_bytes(DATA)


def test_a_copy_is_verified_even_when_the_caller_did(root: Path, source: Path) -> None:
    source.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(IntegrityError):
        Store(root=root).put(source, DIGEST, is_verified=True)
    assert files_in(root) == []


def test_linking_falls_back_to_copying(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(root=root, link_sources=True)
    monkeypatch.setattr(os, "link", failing(errno.EXDEV))
    store.put(source, DIGEST)
    assert b"".join(store.read(DIGEST)) == DATA


def test_a_stored_file_cannot_be_written(root: Path, source: Path) -> None:
    Store(root=root).put(source, DIGEST)
    (stored,) = files_in(root)
    assert stored.stat().st_mode & 0o222 == 0


def test_damaged_bytes_are_noticed(root: Path, source: Path, tmp_path: Path) -> None:
    store = Store(root=root)
    store.put(source, DIGEST)
    (stored,) = files_in(root)
    stored.chmod(0o644)
    stored.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(IntegrityError):
        store.fetch(DIGEST, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    reader = store.read(DIGEST)
    with pytest.raises(IntegrityError):
        list(reader)


@pytest.mark.parametrize(
    "call",
    [
        lambda store, source: store.put(source, DIGEST),
        lambda store, _: store.size(DIGEST),
        lambda store, _: store.read(DIGEST),
    ],
)
def test_a_folder_that_went_away_is_unavailable(
    root: Path, source: Path, call: Callable[[Store, Path], object]
) -> None:
    store = Store(root=root)
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(UnavailableError):
        call(store, source)
    assert not root.exists()


def test_a_root_that_went_away_is_not_made_again(root: Path) -> None:
    stores = FolderArtifactStores(root=root)
    root.rename(root.with_name("elsewhere"))
    for call in (stores.check, lambda: stores.of("default")):
        with pytest.raises(UnavailableError):
            call()
    assert not root.exists()


def test_a_folder_that_cannot_be_made_is_unavailable(source: Path) -> None:
    with pytest.raises(UnavailableError):
        Store(root=source / "below-a-file")


def test_left_overs_of_a_killed_process_go_after_a_day(root: Path) -> None:
    Store(root=root)
    old, new = root / "incoming" / "old", root / "incoming" / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    yesterday = time.time() - 24 * 3600 - 1
    os.utime(old, (yesterday, yesterday))
    Store(root=root)
    assert not old.exists()
    assert new.exists()


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 100 kB: writes fail half-way, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_while_copying_leaves_nothing(
    root: Path, source: Path, request: pytest.FixtureRequest
) -> None:
    store = Store(root=root)
    request.getfixturevalue("small_disk")
    with pytest.raises(ResourceExhaustedError):
        store.put(source, DIGEST)
    assert files_in(root) == []


def test_a_disk_that_fills_up_while_fetching_leaves_nothing(
    root: Path, source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = Store(root=root)
    store.put(source, DIGEST)
    request.getfixturevalue("small_disk")
    with pytest.raises(ResourceExhaustedError):
        store.fetch(DIGEST, tmp_path / "copy")
    assert not list(tmp_path.glob("*copy*"))


def test_a_destination_without_folder_is_an_error(root: Path, source: Path, tmp_path: Path) -> None:
    store = Store(root=root)
    store.put(source, DIGEST)
    with pytest.raises(UnavailableError):
        store.fetch(DIGEST, tmp_path / "missing" / "copy")
