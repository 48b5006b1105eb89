"""Access through a real server: audit, streams, keys, TLS and client certificates."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from fakes.access import Authority, write_pair
from fakes.records import make_job
from fakes.rpc_errors import info_of
from fakes.secured_service import SecuredService, bearer, secured_service
from fakes.waiting import until
from tightfit.v1 import (
    access_options_pb2,
    access_pb2,
    access_pb2_grpc,
    compression_pb2,
    compression_pb2_grpc,
)
from tightfit_service.adapters.access.policy_file import PolicyFile
from tightfit_service.adapters.access.tls_files import TlsFiles
from tightfit_service.api import access_interceptor
from tightfit_service.api.tls import server_credentials
from tightfit_service.application.access.authentication import CACHE_SECONDS
from tightfit_service.domain.access import Role

ROLE_ADMIN = access_options_pb2.ROLE_ADMIN
ROLE_VIEWER = access_options_pb2.ROLE_VIEWER
JOB = "projects/vision/jobs/j1"


@pytest.fixture
async def secured() -> AsyncIterator[SecuredService]:
    async with secured_service() as service:
        service.jobs.add("vision", make_job("j1", project="vision"))
        yield service


def _jobs(service: SecuredService) -> compression_pb2_grpc.CompressionServiceAsyncStub:
    return compression_pb2_grpc.CompressionServiceStub(service.channel)


def _access(service: SecuredService) -> access_pb2_grpc.AccessServiceAsyncStub:
    return access_pb2_grpc.AccessServiceStub(service.channel)


def _key(**roles: access_options_pb2.Role.ValueType) -> access_pb2.CreateApiKeyRequest:
    grants = [
        access_pb2.RoleGrant(project=f"projects/{project}".replace("everything", "-"), role=role)
        for project, role in roles.items()
    ]
    return access_pb2.CreateApiKeyRequest(api_key=access_pb2.ApiKey(grants=grants))


async def _code(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), info_of(error)[0]
    return grpc.StatusCode.OK, ""


async def test_what_is_of_others_is_answered_like_what_is_not_there(
    secured: SecuredService,
) -> None:
    me = bearer(secured.keys.make(Role.ADMIN, "audio"))
    answers = []
    for name in (JOB, "projects/vision/jobs/none", "projects/vision/jobs/%%%"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _jobs(secured).GetJob(compression_pb2.GetJobRequest(name=name), metadata=me)
        facts = info_of(caught.value)
        facts[1].pop("request_id")
        answers.append((caught.value.code(), caught.value.details(), facts))
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0] is grpc.StatusCode.PERMISSION_DENIED


async def test_keys_of_others_are_answered_like_keys_that_are_not_there(
    secured: SecuredService,
) -> None:
    secured.keys.make(Role.VIEWER, "vision")
    (hidden,) = secured.keys.keys
    me = bearer(secured.keys.make(Role.ADMIN, "audio"))
    for key_id in (hidden, "0" * 16):
        request = access_pb2.RevokeApiKeyRequest(name=f"apiKeys/{key_id}")
        code, _ = await _code(_access(secured).RevokeApiKey(request, metadata=me))
        assert code is grpc.StatusCode.NOT_FOUND
    listed = await _access(secured).ListApiKeys(access_pb2.ListApiKeysRequest(), metadata=me)
    assert [key.display_name for key in listed.api_keys] == ["admin of audio"]


async def test_a_key_that_was_made_works_until_it_is_revoked(secured: SecuredService) -> None:
    me = bearer(secured.keys.make(Role.ADMIN, "vision"))
    made = await _access(secured).CreateApiKey(_key(vision=ROLE_VIEWER), metadata=me)
    stored = secured.keys.keys[made.api_key.name.removeprefix("apiKeys/")]
    assert made.token not in repr(stored)
    assert stored.creator.startswith("key:")
    get_job = compression_pb2.GetJobRequest(name=JOB)
    theirs = bearer(made.token)
    assert (await _jobs(secured).GetJob(get_job, metadata=theirs)).name == JOB

    request = access_pb2.RevokeApiKeyRequest(name=made.api_key.name)
    await _access(secured).RevokeApiKey(request, metadata=me)
    secured.clock.advance(CACHE_SECONDS)

    code = await _code(_jobs(secured).GetJob(get_job, metadata=theirs))
    assert code == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_REVOKED")


async def test_an_admin_grants_no_more_than_he_has(secured: SecuredService) -> None:
    me = bearer(secured.keys.make(Role.ADMIN, "vision"))
    for wanted in (_key(audio=ROLE_VIEWER), _key(everything=ROLE_VIEWER)):
        code, _ = await _code(_access(secured).CreateApiKey(wanted, metadata=me))
        assert code is grpc.StatusCode.PERMISSION_DENIED
    code, _ = await _code(_access(secured).CreateApiKey(_key(), metadata=me))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    everything = bearer(secured.keys.make(Role.ADMIN, "*"))
    made = await _access(secured).CreateApiKey(_key(everything=ROLE_ADMIN), metadata=everything)
    assert made.api_key.grants[0].project == "projects/-"


async def test_an_expiry_that_is_no_time_is_refused(secured: SecuredService) -> None:
    me = bearer(secured.keys.make(Role.ADMIN, "*"))
    for seconds in (1, 1 << 62):
        wanted = _key(vision=ROLE_VIEWER)
        wanted.api_key.expire_time.seconds = seconds
        code, _ = await _code(_access(secured).CreateApiKey(wanted, metadata=me))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_authenticated_call_costs_one_look_up_in_the_cache_time(
    secured: SecuredService,
) -> None:
    token = secured.keys.make(Role.VIEWER, "vision")
    get_job = compression_pb2.GetJobRequest(name=JOB)
    calls = [_jobs(secured).GetJob(get_job, metadata=bearer(token)) for _ in range(50)]
    await asyncio.gather(*calls)
    assert secured.keys.lookups == 1
    await until(lambda: secured.keys.writes == 1)
    secured.clock.advance(CACHE_SECONDS)
    await _jobs(secured).GetJob(get_job, metadata=bearer(token))
    assert (secured.keys.lookups, secured.keys.writes) == (2, 1)


@pytest.mark.parametrize("end", ["revoked", "expired"])
async def test_an_open_stream_ends_with_its_key(
    secured: SecuredService, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(access_interceptor, "RECHECK_SECONDS", 0.02)
    until_then = secured.clock.now() + timedelta(hours=1)
    token = secured.keys.make(Role.VIEWER, "vision", expire_time=until_then)
    request = compression_pb2.WatchJobRequest(name=JOB)
    watch = _jobs(secured).WatchJob(request, metadata=bearer(token))
    reading = asyncio.ensure_future(watch.code())
    await until(lambda: secured.keys.lookups == 1)
    await asyncio.sleep(0.1)  # several checks
    assert not reading.done()
    if end == "revoked":
        (key_id,) = secured.keys.keys
        secured.keys.revoke_key(key_id, secured.clock.now())
        secured.clock.advance(CACHE_SECONDS)
    else:
        secured.clock.advance(3_601)
    code = await asyncio.wait_for(reading, 5)
    # A client takes an expired stream up again with fresh credentials, if it has some.
    expected = {"revoked": grpc.StatusCode.UNAUTHENTICATED, "expired": grpc.StatusCode.UNAVAILABLE}
    assert code is expected[end]


async def test_the_audit_log_says_who_did_what(secured: SecuredService) -> None:
    admin = bearer(secured.keys.make(Role.ADMIN, "*"))
    viewer_token = secured.keys.make(Role.VIEWER, "vision")
    viewer_name = f"key:{viewer_token.split('_')[1]}"
    viewer = bearer(viewer_token)
    await _jobs(secured).GetJob(compression_pb2.GetJobRequest(name=JOB), metadata=viewer)
    cancel = compression_pb2.CancelJobRequest(name=JOB)
    assert (await _code(_jobs(secured).CancelJob(cancel, metadata=viewer)))[
        1
    ] == "PERMISSION_DENIED"
    await _jobs(secured).CancelJob(cancel, metadata=(*admin, ("x-request-id", "the-request")))
    missing = compression_pb2.CancelJobRequest(name="projects/vision/jobs/none")
    await _code(_jobs(secured).CancelJob(missing, metadata=admin))
    await _code(_jobs(secured).CancelJob(cancel, metadata=bearer("stranger")))

    request = access_pb2.ListAuditEventsRequest(parent="projects/vision", page_size=2)
    page = await _access(secured).ListAuditEvents(request, metadata=admin)
    request.page_token = page.next_page_token
    rest = await _access(secured).ListAuditEvents(request, metadata=admin)

    events = [*page.audit_events, *rest.audit_events]
    assert [(e.code, e.resource) for e in events] == [
        ("NOT_FOUND", "projects/vision/jobs/none"),
        ("OK", JOB),
        ("PERMISSION_DENIED", JOB),
    ]
    assert events[2].principal == viewer_name
    assert events[1].request_id == "the-request"
    assert all(e.method == "tightfit.v1.CompressionService/CancelJob" for e in events)
    assert all(e.address.startswith(("ipv4:127.", "ipv6:")) for e in events)
    of_viewer = access_pb2.ListAuditEventsRequest(parent="projects/-", principal=viewer_name)
    found = await _access(secured).ListAuditEvents(of_viewer, metadata=admin)
    assert [e.code for e in found.audit_events] == ["PERMISSION_DENIED"]


async def test_a_server_that_asks_nobody_makes_no_keys() -> None:
    async with secured_service(required=False) as service:
        caller = await _access(service).GetCaller(access_pb2.GetCallerRequest())
        assert caller.principal == "anonymous"
        code, _ = await _code(_access(service).CreateApiKey(_key(everything=ROLE_ADMIN)))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        parent = access_pb2.ListAuditEventsRequest(parent="projects/-")
        assert (await _code(_access(service).ListAuditEvents(parent)))[0] is code


def _serial(address: str, authority: Authority) -> int:
    """Return the serial number of the certificate that a server shows at present."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        certificate = secure.getpeercert()
    assert certificate is not None
    return int(str(certificate["serialNumber"]), 16)


