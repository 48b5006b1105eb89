"""The gRPC server: which services it offers, on which port, and how it stops."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import structlog
from grpc_health.v1 import (
    health,
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import reflection

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
    model_pb2,
    model_pb2_grpc,
    runner_pb2,
    runner_pb2_grpc,
)
from tightfit_service.api.access_interceptor import AccessInterceptor
from tightfit_service.api.access_rules import AccessRules
from tightfit_service.api.access_servicer import AccessServicer
from tightfit_service.api.allocator import reuse_message_buffers
from tightfit_service.api.asset_servicers import ArtifactServicer, DatasetServicer, ModelServicer
from tightfit_service.api.compression_servicer import CompressionServicer
from tightfit_service.api.diagnostics_servicer import DiagnosticsServicer
from tightfit_service.api.drain import Drain
from tightfit_service.api.hardware_servicer import HardwareServicer
from tightfit_service.api.health_servicer import DrainingHealthServicer
from tightfit_service.api.interceptors import BoundaryInterceptor, RpcMetrics
from tightfit_service.api.limits import CallLimits, LimitInterceptor, LimitMetrics
from tightfit_service.api.runner_servicer import RunnerServicer
from tightfit_service.application.access.callers import Access
from tightfit_service.application.operations.diagnosis import Diagnosis
from tightfit_service.application.use_cases import Assets, Calibrations, Hardware, Jobs, Runners
from tightfit_service.domain.errors import UnavailableError

SERVICES: tuple[str, ...] = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (access_pb2, "AccessService"),
        (artifact_pb2, "ArtifactService"),
        (compression_pb2, "CompressionService"),
        (dataset_pb2, "DatasetService"),
        (diagnostics_pb2, "DiagnosticsService"),
        (hardware_pb2, "HardwareService"),
        (model_pb2, "ModelService"),
        (runner_pb2, "RunnerService"),
    )
)

LIVENESS = "liveness"
"""Name in the health service that is SERVING while the process answers, whatever it stands on."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How the server listens.

    Attributes:
        listen: `host:port`; port 0 takes a free one.
        max_receive_bytes: Greatest message from a client. Uploads come in parts of up to 4 MiB.
        keepalive_seconds: Idle connections are probed this often, so that dead clients are noticed.
        limits: What one project may ask at a time.
        credentials: TLS of the port; None serves without, for loopback and for meshes that bring it.
        health_listen: `host:port` of a second port with the health service alone, without TLS and
            credentials, because the probes of Kubernetes have neither; empty for none.
    """

    listen: str = "127.0.0.1:50051"
    max_receive_bytes: int = 8 << 20
    keepalive_seconds: float = 60.0
    credentials: grpc.ServerCredentials | None = None
    limits: CallLimits = field(default_factory=CallLimits)
    health_listen: str = ""


class ServerMetrics(RpcMetrics, LimitMetrics, Protocol):
    """Where the server counts."""


class GrpcServer:
    """Serves the use cases over gRPC, with health and reflection. Lives on one event loop.

    Without `access` nobody is asked who he is, and there is no AccessService.

    Attributes:
        health_address: `host:port` of the port for probes, once started; empty without one.
    """

    def __init__(
        self,
        *,
        assets: Assets,
        jobs: Jobs,
        hardware: Hardware,
        calibrations: Calibrations,
        runners: Runners,
        diagnosis: Diagnosis,
        metrics: ServerMetrics,
        options: ServerOptions,
        access: Access | None = None,
    ) -> None:
        self._assets = assets
        self._jobs = jobs
        self._hardware = hardware
        self._calibrations = calibrations
        self._runners = runners
        self._diagnosis = diagnosis
        self._metrics = metrics
        self._options = options
        self._access = access
        self._drain = Drain()
        self._health = DrainingHealthServicer(drain=self._drain)
        self._server: grpc.aio.Server | None = None
        self._probes: grpc.aio.Server | None = None
        self.health_address = ""

    async def start(self) -> str:
        """Listen and serve; return the address as `host:port` with the port that was bound.

        Raises:
            UnavailableError: The address cannot be bound.
        """
        reuse_message_buffers()
        server = grpc.aio.server(
            interceptors=self._interceptors(),
            options=self._channel_options(),
        )
        self._add_services(server)
        address = _bind(server, self._options.listen, self._options.credentials, field="listen")
        await server.start()
        try:
            self._probes = await self._start_probes()
        except UnavailableError:
            await server.stop(None)
            raise
        self._server = server
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self.set_ready(is_ready=True)
        _log.info("serving", address=address)
        return address

    async def set_ready(self, *, is_ready: bool) -> None:
        """Tell balancers and readiness probes whether calls can be served; liveness stays as it is."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if is_ready else states.NOT_SERVING
        await asyncio.gather(*(self._health.set(name, state) for name in ("", *SERVICES)))

    async def stop(self, *, grace_seconds: float) -> None:
        """Drain and stop.

        1. Health turns to NOT_SERVING, so that balancers look elsewhere.
        2. New RPCs are refused, and watches end with UNAVAILABLE: their clients resume elsewhere.
        3. RPCs at work have `grace_seconds` to finish; then they are cancelled.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        _log.info("draining", grace_seconds=grace_seconds)
        await self._health.enter_graceful_shutdown()
        self._drain.begin()
        await server.stop(grace_seconds)
        if self._access is not None:
            await self._access.audit.stop()
        if self._probes is not None:
            await self._probes.stop(None)
        _log.info("stopped")

    async def _start_probes(self) -> grpc.aio.Server | None:
        if not self._options.health_listen:
            return None
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self.health_address = _bind(
            server, self._options.health_listen, None, field="health_listen"
        )
        await server.start()
        return server

    def _interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """Return what is around the handlers, outermost first: strangers use up nobody's limits."""
        rules = AccessRules(SERVICES)
        interceptors = [
            BoundaryInterceptor(metrics=self._metrics),
            LimitInterceptor(self._options.limits, metrics=self._metrics),
        ]
        if self._access is not None:
            authenticator = self._access.authenticator
            audit = self._access.audit if authenticator.required else None
            interceptors.insert(
                1, AccessInterceptor(rules=rules, authenticator=authenticator, audit=audit)
            )
        return interceptors

    def _channel_options(self) -> list[tuple[str, int]]:
        keepalive_ms = round(self._options.keepalive_seconds * 1000)
        return [
            ("grpc.max_receive_message_length", self._options.max_receive_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", keepalive_ms),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Clients may probe idle watches; gRPC's default would cut them off as abuse.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # A second server on the same port must fail instead of taking half of the calls.
            ("grpc.so_reuseport", 0),
        ]

    def _add_services(self, server: grpc.aio.Server) -> None:
        model_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(assets=self._assets), server
        )
        dataset_pb2_grpc.add_DatasetServiceServicer_to_server(
            DatasetServicer(assets=self._assets), server
        )
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(
            ArtifactServicer(assets=self._assets), server
        )
        hardware_pb2_grpc.add_HardwareServiceServicer_to_server(
            HardwareServicer(hardware=self._hardware, calibrations=self._calibrations), server
        )
        compression_pb2_grpc.add_CompressionServiceServicer_to_server(
            CompressionServicer(jobs=self._jobs, drain=self._drain), server
        )
        diagnostics_pb2_grpc.add_DiagnosticsServiceServicer_to_server(
            DiagnosticsServicer(diagnosis=self._diagnosis), server
        )
        runner_pb2_grpc.add_RunnerServiceServicer_to_server(
            RunnerServicer(runners=self._runners, drain=self._drain), server
        )
        if self._access is not None:
            access_pb2_grpc.add_AccessServiceServicer_to_server(
                AccessServicer(keys=self._access.keys, audit=self._access.audit), server
            )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )


def _bind(
    server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None, *, field: str
) -> str:
    """Bind an address; return it with the port that was bound.

    Raises:
        UnavailableError: It cannot be bound.
    """
    try:
        if credentials is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {listen}",
            field=field,
            remedy="choose a free port, or 0 for any, on an address of this machine",
        ) from error
    return f"{listen.rpartition(':')[0]}:{port}"
