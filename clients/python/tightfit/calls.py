"""Every call that the client makes, as a value: which method, which request, which answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf import empty_pb2

from tightfit.names import (
    api_key_name,
    artifact_name,
    dataset_name,
    job_name,
    model_name,
    project_name,
    runner_name,
    target_name,
)
from tightfit.v1 import (
    access_pb2,
    access_pb2_grpc,
    artifact_pb2,
    artifact_pb2_grpc,
    compression_pb2,
    compression_pb2_grpc,
    dataset_pb2,
    dataset_pb2_grpc,
    diagnostics_pb2,
    diagnostics_pb2_grpc,
    hardware_pb2,
    hardware_pb2_grpc,
    job_pb2,
    model_pb2,
    model_pb2_grpc,
    recipe_pb2,
    runner_pb2,
    runner_pb2_grpc,
    trial_pb2,
)

Answer = TypeVar("Answer")
Item = TypeVar("Item")
_JOBS = compression_pb2_grpc.CompressionServiceStub
_MODELS = model_pb2_grpc.ModelServiceStub
_DATASETS = dataset_pb2_grpc.DatasetServiceStub
_HARDWARE = hardware_pb2_grpc.HardwareServiceStub
_ARTIFACTS = artifact_pb2_grpc.ArtifactServiceStub
_RUNNERS = runner_pb2_grpc.RunnerServiceStub
_DIAGNOSTICS = diagnostics_pb2_grpc.DiagnosticsServiceStub
_ACCESS = access_pb2_grpc.AccessServiceStub


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One method of a stub with its request; the answer is one message."""

    stub: type
    method: str
    request: Any


@dataclass(frozen=True)
class Stream(Generic[Item]):
    """One method of a stub with its request; the answer is a stream of messages."""

    stub: type
    method: str
    request: Any


@dataclass(frozen=True)
class Listing(Generic[Item]):
    """A call whose answer is one page of a list; `items` takes them out of it."""

    call: Call[Any]
    items: Callable[[Any], Sequence[Item]]


def get_model(model: str, *, project: str) -> Call[model_pb2.Model]:
    """Return a model."""
    request = model_pb2.GetModelRequest(name=model_name(model, project=project))
    return Call(_MODELS, "GetModel", request)


def list_models(*, project: str, page_size: int) -> Listing[model_pb2.Model]:
    """List models."""
    request = model_pb2.ListModelsRequest(parent=project_name(project), page_size=page_size)
    return Listing(Call(_MODELS, "ListModels", request), lambda page: page.models)


def delete_model(model: str, *, project: str) -> Call[empty_pb2.Empty]:
    """Delete a model."""
    request = model_pb2.DeleteModelRequest(name=model_name(model, project=project))
    return Call(_MODELS, "DeleteModel", request)


def get_dataset(dataset: str, *, project: str) -> Call[dataset_pb2.Dataset]:
    """Return a dataset."""
    request = dataset_pb2.GetDatasetRequest(name=dataset_name(dataset, project=project))
    return Call(_DATASETS, "GetDataset", request)


def list_datasets(*, project: str, page_size: int) -> Listing[dataset_pb2.Dataset]:
    """List datasets."""
    request = dataset_pb2.ListDatasetsRequest(parent=project_name(project), page_size=page_size)
    return Listing(Call(_DATASETS, "ListDatasets", request), lambda page: page.datasets)


def delete_dataset(dataset: str, *, project: str) -> Call[empty_pb2.Empty]:
    """Delete a dataset."""
    request = dataset_pb2.DeleteDatasetRequest(name=dataset_name(dataset, project=project))
    return Call(_DATASETS, "DeleteDataset", request)


def create_job(
    spec: job_pb2.CompressionSpec, *, project: str, request_id: str, validate_only: bool
) -> Call[job_pb2.CompressionJob]:
    """Queue a job; without an id it gets one, so that the call is safe to repeat."""
    request = compression_pb2.CreateJobRequest(
        parent=project_name(project),
        job=job_pb2.CompressionJob(spec=spec),
        request_id="" if validate_only else request_id or str(uuid.uuid4()),
        validate_only=validate_only,
    )
    return Call(_JOBS, "CreateJob", request)


