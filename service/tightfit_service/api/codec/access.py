"""Roles, grants, keys and events of the audit log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tightfit.v1 import access_options_pb2, access_pb2
from tightfit_service.api import resource_names
from tightfit_service.api.codec.enums import EnumCodec
from tightfit_service.api.codec.times import timestamp_to_proto
from tightfit_service.application.ports.access import AuditEvent
from tightfit_service.domain.access import ALL_PROJECTS, ApiKey, Grant, Principal, Role

WILDCARD = "-"
"""In place of the id of a project: all of them (AIP-159). No project has this id."""
ROLE = EnumCodec(Role, dict(access_options_pb2.Role.items()), prefix="ROLE")
ROLES: Mapping[int, Role] = {ROLE.to_proto(role): role for role in Role}


def project_from_name(name: str, *, field: str) -> str:
    """Return the id in `projects/{project}`, ALL_PROJECTS for the wildcard. Raises InvalidRequestError."""
    if name == resource_names.PROJECT.name(WILDCARD):
        return ALL_PROJECTS
    return resource_names.parse_project(name, field=field)


def grants_from_proto(grants: Iterable[access_pb2.RoleGrant], *, field: str) -> tuple[Grant, ...]:
    """Return the grants. Raises InvalidRequestError."""
    return tuple(
        Grant(
            project_from_name(grant.project, field=f"{field}[{index}].project"),
            ROLE.from_proto(grant.role, field=f"{field}[{index}].role"),
        )
        for index, grant in enumerate(grants)
    )


def key_to_proto(key: ApiKey) -> access_pb2.ApiKey:
    """Return the key as callers see it: without hash or secret."""
    message = access_pb2.ApiKey(
        name=resource_names.API_KEY.name(key.key_id),
        display_name=key.display_name,
        grants=_grants(key.grants),
        create_time=timestamp_to_proto(key.create_time),
        creator=key.creator,
    )
    for name in ("expire_time", "last_use_time", "revoke_time"):
        moment = getattr(key, name)
        if moment is not None:
            getattr(message, name).CopyFrom(timestamp_to_proto(moment))
    return message


def caller_to_proto(principal: Principal) -> access_pb2.Caller:
    """Return who calls."""
    message = access_pb2.Caller(principal=principal.name, grants=_grants(principal.grants))
    if principal.expire_time is not None:
        message.expire_time.CopyFrom(timestamp_to_proto(principal.expire_time))
    return message


def event_to_proto(event: AuditEvent) -> access_pb2.AuditEvent:
    """Return an event of the audit log."""
    return access_pb2.AuditEvent(
        event_time=timestamp_to_proto(event.event_time),
        principal=event.principal,
        method=event.method,
        resource=event.resource,
        code=event.code,
        request_id=event.request_id,
        address=event.address,
    )


def _grants(grants: Iterable[Grant]) -> list[access_pb2.RoleGrant]:
    return [
        access_pb2.RoleGrant(
            project=resource_names.PROJECT.name(
                WILDCARD if grant.project == ALL_PROJECTS else grant.project
            ),
            role=ROLE.to_proto(grant.role),
        )
        for grant in grants
    ]
