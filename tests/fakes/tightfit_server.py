"""A gRPC server in this process that answers as tightfit does, and breaks off where a test wants it to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import grpc
from google.protobuf import empty_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import status_pb2  # type: ignore[import-untyped]  # generated without types
from grpc_status import rpc_status

from fakes.job_messages import (
    dataset_message,
    event_message,
    job_message,
    model_message,
    trial_message,
)
from tightfit.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    compression_pb2,
    compression_pb2_grpc,
    dataset_pb2,
    dataset_pb2_grpc,
    hardware_pb2,
    hardware_pb2_grpc,
    job_pb2,
    metrics_pb2,
    model_pb2,
    model_pb2_grpc,
    runner_pb2,
    runner_pb2_grpc,
    transfer_pb2,
    trial_pb2,
)


def rich_status(code: grpc.StatusCode, message: str, *details: Message) -> grpc.Status:
    """Return a status with a google.rpc.Status behind it, to put into `State.failures`."""
    packed = []
    for detail in details:
        item = AnyMessage()
        item.Pack(detail)
        packed.append(item)
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=message, details=packed)
    made: grpc.Status = rpc_status.to_status(status)
    return made


# the names of gRPC methods are those of the contract
# ruff: noqa: N802

Context = grpc.ServicerContext


def _refuse(_self: object, _request: Any, context: Context) -> Any:
    """Stand for a method that the client never calls."""
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "not offered by the fake")


_not_offered: Any = _refuse


@dataclass
class State:
    """What the server holds, and how it misbehaves."""

    uploads: dict[str, bytearray] = field(default_factory=dict)
    assets: dict[str, bytes] = field(default_factory=dict)
    """Digest to bytes of finished uploads."""
    offsets: list[int] = field(default_factory=list)
    """Offset of every upload stream in turn."""
    break_uploads_after: list[int] = field(default_factory=list)
    """Bytes after which the next upload streams break."""
    artifacts: dict[str, bytes] = field(default_factory=dict)
    store_url: str = ""
    """Where bytes can be sent and fetched directly; empty offers no such thing."""
    read_offsets: list[int] = field(default_factory=list)
    break_reads_after: list[int] = field(default_factory=list)
    models: list[model_pb2.Model] = field(default_factory=list)
    datasets: list[dataset_pb2.Dataset] = field(default_factory=list)
    job: job_pb2.CompressionJob = field(default_factory=job_pb2.CompressionJob)
    trials: list[trial_pb2.Trial] = field(default_factory=list)
    runners: list[runner_pb2.Runner] = field(default_factory=list)
    events: list[job_pb2.JobEvent] = field(default_factory=list)
    watched_after: list[int] = field(default_factory=list)
    watch_began: threading.Event = field(default_factory=threading.Event)
    break_watches_after: list[int] = field(default_factory=list)
    """Number of events after which the next watches break."""
    seconds_between_events: float = 0.0
    repeat_events: bool = False
    """Send the event before the one asked for again, as a careless server might."""
    hold_watch: threading.Event | None = None
    """Keeps watches open after the stored events until it is set."""
    created: list[compression_pb2.CreateJobRequest] = field(default_factory=list)
    estimated: list[hardware_pb2.EstimateModelRequest] = field(default_factory=list)
    calibrated: list[hardware_pb2.CalibrateHardwareTargetRequest] = field(default_factory=list)
    checked: list[compression_pb2.CheckJobRequest] = field(default_factory=list)
    check_response: compression_pb2.CheckJobResponse = field(
        default_factory=compression_pb2.CheckJobResponse
    )
    cancelled: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    targets: list[hardware_pb2.HardwareSpec] = field(default_factory=list)
    failures: dict[str, list[grpc.Status]] = field(default_factory=dict)
    """Method to the statuses that its next calls end with."""

    def load(self, result: Mapping[str, Any]) -> None:
        """Hold the job of a `result.json`, with a model artifact per trial."""
        name = result["job"]["name"]
        self.job = job_message(result)
        self.models, self.datasets = [model_message(result)], [dataset_message(result)]
        self.trials = [trial_message(item, job=name) for item in result["trials"]]
        self.events = [event_message(item, job=name) for item in result["events"]]
        for item in result["trials"]:
            data = f"model {item['index']}".encode()
            self.artifacts[sha256(data).hexdigest()] = data

    def fail(self, method: str, context: Context) -> None:
        """End the call with the next failure planned for the method."""
        if self.failures.get(method):
            context.abort_with_status(self.failures[method].pop(0))


class _Uploads:
    """What the upload methods of models and datasets have in common."""

    def __init__(self, state: State, noun: str, upload: type, asset: type) -> None:
        self.state = state
        self.noun = noun
        self.upload = upload
        self.asset = asset

    def start(self, request: Any, context: Context) -> Any:
        self.state.fail(f"Start{self.noun.title()}Upload", context)
        name = f"{request.parent}/uploads/{request.upload_id}"
        if request.digest in self.state.assets:
            return self.finished(name, request.digest)
        kept = self.state.uploads.setdefault(name, bytearray())
        self.state.uploads[f"{name}#"] = bytearray(
            f"{request.size_bytes} {request.digest}".encode()
        )
        direct = None
        if self.state.store_url and not kept:
            direct = transfer_pb2.DirectTransfer(
                method="PUT",
                url=f"{self.state.store_url}/{name}",
                headers={"Content-Length": str(request.size_bytes)},
            )
        return self.upload(name=name, committed_bytes=len(kept), direct=direct)

    def receive(self, messages: Iterator[Any], context: Context) -> Any:
        self.state.fail(f"Upload{self.noun.title()}", context)
        header = next(messages).header
        kept = self.state.uploads[header.upload]
        self.state.offsets.append(header.offset)
        if header.offset != len(kept):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"committed {len(kept)} bytes")
        room = self.state.break_uploads_after.pop(0) if self.state.break_uploads_after else None
        for message in messages:
            kept.extend(message.data)
            if room is not None and len(kept) - header.offset >= room:
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
        size, digest = bytes(self.state.uploads[f"{header.upload}#"]).decode().split()
        if len(kept) < int(size):
            return self.upload(name=header.upload, committed_bytes=len(kept))
        if sha256(kept).hexdigest() != digest:
            context.abort(grpc.StatusCode.DATA_LOSS, "the bytes do not match the digest")
        self.state.assets[digest] = bytes(kept)
        return self.finished(header.upload, digest)

    def finished(self, name: str, digest: str) -> Any:
        data = self.state.assets[digest]
        asset = self.asset(
            name=f"projects/default/{self.noun}s/{digest[:12]}", digest=digest, size_bytes=len(data)
        )
        return self.upload(name=name, committed_bytes=len(data), **{self.noun: asset})


def _named(items: list[Any], name: str, context: Context) -> Any:
    for item in items:
        if item.name == name:
            return item
    context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {name}")
    raise AssertionError


def _page(items: list[Any], request: Any) -> tuple[list[Any], str]:
    """Return one item a page unless more are asked for, and the token of the next page."""
    start = int(request.page_token or 0)
    end = start + (request.page_size or 1)
    return items[start:end], str(end) if end < len(items) else ""


class _Models(model_pb2_grpc.ModelServiceServicer):
    GetModelUpload = _not_offered

    def __init__(self, state: State) -> None:
        self._state = state
        self._uploads = _Uploads(state, "model", model_pb2.ModelUpload, model_pb2.Model)

    def GetModel(self, request: Any, context: Any) -> Any:
        return _named(self._state.models, request.name, context)

    def ListModels(self, request: Any, context: Any) -> Any:
        assert request.parent == "projects/default"
        page, token = _page(self._state.models, request)
        return model_pb2.ListModelsResponse(models=page, next_page_token=token)

    def DeleteModel(self, request: Any, context: Any) -> Any:
        self._state.fail("DeleteModel", context)
        self._state.models.remove(_named(self._state.models, request.name, context))
        return empty_pb2.Empty()

    def StartModelUpload(self, request: Any, context: Any) -> Any:
        return self._uploads.start(request, context)

    def UploadModel(self, request_iterator: Any, context: Any) -> Any:
        return self._uploads.receive(request_iterator, context)


class _Datasets(dataset_pb2_grpc.DatasetServiceServicer):
    GetDatasetUpload = _not_offered

    def __init__(self, state: State) -> None:
        self._state = state
        self._uploads = _Uploads(state, "dataset", dataset_pb2.DatasetUpload, dataset_pb2.Dataset)

    def GetDataset(self, request: Any, context: Any) -> Any:
        return _named(self._state.datasets, request.name, context)

    def ListDatasets(self, request: Any, context: Any) -> Any:
        assert request.parent == "projects/default"
        page, token = _page(self._state.datasets, request)
        return dataset_pb2.ListDatasetsResponse(datasets=page, next_page_token=token)

    def DeleteDataset(self, request: Any, context: Any) -> Any:
        self._state.fail("DeleteDataset", context)
        self._state.datasets.remove(_named(self._state.datasets, request.name, context))
        return empty_pb2.Empty()

    def StartDatasetUpload(self, request: Any, context: Any) -> Any:
        return self._uploads.start(request, context)

    def UploadDataset(self, request_iterator: Any, context: Any) -> Any:
        return self._uploads.receive(request_iterator, context)


class _Artifacts(artifact_pb2_grpc.ArtifactServiceServicer):
    GetArtifact = _not_offered

    def __init__(self, state: State) -> None:
        self._state = state

    def CreateDownloadUrl(self, request: Any, context: Any) -> Any:
        if not self._state.store_url:
            return _not_offered(self, request, context)
        data = self._state.artifacts[request.name.rpartition("/")[2]]
        direct = transfer_pb2.DirectTransfer(
            method="GET", url=f"{self._state.store_url}/{request.name}"
        )
        return artifact_pb2.CreateDownloadUrlResponse(size_bytes=len(data), direct=direct)

    def ReadArtifact(self, request: Any, context: Any) -> Any:
        self._state.fail("ReadArtifact", context)
        data = self._state.artifacts.get(request.name.rpartition("/")[2])
        if data is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such artifact")
        assert data is not None
        self._state.read_offsets.append(request.offset)
        if request.offset > len(data):
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "beyond the end")
        end = len(data)
        breaks = bool(self._state.break_reads_after)
        if breaks:
            end = min(end, request.offset + self._state.break_reads_after.pop(0))
        for start in range(request.offset, end, 1000):
            yield artifact_pb2.ReadArtifactResponse(data=data[start : min(end, start + 1000)])
        if breaks:
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")


class _Runners(runner_pb2_grpc.RunnerServiceServicer):
    def __init__(self, state: State) -> None:
        self._state = state

    ConnectRunner = _not_offered

    def ListRunners(self, request: Any, context: Any) -> Any:
        assert request.parent == "projects/default"
        start = int(request.page_token or 0)
        end = start + (request.page_size or 1)
        return runner_pb2.ListRunnersResponse(
            runners=self._state.runners[start:end],
            next_page_token=str(end) if end < len(self._state.runners) else "",
        )

    def GetRunner(self, request: Any, context: Any) -> Any:
        for runner in self._state.runners:
            if runner.name == request.name:
                return runner
        context.abort(grpc.StatusCode.NOT_FOUND, f"there is no runner {request.name}")
        raise AssertionError


class _Hardware(hardware_pb2_grpc.HardwareServiceServicer):
    def __init__(self, state: State) -> None:
        self._state = state

    def ListHardwareTargets(self, request: Any, context: Any) -> Any:
        start = int(request.page_token or 0)
        end = start + (request.page_size or 2)
        return hardware_pb2.ListHardwareTargetsResponse(
            hardware_targets=[self._target(spec) for spec in self._state.targets[start:end]],
            next_page_token=str(end) if end < len(self._state.targets) else "",
        )

    def GetHardwareTarget(self, request: Any, context: Any) -> Any:
        self._state.fail("GetHardwareTarget", context)
        for spec in self._state.targets:
            if request.name == f"projects/default/hardwareTargets/{spec.name}":
                return self._target(spec)
        context.abort(grpc.StatusCode.NOT_FOUND, f"there is no target {request.name}")
        raise AssertionError

    def CreateHardwareTarget(self, request: Any, context: Any) -> Any:
        self._state.fail("CreateHardwareTarget", context)
        assert request.parent == "projects/default"
        spec = request.hardware_target.spec
        if not request.validate_only:
            self._state.targets.append(spec)
        name = f"{request.parent}/hardwareTargets/{spec.name}"
        return hardware_pb2.HardwareTarget(name=name, spec=spec, emulator="mcu")

    def DeleteHardwareTarget(self, request: Any, context: Any) -> Any:
        self._state.fail("DeleteHardwareTarget", context)
        self._state.deleted.append(request.name)
        return empty_pb2.Empty()

    def CalibrateHardwareTarget(self, request: Any, context: Any) -> Any:
        self._state.fail("CalibrateHardwareTarget", context)
        self._state.calibrated.append(request)
        yield hardware_pb2.CalibrateHardwareTargetResponse(fraction=0.5, message="measuring")
        quality = hardware_pb2.CalibrationQuality(
            number_format=hardware_pb2.NUMBER_FORMAT_INT8,
            network_count=request.network_count,
            median_error_ratio=0.02,
            p90_error_ratio=0.08,
            within_10_percent_ratio=0.93,
            median_error_before_ratio=0.6,
            coverage_ratio=0.91,
        )
        report = hardware_pb2.CalibrationReport(
            hardware_target=request.hardware_target,
            runner=request.runner,
            runtime="litert 2.3",
            quality=[quality],
            skipped=["pooling in int8: no kernel"],
        )
        yield hardware_pb2.CalibrateHardwareTargetResponse(
            fraction=1.0, message="calibrated", report=report
        )

    def EstimateModel(self, request: Any, context: Any) -> Any:
        self._state.estimated.append(request)
        cost = metrics_pb2.CostEstimate(
            macs=12_000_000,
            provenance="fake emulator",
            confidence=0.9,
            warnings=["figures are made up"],
            layers=[metrics_pb2.OperatorCost(node="conv1", op_type="Conv", macs=12_000_000)],
        )
        for key in ("estimated_latency_ms", "estimated_energy_mj"):
            getattr(cost, key).CopyFrom(metrics_pb2.Estimate(value=10, low=9, high=12))
        for key in ("estimated_peak_ram_bytes", "flash_bytes"):
            getattr(cost, key).CopyFrom(metrics_pb2.Estimate(value=2048, low=2048, high=2048))
        target = request.hardware_spec
        if request.HasField("hardware_target"):
            target = hardware_pb2.HardwareSpec(name=request.hardware_target.rpartition("/")[2])
        estimate = hardware_pb2.FormatEstimate(
            number_format=hardware_pb2.NUMBER_FORMAT_INT8, cost=cost
        )
        if request.HasField("usage"):
            rate = request.usage.frames_per_second / 1e3
            estimate.duty_cycle.duty.CopyFrom(
                metrics_pb2.Estimate(value=10 * rate, low=9 * rate, high=12 * rate)
            )
            estimate.duty_cycle.mean_power_mw.value = 20
            if request.usage.battery_mah:
                charge = request.usage.battery_mah * request.usage.battery_v
                estimate.duty_cycle.battery_hours.value = charge / 20
        return hardware_pb2.EstimateModelResponse(target=target, estimates=[estimate])

    def _target(self, spec: hardware_pb2.HardwareSpec) -> hardware_pb2.HardwareTarget:
        name = f"hardwareTargets/{spec.name}"
        return hardware_pb2.HardwareTarget(name=name, spec=spec, emulator="mcu")


class _Jobs(compression_pb2_grpc.CompressionServiceServicer):
    def ApplyRecipe(self, request: Any, context: Any) -> Any:
        self._state.created.append(request)
        return self._state.job

    def __init__(self, state: State) -> None:
        self._state = state

    def CreateJob(self, request: Any, context: Any) -> Any:
        self._state.created.append(request)
        self._state.fail("CreateJob", context)
        return self._state.job

    def CheckJob(self, request: Any, context: Any) -> Any:
        self._state.checked.append(request)
        return self._state.check_response

    def GetJob(self, request: Any, context: Any) -> Any:
        self._state.fail("GetJob", context)
        if request.name != self._state.job.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no job {request.name}")
        return self._state.job

    def ListJobs(self, request: Any, context: Any) -> Any:
        jobs = [self._state.job] if self._state.job.name else []
        if request.states:
            jobs = [job for job in jobs if job.state in request.states]
        return compression_pb2.ListJobsResponse(jobs=jobs)

    def WatchJob(self, request: Any, context: Any) -> Any:
        self._state.fail("WatchJob", context)
        self._state.watched_after.append(request.after_sequence)
        self._state.watch_began.set()
        after = request.after_sequence - (1 if self._state.repeat_events else 0)
        limit = self._state.break_watches_after.pop(0) if self._state.break_watches_after else None
        sent = 0
        for event in self._state.events:
            if event.sequence <= after:
                continue
            if sent == limit:
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
            time.sleep(self._state.seconds_between_events)
            yield event
            sent += 1
        if self._state.hold_watch is not None:
            self._state.hold_watch.wait(30)

    def CancelJob(self, request: Any, context: Any) -> Any:
        self._state.cancelled.append(request.name)
        cancelled = job_pb2.CompressionJob()
        cancelled.CopyFrom(self._state.job)
        cancelled.state = job_pb2.CompressionJob.STATE_CANCELLED
        if self._state.hold_watch is not None:
            self._state.hold_watch.set()
        return cancelled

    def DeleteJob(self, request: Any, context: Any) -> Any:
        self._state.fail("DeleteJob", context)
        self._state.deleted.append(request.name)
        return empty_pb2.Empty()

    def ListTrials(self, request: Any, context: Any) -> Any:
        start = int(request.page_token or 0)
        end = start + (request.page_size or 3)
        return compression_pb2.ListTrialsResponse(
            trials=self._state.trials[start:end],
            next_page_token=str(end) if end < len(self._state.trials) else "",
        )

    def GetTrial(self, request: Any, context: Any) -> Any:
        for trial in self._state.trials:
            if trial.name == request.name:
                return trial
        context.abort(grpc.StatusCode.NOT_FOUND, "no such trial")
        raise AssertionError


@dataclass
class FakeTightfit:
    """A running server: its address, and the state to set up and to look at."""

    address: str
    state: State
    server: grpc.Server

    @classmethod
    def start(cls) -> FakeTightfit:
        """Serve on a free port of the loopback interface."""
        state = State()
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
        model_pb2_grpc.add_ModelServiceServicer_to_server(_Models(state), server)
        dataset_pb2_grpc.add_DatasetServiceServicer_to_server(_Datasets(state), server)
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(_Artifacts(state), server)
        hardware_pb2_grpc.add_HardwareServiceServicer_to_server(_Hardware(state), server)
        compression_pb2_grpc.add_CompressionServiceServicer_to_server(_Jobs(state), server)
        runner_pb2_grpc.add_RunnerServiceServicer_to_server(_Runners(state), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return cls(address=f"127.0.0.1:{port}", state=state, server=server)

    def stop(self) -> None:
        """Stop at once."""
        if self.state.hold_watch is not None:
            self.state.hold_watch.set()
        self.server.stop(0).wait()
