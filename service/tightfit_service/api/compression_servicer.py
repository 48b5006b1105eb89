"""CompressionService over the use case `Jobs`."""
# ruff: noqa: N802, D102, ARG002  (gRPC gives names and parameters, the protos document them)

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.empty_pb2 import Empty

from tightfit.v1 import compression_pb2, compression_pb2_grpc, job_pb2, trial_pb2
from tightfit_service.api import resource_names
from tightfit_service.api.codec import enums
from tightfit_service.api.codec.job import (
    check_to_proto,
    event_to_proto,
    job_to_proto,
    listed_job_to_proto,
    request_from_proto,
)
from tightfit_service.api.codec.trial import trial_to_proto
from tightfit_service.api.drain import Drain
from tightfit_service.api.paging import page_cursor
from tightfit_service.application.ports import Page
from tightfit_service.application.use_cases import Jobs
from tightfit_service.domain.errors import InvalidRequestError, NotFoundError


class CompressionServicer(compression_pb2_grpc.CompressionServiceServicer):
    """Translates CompressionService."""

    def __init__(self, *, jobs: Jobs, drain: Drain) -> None:
        self._jobs = jobs
        self._drain = drain

    async def CreateJob(
        self, request: compression_pb2.CreateJobRequest, context: Any
    ) -> job_pb2.CompressionJob:
        project_id = resource_names.parse_project(request.parent)
        wanted = request_from_proto(
            request.job.spec, project_id=project_id, request_id=request.request_id
        )
        if not request.validate_only:
            return job_to_proto(await self._jobs.create(project_id, wanted))
        imagined = job_to_proto(await self._jobs.validate(project_id, wanted))
        imagined.ClearField("name")
        return imagined

    async def GetJob(
        self, request: compression_pb2.GetJobRequest, context: Any
    ) -> job_pb2.CompressionJob:
        project_id, job_id = resource_names.parse_job(request.name)
        return job_to_proto(await self._jobs.get(project_id, job_id))

    async def ListJobs(
        self, request: compression_pb2.ListJobsRequest, context: Any
    ) -> compression_pb2.ListJobsResponse:
        project_id = resource_names.parse_project(request.parent)
        states = enums.JOB_STATE.several(request.states, field="states")
        cursor = page_cursor(request, project_id, sorted(set(states)))
        fetched = await self._jobs.list(project_id, cursor.page, states=states)
        jobs, token = cursor.cut(fetched, lambda job: job.job_id)
        return compression_pb2.ListJobsResponse(
            jobs=[listed_job_to_proto(job) for job in jobs], next_page_token=token
        )

    async def WatchJob(
        self, request: compression_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[job_pb2.JobEvent]:
        project_id, job_id = resource_names.parse_job(request.name)
        if request.after_sequence < 0:
            raise InvalidRequestError(
                f"after_sequence is {request.after_sequence}",
                field="after_sequence",
                remedy="give the last sequence number that you have seen, or 0",
            )
        stream: Any = self._jobs.watch(project_id, job_id, after=request.after_sequence)
        guarded: Any = self._drain.guard(stream)
        async with aclosing(stream), aclosing(guarded) as events:
            async for event in events:
                yield event_to_proto(event, project_id=project_id)

    async def CancelJob(
        self, request: compression_pb2.CancelJobRequest, context: Any
    ) -> job_pb2.CompressionJob:
        project_id, job_id = resource_names.parse_job(request.name)
        return job_to_proto(await self._jobs.cancel(project_id, job_id))

    async def DeleteJob(self, request: compression_pb2.DeleteJobRequest, context: Any) -> Empty:
        project_id, job_id = resource_names.parse_job(request.name)
        await self._jobs.delete(project_id, job_id)
        return Empty()

    async def CheckJob(
        self, request: compression_pb2.CheckJobRequest, context: Any
    ) -> compression_pb2.CheckJobResponse:
        project_id = resource_names.parse_project(request.parent)
        wanted = request_from_proto(request.spec, project_id=project_id)
        return check_to_proto(await self._jobs.check(project_id, wanted))

    async def ListTrials(
        self, request: compression_pb2.ListTrialsRequest, context: Any
    ) -> compression_pb2.ListTrialsResponse:
        project_id, job_id = resource_names.parse_job(request.parent, field="parent")
        cursor = page_cursor(request, project_id, job_id)
        fetched = await self._jobs.trials(project_id, job_id, cursor.page)
        trials, token = cursor.cut(fetched, lambda trial: str(trial.index))
        return compression_pb2.ListTrialsResponse(
            trials=[
                trial_to_proto(trial, project_id=project_id, job_id=job_id) for trial in trials
            ],
            next_page_token=token,
        )

    async def GetTrial(
        self, request: compression_pb2.GetTrialRequest, context: Any
    ) -> trial_pb2.Trial:
        project_id, job_id, index = resource_names.parse_trial(request.name)
        after = str(index - 1) if index else ""
        found = await self._jobs.trials(project_id, job_id, Page(size=1, after=after))
        if not found or found[0].index != index:
            raise NotFoundError(
                f"the job has no trial {index}",
                field="name",
                remedy="ListTrials has the trials of the job",
            )
        return trial_to_proto(found[0], project_id=project_id, job_id=job_id)

    async def ApplyRecipe(
        self, request: compression_pb2.ApplyRecipeRequest, context: Any
    ) -> job_pb2.CompressionJob:
        project_id = resource_names.parse_project(request.parent)
        wanted = request_from_proto(
            request.spec,
            project_id=project_id,
            request_id=request.request_id,
            recipe=request.recipe,
        )
        return job_to_proto(await self._jobs.create(project_id, wanted))
