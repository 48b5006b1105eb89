"""A running gRPC server that asks callers who they are, over use cases in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from fakes.access import InMemoryEvents, InMemoryKeys
from fakes.clock import FakeClock
from fakes.diagnosis import no_checks
from fakes.runners import make_desk
from fakes.use_cases import InMemoryAssets, InMemoryHardware, InMemoryJobs, RecordingRpcMetrics
from tightfit_service.adapters.access.policy_file import EmptyPolicy
from tightfit_service.api.server import GrpcServer, ServerOptions
from tightfit_service.application.access.api_keys import ApiKeyDesk
from tightfit_service.application.access.audit import AuditLog
from tightfit_service.application.access.authentication import Authenticator
from tightfit_service.application.access.callers import Access
from tightfit_service.application.ports.access import RolePolicy, TokenVerifier


@dataclass(kw_only=True)
class SecuredService:
    """A running server, what is behind it, and a channel to it."""

    clock: FakeClock
    keys: InMemoryKeys
    events: InMemoryEvents
    jobs: InMemoryJobs
    metrics: RecordingRpcMetrics
    address: str
    channel: grpc.aio.Channel


@asynccontextmanager
async def secured_service(
    *,
    required: bool = True,
    credentials: grpc.ServerCredentials | None = None,
    channel_credentials: grpc.ChannelCredentials | None = None,
    policy: RolePolicy | None = None,
    tokens: TokenVerifier | None = None,
) -> AsyncIterator[SecuredService]:
    """Run one."""
    clock, keys, events = FakeClock(), InMemoryKeys(), InMemoryEvents()
    jobs, metrics, hardware = InMemoryJobs(), RecordingRpcMetrics(), InMemoryHardware("board-a")
    server = GrpcServer(
        assets=InMemoryAssets(),
        jobs=jobs,
        hardware=hardware,
        calibrations=hardware,
        runners=make_desk(clock),
        diagnosis=no_checks(),
        metrics=metrics,
        options=ServerOptions(listen="127.0.0.1:0", credentials=credentials),
        access=Access(
            authenticator=Authenticator(
                required=required,
                keys=keys,
                tokens=tokens,
                policy=policy or EmptyPolicy(),
                clock=clock,
            ),
            keys=ApiKeyDesk(keys=keys, clock=clock, required=required),
            audit=AuditLog(store=events),
        ),
    )
    address = await server.start()
    channel = (
        grpc.aio.secure_channel(address, channel_credentials)
        if channel_credentials is not None
        else grpc.aio.insecure_channel(address)
    )
    try:
        async with channel:
            yield SecuredService(
                clock=clock,
                keys=keys,
                events=events,
                jobs=jobs,
                metrics=metrics,
                address=address,
                channel=channel,
            )
    finally:
        await server.stop(grace_seconds=0)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call with a token."""
    return (("authorization", f"Bearer {token}"),) if token else ()
