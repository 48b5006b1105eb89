"""What the client does, free of how it waits: generators that yield calls and are sent the answers.

`Client` drives them with blocking stubs, `AsyncClient` with asyncio ones; neither repeats the logic.
A step that fails has its error thrown in at the yield.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tightfit.connection import Backoff, Patience
from tightfit.dataset_file import file_digest
from tightfit.errors import (
    CancelledError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from tightfit.names import project_name
from tightfit.transfer import ProgressCallback
from tightfit.v1 import (
    compression_pb2,
    dataset_pb2,
    dataset_pb2_grpc,
    job_pb2,
    model_pb2,
    model_pb2_grpc,
    transfer_pb2,
)

Answer = TypeVar("Answer")
DROPPED = (UnavailableError, CancelledError)
"""How a stream ends when the server goes away under it."""


@dataclass(frozen=True)
class Call:
    """One unary call: a method of a stub, and its request."""

    stub: type
    method: str
    request: Any


@dataclass(frozen=True)
class Send:
    """One client stream that sends a file from an offset on."""

    stub: type
    method: str
    path: Path
    header: Any
    message: Callable[..., Any]
    offset: int
    size: int
    on_progress: ProgressCallback | None


@dataclass(frozen=True)
class Wait:
    """A pause."""

    seconds: float


Step = Call | Send | Wait
Operation = Generator[Step, Any, Answer]


@dataclass(frozen=True)
class UploadKind:
    """The messages and methods that models and datasets have each of their own."""

    noun: str
    stub: type
    start_method: str
    upload_method: str
    start_request: Callable[..., Any]
    message: Callable[..., Any]


MODEL = UploadKind(
    noun="model",
    stub=model_pb2_grpc.ModelServiceStub,
    start_method="StartModelUpload",
    upload_method="UploadModel",
    start_request=model_pb2.StartModelUploadRequest,
    message=model_pb2.UploadModelRequest,
)
DATASET = UploadKind(
    noun="dataset",
    stub=dataset_pb2_grpc.DatasetServiceStub,
    start_method="StartDatasetUpload",
    upload_method="UploadDataset",
    start_request=dataset_pb2.StartDatasetUploadRequest,
    message=dataset_pb2.UploadDatasetRequest,
)


def upload(
    kind: UploadKind,
    path: Path,
    *,
    project: str,
    display_name: str,
    patience: Patience,
    on_progress: ProgressCallback | None,
) -> Operation[Any]:
    """Upload a file, taking a broken stream up again at what the server has.

    Returns:
        The Model or Dataset.

    Raises:
        InvalidInputError: The file cannot be read or is empty, or the server cannot use it.
    """
    size, digest = _measure(path, kind.noun)
    start = kind.start_request(
        parent=project_name(project),
        size_bytes=size,
        digest=digest,
        display_name=display_name,
        # the same bytes find their upload again, also from another process
        upload_id=f"{kind.noun}-{digest[:40]}",
    )
    backoff = Backoff(patience)
    committed = -1
    while True:
        state = yield Call(kind.stub, kind.start_method, start)
        if state.HasField(kind.noun):
            return getattr(state, kind.noun)
        if state.committed_bytes > committed >= 0:
            backoff.progressed()
        committed = state.committed_bytes
        header = transfer_pb2.UploadHeader(upload=state.name, offset=committed)
        try:
            state = yield Send(
                stub=kind.stub,
                method=kind.upload_method,
                path=path,
                header=kind.message(header=header),
                message=kind.message,
                offset=committed,
                size=size,
                on_progress=on_progress,
            )
        except (*DROPPED, PreconditionError, NotFoundError) as error:
            # PRECONDITION: someone else sends the same bytes; NOT_FOUND: that one has just finished
            yield Wait(backoff.delay_after(error))
            continue
        if state.HasField(kind.noun):
            return getattr(state, kind.noun)
        changed = InvalidInputError(
            f"{path.name} became shorter while it was sent",
            field=str(path),
            remedy="upload it again when nothing writes to it",
        )
        yield Wait(backoff.delay_after(changed))


def _measure(path: Path, noun: str) -> tuple[int, str]:
    try:
        size = path.stat().st_size
        digest = file_digest(path)
    except OSError as error:
        raise InvalidInputError(
            f"cannot read the {noun} {path}: {error.strerror or error}",
            field=str(path),
            remedy="check the path",
        ) from error
    if size == 0:
        raise InvalidInputError(
            f"{path} is empty", field=str(path), remedy=f"give the file of a {noun}"
        )
    return size, digest


def create_job_request(
    spec: job_pb2.CompressionSpec, *, project: str, request_id: str, validate_only: bool
) -> compression_pb2.CreateJobRequest:
    """Return the request for a job; without an id it gets one, so that the call is safe to repeat."""
    return compression_pb2.CreateJobRequest(
        parent=project_name(project),
        job=job_pb2.CompressionJob(spec=spec),
        request_id="" if validate_only else request_id or str(uuid.uuid4()),
        validate_only=validate_only,
    )


FINAL_STATES = frozenset(
    {
        job_pb2.CompressionJob.STATE_SUCCEEDED,
        job_pb2.CompressionJob.STATE_INFEASIBLE,
        job_pb2.CompressionJob.STATE_FAILED,
        job_pb2.CompressionJob.STATE_CANCELLED,
    }
)


class WatchCourse:
    """What of a job's events was seen, so that a watch that drops misses nothing and repeats nothing."""

    def __init__(self, name: str, *, after_sequence: int, patience: Patience) -> None:
        """Begin after a sequence number."""
        self._name = name
        self._last = after_sequence
        self._backoff = Backoff(patience)

    def request(self) -> compression_pb2.WatchJobRequest:
        """Return the request that goes on after the last event seen."""
        return compression_pb2.WatchJobRequest(name=self._name, after_sequence=self._last)

    def accept(self, event: job_pb2.JobEvent) -> bool:
        """Take note of an event; false when it was seen before."""
        if event.sequence <= self._last:
            return False
        self._last = event.sequence
        self._backoff.progressed()
        return True

    def delay_after(self, error: UnavailableError | CancelledError) -> float:
        """Return the seconds to wait before watching again; raises `error` when patience is used up."""
        return self._backoff.delay_after(error)