async def test_a_certificate_is_replaced_while_the_server_runs(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = write_pair(tmp_path, authority.issue("one"))
    files = TlsFiles(certificate=certificate, key=key, look_seconds=0)
    client = grpc.ssl_channel_credentials(authority.pem)
    async with secured_service(
        required=False, credentials=server_credentials(files), channel_credentials=client
    ) as service:
        await _access(service).GetCaller(access_pb2.GetCallerRequest())
        first = await asyncio.to_thread(_serial, service.address, authority)
        write_pair(tmp_path, authority.issue("two"))
        second = await asyncio.to_thread(_serial, service.address, authority)
        assert second != first
        certificate.write_text("not a certificate")
        assert await asyncio.to_thread(_serial, service.address, authority) == second
        key.write_bytes(authority.issue("other").key)
        assert await asyncio.to_thread(_serial, service.address, authority) == second
        write_pair(tmp_path, authority.issue("three"))
        assert await asyncio.to_thread(_serial, service.address, authority) not in (first, second)
        # connections that are open stay so
        await _access(service).GetCaller(access_pb2.GetCallerRequest())


async def test_a_client_certificate_is_an_identity(tmp_path: Path) -> None:
    authority, strangers = Authority(), Authority("strangers")
    certificate, key = write_pair(tmp_path, authority.issue("server"))
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "policy.yaml").write_text("certificates: {ci.example: {vision: viewer}}\n")
    files = TlsFiles(certificate=certificate, key=key, client_ca=tmp_path / "ca.pem")
    known, unknown, foreign = (
        authority.issue("ci.example"),
        authority.issue("nobody.example"),
        strangers.issue("ci.example"),
    )

    def of(issued: object) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            authority.pem,
            private_key=getattr(issued, "key", None),
            certificate_chain=getattr(issued, "certificate", None),
        )

    async with secured_service(
        credentials=server_credentials(files),
        channel_credentials=of(known),
        policy=PolicyFile(tmp_path / "policy.yaml"),
    ) as service:
        caller = await _access(service).GetCaller(access_pb2.GetCallerRequest())
        assert caller.principal == "certificate:ci.example"
        request = compression_pb2.ListJobsRequest(parent="projects/vision")
        await _jobs(service).ListJobs(request)
        admin = bearer(service.keys.make(Role.ADMIN, "*"))
        caller = await _access(service).GetCaller(access_pb2.GetCallerRequest(), metadata=admin)
        assert caller.principal.startswith("key:")
        outcomes = []
        for credentials in (of(unknown), of(foreign), of(None)):
            async with grpc.aio.secure_channel(service.address, credentials) as channel:
                stub = compression_pb2_grpc.CompressionServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.ListJobs(request, timeout=5)
                outcomes.append(caught.value.code())
        assert outcomes == [
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.UNAVAILABLE,
        ]


def test_threads_that_read_files_at_once_agree(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path, Authority().issue("server"))
    files = TlsFiles(certificate=certificate, key=key, look_seconds=0)
    seen: set[bytes] = set()
    threads = [
        threading.Thread(target=lambda: seen.add(files.material().certificate_chain))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1
