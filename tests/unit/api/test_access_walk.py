"""Every RPC of the contract, called as everybody: who may is let through, everybody else is not.

Methods and requests are made from the descriptors, so that a method that is added is walked too.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from google.api import (  # type: ignore[import-untyped]  # ships no types
    resource_pb2,
)
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from fakes.rpc_errors import info_of
from fakes.secured_service import SecuredService, bearer, secured_service
from fakes.streams import send
from tightfit.v1 import access_options_pb2
from tightfit_service.api.access_rules import AccessRules
from tightfit_service.api.codec.access import ROLES
from tightfit_service.api.request_scope import projects_of
from tightfit_service.api.server import SERVICES
from tightfit_service.domain.access import Role, new_token

MINE, OTHER = "mine", "other"
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
POOL = descriptor_pool.Default()
METHODS: list[MethodDescriptor] = [
    method for service in SERVICES for method in POOL.FindServiceByName(service).methods
]
PATTERNS: dict[str, list[str]] = {}
for service in SERVICES:
    for message in (
        POOL.FindServiceByName(service)
        .file.pool.FindFileContainingSymbol(service)
        .message_types_by_name.values()
    ):
        resource = message.GetOptions().Extensions[resource_pb2.resource]
        if resource.type:
            PATTERNS[resource.type] = list(resource.pattern)


def _name(field: Any, project: str) -> str:
    """Return a name for a field that refers to a resource, of the project where there are such names."""
    reference = field.GetOptions().Extensions[resource_pb2.resource_reference]
    patterns = PATTERNS.get(reference.type or reference.child_type, ["projects/{project}"])
    pattern = next((p for p in patterns if p.startswith("projects/")), patterns[0])
    parts = pattern.split("/")
    if reference.child_type and len(parts) > 2:
        parts = parts[:-2]
    ids = {"{project}": project, "{trial}": "0", "{artifact}": "0" * 64}
    return "/".join(ids.get(p, "x1") if p.startswith("{") else p for p in parts)


def _fill(request: Message, project: str, depth: int = 3) -> None:
    for field in request.DESCRIPTOR.fields:
        if field.GetOptions().HasExtension(resource_pb2.resource_reference):
            if not field.is_repeated and not (
                field.containing_oneof and request.WhichOneof(field.containing_oneof.name)
            ):
                setattr(request, field.name, _name(field, project))
        elif field.message_type is not None and depth and not field.containing_oneof:
            inner: Any = getattr(request, field.name)
            if not field.is_repeated:
                _fill(inner, project, depth - 1)
            elif not field.message_type.GetOptions().map_entry:
                _fill(inner.add(), project, depth - 1)


def _request(method: MethodDescriptor, project: str) -> Message:
    request = message_factory.GetMessageClass(method.input_type)()
    if method.client_streaming:
        first = method.input_type.fields_by_name.get("header") or method.input_type.fields[0]
        inner = getattr(request, first.name)
        inner.SetInParent()
        _fill(inner, project)
        for field in inner.DESCRIPTOR.fields:
            if field.name == "name":
                inner.name = f"projects/{project}/runners/x1"
    else:
        _fill(request, project)
    return request


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


async def _outcome(
    secured: SecuredService, method: MethodDescriptor, request: Message, metadata: Any
) -> tuple[grpc.StatusCode, str, str]:
    """Call, and return code, reason and remedy; of a stream that stays open OK."""
    try:
        if method.client_streaming:
            await send(secured.address, method, [request], metadata=metadata, deadline=5)
            return grpc.StatusCode.OK, "", ""
        path = f"/{method.containing_service.full_name}/{method.name}"
        parse = message_factory.GetMessageClass(method.output_type).FromString
        options: dict[str, Any] = {"metadata": metadata, "timeout": 5}
        if method.server_streaming:
            call = secured.channel.unary_stream(path, _serialized, parse)
            running = call(request, **options)
            await running.read()
            running.cancel()
        else:
            await secured.channel.unary_unary(path, _serialized, parse)(request, **options)
    except grpc.RpcError as error:
        reason, facts = info_of(error)
        return error.code(), reason, facts.get("remedy", "")
    return grpc.StatusCode.OK, "", ""


@pytest.fixture
async def secured() -> AsyncIterator[SecuredService]:
    async with secured_service() as service:
        yield service


def _id(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


def _needed(method: MethodDescriptor) -> set[Role]:
    option = method.GetOptions().Extensions[access_options_pb2.access]
    return {ROLES[number] for number in option.roles}


@pytest.mark.parametrize("method", METHODS, ids=_id)
async def test_every_method_lets_in_whom_the_contract_names(
    secured: SecuredService, method: MethodDescriptor
) -> None:
    request = _request(method, MINE)
    needed = _needed(method)
    assert needed
    for role, project in itertools.product(Role, (MINE, OTHER, "*")):
        token = secured.keys.make(role, project)
        may = bool(role.included & needed) and (project != OTHER or not projects_of(request))
        code, reason, remedy = await _outcome(secured, method, request, bearer(token))
        who = f"{role} of {project} got {code}"
        if may:
            assert code not in REFUSALS, who
        else:
            assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"), who
            assert remedy


@pytest.mark.parametrize("method", METHODS, ids=_id)
async def test_every_method_refuses_bad_credentials(
    secured: SecuredService, method: MethodDescriptor
) -> None:
    request = _request(method, MINE)
    good = secured.keys.make(Role.ADMIN, "*")
    now = secured.clock.now()
    stranger, _, _ = new_token()
    bad = {
        "": "CREDENTIALS_MISSING",
        secured.keys.make(Role.ADMIN, "*", expire_time=now): "CREDENTIALS_EXPIRED",
        secured.keys.make(Role.ADMIN, "*", revoke_time=now): "CREDENTIALS_REVOKED",
        stranger: "CREDENTIALS_INVALID",
        good[:-1]: "CREDENTIALS_INVALID",
        good[:-3] + "AAA": "CREDENTIALS_INVALID",
        "tf_": "CREDENTIALS_INVALID",
        "a.b.c": "CREDENTIALS_INVALID",
        "password": "CREDENTIALS_INVALID",
    }
    for token, expected in bad.items():
        code, reason, remedy = await _outcome(secured, method, request, bearer(token))
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, expected)
        assert remedy
    basic = (("authorization", "Basic YWRtaW46YWRtaW4="),)
    code, reason, _ = await _outcome(secured, method, request, basic)
    assert reason == "CREDENTIALS_INVALID"


def test_the_walk_names_a_project_wherever_a_method_can() -> None:
    without = {_id(method) for method in METHODS if not projects_of(_request(method, MINE))}
    assert without == {
        "AccessService.GetCaller",
        "AccessService.GetApiKey",
        "AccessService.ListApiKeys",
        "AccessService.RevokeApiKey",
        "DiagnosticsService.Diagnose",
    }


def _strings(descriptor: Descriptor) -> Iterator[FieldDescriptor]:
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield field


def test_a_name_or_parent_of_a_request_is_always_a_reference() -> None:
    """What is no reference is not seen by the check of projects."""
    for method in METHODS:
        for field in _strings(method.input_type):
            if field.name in ("name", "parent", "upload", "model", "dataset"):
                assert field.GetOptions().HasExtension(resource_pb2.resource_reference), _id(method)


def test_a_server_with_a_method_that_says_no_role_does_not_start() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="forgotten.proto", package="forgotten")
    file.message_type.add(name="Empty")
    added = file.service.add(name="Forgetful").method.add(name="Do")
    added.input_type = added.output_type = ".forgotten.Empty"
    POOL.AddSerializedFile(file.SerializeToString())
    with pytest.raises(ValueError, match=r"forgotten\.Forgetful\.Do"):
        AccessRules(["forgotten.Forgetful"])


def test_a_method_that_is_not_known_is_closed() -> None:
    rule = AccessRules(SERVICES).rule("tightfit.v1.ModelService/Forgotten")
    assert rule is not None
    assert not rule.roles


async def test_probes_need_no_credentials_and_reflection_does(secured: SecuredService) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    health = health_pb2_grpc.HealthStub(secured.channel)
    reply = await health.Check(health_pb2.HealthCheckRequest())
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(secured.channel)
    question = [reflection_pb2.ServerReflectionRequest(list_services="")]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(stub.ServerReflectionInfo(iter(question)).read(), 5)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    token = secured.keys.make(Role.VIEWER, MINE)
    answer = await stub.ServerReflectionInfo(iter(question), metadata=bearer(token)).read()
    assert {service.name for service in answer.list_services_response.service} >= set(SERVICES)
