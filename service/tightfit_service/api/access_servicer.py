"""AccessService over the use cases on callers, keys and the audit log."""
# ruff: noqa: N802, D102, ARG002  (gRPC gives names and parameters, the protos document them)

from __future__ import annotations

from datetime import datetime
from typing import Any

from tightfit.v1 import access_pb2, access_pb2_grpc
from tightfit_service.api import resource_names
from tightfit_service.api.codec.access import (
    caller_to_proto,
    event_to_proto,
    grants_from_proto,
    key_to_proto,
    project_from_name,
)
from tightfit_service.api.codec.times import timestamp_from_proto
from tightfit_service.api.paging import page_cursor
from tightfit_service.application.access.api_keys import ApiKeyDesk
from tightfit_service.application.access.audit import AuditLog
from tightfit_service.application.access.caller import caller
from tightfit_service.domain.errors import InvalidRequestError


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """Translates AccessService."""

    def __init__(self, *, keys: ApiKeyDesk, audit: AuditLog) -> None:
        self._keys = keys
        self._audit = audit

    async def GetCaller(
        self, request: access_pb2.GetCallerRequest, context: Any
    ) -> access_pb2.Caller:
        return caller_to_proto(caller())

    async def CreateApiKey(
        self, request: access_pb2.CreateApiKeyRequest, context: Any
    ) -> access_pb2.CreateApiKeyResponse:
        wanted = request.api_key
        key, token = await self._keys.create(
            display_name=wanted.display_name,
            grants=grants_from_proto(wanted.grants, field="api_key.grants"),
            expire_time=_expire_time(wanted),
        )
        return access_pb2.CreateApiKeyResponse(api_key=key_to_proto(key), token=token)

    async def GetApiKey(
        self, request: access_pb2.GetApiKeyRequest, context: Any
    ) -> access_pb2.ApiKey:
        (key_id,) = resource_names.API_KEY.ids(request.name)
        return key_to_proto(await self._keys.get(key_id))

    async def ListApiKeys(
        self, request: access_pb2.ListApiKeysRequest, context: Any
    ) -> access_pb2.ListApiKeysResponse:
        cursor = page_cursor(request, caller().name)
        fetched = await self._keys.list(cursor.page)
        keys, token = cursor.cut(fetched, lambda key: key.key_id)
        return access_pb2.ListApiKeysResponse(
            api_keys=[key_to_proto(key) for key in keys], next_page_token=token
        )

    async def RevokeApiKey(
        self, request: access_pb2.RevokeApiKeyRequest, context: Any
    ) -> access_pb2.ApiKey:
        (key_id,) = resource_names.API_KEY.ids(request.name)
        return key_to_proto(await self._keys.revoke(key_id))

    async def ListAuditEvents(
        self, request: access_pb2.ListAuditEventsRequest, context: Any
    ) -> access_pb2.ListAuditEventsResponse:
        if not request.parent:
            raise InvalidRequestError(
                "parent is empty", field="parent", remedy="give projects/{project}, or projects/-"
            )
        self._keys.check_required()
        project = project_from_name(request.parent, field="parent")
        cursor = page_cursor(request, project, request.principal)
        fetched = await self._audit.list(project, cursor.page, principal=request.principal)
        events, token = cursor.cut(fetched, lambda event: str(event.event_id))
        return access_pb2.ListAuditEventsResponse(
            audit_events=[event_to_proto(event) for event in events], next_page_token=token
        )


def _expire_time(wanted: access_pb2.ApiKey) -> datetime | None:
    if not wanted.HasField("expire_time"):
        return None
    try:
        return timestamp_from_proto(wanted.expire_time)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(
            f"api_key.expire_time is no time: {error}",
            field="api_key.expire_time",
            remedy="give a time to come, or none",
        ) from error
