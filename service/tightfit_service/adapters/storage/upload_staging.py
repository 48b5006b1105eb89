"""Unfinished uploads in a folder: one data file and one ticket each, so that they survive a restart."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tightfit_service.adapters.storage.content import check_project
from tightfit_service.adapters.storage.upload_rules import (
    check_next,
    check_same_upload,
    check_whole,
    no_upload,
    other_bytes,
)
from tightfit_service.application.ports import ArtifactStores, SignedUrl, UploadTicket
from tightfit_service.domain.errors import NotFoundError, ResourceExhaustedError

if TYPE_CHECKING:
    from hashlib import _Hash

_READ_BYTES = 1 << 20

_WRITEBACK_BYTES = 16 << 20
"""The disk is asked to take so many bytes at a time, while more arrive; else it would all wait for the end."""

_PARTS_AHEAD = 4
"""Parts of an upload that may wait for the hash: with them arrives no more than memory can bear."""

RESERVE_BYTES = 64 << 20
"""Room on the disk that uploads leave for the database and for running trials."""


@dataclass
class _OpenUpload:
    """An upload with its file open; the digest is computed while bytes arrive."""

    ticket: UploadTicket
    descriptor: int
    committed: int
    hasher: _Hash
    hashing: deque[Future[None]] = field(default_factory=deque)
    """Parts that are written and wait for their turn to be hashed, in order."""
    unsynced: int = 0
    writeback: Future[None] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class FolderUploadStaging:
    """Implements `ports.UploadStaging` below one folder. Safe for many threads of one process.

    Args:
        root: Made if it is missing; replicas that share it find each other's uploads.
        artifacts: Where completed uploads go.
    """

    def __init__(self, *, root: Path, artifacts: ArtifactStores) -> None:
        self._root = root
        self._artifacts = artifacts
        self._root.mkdir(parents=True, exist_ok=True)
        self._open: dict[tuple[str, str], _OpenUpload] = {}
        self._lock = threading.Lock()
        # One thread, so that the parts of an upload are hashed in the order they came.
        self._hashing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload-hashing")
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload-writeback")

    def open(self, ticket: UploadTicket) -> int:
        """Open an upload, or find it again, and return its committed size."""
        with self._lock:
            try:
                upload = self._load(ticket.project, ticket.upload_id)
            except NotFoundError:
                upload = None
            if upload is not None:
                check_same_upload(upload.ticket, ticket)
                return upload.committed
            free = shutil.disk_usage(self._root).free
            if ticket.size_bytes + RESERVE_BYTES > free:
                raise ResourceExhaustedError(
                    f"no room for {ticket.size_bytes} bytes: {free} bytes are free",
                    field="size_bytes",
                    remedy="delete models, datasets or jobs that are no longer needed",
                )
            folder = self._data_path(ticket.project, ticket.upload_id).parent
            folder.mkdir(exist_ok=True)
            self._data_path(ticket.project, ticket.upload_id).touch()
            # the ticket last: without it there is no upload
            self._ticket_path(ticket.project, ticket.upload_id).write_text(
                json.dumps(asdict(ticket))
            )
            return self._load(ticket.project, ticket.upload_id).committed

    def find(self, project: str, upload_id: str) -> tuple[UploadTicket, int]:
        """See `UploadStaging`."""
        with self._lock:
            upload = self._load(project, upload_id)
        return upload.ticket, upload.committed

    def append(self, project: str, upload_id: str, *, offset: int, data: bytes) -> int:
        """See `UploadStaging`. What was appended is committed."""
        with self._lock:
            upload = self._load(project, upload_id)
        with upload.lock:
            check_next(upload.ticket, upload.committed, offset=offset, data=data)
            self._write(upload, data)
            # Hashing takes longer than writing: it goes on while the next part arrives.
            upload.hashing.append(self._hashing.submit(upload.hasher.update, data))
            if len(upload.hashing) > _PARTS_AHEAD:
                upload.hashing.popleft().result()
            upload.committed += len(data)
            upload.unsynced += len(data)
            is_idle = upload.writeback is None or upload.writeback.done()
            if upload.unsynced >= _WRITEBACK_BYTES and is_idle:
                upload.unsynced = 0
                upload.writeback = self._disk.submit(os.fdatasync, upload.descriptor)
            return upload.committed

    def flush(self, project: str, upload_id: str) -> int:
        """See `UploadStaging`. There is nothing left to commit."""
        with self._lock:
            try:
                return self._load(project, upload_id).committed
            except NotFoundError:
                return 0

    def complete(self, project: str, upload_id: str) -> None:
        """See `UploadStaging`. The digest was computed while bytes arrived; they are not read again."""
        with self._lock:
            upload = self._load(project, upload_id)
        with upload.lock:
            check_whole(upload.ticket, upload.committed)
            while upload.hashing:
                upload.hashing.popleft().result()
            digest = upload.hasher.hexdigest()
        if digest != upload.ticket.digest:
            self.discard(project, upload_id)
            raise other_bytes()
        self._artifacts.of(project).put(
            self._data_path(project, upload_id), digest, is_verified=True
        )

    def discard(self, project: str, upload_id: str) -> None:
        """See `UploadStaging`."""
        with self._lock:
            upload = self._open.pop((project, upload_id), None)
            if upload is not None:
                if upload.writeback is not None:
                    wait([upload.writeback])
                os.close(upload.descriptor)
            self._ticket_path(project, upload_id).unlink(missing_ok=True)
            self._data_path(project, upload_id).unlink(missing_ok=True)

    def direct_url(self, ticket: UploadTicket, *, lifetime: timedelta) -> SignedUrl | None:
        """See `UploadStaging`. A folder has no address."""
        del ticket, lifetime
        return None

    def expire(self, *, older_than: timedelta, dry_run: bool = False) -> int:
        """See `UploadStaging`."""
        oldest = time.time() - older_than.total_seconds()
        expired = []
        for path in self._root.glob("*/*.part"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    expired.append(path)
        for path in expired:
            if not dry_run:
                self.discard(path.parent.name, path.stem)
        return len(expired)

    def _write(self, upload: _OpenUpload, data: bytes) -> None:
        view = memoryview(data)
        written = 0
        try:
            while written < len(view):
                written += os.pwrite(upload.descriptor, view[written:], upload.committed + written)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(upload.descriptor, upload.committed)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceExhaustedError(
                    f"the disk is full; {upload.committed} bytes are kept",
                    field="data",
                    remedy=f"make room on the server, then resume at {upload.committed}",
                ) from error
            raise

    def _load(self, project: str, upload_id: str) -> _OpenUpload:
        """Return the open upload, reading it back from disk after a restart. Needs the lock."""
        upload = self._open.get((project, upload_id))
        if upload is not None:
            if self._is_current(project, upload_id, upload):
                return upload
            # another replica on the same folder finished it, and perhaps began it again
            os.close(self._open.pop((project, upload_id)).descriptor)
        ticket_path = self._ticket_path(project, upload_id)
        if not ticket_path.is_file():
            raise no_upload(upload_id)
        ticket = UploadTicket(**json.loads(ticket_path.read_text()))
        descriptor = os.open(self._data_path(project, upload_id), os.O_RDWR | os.O_CREAT, 0o600)
        hasher = hashlib.sha256()
        committed = 0
        while chunk := os.pread(descriptor, _READ_BYTES, committed):
            hasher.update(chunk)
            committed += len(chunk)
        upload = _OpenUpload(
            ticket=ticket, descriptor=descriptor, committed=committed, hasher=hasher
        )
        self._open[project, upload_id] = upload
        return upload

    def _is_current(self, project: str, upload_id: str, upload: _OpenUpload) -> bool:
        try:
            found = self._data_path(project, upload_id).stat()
        except FileNotFoundError:
            return False
        return found.st_ino == os.fstat(upload.descriptor).st_ino

    def _data_path(self, project: str, upload_id: str) -> Path:
        check_project(project)
        return self._root / project / f"{upload_id}.part"

    def _ticket_path(self, project: str, upload_id: str) -> Path:
        check_project(project)
        return self._root / project / f"{upload_id}.json"
