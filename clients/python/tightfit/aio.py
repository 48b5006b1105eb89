"""The asyncio client; of the same shape as the blocking one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from tightfit import calls
from tightfit import operations as ops
from tightfit.connection import (
    DEFAULT_PROJECT,
    DEFAULT_SERVER,
    Backoff,
    Patience,
    open_aio_channel,
    open_channel,
)
from tightfit.credentials import Credentials
from tightfit.dataset_archive import packed
from tightfit.dataset_file import read_dataset_file
from tightfit.direct import DirectSending, fetch_directly, send_directly
from tightfit.errors import (
    LimitExceededError,
    TightfitError,
    UnavailableError,
    UnsupportedError,
)
from tightfit.names import artifact_name, job_name, last_segment
from tightfit.rpc_errors import error_from_rpc
from tightfit.tracing import call_metadata
from tightfit.transfer import ArrivingFile, ProgressCallback, Sending, upload_messages
from tightfit.v1 import (
    access_pb2,
    compression_pb2,
    dataset_pb2,
    diagnostics_pb2,
    hardware_pb2,
    job_pb2,
    model_pb2,
    recipe_pb2,
    runner_pb2,
    trial_pb2,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class AsyncClient:
    """Talks to a tightfit server from an event loop.

    Values are the messages of the contract (`tightfit.v1`). Belongs to one event loop. Every method
    raises the errors of `tightfit.errors`; calls that may be repeated are, when the server is away
    for a moment, and all are that come while the project is at a limit of the server.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        project: str = DEFAULT_PROJECT,
        credentials: Credentials | None = None,
        patience: Patience | None = None,
        timeout_seconds: float = 120.0,
    ) -> None:
        """Open a channel; the server is called on first use.

        Args:
            server: `HOST:PORT`.
            project: Project that models, datasets and jobs belong to.
            credentials: TLS and token; None connects in plain text and shows nothing.
            patience: How long broken streams are taken up again, and calls beyond a limit repeated.
            timeout_seconds: Of a single call that is no stream.
        """
        self.server = server
        self.project = project
        self._patience = patience or Patience()
        self._timeout = timeout_seconds
        self._credentials = credentials or Credentials()
        self._channel = open_aio_channel(server, self._credentials)
        self._blocking_channel: grpc.Channel | None = None

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
        return await self._run(
            ops.upload_model(
                path, project=self.project, patience=self._patience, on_progress=on_progress
            )
        )

    async def upload_dataset(
        self, description: Path, *, on_progress: ProgressCallback | None = None
    ) -> dataset_pb2.Dataset:
        """Pack what a `dataset.yaml` describes and upload it, or find it there already."""
        with packed(read_dataset_file(description)) as archive:
            return await self._run(
                ops.upload_dataset(
                    archive,
                    project=self.project,
                    patience=self._patience,
                    on_progress=on_progress,
                )
            )

    async def get_model(self, model: str) -> model_pb2.Model:
        """Return a model by name or id."""
        return await self._call(calls.get_model(model, project=self.project))

    def list_models(self, *, page_size: int = 0) -> AsyncIterator[model_pb2.Model]:
        """Yield the models of the project by name, fetching pages as they are needed."""
        return self._pages(calls.list_models(project=self.project, page_size=page_size))

    async def delete_model(self, model: str) -> None:
        """Delete a model that no unfinished job uses; results that were made of it stay."""
        await self._call(calls.delete_model(model, project=self.project))

    async def get_dataset(self, dataset: str) -> dataset_pb2.Dataset:
        """Return a dataset by name or id."""
        return await self._call(calls.get_dataset(dataset, project=self.project))

    def list_datasets(self, *, page_size: int = 0) -> AsyncIterator[dataset_pb2.Dataset]:
        """Yield the datasets of the project by name, fetching pages as they are needed."""
        return self._pages(calls.list_datasets(project=self.project, page_size=page_size))

    async def delete_dataset(self, dataset: str) -> None:
        """Delete a dataset that no unfinished job uses."""
        await self._call(calls.delete_dataset(dataset, project=self.project))

    async def create_job(
        self, spec: job_pb2.CompressionSpec, *, request_id: str = "", validate_only: bool = False
    ) -> job_pb2.CompressionJob:
        """Queue a job; `tightfit.compression_spec` makes the spec."""
        return await self._call(
            calls.create_job(
                spec, project=self.project, request_id=request_id, validate_only=validate_only
            )
        )

    async def apply_recipe(
        self, spec: job_pb2.CompressionSpec, recipe: recipe_pb2.Recipe, *, request_id: str = ""
    ) -> job_pb2.CompressionJob:
        """Queue a job that applies a recipe without any search; its outcome is held against the budget."""
        return await self._call(
            calls.apply_recipe(spec, recipe, project=self.project, request_id=request_id)
        )

    async def check(self, spec: job_pb2.CompressionSpec) -> compression_pb2.CheckJobResponse:
        """Return what can be said before a search; estimates only."""
        return await self._call(calls.check(spec, project=self.project))

    async def get_job(self, job: str) -> job_pb2.CompressionJob:
        """Return a job by name or id."""
        return await self._call(calls.get_job(job, project=self.project))

    def list_jobs(
        self,
        *,
        states: Sequence[job_pb2.CompressionJob.State.ValueType] = (),
        page_size: int = 0,
    ) -> AsyncIterator[job_pb2.CompressionJob]:
        """Yield jobs, newest first, fetching pages as they are needed."""
        return self._pages(
            calls.list_jobs(project=self.project, states=states, page_size=page_size)
        )

    def list_trials(self, job: str, *, page_size: int = 0) -> AsyncIterator[trial_pb2.Trial]:
        """Yield the trials of a job by index."""
        return self._pages(calls.list_trials(job, project=self.project, page_size=page_size))

    async def get_trial(self, name: str) -> trial_pb2.Trial:
        """Return a trial by its full name."""
        return await self._call(calls.get_trial(name))

    async def cancel_job(self, job: str) -> job_pb2.CompressionJob:
        """Cancel a job; one that is final already is returned as it is."""
        return await self._call(calls.cancel_job(job, project=self.project))

    async def delete_job(self, job: str) -> None:
        """Delete a final job with its trials and events."""
        await self._call(calls.delete_job(job, project=self.project))

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
                async for event in self._stream(course.stream()):
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
        self,
        model: str,
        target: str | hardware_pb2.HardwareSpec,
        *,
        layer_table: str = "",
        runtime: hardware_pb2.Runtime | None = None,
        usage: hardware_pb2.Usage | None = None,
    ) -> hardware_pb2.EstimateModelResponse:
        """Return what an uploaded model costs on a target, per number format.

        With "" for the model, `layer_table` (CSV) describes the network. `runtime` replaces the target's
        own; `usage` asks for duty cycle, mean power and battery life besides.
        """
        return await self._call(
            calls.estimate(model, target, layer_table=layer_table, runtime=runtime, usage=usage)
        )

    def list_targets(self, *, page_size: int = 0) -> AsyncIterator[hardware_pb2.HardwareTarget]:
        """Yield the targets of the project and of the catalogue by name."""
        return self._pages(calls.list_targets(project=self.project, page_size=page_size))

    async def get_target(self, target: str) -> hardware_pb2.HardwareTarget:
        """Return a target by name: the project's, or else the catalogue's."""
        return await self._call(calls.get_target(target, project=self.project))

    async def create_target(
        self, spec: hardware_pb2.HardwareSpec, *, validate_only: bool = False
    ) -> hardware_pb2.HardwareTarget:
        """Store the description of a device as a target of the project; it may be partial.

        With `validate_only` it is only checked, and returned with everything filled in.
        """
        return await self._call(
            calls.create_target(spec, project=self.project, validate_only=validate_only)
        )

    async def delete_target(self, target: str) -> None:
        """Delete a target of the project."""
        await self._call(calls.delete_target(target, project=self.project))

    def calibrate_target(
        self,
        target: str,
        runner: str,
        *,
        network_count: int = 0,
        keep_measurements: bool = False,
    ) -> AsyncIterator[hardware_pb2.CalibrateHardwareTargetResponse]:
        """Correct a target's emulator by what a runner measures; takes minutes.

        Yields how far it is; the last message has the report. Repeating a call that broke off goes on
        where it stopped. With `keep_measurements`, files that the last calibration of the target by the
        same runner measured are not measured again.
        """
        return self._stream(
            calls.calibrate_target(
                target,
                runner,
                project=self.project,
                network_count=network_count,
                keep_measurements=keep_measurements,
            )
        )

    def list_runners(self, *, page_size: int = 0) -> AsyncIterator[runner_pb2.Runner]:
        """Yield the runners of the project by name, those that have left too."""
        return self._pages(calls.list_runners(project=self.project, page_size=page_size))

    @property
    def credentials(self) -> Credentials:
        """What the client shows of itself."""
        return self._credentials

    async def diagnose(self) -> diagnostics_pb2.DiagnoseResponse:
        """Have the server look at what it stands on; needs the role admin where access is controlled."""
        return await self._call(calls.diagnose())

    async def get_runner(self, runner: str) -> runner_pb2.Runner:
        """Return a runner by name."""
        return await self._call(calls.get_runner(runner, project=self.project))

    async def get_caller(self) -> access_pb2.Caller:
        """Return who the server takes this client for, and what it may do."""
        return await self._call(calls.get_caller())

    async def create_api_key(self, api_key: access_pb2.ApiKey) -> access_pb2.CreateApiKeyResponse:
        """Make an API key; the answer holds its token, which is never shown again."""
        return await self._call(calls.create_api_key(api_key))

    def list_api_keys(self, *, page_size: int = 0) -> AsyncIterator[access_pb2.ApiKey]:
        """Yield the API keys that the caller may revoke, ended ones too."""
        return self._pages(calls.list_api_keys(page_size=page_size))

    async def revoke_api_key(self, api_key: str) -> access_pb2.ApiKey:
        """End an API key by its name or id, within seconds."""
        return await self._call(calls.revoke_api_key(api_key))

    def list_audit_events(
        self, *, project: str = "", principal: str = "", page_size: int = 0
    ) -> AsyncIterator[access_pb2.AuditEvent]:
        """Yield who did what, newest first; of the client's project, of another, or with `-` of all."""
        listing = calls.list_audit_events(
            project=project or self.project, principal=principal, page_size=page_size
        )
        return self._pages(listing)

    async def download_artifact(self, artifact: str, destination: Path) -> None:
        """Fetch an artifact by name or digest into a file, whole and verified.

        Raises:
            IntegrityError: What arrived does not have the digest.
        """
        digest = last_segment(artifact_name(artifact, project=self.project))
        backoff = Backoff(self._patience)
        with ArrivingFile(destination, digest) as arriving:
            await self._fetch_directly(artifact, arriving)
            while not arriving.is_placed:
                pieces = calls.read_artifact(artifact, project=self.project, offset=arriving.offset)
                try:
                    async for piece in self._stream(pieces):
                        arriving.write(piece.data)
                        backoff.progressed()
                except ops.DROPPED as error:
                    await asyncio.sleep(backoff.delay_after(error))
                except TightfitError as error:
                    arriving.refused(error)
                else:
                    arriving.finish()

    async def _fetch_directly(self, artifact: str, arriving: ArrivingFile) -> None:
        """Fetch from the object store where the server offers that; what fails is left to the stream."""
        with suppress(UnavailableError, UnsupportedError):
            direct = await self._run(ops.download_url(artifact, project=self.project))
            if direct is not None:
                await _in_thread(partial(fetch_directly, direct, arriving))
                arriving.finish()

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
        if isinstance(step, calls.Call):
            return await self._call(step)
        if isinstance(step, DirectSending):
            told = partial(_told, asyncio.get_running_loop(), step.on_progress)
            await _in_thread(partial(send_directly, replace(step, on_progress=told)))
            return None
        return await self._send(step)

    async def _send(self, step: Sending) -> Any:
        """Send a file over the blocking stack, whose threads also read it.

        In grpc.aio a server that ends an upload early shows as INTERNAL, "Internal error from Core":
        the write that fails hides the status that says why.
        """
        loop = asyncio.get_running_loop()
        on_progress = step.on_progress

        def progress(done: int, size: int) -> None:
            if on_progress is not None:
                loop.call_soon_threadsafe(on_progress, done, size)

        if self._blocking_channel is None:
            self._blocking_channel = open_channel(self.server, self._credentials)
        method = getattr(step.stub(self._blocking_channel), step.method)
        call = method.future(
            upload_messages(step, on_progress=progress), metadata=call_metadata(self._credentials)
        )
        ended = asyncio.Event()
        call.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
        try:
            await ended.wait()
            return call.result()
        except grpc.RpcError as error:
            raise error_from_rpc(error, server=self.server) from error
        finally:
            call.cancel()

    async def _call(self, call: calls.Call[Answer]) -> Answer:
        """Return the answer; a call that was refused for a limit, and so not begun, is repeated."""
        backoff = Backoff(self._patience)
        while True:
            try:
                return await self._called(call)
            except LimitExceededError as error:
                await asyncio.sleep(backoff.delay_after(error))

    async def _called(self, call: calls.Call[Answer]) -> Answer:
        method = getattr(call.stub(self._channel), call.method)
        try:
            answer: Answer = await method(
                call.request, timeout=self._timeout, metadata=call_metadata(self._credentials)
            )
        except grpc.RpcError as error:
            raise error_from_rpc(error, server=self.server) from error
        return answer

    async def _stream(self, stream: calls.Stream[Item]) -> AsyncIterator[Item]:
        """Yield the answers of a server stream; one that was refused for a limit is asked for again."""
        backoff = Backoff(self._patience)
        while True:
            try:
                async with aclosing(self._streamed(stream)) as answers:
                    async for answer in answers:
                        yield answer
            except LimitExceededError as error:
                await asyncio.sleep(backoff.delay_after(error))
            else:
                return

    async def _streamed(self, stream: calls.Stream[Item]) -> AsyncGenerator[Item, None]:
        """Yield the answers of a server stream; one that is given up is cancelled."""
        method = getattr(stream.stub(self._channel), stream.method)
        call = method(stream.request, metadata=call_metadata(self._credentials))
        try:
            async for answer in call:
                yield answer
        except grpc.RpcError as error:
            raise error_from_rpc(error, server=self.server) from error
        finally:
            call.cancel()

    async def _pages(self, listing: calls.Listing[Item]) -> AsyncIterator[Item]:
        while True:
            page = await self._call(listing.call)
            for item in listing.items(page):
                yield item
            if not page.next_page_token:
                return
            listing.call.request.page_token = page.next_page_token


def _told(
    loop: asyncio.AbstractEventLoop, on_progress: ProgressCallback | None, done: int, size: int
) -> None:
    if on_progress is not None:
        loop.call_soon_threadsafe(on_progress, done, size)


async def _in_thread(transfer: Callable[..., None]) -> None:
    """Run a transfer in a thread; when the caller is cancelled it ends at its next piece."""
    cancelled = threading.Event()
    try:
        await asyncio.to_thread(transfer, is_cancelled=cancelled.is_set)
    finally:
        cancelled.set()
