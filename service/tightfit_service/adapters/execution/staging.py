"""Folders of running units: inputs fetched once and linked in, outputs stored as artifacts."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tightfit_service.adapters.execution.limits import WorkerUser
from tightfit_service.domain.errors import (
    InvalidRequestError,
    ResourceExhaustedError,
    WorkFailedError,
)

DEFAULT_CACHE_BYTES = 8 << 30

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class UnitFiles(Protocol):
    """The part of an `ArtifactStore` that units need."""

    def fetch(self, digest: str, destination: Path) -> None:
        """Copy to a local file, verifying the digest."""
        ...

    def put(self, source: Path, digest: str) -> None:
        """Store a file under its digest."""
        ...


class ProjectFiles(Protocol):
    """The files of all projects, each apart from the others."""

    def of(self, project: str) -> UnitFiles:
        """Return those of a project."""
        ...


@dataclass(frozen=True, kw_only=True)
class UnitFolder:
    """The files of one unit: read-only inputs by name, and an empty folder for outputs."""

    project: str
    root: Path
    inputs: Mapping[str, Path]
    output_dir: Path


class Staging:
    """Prepares and clears folders of units below `root`, which belongs to this object alone.

    Inputs are kept by project and digest in `root/cache` up to `cache_bytes` (the least recently used go
    first), so that a dataset is fetched once and not for each trial. Safe for many threads. Folders for
    outputs belong to `owner`, where workers have a user of their own.
    """

    def __init__(
        self,
        *,
        artifacts: ProjectFiles,
        root: Path,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        owner: WorkerUser | None = None,
    ) -> None:
        self._owner = owner
        self._artifacts = artifacts
        self._root = root
        self._units = root / "units"
        self._cache = root / "cache"
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._key_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def reset(self) -> None:
        """Remove what an earlier life of the server left, and make the folders."""
        shutil.rmtree(self._root, ignore_errors=True)
        with _disk_errors():
            self._units.mkdir(parents=True)
            self._cache.mkdir()
            if self._owner is not None:
                # units find their own inputs by paths that they are told, and nobody else's
                self._units.chmod(0o711)
                self._cache.chmod(0o700)

    def open_unit(self, project: str, inputs: Mapping[str, str]) -> UnitFolder:
        """Return a new folder with the inputs (name to digest) in it.

        Raises:
            NotFoundError, IntegrityError, UnavailableError: From the artifact store.
            ResourceExhaustedError: The disk is full.
            InvalidRequestError: A name cannot be the name of a file.
        """
        root = self._units / uuid.uuid4().hex
        try:
            with _disk_errors():
                (root / "inputs").mkdir(parents=True)
                (root / "outputs").mkdir()
                if self._owner is not None:
                    self._owner.own(root / "outputs")
                paths = {
                    name: self._stage(project, digest, root / "inputs" / _checked(name))
                    for name, digest in inputs.items()
                }
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        return UnitFolder(project=project, root=root, inputs=paths, output_dir=root / "outputs")

    def collect(self, unit: UnitFolder, outputs: Mapping[str, str]) -> Mapping[str, str]:
        """Store output files (name to path) as artifacts and return their digests by name.

        Raises:
            WorkFailedError: A path is not a file below the unit's output folder.
            UnavailableError, ResourceExhaustedError: From the artifact store.
        """
        digests: dict[str, str] = {}
        artifacts = self._artifacts.of(unit.project)
        allowed = unit.output_dir.resolve()
        for name, path in outputs.items():
            file = Path(path).resolve()
            if not file.is_relative_to(allowed) or not file.is_file():
                raise WorkFailedError(
                    f"output {name!r} is not a file in the unit's output folder",
                    remedy="the handler must write its outputs there",
                )
            with file.open("rb") as opened:
                digests[name] = hashlib.file_digest(opened, "sha256").hexdigest()
            artifacts.put(file, digests[name])
        return digests

    def close_unit(self, unit: UnitFolder) -> None:
        """Remove the folder of a unit."""
        shutil.rmtree(unit.root, ignore_errors=True)

    def _stage(self, project: str, digest: str, target: Path) -> Path:
        # a project that guesses a digest must not find another's bytes here
        key = f"{project}-{digest}"
        cached = self._cache / key
        # one thread fetches, the others link; the cache may let go of its link at any moment
        with self._lock_of(key):
            try:
                os.link(cached, target)
            except FileNotFoundError:
                self._artifacts.of(project).fetch(digest, target)
                target.chmod(0o444)
                os.link(target, cached)
            os.utime(target)
        with self._lock:
            shrink_folder(self._cache, self._cache_bytes)
        return target

    def _lock_of(self, key: str) -> threading.Lock:
        with self._lock:
            return self._key_locks[key]


def shrink_folder(folder: Path, most_bytes: int) -> None:
    """Remove the files of a folder that were not used for longest, until `most_bytes` are left at most."""
    files = []
    for entry in os.scandir(folder):
        # others may remove files meanwhile
        with suppress(FileNotFoundError):
            files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
    used = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if used <= most_bytes:
            return
        Path(path).unlink(missing_ok=True)
        used -= size


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{name!r} cannot be the name of an input file",
            field="inputs",
            remedy="use letters, digits, dots, dashes and underscores",
        )
    return name


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ResourceExhaustedError(
                "the disk of the scratch folder is full", remedy="free disk space, then try again"
            ) from error
        raise
