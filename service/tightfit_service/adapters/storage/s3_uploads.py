"""Unfinished uploads in an object store, where any replica of the service finds them again."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tightfit_service.adapters.storage.content import CHUNK_BYTES, check_project
from tightfit_service.adapters.storage.s3_artifacts import S3ArtifactStores
from tightfit_service.adapters.storage.s3_bucket import ObjectInfo, part_bytes
from tightfit_service.adapters.storage.s3_multipart import MOST_COPY_BYTES
from tightfit_service.adapters.storage.upload_rules import (
    check_next,
    check_same_upload,
    check_whole,
    no_upload,
    other_bytes,
)
from tightfit_service.application.ports import SignedUrl, UploadTicket
from tightfit_service.domain.errors import NotFoundError

if TYPE_CHECKING:
    from hashlib import _Hash

PIECE_BYTES = 8 << 20
"""Appended bytes are committed in objects of this size; smaller ones cost a request each."""

_UPLOADS = ".uploads/"
_TICKET = "ticket.json"
_DIRECT = "direct"
_IDLE_SECONDS = 3600.0
_WRITERS = 4

Key = tuple[str, str]


@dataclass
class _Course:
    """What this process holds of an upload that passes through it: bytes not committed yet, and the digest."""

    ticket: UploadTicket
    received: int
    committed: int
    hasher: _Hash | None
    """None when bytes went another way: they are then read back to be verified."""
    pieces: list[str] = field(default_factory=list)
    """Keys of what the hasher saw."""
    buffer: bytearray = field(default_factory=bytearray)
    writing: Future[int] | None = None
    last_used: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Stored:
    """What the store holds of an upload: pieces that follow one another without gaps, from 0 on."""

    ticket: UploadTicket
    pieces: list[ObjectInfo]
    direct: ObjectInfo | None

    @property
    def committed(self) -> int:
        if self.direct is not None and self.direct.size_bytes == self.ticket.size_bytes:
            return self.ticket.size_bytes
        return sum(piece.size_bytes for piece in self.pieces)


class S3UploadStaging:
    """Implements `ports.UploadStaging` below `.uploads/PROJECT/UPLOAD/` of the artifacts' bucket.

    Every piece is an object of its own that nobody writes again, so what was verified is what becomes
    the artifact; that is made inside the store. What a client sent to a signed address can be written
    again as long as the address is valid: it is copied out of reach first. Safe for many threads, and
    for many replicas, of which the one that is asked next learns from the store how far an upload is.
    """

    def __init__(self, *, artifacts: S3ArtifactStores, offers_urls: bool = False) -> None:
        self._artifacts = artifacts
        self._bucket = artifacts.bucket
        self._root = f"{artifacts.prefix}{_UPLOADS}"
        self._offers_urls = offers_urls
        self._courses: dict[Key, _Course] = {}
        self._lock = threading.Lock()
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="upload-writing")

    def open(self, ticket: UploadTicket) -> int:
        """See `UploadStaging`."""
        key = f"{self._folder(ticket.project, ticket.upload_id)}{_TICKET}"
        with suppress(NotFoundError):
            stored = self._read(ticket.project, ticket.upload_id)
            check_same_upload(stored.ticket, ticket)
            return stored.committed
        self._bucket.put(key, json.dumps(asdict(ticket)).encode(), create_only=True)
        # another replica may have been faster
        stored = self._read(ticket.project, ticket.upload_id)
        check_same_upload(stored.ticket, ticket)
        return stored.committed

    def find(self, project: str, upload_id: str) -> tuple[UploadTicket, int]:
        """See `UploadStaging`."""
        stored = self._read(project, upload_id)
        return stored.ticket, stored.committed

    def append(self, project: str, upload_id: str, *, offset: int, data: bytes) -> int:
        """See `UploadStaging`. Bytes are committed in pieces, the rest by `flush`."""
        key = (project, upload_id)
        with self._lock:
            course = self._courses.get(key)
        if course is None or course.received != offset:
            course = self._take_up(key)
        with course.lock:
            check_next(course.ticket, course.received, offset=offset, data=data)
            course.last_used = time.monotonic()
            course.buffer += data
            course.received += len(data)
            if course.hasher is not None:
                course.hasher.update(data)
            if len(course.buffer) >= max(PIECE_BYTES, part_bytes(course.ticket.size_bytes) // 2):
                self._commit(key, course)
            return course.received

    def flush(self, project: str, upload_id: str) -> int:
        """See `UploadStaging`."""
        key = (project, upload_id)
        with self._lock:
            course = self._courses.get(key)
        if course is None:
            try:
                return self.find(project, upload_id)[1]
            except NotFoundError:
                return 0
        with course.lock:
            self._commit(key, course)
            self._settle(key, course)
            return course.committed

    def complete(self, project: str, upload_id: str) -> None:
        """See `UploadStaging`. What this process hashed while it arrived is not read again."""
        self.flush(project, upload_id)
        stored = self._read(project, upload_id)
        pieces = stored.pieces
        if stored.direct is not None and sum(p.size_bytes for p in pieces) < stored.committed:
            pieces = [self._adopt(stored.direct, project, upload_id)]
        check_whole(stored.ticket, sum(piece.size_bytes for piece in pieces))
        if self._digest(project, upload_id, pieces) != stored.ticket.digest:
            self.discard(project, upload_id)
            raise other_bytes()
        self._artifacts.of(project).put_joined(stored.ticket.digest, pieces)

    def discard(self, project: str, upload_id: str) -> None:
        """See `UploadStaging`."""
        with self._lock:
            course = self._courses.pop((project, upload_id), None)
        if course is not None and course.writing is not None:
            course.writing.exception()
        folder = self._folder(project, upload_id)
        # the ticket first: without it there is no upload
        self._bucket.remove(f"{folder}{_TICKET}")
        for found in self._bucket.objects(folder):
            self._bucket.remove(found.key)

    def direct_url(self, ticket: UploadTicket, *, lifetime: timedelta) -> SignedUrl | None:
        """See `UploadStaging`."""
        if not self._offers_urls or ticket.size_bytes > MOST_COPY_BYTES:
            return None
        return self._bucket.sign(
            "PUT",
            f"{self._folder(ticket.project, ticket.upload_id)}{_DIRECT}",
            lifetime=lifetime,
            size_bytes=ticket.size_bytes,
        )

    def expire(self, *, older_than: timedelta, dry_run: bool = False) -> int:
        """See `UploadStaging`. Remains of uploads without a ticket go as well."""
        newest: dict[Key, datetime] = {}
        for found in self._bucket.objects(self._root):
            project, _, rest = found.key.removeprefix(self._root).partition("/")
            key = (project, rest.partition("/")[0])
            newest[key] = max(found.modify_time, newest.get(key, found.modify_time))
        oldest = datetime.now(UTC) - older_than
        expired = [key for key, when in newest.items() if when < oldest]
        for project, upload_id in expired:
            if not dry_run:
                self.discard(project, upload_id)
        return len(expired)

    def _folder(self, project: str, upload_id: str) -> str:
        check_project(project)
        return f"{self._root}{project}/{upload_id}/"

    def _read(self, project: str, upload_id: str) -> _Stored:
        folder = self._folder(project, upload_id)
        ticket = self._bucket.read(f"{folder}{_TICKET}")
        if ticket is None:
            raise no_upload(upload_id)
        found = list(self._bucket.objects(folder))
        return _Stored(
            ticket=UploadTicket(**json.loads(ticket)),
            pieces=_chain(folder, found),
            direct=next((entry for entry in found if entry.key == f"{folder}{_DIRECT}"), None),
        )

    def _take_up(self, key: Key) -> _Course:
        """Begin a course where the store says that the upload stands."""
        stored = self._read(*key)
        committed = stored.committed
        course = _Course(
            ticket=stored.ticket,
            received=committed,
            committed=committed,
            hasher=None if committed else hashlib.sha256(),
        )
        with self._lock:
            self._courses[key] = course
            idle = time.monotonic() - _IDLE_SECONDS
            for other in [k for k, c in self._courses.items() if c.last_used < idle]:
                del self._courses[other]
        return course

    def _commit(self, key: Key, course: _Course) -> None:
        """Write what is buffered, while more may arrive."""
        if not course.buffer:
            return
        self._settle(key, course)
        data = bytes(course.buffer)
        name = f"{self._folder(*key)}{course.committed:016d}-{len(data)}-{uuid.uuid4().hex}"
        course.buffer.clear()
        course.pieces.append(name)
        course.writing = self._writers.submit(self._write, name, data)

    def _write(self, name: str, data: bytes) -> int:
        self._bucket.put(name, data)
        return len(data)

    def _settle(self, key: Key, course: _Course) -> None:
        """Wait for the piece under way; where it failed, the upload goes on from what the store has."""
        if course.writing is None:
            return
        try:
            course.committed += course.writing.result()
        except BaseException:
            with self._lock:
                self._courses.pop(key, None)
            raise
        finally:
            course.writing = None

    def _adopt(self, direct: ObjectInfo, project: str, upload_id: str) -> ObjectInfo:
        """Copy what a client wrote to where it cannot write; the copy is what will be verified."""
        with self._lock:
            self._courses.pop((project, upload_id), None)
        folder = self._folder(project, upload_id)
        name = f"{folder}{0:016d}-{direct.size_bytes}-{uuid.uuid4().hex}"
        self._bucket.copy(direct, name)
        self._bucket.remove(direct.key)
        copied = self._bucket.stat(name)
        if copied is None:
            raise no_upload(upload_id)
        return copied

    def _digest(self, project: str, upload_id: str, pieces: list[ObjectInfo]) -> str:
        with self._lock:
            course = self._courses.get((project, upload_id))
        if (
            course is not None
            and course.hasher is not None
            and course.pieces == [piece.key for piece in pieces]
        ):
            return course.hasher.hexdigest()
        seen = hashlib.sha256()
        for piece in pieces:
            for data in self._bucket.stream_whole(piece, chunk_bytes=CHUNK_BYTES):
                seen.update(data)
        return seen.hexdigest()


def _chain(folder: str, found: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """Return pieces from 0 to the farthest byte without a gap.

    Two replicas may have written overlapping pieces of one upload, when a client moved from one to
    the other before the first had committed all. Keys begin with the offset, so they come in order.
    """
    reached: dict[int, ObjectInfo | None] = {0: None}
    for offset, piece in sorted(_offsets(folder, found), key=lambda pair: pair[0]):
        if offset in reached and piece.size_bytes > 0:
            reached.setdefault(offset + piece.size_bytes, piece)
    chain: list[ObjectInfo] = []
    end = max(reached)
    while (last := reached[end]) is not None:
        chain.append(last)
        end -= last.size_bytes
    return chain[::-1]


def _offsets(folder: str, found: Iterable[ObjectInfo]) -> Iterator[tuple[int, ObjectInfo]]:
    for entry in found:
        offset, dash, rest = entry.key.removeprefix(folder).partition("-")
        length = rest.partition("-")[0]
        if dash and offset.isdigit() and length == str(entry.size_bytes):
            yield int(offset), entry
