"""What every `ArtifactStore` does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tightfit_service.application.ports import ArtifactStore, ArtifactStores
from tightfit_service.domain.errors import IntegrityError, InvalidRequestError, NotFoundError

MISSING = "0" * 64
CLOCKS_DIFFER = timedelta(seconds=30)
SIZES = [0, 1, 1000, (1 << 20) - 1, 1 << 20, (2 << 20) + 17]

WriteFile = Callable[[bytes], Path]


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    """Write bytes to a new file and return its path."""

    def write(data: bytes) -> Path:
        path = tmp_path / f"source-{len(list(tmp_path.iterdir()))}"
        path.write_bytes(data)
        return path

    return write


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", SIZES)
def test_bytes_come_back(artifacts: ArtifactStore, write_file: WriteFile, size: int) -> None:
    data = os.urandom(size)
    artifacts.put(write_file(data), digest_of(data))
    assert artifacts.size(digest_of(data)) == size
    assert b"".join(artifacts.read(digest_of(data))) == data


def test_several_parts_come_back(artifacts: ArtifactStore, write_file: WriteFile) -> None:
    data = os.urandom(1 << 20) * 35
    artifacts.put(write_file(data), digest_of(data))
    seen = hashlib.sha256()
    for chunk in artifacts.read(digest_of(data)):
        seen.update(chunk)
    assert seen.hexdigest() == digest_of(data)


def test_storing_again_does_nothing(artifacts: ArtifactStore, write_file: WriteFile) -> None:
    for _ in range(2):
        artifacts.put(write_file(b"same"), digest_of(b"same"))
    assert b"".join(artifacts.read(digest_of(b"same"))) == b"same"


def test_bytes_that_the_caller_verified_come_back(
    artifacts: ArtifactStore, write_file: WriteFile
) -> None:
    data = os.urandom(2000)
    artifacts.put(write_file(data), digest_of(data), is_verified=True)
    assert b"".join(artifacts.read(digest_of(data))) == data


def test_wrong_bytes_are_refused_and_not_kept(
    artifacts: ArtifactStore, write_file: WriteFile
) -> None:
    for data in (b"wrong", os.urandom(1 << 20) * 17):
        with pytest.raises(IntegrityError):
            artifacts.put(write_file(data), digest_of(b"right"))
        assert artifacts.size(digest_of(b"right")) is None
        with pytest.raises(NotFoundError):
            artifacts.read(digest_of(b"right"))


@pytest.mark.parametrize("offset", [1, 999, 1000])
def test_reading_starts_at_the_offset(
    artifacts: ArtifactStore, write_file: WriteFile, offset: int
) -> None:
    data = os.urandom(1000)
    artifacts.put(write_file(data), digest_of(data))
    assert b"".join(artifacts.read(digest_of(data), offset=offset)) == data[offset:]


def test_chunks_have_the_asked_size(artifacts: ArtifactStore, write_file: WriteFile) -> None:
    data = os.urandom(1000)
    artifacts.put(write_file(data), digest_of(data))
    for offset in (0, 100):
        chunks = list(artifacts.read(digest_of(data), offset=offset, chunk_bytes=300))
        assert [len(chunk) for chunk in chunks] == [300, 300, 300, 100 - offset][
            : 4 - offset // 100
        ]


def test_a_reader_may_stop_early(artifacts: ArtifactStore, write_file: WriteFile) -> None:
    data = os.urandom(5000)
    artifacts.put(write_file(data), digest_of(data))
    reader = artifacts.read(digest_of(data), chunk_bytes=1000)
    assert next(reader) == data[:1000]
    del reader
    artifacts.read(digest_of(data))
    assert b"".join(artifacts.read(digest_of(data))) == data


def test_what_is_not_stored_is_not_found(artifacts: ArtifactStore, tmp_path: Path) -> None:
    assert artifacts.size(MISSING) is None
    with pytest.raises(NotFoundError):
        artifacts.read(MISSING)
    with pytest.raises(NotFoundError):
        artifacts.fetch(MISSING, tmp_path / "copy")
    assert not list(tmp_path.glob("*copy*"))
    artifacts.delete(MISSING)


def test_a_fetched_file_is_the_stored_one(
    artifacts: ArtifactStore, write_file: WriteFile, tmp_path: Path
) -> None:
    data = os.urandom(70_000)
    artifacts.put(write_file(data), digest_of(data))
    artifacts.fetch(digest_of(data), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_deleted_bytes_are_gone(artifacts: ArtifactStore, write_file: WriteFile) -> None:
    artifacts.put(write_file(b"x"), digest_of(b"x"))
    artifacts.delete(digest_of(b"x"))
    assert artifacts.size(digest_of(b"x")) is None
    artifacts.put(write_file(b"x"), digest_of(b"x"))
    assert artifacts.size(digest_of(b"x")) == 1


def test_racing_writers_of_the_same_bytes_both_succeed(
    artifacts: ArtifactStore, write_file: WriteFile
) -> None:
    data = os.urandom(300_000)
    sources = [write_file(data) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda source: artifacts.put(source, digest_of(data)), sources))
    assert b"".join(artifacts.read(digest_of(data))) == data


@pytest.mark.parametrize("digest", ["", "abc", "../" * 22, "A" * 64, "g" * 64, "0" * 64 + "\n"])
def test_a_digest_of_another_form_is_refused(
    artifacts: ArtifactStore, write_file: WriteFile, tmp_path: Path, digest: str
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: artifacts.put(write_file(b"x"), digest),
        lambda: artifacts.size(digest),
        lambda: artifacts.read(digest),
        lambda: artifacts.fetch(digest, tmp_path / "copy"),
        lambda: artifacts.delete(digest),
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError) as caught:
            call()
        assert caught.value.field == "digest"


def test_a_range_that_cannot_be_is_refused(artifacts: ArtifactStore) -> None:
    with pytest.raises(InvalidRequestError):
        artifacts.read(MISSING, offset=-1)
    with pytest.raises(InvalidRequestError):
        artifacts.read(MISSING, chunk_bytes=0)


def test_a_healthy_store_passes_its_check(artifact_stores: ArtifactStores) -> None:
    artifact_stores.check()


def test_projects_see_nothing_of_each_other(
    artifact_stores: ArtifactStores, write_file: WriteFile
) -> None:
    mine, theirs = artifact_stores.of("mine"), artifact_stores.of("theirs")
    mine.put(write_file(b"secret"), digest_of(b"secret"))
    assert theirs.size(digest_of(b"secret")) is None
    with pytest.raises(NotFoundError):
        list(theirs.read(digest_of(b"secret")))
    theirs.put(write_file(b"secret"), digest_of(b"secret"))
    theirs.delete(digest_of(b"secret"))
    assert b"".join(mine.read(digest_of(b"secret"))) == b"secret"


@pytest.mark.parametrize("project", ["", "..", "../other", "a/b", ".hidden", "x" * 129])
def test_what_is_no_project_has_no_store(artifact_stores: ArtifactStores, project: str) -> None:
    with pytest.raises(InvalidRequestError):
        artifact_stores.of(project)


def test_a_listing_tells_what_is_stored_and_since_when(
    artifacts: ArtifactStore, write_file: WriteFile
) -> None:
    before = datetime.now(UTC) - CLOCKS_DIFFER
    for data in (b"x", b"yy"):
        artifacts.put(write_file(data), digest_of(data))
    listed = {found.digest: found for found in artifacts.list_stored()}
    assert {digest: found.size_bytes for digest, found in listed.items()} == {
        digest_of(b"x"): 1,
        digest_of(b"yy"): 2,
    }
    for found in listed.values():
        assert before <= found.modify_time <= datetime.now(UTC) + CLOCKS_DIFFER


def test_what_is_set_aside_is_out_of_sight_until_it_is_restored(
    artifacts: ArtifactStore, write_file: WriteFile
) -> None:
    digest = digest_of(b"data")
    artifacts.put(write_file(b"data"), digest)
    before = datetime.now(UTC) - CLOCKS_DIFFER
    assert artifacts.set_aside(digest) == 4
    assert artifacts.set_aside(digest) == 0
    assert artifacts.size(digest) is None
    with pytest.raises(NotFoundError):
        list(artifacts.read(digest))
    assert not list(artifacts.list_stored())
    (aside,) = artifacts.list_set_aside()
    assert (aside.digest, aside.size_bytes) == (digest, 4)
    assert before <= aside.modify_time
    assert artifacts.restore(digest)
    assert not artifacts.restore(digest)
    assert b"".join(artifacts.read(digest)) == b"data"
    assert not list(artifacts.list_set_aside())


def test_fetching_restores_what_is_set_aside(
    artifacts: ArtifactStore, write_file: WriteFile, tmp_path: Path
) -> None:
    digest = digest_of(b"data")
    artifacts.put(write_file(b"data"), digest)
    artifacts.set_aside(digest)
    artifacts.fetch(digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"data"
    assert artifacts.size(digest) == 4


def test_only_what_is_purged_is_gone_for_good(
    artifacts: ArtifactStore, write_file: WriteFile, tmp_path: Path
) -> None:
    digest = digest_of(b"data")
    for _ in range(2):
        artifacts.put(write_file(b"data"), digest)
        artifacts.set_aside(digest)
    first, second = artifacts.list_set_aside()
    artifacts.purge(first)
    artifacts.purge(first)
    assert [found.handle for found in artifacts.list_set_aside()] == [second.handle]
    artifacts.put(write_file(b"data"), digest)
    artifacts.purge(second)
    assert b"".join(artifacts.read(digest)) == b"data"
    artifacts.set_aside(digest)
    artifacts.delete(digest)
    with pytest.raises(NotFoundError):
        artifacts.fetch(digest, tmp_path / "copy")


def test_projects_are_known_by_what_they_have(
    artifact_stores: ArtifactStores, write_file: WriteFile
) -> None:
    for project in ("mine", "theirs"):
        artifact_stores.of(project).put(write_file(b"data"), digest_of(b"data"))
    artifact_stores.of("theirs").set_aside(digest_of(b"data"))
    artifact_stores.check()
    assert {"mine", "theirs"} <= set(artifact_stores.projects())
    assert all(not project.startswith(".") for project in artifact_stores.projects())
    assert artifact_stores.collect_remains(older_than=timedelta(hours=1)) == 0
    assert artifact_stores.of("mine").size(digest_of(b"data")) == 4