def apply_recipe(
    spec: job_pb2.CompressionSpec, recipe: recipe_pb2.Recipe, *, project: str, request_id: str
) -> Call[job_pb2.CompressionJob]:
    """Queue a job that applies a recipe; without an id it gets one, so that the call is safe to repeat."""
    request = compression_pb2.ApplyRecipeRequest(
        parent=project_name(project),
        spec=spec,
        recipe=recipe,
        request_id=request_id or str(uuid.uuid4()),
    )
    return Call(_JOBS, "ApplyRecipe", request)


def check(spec: job_pb2.CompressionSpec, *, project: str) -> Call[compression_pb2.CheckJobResponse]:
    """Ask what can be said before a search."""
    request = compression_pb2.CheckJobRequest(parent=project_name(project), spec=spec)
    return Call(_JOBS, "CheckJob", request)


def get_job(job: str, *, project: str) -> Call[job_pb2.CompressionJob]:
    """Return a job."""
    request = compression_pb2.GetJobRequest(name=job_name(job, project=project))
    return Call(_JOBS, "GetJob", request)


def cancel_job(job: str, *, project: str) -> Call[job_pb2.CompressionJob]:
    """Cancel a job."""
    request = compression_pb2.CancelJobRequest(name=job_name(job, project=project))
    return Call(_JOBS, "CancelJob", request)


def delete_job(job: str, *, project: str) -> Call[empty_pb2.Empty]:
    """Delete a job."""
    request = compression_pb2.DeleteJobRequest(name=job_name(job, project=project))
    return Call(_JOBS, "DeleteJob", request)


def get_trial(name: str) -> Call[trial_pb2.Trial]:
    """Return a trial."""
    return Call(_JOBS, "GetTrial", compression_pb2.GetTrialRequest(name=name))


def list_jobs(
    *, project: str, states: Sequence[job_pb2.CompressionJob.State.ValueType], page_size: int
) -> Listing[job_pb2.CompressionJob]:
    """List jobs."""
    request = compression_pb2.ListJobsRequest(
        parent=project_name(project), states=states, page_size=page_size
    )
    return Listing(Call(_JOBS, "ListJobs", request), lambda page: page.jobs)


def list_trials(job: str, *, project: str, page_size: int) -> Listing[trial_pb2.Trial]:
    """List the trials of a job."""
    request = compression_pb2.ListTrialsRequest(
        parent=job_name(job, project=project), page_size=page_size
    )
    return Listing(Call(_JOBS, "ListTrials", request), lambda page: page.trials)


def watch_job(name: str, *, after_sequence: int) -> Stream[job_pb2.JobEvent]:
    """Watch a job from an event on."""
    request = compression_pb2.WatchJobRequest(name=name, after_sequence=after_sequence)
    return Stream(_JOBS, "WatchJob", request)


def estimate(
    model: str,
    target: str | hardware_pb2.HardwareSpec,
    *,
    layer_table: str = "",
    runtime: hardware_pb2.Runtime | None = None,
    usage: hardware_pb2.Usage | None = None,
) -> Call[hardware_pb2.EstimateModelResponse]:
    """Estimate a model, or a table of layers, on a target."""
    request = hardware_pb2.EstimateModelRequest(
        model=model, layer_table=layer_table, runtime=runtime, usage=usage
    )
    if isinstance(target, str):
        request.hardware_target = target_name(target)
    else:
        request.hardware_spec.CopyFrom(target)
    return Call(_HARDWARE, "EstimateModel", request)


def get_target(target: str, *, project: str) -> Call[hardware_pb2.HardwareTarget]:
    """Return a target of the project or of the catalogue."""
    name = target_name(target, project=project)
    return Call(_HARDWARE, "GetHardwareTarget", hardware_pb2.GetHardwareTargetRequest(name=name))


def create_target(
    spec: hardware_pb2.HardwareSpec, *, project: str, validate_only: bool
) -> Call[hardware_pb2.HardwareTarget]:
    """Store the description of a device."""
    request = hardware_pb2.CreateHardwareTargetRequest(
        parent=project_name(project),
        hardware_target=hardware_pb2.HardwareTarget(spec=spec),
        validate_only=validate_only,
    )
    return Call(_HARDWARE, "CreateHardwareTarget", request)


