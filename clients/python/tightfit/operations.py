"""What the client does, free of how it waits: generators that yield calls and are sent the answers.

`Client` drives them with blocking stubs, `AsyncClient` with asyncio ones; neither repeats the logic.
A step that fails has its error thrown in at the yield.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tightfit.calls import Call, Stream, create_download_url, watch_job
from tightfit.connection import Backoff, Patience
from tightfit.direct import LEAST_BYTES as DIRECT_LEAST_BYTES
from tightfit.direct import DirectSending
from tightfit.errors import (
    CancelledError,
    InvalidInputError,
    LimitExceededError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
    UnsupportedError,
)
from tightfit.names import project_name
from tightfit.transfer import OutgoingFile, ProgressCallback, Sending, file_digest
from tightfit.v1 import (
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
class Wait:
    """A pause."""

    seconds: float


Step = Call[Any] | Sending | DirectSending | Wait
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


def upload_model(
    path: Path,
    *,
    project: str,
    patience: Patience,
    on_progress: ProgressCallback | None,
) -> Operation[model_pb2.Model]:
    """Upload a model file. Raises as `upload` does."""
    return upload(
        MODEL, _measured(path), project=project, patience=patience, on_progress=on_progress
    )


def upload_dataset(
    archive: OutgoingFile,
    *,
    project: str,
    patience: Patience,
    on_progress: ProgressCallback | None,
) -> Operation[dataset_pb2.Dataset]:
    """Upload a packed dataset. Raises as `upload` does."""
    return upload(DATASET, archive, project=project, patience=patience, on_progress=on_progress)


def upload(
    kind: UploadKind,
    file: OutgoingFile,
    *,
    project: str,
    patience: Patience,
    on_progress: ProgressCallback | None,
) -> Operation[Any]:
    """Upload a file, taking a broken stream up again at what the server has.

    Returns:
        The Model or Dataset.

    Raises:
        InvalidInputError: The file changed under way, or the server cannot use it.
    """
    start = kind.start_request(
        parent=project_name(project),
        size_bytes=file.size_bytes,
        digest=file.digest,
        display_name=file.display_name,
        # the same bytes find their upload again, also from another process
        upload_id=f"{kind.noun}-{file.digest[:40]}",
    )
    backoff = Backoff(patience)
    committed = -1
    tries_direct = file.size_bytes >= DIRECT_LEAST_BYTES
    while True:
        state = yield Call(kind.stub, kind.start_method, start)
        if state.HasField(kind.noun):
            return getattr(state, kind.noun)
        if tries_direct and state.HasField("direct"):
            # once: whatever goes wrong there, the stream through the server is the way that works
            tries_direct = False
            with suppress(UnavailableError, UnsupportedError):
                yield DirectSending(
                    direct=state.direct,
                    path=file.path,
                    size=file.size_bytes,
                    on_progress=on_progress,
                )
            continue
        if state.committed_bytes > committed >= 0:
            backoff.progressed()
        committed = state.committed_bytes
        try:
            state = yield _rest(
                kind, file, upload=state.name, offset=committed, on_progress=on_progress
            )
        except (*DROPPED, LimitExceededError, PreconditionError, NotFoundError) as error:
            # PRECONDITION: someone else sends the same bytes; NOT_FOUND: that one has just finished
            yield Wait(backoff.delay_after(error))
            continue
        if state.HasField(kind.noun):
            return getattr(state, kind.noun)
        yield Wait(backoff.delay_after(_became_shorter(file.path)))


def _rest(
    kind: UploadKind,
    file: OutgoingFile,
    *,
    upload: str,
    offset: int,
    on_progress: ProgressCallback | None,
) -> Sending:
    """Return the stream that sends a file from an offset on."""
    header = transfer_pb2.UploadHeader(upload=upload, offset=offset)
    return Sending(
        stub=kind.stub,
        method=kind.upload_method,
        path=file.path,
        header=kind.message(header=header),
        message=kind.message,
        offset=offset,
        size=file.size_bytes,
        on_progress=on_progress,
    )


def _became_shorter(path: Path) -> InvalidInputError:
    return InvalidInputError(
        f"{path.name} became shorter while it was sent",
        field=str(path),
        remedy="upload it again when nothing writes to it",
    )


def _measured(path: Path) -> OutgoingFile:
    try:
        size = path.stat().st_size
        digest = file_digest(path)
    except OSError as error:
        raise InvalidInputError(
            f"cannot read the model {path}: {error.strerror or error}",
            field=str(path),
            remedy="check the path",
        ) from error
    if size == 0:
        raise InvalidInputError(
            f"{path} is empty", field=str(path), remedy="give the file of a model"
        )
    return OutgoingFile(path=path, display_name=path.name, digest=digest, size_bytes=size)


def download_url(artifact: str, *, project: str) -> Operation[transfer_pb2.DirectTransfer | None]:
    """Return where a large artifact can be fetched directly; None where the stream is the way."""
    try:
        answer = yield create_download_url(artifact, project=project)
    except UnsupportedError:
        return None
    return answer.direct if answer.size_bytes >= DIRECT_LEAST_BYTES else None


class WatchCourse:
    """What of a job's events was seen, so that a watch that drops misses nothing and repeats nothing."""

    def __init__(self, name: str, *, after_sequence: int, patience: Patience) -> None:
        """Begin after a sequence number."""
        self._name = name
        self._last = after_sequence
        self._backoff = Backoff(patience)

    def stream(self) -> Stream[job_pb2.JobEvent]:
        """Return the stream that goes on after the last event seen."""
        return watch_job(self._name, after_sequence=self._last)

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
