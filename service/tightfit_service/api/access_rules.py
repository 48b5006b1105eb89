"""Who may call which method, as the contract says it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from google.protobuf import descriptor_pool
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from tightfit.v1 import access_options_pb2
from tightfit_service.api.codec.access import ROLES
from tightfit_service.domain.access import Role

_NOBODY_IS_ASKED = frozenset({str(health.SERVICE_NAME)})
"""Probes have no credentials, and learn nothing but that the server serves."""
_ANY_ROLE = frozenset({str(reflection.SERVICE_NAME)})
"""The contract is public, but what a server offers is told to those who may use it."""


@dataclass(frozen=True)
class AccessRule:
    """Who may call a method, and whether calls are written to the audit log."""

    roles: frozenset[Role]
    audited: bool


class AccessRules:
    """The rules of all methods of a server."""

    def __init__(self, services: Iterable[str]) -> None:
        """Read them from the descriptors.

        Raises:
            ValueError: A method does not say which role it needs.
        """
        self._rules: Mapping[str, AccessRule] = {
            method: rule for service in services for method, rule in _rules_of(service)
        }

    def rule(self, method: str) -> AccessRule | None:
        """Return the rule of `package.Service/Method`; None where nobody is asked who he is.

        A method without a rule is closed to everybody.
        """
        service = method.partition("/")[0]
        if service in _NOBODY_IS_ASKED:
            return None
        if service in _ANY_ROLE:
            return AccessRule(roles=frozenset(Role), audited=False)
        return self._rules.get(method, AccessRule(roles=frozenset(), audited=True))

    @property
    def methods(self) -> Mapping[str, AccessRule]:
        """All methods with a rule."""
        return self._rules


def _rules_of(service: str) -> Iterable[tuple[str, AccessRule]]:
    descriptor = descriptor_pool.Default().FindServiceByName(service)
    for method in descriptor.methods:
        option = method.GetOptions().Extensions[access_options_pb2.access]
        roles = frozenset(ROLES[number] for number in option.roles if number in ROLES)
        if not roles or len(roles) != len(option.roles):
            raise ValueError(
                f"{method.full_name} does not say which role it needs: "
                "give it `option (access) = {roles: [...]}` in its proto"
            )
        yield f"{service}/{method.name}", AccessRule(roles=roles, audited=option.audited)
