"""A running gRPC server over use cases in memory, as tests of the API see it."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from fakes.use_cases import InMemoryAssets, InMemoryHardware, InMemoryJobs, RecordingRpcMetrics
from tightfit_service.api.server import GrpcServer
from tightfit_service.application.runners.desk import RunnerDesk


@dataclass(kw_only=True)
class Service:
    """A running server, what is behind it, and a channel to it."""

    assets: InMemoryAssets
    jobs: InMemoryJobs
    hardware: InMemoryHardware
    runners: RunnerDesk
    metrics: RecordingRpcMetrics
    server: GrpcServer
    address: str
    channel: grpc.aio.Channel
