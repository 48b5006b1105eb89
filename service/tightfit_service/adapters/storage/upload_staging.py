"""Unfinished uploads in a folder: one data file and one ticket each, so that they survive a restart."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tightfit_service.application.ports import UploadTicket
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    IntegrityError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    ResourceExhaustedError,
)

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
    """Implements `ports.UploadStaging` below one folder. Safe for many threads of one process."""

    def __init__(self, *, root: Path) -> None:
        self._root = root
        self._root.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, _OpenUpload] = {}
        self._lock = threading.Lock()
        # One thread, so that the parts of an upload are hashed in the order they came.
        self._hashing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload-hashing")
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload-writeback")

    def open(self, ticket: UploadTicket) -> int:
        """Open an upload, or find it again, and return its committed size."""
        with self._lock:
            try:
                upload = self._load(ticket.upload_id)
            except NotFoundError:
                upload = None
            if upload is not None:
                if (upload.ticket.digest, upload.ticket.project) != (ticket.digest, ticket.project):
                    raise AlreadyExistsError(
                        f"upload {ticket.upload_id!r} was opened for other bytes",
                        field="upload_id",
                        remedy="leave the id out to let the server choose one",
                    )
                return upload.committed
            free = shutil.disk_usage(self._root).free
            if ticket.size_bytes + RESERVE_BYTES > free:
                raise ResourceExhaustedError(
                    f"no room for {ticket.size_bytes} bytes: {free} bytes are free",
                    field="size_bytes",
                    remedy="delete models, datasets or jobs that are no longer needed",
                )
            self._ticket_path(ticket.upload_id).write_text(json.dumps(asdict(ticket)))
            self._data_path(ticket.upload_id).touch()
            return self._load(ticket.upload_id).committed

    def find(self, upload_id: str) -> tuple[UploadTicket, int]:
        """Return the ticket and the committed size."""
        with self._lock:
            upload = self._load(upload_id)
        return upload.ticket, upload.committed

    def append(self, upload_id: str, *, offset: int, data: bytes) -> int:
        """Write at the committed size and return the new size."""
        with self._lock:
            upload = self._load(upload_id)
        with upload.lock:
            if offset != upload.committed:
                raise PreconditionError(
                    f"bytes were sent for offset {offset}, but {upload.committed} are committed",
                    field="offset",
                    remedy=f"resume at {upload.committed}",
                )
            if offset + len(data) > upload.ticket.size_bytes:
                raise InvalidRequestError(
                    f"more than the announced {upload.ticket.size_bytes} bytes were sent",
                    field="data",
                    remedy="announce the file's true size",
                )
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

    def complete(self, upload_id: str) -> Path:
        """Verify size and digest and return the file."""
        with self._lock:
            upload = self._load(upload_id)
        with upload.lock:
            if upload.committed != upload.ticket.size_bytes:
                raise PreconditionError(
                    f"{upload.committed} of {upload.ticket.size_bytes} bytes have arrived",
                    field="offset",
                    remedy=f"resume at {upload.committed}",
                )
            while upload.hashing:
                upload.hashing.popleft().result()
            matches = upload.hasher.hexdigest() == upload.ticket.digest
        if not matches:
            self.discard(upload_id)
            raise IntegrityError(
                "the bytes that arrived do not have the announced digest; the upload was discarded",
                field="digest",
                remedy="send the file again",
            )
        return self._data_path(upload_id)

    def discard(self, upload_id: str) -> None:
        """Remove an upload with its bytes."""
        with self._lock:
            upload = self._open.pop(upload_id, None)
            if upload is not None:
                if upload.writeback is not None:
                    wait([upload.writeback])
                os.close(upload.descriptor)
            self._data_path(upload_id).unlink(missing_ok=True)
            self._ticket_path(upload_id).unlink(missing_ok=True)

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

    def _load(self, upload_id: str) -> _OpenUpload:
        """Return the open upload, reading it back from disk after a restart. Needs the lock."""
        upload = self._open.get(upload_id)
        if upload is not None:
            return upload
        ticket_path = self._ticket_path(upload_id)
        if not ticket_path.is_file():
            raise NotFoundError(
                f"no upload {upload_id!r}", field="upload_id", remedy="start a new upload"
            )
        ticket = UploadTicket(**json.loads(ticket_path.read_text()))
        descriptor = os.open(self._data_path(upload_id), os.O_RDWR | os.O_CREAT, 0o600)
        hasher = hashlib.sha256()
        committed = 0
        while chunk := os.pread(descriptor, _READ_BYTES, committed):
            hasher.update(chunk)
            committed += len(chunk)
        upload = _OpenUpload(
            ticket=ticket, descriptor=descriptor, committed=committed, hasher=hasher
        )
        self._open[upload_id] = upload
        return upload

    def _data_path(self, upload_id: str) -> Path:
        return self._root / f"{upload_id}.part"

    def _ticket_path(self, upload_id: str) -> Path:
        return self._root / f"{upload_id}.json"
