from __future__ import annotations

import pytest
from google.protobuf.message import Message

from tightfit.v1 import (
    artifact_pb2,
    compression_pb2,
    hardware_pb2,
    job_pb2,
    model_pb2,
    runner_pb2,
    transfer_pb2,
)
from tightfit_service.api.request_scope import project_of, projects_of, resource_of


@pytest.mark.parametrize(
    ("message", "project"),
    [
        (compression_pb2.GetJobRequest(name="projects/a/jobs/1"), "a"),
        (compression_pb2.ListJobsRequest(parent="projects/a"), "a"),
        (artifact_pb2.ReadArtifactRequest(name="projects/b/artifacts/x"), "b"),
        (
            model_pb2.UploadModelRequest(
                header=transfer_pb2.UploadHeader(upload="projects/c/uploads/u")
            ),
            "c",
        ),
        (model_pb2.UploadModelRequest(data=b"projects/z"), ""),
        (
            runner_pb2.ConnectRunnerRequest(
                hello=runner_pb2.RunnerHello(name="projects/d/runners/r")
            ),
            "d",
        ),
        (hardware_pb2.GetHardwareTargetRequest(name="hardwareTargets/board"), ""),
        (hardware_pb2.ListHardwareTargetsRequest(), ""),
        (compression_pb2.GetJobRequest(name="projects//jobs/1"), ""),
        (compression_pb2.GetJobRequest(name="projects"), ""),
    ],
)
def test_the_project_is_read_from_the_name(message: Message, project: str) -> None:
    assert project_of(message) == project


def test_all_projects_that_a_request_touches_are_found() -> None:
    request = compression_pb2.CreateJobRequest(
        parent="projects/a",
        job=job_pb2.CompressionJob(
            name="projects/ignored/jobs/1",
            spec=job_pb2.CompressionSpec(
                model="projects/b/models/m", dataset="projects/c/datasets/d"
            ),
        ),
    )
    assert projects_of(request) == ("a", "b", "c")
    estimate = hardware_pb2.EstimateModelRequest(
        model="projects/a/models/m", hardware_target="projects/b/hardwareTargets/t"
    )
    assert set(projects_of(estimate)) == {"a", "b"}


def test_the_parent_says_what_a_request_is_about() -> None:
    request = compression_pb2.CreateJobRequest(parent="projects/a")
    request.job.spec.model = "projects/b/models/m"
    assert resource_of(request) == "projects/a"
    assert resource_of(hardware_pb2.ListHardwareTargetsRequest()) == ""