def delete_target(target: str, *, project: str) -> Call[empty_pb2.Empty]:
    """Delete a target of the project."""
    name = target_name(target, project=project)
    return Call(
        _HARDWARE, "DeleteHardwareTarget", hardware_pb2.DeleteHardwareTargetRequest(name=name)
    )


def list_targets(*, project: str, page_size: int) -> Listing[hardware_pb2.HardwareTarget]:
    """List the targets of the project and of the catalogue."""
    request = hardware_pb2.ListHardwareTargetsRequest(
        parent=project_name(project), page_size=page_size
    )
    return Listing(
        Call(_HARDWARE, "ListHardwareTargets", request), lambda page: page.hardware_targets
    )


def diagnose() -> Call[diagnostics_pb2.DiagnoseResponse]:
    """Have the server look at its deployment."""
    return Call(_DIAGNOSTICS, "Diagnose", diagnostics_pb2.DiagnoseRequest())


def get_runner(runner: str, *, project: str) -> Call[runner_pb2.Runner]:
    """Return a runner."""
    request = runner_pb2.GetRunnerRequest(name=runner_name(runner, project=project))
    return Call(_RUNNERS, "GetRunner", request)


def calibrate_target(
    target: str, runner: str, *, project: str, network_count: int, keep_measurements: bool
) -> Stream[hardware_pb2.CalibrateHardwareTargetResponse]:
    """Correct a target's emulator by what a runner measures."""
    request = hardware_pb2.CalibrateHardwareTargetRequest(
        parent=project_name(project),
        hardware_target=target_name(target, project=project),
        runner=runner_name(runner, project=project),
        network_count=network_count,
        keep_measurements=keep_measurements,
    )
    return Stream(_HARDWARE, "CalibrateHardwareTarget", request)


def list_runners(*, project: str, page_size: int) -> Listing[runner_pb2.Runner]:
    """List runners."""
    request = runner_pb2.ListRunnersRequest(parent=project_name(project), page_size=page_size)
    return Listing(Call(_RUNNERS, "ListRunners", request), lambda page: page.runners)


def create_download_url(
    artifact: str, *, project: str
) -> Call[artifact_pb2.CreateDownloadUrlResponse]:
    """Ask where an artifact can be fetched directly."""
    request = artifact_pb2.CreateDownloadUrlRequest(name=artifact_name(artifact, project=project))
    return Call(_ARTIFACTS, "CreateDownloadUrl", request)


def read_artifact(
    artifact: str, *, project: str, offset: int
) -> Stream[artifact_pb2.ReadArtifactResponse]:
    """Read an artifact from an offset on."""
    name = artifact_name(artifact, project=project)
    return Stream(
        _ARTIFACTS, "ReadArtifact", artifact_pb2.ReadArtifactRequest(name=name, offset=offset)
    )


def get_caller() -> Call[access_pb2.Caller]:
    """Ask who the server takes us for."""
    return Call(_ACCESS, "GetCaller", access_pb2.GetCallerRequest())


def create_api_key(api_key: access_pb2.ApiKey) -> Call[access_pb2.CreateApiKeyResponse]:
    """Make an API key."""
    return Call(_ACCESS, "CreateApiKey", access_pb2.CreateApiKeyRequest(api_key=api_key))


def list_api_keys(*, page_size: int) -> Listing[access_pb2.ApiKey]:
    """List API keys."""
    request = access_pb2.ListApiKeysRequest(page_size=page_size)
    return Listing(Call(_ACCESS, "ListApiKeys", request), lambda page: page.api_keys)


def revoke_api_key(api_key: str) -> Call[access_pb2.ApiKey]:
    """End an API key."""
    request = access_pb2.RevokeApiKeyRequest(name=api_key_name(api_key))
    return Call(_ACCESS, "RevokeApiKey", request)


def list_audit_events(
    *, project: str, principal: str, page_size: int
) -> Listing[access_pb2.AuditEvent]:
    """List what was done, in a project or, with `-`, in all."""
    request = access_pb2.ListAuditEventsRequest(
        parent=project_name(project), principal=principal, page_size=page_size
    )
    return Listing(Call(_ACCESS, "ListAuditEvents", request), lambda page: page.audit_events)
