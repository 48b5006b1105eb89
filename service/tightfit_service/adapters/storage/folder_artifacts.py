"""Artifacts in a folder of the local or a shared file system."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from tightfit_service.adapters.storage.content import (
    CHUNK_BYTES,
    check_digest,
    check_project,
    check_range,
    is_digest,
    is_project,
    mismatch,
    not_stored,
    verified,
)
from tightfit_service.adapters.storage.store_metering import NotMeasured, timed
from tightfit_service.application.ports import SignedUrl, StoredArtifact, StoreTelemetry
from tightfit_service.domain.errors import (
    ResourceExhaustedError,
    TightfitError,
    UnavailableError,
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_STALE = timedelta(days=1)


_Identity = tuple[int, int, int]


class FolderArtifactStores:
    """Implements `ArtifactStores`: a folder below `root` for each project.

    Args:
        root: Made if it is missing; may be shared by many processes.
        link_sources: See `FolderArtifacts`.
        telemetry: Told of every operation.

    Raises:
        UnavailableError: The folder cannot be made.
    """

    def __init__(
        self, *, root: Path, link_sources: bool = False, telemetry: StoreTelemetry | None = None
    ) -> None:
        self._root = root
        self._telemetry = telemetry or NotMeasured()
        self._link_sources = link_sources
        self._stores: dict[str, FolderArtifacts] = {}
        self._lock = threading.Lock()
        with _translated():
            root.mkdir(parents=True, exist_ok=True)

    def of(self, project: str) -> FolderArtifacts:
        """See `ArtifactStores`."""
        check_project(project)
        with self._lock:
            if project not in self._stores:
                # a mount that went away must not be made anew as an empty folder
                if not self._root.is_dir():
                    raise _gone()
                self._stores[project] = FolderArtifacts(
                    root=self._root / project,
                    link_sources=self._link_sources,
                    telemetry=self._telemetry,
                )
            return self._stores[project]

    def projects(self) -> Sequence[str]:
        """See `ArtifactStores`."""
        with _translated():
            return sorted(entry.name for entry in self._root.iterdir() if is_project(entry.name))

    def collect_remains(self, *, older_than: timedelta) -> int:
        """See `ArtifactStores`."""
        return sum(self.of(project).remove_stale(older_than) for project in self.projects())

    def check(self) -> None:
        """See `ArtifactStores`. Writes, reads and removes a small file."""
        content = uuid.uuid4().bytes
        probe = self._root / f".check-{uuid.uuid4().hex}"
        with _translated():
            if not self._root.is_dir():
                raise _gone()
            try:
                probe.write_bytes(content)
                if probe.read_bytes() != content:
                    raise UnavailableError("the artifact folder does not keep what is written")
            except OSError as error:
                raise _unusable(error) from error
            finally:
                with suppress(OSError):
                    probe.unlink(missing_ok=True)


class FolderArtifacts:
    """Implements `ArtifactStore`: `root/ab/cd/abcd...`, written beside and renamed into place.

    What a process that was killed left unfinished lies in `root/incoming` and is removed, once it is
    a day old, by the next store that opens the folder. What was set aside lies in `root/aside`.

    Args:
        root: Made if it is missing; may be shared by many processes.
        link_sources: Take over the source's blocks by a hard link where the file system allows it,
            instead of copying, and trust `is_verified`. Only for callers that never write to a
            source again after `put`.
        telemetry: Told of every operation.

    Raises:
        UnavailableError: The folder cannot be made or read.
    """

    def __init__(
        self, *, root: Path, link_sources: bool = False, telemetry: StoreTelemetry | None = None
    ) -> None:
        self.telemetry = telemetry or NotMeasured()
        self._root = root
        self._incoming = root / "incoming"
        self._aside = root / "aside"
        self._link_sources = link_sources
        self._verified: dict[str, _Identity] = {}
        with _translated():
            self._incoming.mkdir(parents=True, exist_ok=True)
        self.remove_stale(_STALE)

    @timed("put")
    def put(self, source: Path, digest: str, *, is_verified: bool = False) -> None:
        """See `ArtifactStore`. The bytes are on the disk, not only in its cache, on return."""
        check_digest(digest)
        final = self._path(digest)
        with source.open("rb") as opened, _translated():
            if final.exists():
                return
            with self._temporary() as temporary:
                if self._link_sources and _try_link(source, temporary):
                    if not is_verified:
                        _write_through(opened, None, digest)
                    _sync(temporary)
                else:
                    with temporary.open("xb") as copy:
                        _write_through(opened, copy, digest)
                        copy.flush()
                        os.fsync(copy.fileno())
                temporary.chmod(0o444)
                self._make_fan_out(final.parent)
                temporary.rename(final)
                _sync(final.parent)
                self._verified[digest] = _identity(final)

    @timed("stat")
    def size(self, digest: str) -> int | None:
        """See `ArtifactStore`."""
        check_digest(digest)
        with _translated():
            try:
                return self._path(digest).stat().st_size
            except FileNotFoundError:
                self._check_root()
                return None

    def read(
        self, digest: str, *, offset: int = 0, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[bytes]:
        """See `ArtifactStore`. From offset 0 the last chunk comes only when the digest was right."""
        check_digest(digest)
        check_range(offset, chunk_bytes)
        if self.size(digest) is None:
            raise not_stored(digest)
        chunks = self._chunks(digest, offset, chunk_bytes)
        return verified(chunks, digest) if offset == 0 else chunks

    @timed("get")
    def fetch(self, digest: str, destination: Path) -> None:
        """See `ArtifactStore`. The destination appears whole or not at all.

        With `link_sources` it is a second name of the stored file, read-only, where the file system
        allows that; bytes that this process has verified already are then not read again.
        """
        if self.size(digest) is None:
            self.restore(digest)
        if self._link_sources and self._linked(digest, destination):
            return
        partial = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}")
        try:
            with _translated(), partial.open("xb") as copy:
                for chunk in self.read(digest):
                    copy.write(chunk)
            partial.rename(destination)
        finally:
            partial.unlink(missing_ok=True)

    def _linked(self, digest: str, destination: Path) -> bool:
        check_digest(digest)
        stored = self._path(digest)
        if self.size(digest) is None:
            raise not_stored(digest)
        with _translated():
            if not _try_link(stored, destination):
                return False
        try:
            with _translated():
                identity = _identity(stored)
                if self._verified.get(digest) != identity:
                    with stored.open("rb") as opened:
                        _write_through(opened, None, digest)
                    self._verified[digest] = identity
        except BaseException:
            destination.unlink(missing_ok=True)
            raise
        return True

    @timed("delete")
    def delete(self, digest: str) -> None:
        """See `ArtifactStore`."""
        check_digest(digest)
        with _translated():
            self._path(digest).unlink(missing_ok=True)
            for entry in self._aside.glob(f"{digest}.*"):
                entry.unlink(missing_ok=True)

    def list_stored(self) -> Iterator[StoredArtifact]:
        """See `ArtifactStore`."""
        with _translated():
            self._check_root()
            for path in self._root.glob("??/??/*"):
                found = _stored(path, path.name) if is_digest(path.name) else None
                if found is not None:
                    yield found

    @timed("copy")
    def set_aside(self, digest: str) -> int:
        """See `ArtifactStore`. A file is renamed, so it is either here or there."""
        check_digest(digest)
        entry = self._aside / f"{digest}.{uuid.uuid4().hex}"
        with _translated():
            self._aside.mkdir(exist_ok=True)
            try:
                self._path(digest).rename(entry)
            except FileNotFoundError:
                return 0
            return entry.stat().st_size

    def list_set_aside(self) -> Iterator[StoredArtifact]:
        """See `ArtifactStore`."""
        with _translated():
            if not self._aside.is_dir():
                return
            for path in self._aside.iterdir():
                found = _stored(path, path.name.partition(".")[0], handle=path.name)
                if found is not None:
                    yield found

    @timed("copy")
    def restore(self, digest: str) -> bool:
        """See `ArtifactStore`."""
        check_digest(digest)
        with _translated():
            for entry in self._aside.glob(f"{digest}.*"):
                with suppress(FileNotFoundError):
                    self._make_fan_out(self._path(digest).parent)
                    entry.rename(self._path(digest))
                    return True
        return False

    @timed("delete")
    def purge(self, aside: StoredArtifact) -> None:
        """See `ArtifactStore`."""
        with _translated():
            (self._aside / aside.handle).unlink(missing_ok=True)

    def download_url(self, digest: str, *, lifetime: timedelta) -> SignedUrl | None:
        """See `ArtifactStore`. A folder has no address."""
        del lifetime
        check_digest(digest)
        return None

    def _path(self, digest: str) -> Path:
        return self._root / digest[:2] / digest[2:4] / digest

    def _chunks(self, digest: str, offset: int, chunk_bytes: int) -> Iterator[bytes]:
        try:
            with self._path(digest).open("rb") as stored:
                stored.seek(offset)
                while chunk := stored.read(chunk_bytes):
                    yield chunk
        except FileNotFoundError as error:
            raise not_stored(digest) from error
        except OSError as error:
            raise _unusable(error) from error

    def _make_fan_out(self, folder: Path) -> None:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _sync(folder.parent)
            _sync(self._root)

    def _check_root(self) -> None:
        if not self._incoming.is_dir():
            raise _gone()

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        self._check_root()
        path = self._incoming / uuid.uuid4().hex
        try:
            yield path
        finally:
            # after the rename there is nothing left to remove; on a dead disk it cannot be done
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def remove_stale(self, older_than: timedelta) -> int:
        """Remove what writers that died left so long ago; return the bytes."""
        oldest = time.time() - older_than.total_seconds()
        freed = 0
        with _translated():
            for path in self._incoming.iterdir():
                with suppress(FileNotFoundError):
                    found = path.stat()
                    if found.st_mtime < oldest:
                        path.unlink()
                        freed += found.st_size
        return freed


def _stored(path: Path, digest: str, *, handle: str = "") -> StoredArtifact | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    # the time of the change of the name: a linked file keeps the modification time of its source
    when = datetime.fromtimestamp(found.st_ctime, UTC)
    return StoredArtifact(digest=digest, size_bytes=found.st_size, modify_time=when, handle=handle)


def _write_through(source: BinaryIO, copy: BinaryIO | None, digest: str) -> None:
    seen = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    while count := source.readinto(buffer):  # type: ignore[attr-defined]  # typeshed's BinaryIO lacks it
        seen.update(view[:count])
        if copy is not None:
            copy.write(view[:count])
    if seen.hexdigest() != digest:
        raise mismatch(digest, seen.hexdigest())


def _identity(path: Path) -> _Identity:
    """Return what changes when a file's bytes are changed or replaced."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _try_link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _FULL:
            raise
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unusable(error) from error


def _unusable(error: OSError) -> TightfitError:
    if error.errno in _FULL:
        return ResourceExhaustedError(
            "the disk is full",
            remedy="free disk space or delete jobs, models and datasets, then try again",
        )
    reason = errno.errorcode.get(error.errno or 0, "unknown")
    return UnavailableError(
        f"the artifact folder cannot be used ({reason})",
        remedy="check that the data folder is mounted and writable",
    )


def _gone() -> UnavailableError:
    return UnavailableError(
        "the artifact folder is gone",
        remedy="mount or restore the data folder, then try again",
    )
