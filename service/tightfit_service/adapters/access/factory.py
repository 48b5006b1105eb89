"""Access as the settings describe it, and whether they leave a server open to strangers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import structlog
from sqlalchemy import Engine

from tightfit_service.adapters.access.jwks import KeySet, key_file, key_url
from tightfit_service.adapters.access.oidc import OidcSettings, OidcVerifier
from tightfit_service.adapters.access.policy_file import EmptyPolicy, PolicyFile
from tightfit_service.adapters.access.tls_files import TlsFiles
from tightfit_service.adapters.storage.sql_access import SqlApiKeyStore, SqlAuditStore
from tightfit_service.application.access.api_keys import ApiKeyDesk, admin_grants
from tightfit_service.application.access.audit import AuditLog, operator_event
from tightfit_service.application.access.authentication import Authenticator
from tightfit_service.application.access.callers import Access
from tightfit_service.application.ports import Clock
from tightfit_service.application.ports.access import RolePolicy
from tightfit_service.domain.addresses import is_loopback
from tightfit_service.domain.errors import InvalidRequestError

log = structlog.get_logger(__name__)


def open_access(
    *,
    engine: Engine,
    clock: Clock,
    required: bool,
    policy_file: str = "",
    oidc: OidcSettings | None = None,
    jwks_url: str = "",
    jwks_file: str = "",
    jwks_ca_file: str = "",
) -> Access:
    """Return who may come in.

    Args:
        engine: Database of keys and audit log.
        clock: For expiry.
        required: Whether callers must show credentials.
        policy_file: YAML with the roles of groups and certificates; "" for none.
        oidc: What a token of the identity provider must be; None where there is no provider.
        jwks_url: Where the provider publishes its keys.
        jwks_file: File with them, instead.
        jwks_ca_file: PEM file of the authorities to trust for the URL; "" trusts the usual ones.

    Raises:
        InvalidRequestError: The policy is broken, or the provider's keys have no or two places.
    """
    policy: RolePolicy = PolicyFile(Path(policy_file)) if policy_file else EmptyPolicy()
    keys = SqlApiKeyStore(engine=engine)
    tokens = None
    if oidc is not None:
        provided = _provided_keys(url=jwks_url, file=jwks_file, ca_file=jwks_ca_file)
        tokens = OidcVerifier(settings=oidc, keys=provided, policy=policy)
    return Access(
        authenticator=Authenticator(
            required=required,
            keys=keys,
            tokens=tokens,
            policy=policy,
            clock=clock,
        ),
        keys=ApiKeyDesk(keys=keys, clock=clock, required=required),
        audit=AuditLog(store=SqlAuditStore(engine=engine)),
    )


def _provided_keys(*, url: str, file: str, ca_file: str) -> KeySet:
    if bool(url) == bool(file):
        raise InvalidRequestError(
            "the identity provider's keys need one place",
            field="oidc_jwks_url",
            remedy="set oidc_jwks_url or oidc_jwks_file",
        )
    if file and ca_file:
        raise InvalidRequestError(
            "oidc_ca_file does nothing for keys that are in a file",
            field="oidc_ca_file",
            remedy="leave it, or set oidc_jwks_url instead of oidc_jwks_file",
        )
    if file:
        return key_file(Path(file))
    return key_url(url, ca_file=Path(ca_file) if ca_file else None)


def open_tls(
    *,
    certificate: str,
    key: str,
    client_ca: str = "",
    on_read: Callable[[datetime], None] | None = None,
) -> TlsFiles | None:
    """Return the certificates of the port, or None where the settings name none.

    Raises:
        InvalidRequestError: One of certificate and key is missing, or a file cannot be used.
    """
    if not (certificate or key or client_ca):
        return None
    for name, path in (("tls_cert_file", certificate), ("tls_key_file", key)):
        if not path:
            raise InvalidRequestError(
                f"TLS needs {name}", field=name, remedy="set tls_cert_file and tls_key_file"
            )
    return TlsFiles(
        certificate=Path(certificate),
        key=Path(key),
        client_ca=Path(client_ca) if client_ca else None,
        on_read=on_read,
    )


def check_exposure(*, listen: str, has_tls: bool, knows_callers: bool, allowed: bool) -> None:
    """Refuse to serve others than this machine in plain text, or without asking who they are.

    Raises:
        InvalidRequestError: The port is open to others, lacks one of both, and that is not allowed.
    """
    if is_local(listen) or (has_tls and knows_callers):
        return
    lacking = " and ".join(
        words for words, has in (("TLS", has_tls), ("authentication", knows_callers)) if not has
    )
    if allowed:
        log.warning(
            "the port is open to others without protection of its own",
            listen=listen,
            lacking=lacking,
            remedy="see docs/security.md",
        )
        return
    raise InvalidRequestError(
        f"{listen} is open to other machines without {lacking}",
        field="listen",
        remedy="set TIGHTFIT_TLS_CERT_FILE, TIGHTFIT_TLS_KEY_FILE and TIGHTFIT_AUTH_REQUIRED=true, "
        "or listen on 127.0.0.1, or, where something before it protects the port, "
        "set TIGHTFIT_ALLOW_INSECURE=true",
    )


def is_local(listen: str) -> bool:
    """Whether an address such as `host:port`, `[::1]:0` or `unix:/path` is reached from this machine alone."""
    if listen.startswith(("unix:", "unix-abstract:")):
        return True
    return is_loopback(listen.rpartition(":")[0].strip("[]"))


def make_admin_key(
    *,
    engine: Engine,
    clock: Clock,
    display_name: str,
    expire_time: datetime | None,
    operator: str,
) -> str:
    """Store a key that opens everything, for who has the database anyway, and return its token.

    Args:
        engine: Database of keys and audit log.
        clock: For the times of both.
        display_name: What the key is for.
        expire_time: When it ends; None for never.
        operator: Who makes it, for the audit log.

    Raises:
        InvalidRequestError: The name is long or unprintable, or the expiry is past.
    """
    store = SqlApiKeyStore(engine=engine)
    key, token = ApiKeyDesk(keys=store, clock=clock, required=True).make(
        display_name=display_name,
        grants=admin_grants(),
        expire_time=expire_time,
        creator="create-admin-key",
    )
    store.add_key(key)
    told = operator_event(
        now=clock.now(),
        operator=operator,
        command="create-admin-key",
        resource=f"apiKeys/{key.key_id}",
    )
    SqlAuditStore(engine=engine).append_events([told])
    return token
