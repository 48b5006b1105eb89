"""The asyncio client; of the same shape as the blocking one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from tightfit import operations as ops
from tightfit.connection import (
    CHANNEL_OPTIONS,
    DEFAULT_PROJECT,
    DEFAULT_SERVER,
    Backoff,
    Patience,
)
from tightfit.dataset_file import packed, read_dataset_file
from tightfit.errors import InvalidInputError, TightfitError
from tightfit.names import artifact_name, job_name, last_segment, project_name, target_name
from tightfit.rpc_errors import error_from_rpc
from tightfit.transfer import ArrivingFile, ProgressCallback, upload_messages
from tightfit.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    compression_pb2,
    compression_pb2_grpc,
    dataset_pb2,
    hardware_pb2,
    hardware_pb2_grpc,
    job_pb2,
    model_pb2,
    trial_pb2,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Answer = TypeVar("Answer")
_JOBS = compression_pb2_grpc.CompressionServiceStub
_HARDWARE = hardware_pb2_grpc.HardwareServiceStub
_ARTIFACTS = artifact_pb2_grpc.ArtifactServiceStub


class AsyncClient:
    """Talks to a tightfit server from an event loop.

    Values are the messages of the contract (`tightfit.v1`). Belongs to one event loop. Every method
    raises the errors of `tightfit.errors`; calls that may be repeated are, when the server is away
    for a moment.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        project: str = DEFAULT_PROJECT,
        credentials: grpc.ChannelCredentials | None = None,
        patience: Patience | None = None,
        timeout_seconds: float = 120.0,
    ) -> None:
        """Open a channel; the server is called on first use.

        Args:
            server: `HOST:PORT`.
            project: Project that models, datasets and jobs belong to.
            credentials: For TLS; None connects in plain text.
            patience: How long broken streams are taken up again.
            timeout_seconds: Of a single call that is no stream.
        """
        self.server = server
        self.project = project
        self._patience = patience or Patience()
        self._timeout = timeout_seconds
        self._credentials = credentials
        self._blocking_channel: grpc.Channel | None = None
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(server, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(server, credentials, options=CHANNEL_OPTIONS)

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the channel."""
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls under way end."""
        await self._channel.close()
        if self._blocking_channel is not None:
            self._blocking_channel.close()

    async def upload_model(
        self, path: Path, *, on_progress: ProgressCallback | None = None
    ) -> model_pb2.Model:
        """Upload a model file, or find it there already."""
        model: model_pb2.Model = await self._run(
            ops.upload(
                ops.MODEL,
                path,
                project=self.project,
                display_name=path.name,
                patience=self._patience,
                on_progress=on_progress,
            )
        )
        return model

    async def upload_dataset(
        self, description: Path, *, on_progress: ProgressCallback | None = None
    ) -> dataset_pb2.Dataset:
        """Pack what a `dataset.yaml` describes and upload it, or find it there already."""
        with packed(read_dataset_file(description)) as archive:
            dataset: dataset_pb2.Dataset = await self._run(
                ops.upload(
                    ops.DATASET,
                    archive.path,
                    project=self.project,
                    display_name=archive.display_name,
                    patience=self._patience,
                    on_progress=on_progress,
                )
            )
        return dataset

    async def create_job(
        self, spec: job_pb2.CompressionSpec, *, request_id: str = "", validate_only: bool = False
    ) -> job_pb2.CompressionJob:
        """Queue a job; `tightfit.compression_spec` makes the spec."""
        request = ops.create_job_request(
            spec, project=self.project, request_id=request_id, validate_only=validate_only
        )
        job: job_pb2.CompressionJob = await self._call(_JOBS, "CreateJob", request)
        return job

    async def check(self, spec: job_pb2.CompressionSpec) -> compression_pb2.CheckJobResponse:
        """Return what can be said before a search; estimates only."""
        request = compression_pb2.CheckJobRequest(parent=project_name(self.project), spec=spec)
        response: compression_pb2.CheckJobResponse = await self._call(_JOBS, "CheckJob", request)
        return response

    async def get_job(self, job: str) -> job_pb2.CompressionJob:
        """Return a job by name or id."""
        request = compression_pb2.GetJobRequest(name=job_name(job, project=self.project))
        found: job_pb2.CompressionJob = await self._call(_JOBS, "GetJob", request)
        return found

    async def list_jobs(
        self, *, states: Sequence[job_pb2.CompressionJob.State.ValueType] = (), page_size: int = 0
    ) -> AsyncIterator[job_pb2.CompressionJob]:
        """Yield jobs, newest first, fetching pages as they are needed."""
        request = compression_pb2.ListJobsRequest(
            parent=project_name(self.project), states=states, page_size=page_size
        )
        async for item in self._pages(_JOBS, "ListJobs", request, lambda page: page.jobs):
            yield item

    async def list_trials(self, job: str, *, page_size: int = 0) -> AsyncIterator[trial_pb2.Trial]:
        """Yield the trials of a job by index."""
        request = compression_pb2.ListTrialsRequest(
            parent=job_name(job, project=self.project), page_size=page_size
        )
        async for item in self._pages(_JOBS, "ListTrials", request, lambda page: page.trials):
            yield item

    async def get_trial(self, name: str) -> trial_pb2.Trial:
        """Return a trial by its full name."""
        request = compression_pb2.GetTrialRequest(name=name)
        trial: trial_pb2.Trial = await self._call(_JOBS, "GetTrial", request)
        return trial

    async def cancel_job(self, job: str) -> job_pb2.CompressionJob:
        """Cancel a job; one that is final already is returned as it is."""
        request = compression_pb2.CancelJobRequest(name=job_name(job, project=self.project))
        cancelled: job_pb2.CompressionJob = await self._call(_JOBS, "CancelJob", request)
        return cancelled

    async def delete_job(self, job: str) -> None:
        """Delete a final job with its trials and events."""
        request = compression_pb2.DeleteJobRequest(name=job_name(job, project=self.project))
        await self._call(_JOBS, "DeleteJob", request)

    async def watch_job(
        self, job: str, *, after_sequence: int = 0
    ) -> AsyncIterator[job_pb2.JobEvent]:
        """Yield the events of a job until it is final.

        A stream that drops is taken up again after the last event seen: none is missed or repeated.
        """
        course = ops.WatchCourse(
            job_name(job, project=self.project),
            after_sequence=after_sequence,
            patience=self._patience,
        )
        while True:
            try:
                async for event in self._stream(_JOBS, "WatchJob", course.request()):
                    if course.accept(event):
                        yield event
            except ops.DROPPED as error:
                await asyncio.sleep(course.delay_after(error))
            else:
                return

    async def wait(
        self, job: str, *, on_event: Callable[[job_pb2.JobEvent], None] | None = None
    ) -> job_pb2.CompressionJob:
        """Wait until a job is final and return it."""
        async for event in self.watch_job(job):
            if on_event is not None:
                on_event(event)
        return await self.get_job(job)

    async def estimate(
        self, model: str, target: str | hardware_pb2.HardwareSpec
    ) -> hardware_pb2.EstimateModelResponse:
        """Return what an uploaded model costs on a target, per number format."""
        request = hardware_pb2.EstimateModelRequest(model=model)
        if isinstance(target, str):
            request.hardware_target = target_name(target)
        else:
            request.hardware_spec.CopyFrom(target)
        response: hardware_pb2.EstimateModelResponse = await self._call(
            _HARDWARE, "EstimateModel", request
        )
        return response

    async def list_targets(
        self, *, page_size: int = 0
    ) -> AsyncIterator[hardware_pb2.HardwareTarget]:
        """Yield the targets of the catalogue by name."""
        request = hardware_pb2.ListHardwareTargetsRequest(page_size=page_size)
        async for item in self._pages(
            _HARDWARE, "ListHardwareTargets", request, lambda page: page.hardware_targets
        ):
            yield item

    async def get_target(self, target: str) -> hardware_pb2.HardwareTarget:
        """Return a target of the catalogue by name."""
        request = hardware_pb2.GetHardwareTargetRequest(name=target_name(target))
        found: hardware_pb2.HardwareTarget = await self._call(
            _HARDWARE, "GetHardwareTarget", request
        )
        return found

    async def download_artifact(self, artifact: str, destination: Path) -> None:
        """Fetch an artifact by name or digest into a file, whole and verified.

        Raises:
            IntegrityError: What arrived does not have the digest.
        """
        name = artifact_name(artifact, project=self.project)
        arriving = ArrivingFile(destination, last_segment(name))
        backoff = Backoff(self._patience)
        try:
            while True:
                request = artifact_pb2.ReadArtifactRequest(name=name, offset=arriving.offset)
                try:
                    async for piece in self._stream(_ARTIFACTS, "ReadArtifact", request):
                        arriving.write(piece.data)
                        backoff.progressed()
                except ops.DROPPED as error:
                    await asyncio.sleep(backoff.delay_after(error))
                    continue
                except InvalidInputError:
                    # what an earlier attempt left is longer than the artifact
                    if not arriving.was_resumed:
                        raise
                    arriving.restart()
                    continue
                if arriving.is_whole() or not arriving.was_resumed:
                    break
                arriving.restart()
            arriving.finish()
        finally:
            arriving.close()

    async def _run(self, operation: ops.Operation[Answer]) -> Answer:
        """Drive an operation to its end."""
        try:
            step = next(operation)
            while True:
                try:
                    answer = await self._perform(step)
                except TightfitError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(answer)
        except StopIteration as end:
            result: Answer = end.value
            return result

    async def _perform(self, step: ops.Step) -> Any:
        if isinstance(step, ops.Wait):
            await asyncio.sleep(step.seconds)
            return None
        if isinstance(step, ops.Call):
            return await self._call(step.stub, step.method, step.request)
        return await self._send(step)

    async def _send(self, step: ops.Send) -> Any:
        """Send a file over the blocking stack, whose threads also read it.

        In grpc.aio a server that ends an upload early shows as INTERNAL, "Internal error from Core":
        the write that fails hides the status that says why.
        """
        loop = asyncio.get_running_loop()
        on_progress = step.on_progress

        def progress(done: int, size: int) -> None:
            if on_progress is not None:
                loop.call_soon_threadsafe(on_progress, done, size)

        messages = upload_messages(
            step.path,
            header=step.header,
            message=step.message,
            offset=step.offset,
            size=step.size,
            on_progress=progress,
        )
        call = getattr(step.stub(self._upload_channel()), step.method).future(messages)
        ended = asyncio.Event()
        call.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
        try:
            await ended.wait()
            return call.result()
        except grpc.RpcError as error:
            raise error_from_rpc(error, server=self.server) from error
        finally:
            call.cancel()

    def _upload_channel(self) -> grpc.Channel:
        if self._blocking_channel is None:
            if self._credentials is None:
                self._blocking_channel = grpc.insecure_channel(self.server, options=CHANNEL_OPTIONS)
            else:
                self._blocking_channel = grpc.secure_channel(
                    self.server, self._credentials, options=CHANNEL_OPTIONS
                )
        return self._blocking_channel

    async def _call(self, stub: type, method: str, request: Any) -> Any:
        try:
            return await getattr(stub(self._channel), method)(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_from_rpc(error, server=self.server) from error

    async def _stream(self, stub: type, method: str, request: Any) -> AsyncIterator[Any]:
        """Yield the answers of a server stream; one that is given up is cancelled."""
        call = getattr(stub(self._channel), method)(request)
        try:
            async for answer in call:
                yield answer
        except grpc.RpcError as error:
            raise error_from_rpc(error, server=self.server) from error
        finally:
            call.cancel()

    async def _pages(
        self, stub: type, method: str, request: Any, items: Callable[[Any], Sequence[Any]]
    ) -> AsyncIterator[Any]:
        while True:
            page = await self._call(stub, method, request)
            for item in items(page):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
