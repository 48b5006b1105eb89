"""HardwareService over the use case `Hardware`."""
# ruff: noqa: N802, D102, ARG002  (gRPC gives names and parameters, the protos document them)

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf import empty_pb2

from tightfit.v1 import hardware_pb2, hardware_pb2_grpc
from tightfit_service.api import resource_names
from tightfit_service.api.codec import enums
from tightfit_service.api.codec.calibration import calibration_to_proto
from tightfit_service.api.codec.duty import duty_to_proto, usage_from_proto
from tightfit_service.api.codec.hardware import partial_from_proto, spec_to_proto, target_to_proto
from tightfit_service.api.codec.job import target_from_proto
from tightfit_service.api.codec.metrics import cost_to_proto
from tightfit_service.api.paging import page_cursor
from tightfit_service.application.hardware.calibration import DEFAULT_NETWORK_COUNT
from tightfit_service.application.use_cases import Calibrations, Hardware
from tightfit_service.domain.duty import duty_cycle
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import NumberFormat, Runtime


class HardwareServicer(hardware_pb2_grpc.HardwareServiceServicer):
    """Translates HardwareService."""

    def __init__(self, *, hardware: Hardware, calibrations: Calibrations) -> None:
        self._hardware = hardware
        self._calibrations = calibrations

    async def GetHardwareTarget(
        self, request: hardware_pb2.GetHardwareTargetRequest, context: Any
    ) -> hardware_pb2.HardwareTarget:
        project_id, target_id = resource_names.parse_hardware_target(request.name)
        return target_to_proto(await self._hardware.get_target(project_id, target_id))

    async def ListHardwareTargets(
        self, request: hardware_pb2.ListHardwareTargetsRequest, context: Any
    ) -> hardware_pb2.ListHardwareTargetsResponse:
        project_id = resource_names.parse_project(request.parent) if request.parent else ""
        cursor = page_cursor(request, project_id)
        fetched = await self._hardware.list_targets(project_id, cursor.page)
        targets, token = cursor.cut(fetched, lambda target: target.spec.name)
        return hardware_pb2.ListHardwareTargetsResponse(
            hardware_targets=[target_to_proto(target) for target in targets],
            next_page_token=token,
        )

    async def CreateHardwareTarget(
        self, request: hardware_pb2.CreateHardwareTargetRequest, context: Any
    ) -> hardware_pb2.HardwareTarget:
        project_id = resource_names.parse_project(request.parent)
        target = await self._hardware.create_target(
            project_id,
            partial_from_proto(request.hardware_target.spec),
            validate_only=request.validate_only,
        )
        return target_to_proto(target)

    async def DeleteHardwareTarget(
        self, request: hardware_pb2.DeleteHardwareTargetRequest, context: Any
    ) -> empty_pb2.Empty:
        project_id, target_id = resource_names.PROJECT_TARGET.ids(request.name)
        await self._hardware.delete_target(project_id, target_id)
        return empty_pb2.Empty()

    async def EstimateModel(
        self, request: hardware_pb2.EstimateModelRequest, context: Any
    ) -> hardware_pb2.EstimateModelResponse:
        project_id, model_id = _network_of(request)
        usage = usage_from_proto(request)
        runtime = None
        if request.HasField("runtime"):
            runtime = Runtime(name=request.runtime.name, version=request.runtime.version)
        target, costs = await self._hardware.estimate(
            project_id,
            model=model_id,
            layer_table=request.layer_table,
            target=target_from_proto(request, project_id=project_id),
            runtime=runtime,
        )
        return hardware_pb2.EstimateModelResponse(
            target=spec_to_proto(target),
            estimates=[
                hardware_pb2.FormatEstimate(
                    number_format=enums.NUMBER_FORMAT.to_proto(NumberFormat(name)),
                    cost=cost_to_proto(cost),
                    duty_cycle=duty_to_proto(duty_cycle(cost, target, usage)) if usage else None,
                )
                for name, cost in costs.items()
            ],
        )

    async def CalibrateHardwareTarget(
        self, request: hardware_pb2.CalibrateHardwareTargetRequest, context: Any
    ) -> AsyncIterator[hardware_pb2.CalibrateHardwareTargetResponse]:
        project_id = resource_names.parse_project(request.parent)
        owner_id, target_id = resource_names.parse_hardware_target(
            request.hardware_target, field="hardware_target"
        )
        if owner_id not in ("", project_id):
            resource_names.parse_owned(
                resource_names.PROJECT_TARGET,
                request.hardware_target,
                project_id=project_id,
                field="hardware_target",
            )
        runner_id = resource_names.parse_owned(
            resource_names.RUNNER, request.runner, project_id=project_id, field="runner"
        )
        course: Any = self._calibrations.calibrate(
            project_id,
            target_id,
            runner_id=runner_id,
            network_count=request.network_count or DEFAULT_NETWORK_COUNT,
            keep_measurements=request.keep_measurements,
        )
        async with aclosing(course) as steps:
            async for step in steps:
                yield calibration_to_proto(step, request)


def _network_of(request: hardware_pb2.EstimateModelRequest) -> tuple[str, str]:
    """Return the project and the id of the model; with a layer table the project is the target's, if any."""
    if request.layer_table and request.model:
        raise InvalidRequestError(
            "a model and a layer table are given", field="layer_table", remedy="give one of them"
        )
    if request.layer_table:
        owned = request.hardware_target.startswith("projects/")
        return (resource_names.PROJECT_TARGET.ids(request.hardware_target)[0] if owned else ""), ""
    project_id, model_id = resource_names.MODEL.ids(request.model, field="model")
    return project_id, model_id
