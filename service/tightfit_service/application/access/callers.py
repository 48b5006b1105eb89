"""All that the API needs to know its callers."""

from __future__ import annotations

from dataclasses import dataclass

from tightfit_service.application.access.api_keys import ApiKeyDesk
from tightfit_service.application.access.audit import AuditLog
from tightfit_service.application.access.authentication import Authenticator


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who calls, the keys they call with, and the log of what they did."""

    authenticator: Authenticator
    keys: ApiKeyDesk
    audit: AuditLog
