"""Keys, events and certificates for tests of access."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tightfit_service.application.ports import Page
from tightfit_service.application.ports.access import AuditEvent
from tightfit_service.domain.access import ApiKey, Grant, Role, hash_secret, new_token
from tightfit_service.domain.errors import AlreadyExistsError

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class InMemoryKeys:
    """Implements `ApiKeyStore`; counts look-ups."""

    def __init__(self) -> None:
        self.keys: dict[str, ApiKey] = {}
        self.lookups = 0
        self.writes = 0

    def add_key(self, key: ApiKey) -> None:
        if key.key_id in self.keys:
            raise AlreadyExistsError("taken")
        self.keys[key.key_id] = key

    def get_key(self, key_id: str) -> ApiKey | None:
        self.lookups += 1
        return self.keys.get(key_id)

    def list_keys(self, page: Page) -> Sequence[ApiKey]:
        found = sorted(key_id for key_id in self.keys if key_id > page.after)
        return [self.keys[key_id] for key_id in found[: page.size]]

    def revoke_key(self, key_id: str, now: datetime) -> ApiKey | None:
        key = self.keys.get(key_id)
        if key is not None and key.revoke_time is None:
            key = self.keys[key_id] = replace(key, revoke_time=now)
        return key

    def key_used(self, key_id: str, now: datetime) -> None:
        self.writes += 1
        self.keys[key_id] = replace(self.keys[key_id], last_use_time=now)

    def make(
        self,
        role: Role,
        project: str,
        *,
        expire_time: datetime | None = None,
        revoke_time: datetime | None = None,
    ) -> str:
        """Store a key with one grant and return its token."""
        token, key_id, secret = new_token()
        self.add_key(
            ApiKey(
                key_id=key_id,
                secret_hash=hash_secret(secret),
                display_name=f"{role} of {project}",
                grants=(Grant(project, role),),
                creator="test",
                create_time=NOW,
                expire_time=expire_time,
                revoke_time=revoke_time,
            )
        )
        return token


class InMemoryEvents:
    """Implements `AuditStore`."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.batches: list[int] = []

    def append_events(self, events: Sequence[AuditEvent]) -> None:
        self.batches.append(len(events))
        for event in events:
            self.events.append(replace(event, event_id=len(self.events) + 1))

    def list_events(self, project: str | None, principal: str, page: Page) -> Sequence[AuditEvent]:
        return [
            event
            for event in reversed(self.events)
            if (project is None or event.project == project)
            and (not principal or event.principal == principal)
            and (not page.after or event.event_id < int(page.after))
        ][: page.size]


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, as PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Issues certificates; good for hours around now."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        self._certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(constraints, critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, common_name: str, *, days: int = 1) -> Issued:
        """Return a certificate for localhost and 127.0.0.1, good for server and client."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        names = x509.SubjectAlternativeName(
            [
                x509.DNSName("localhost"),
                x509.DNSName(common_name),
                x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            ]
        )
        certificate = (
            self._builder(name, key.public_key(), days=days)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int = 1
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=days))
        )


def write_pair(folder: Path, issued: Issued) -> tuple[Path, Path]:
    """Write certificate and key, over what was there, and return their paths."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    certificate.write_bytes(issued.certificate)
    key.write_bytes(issued.key)
    return certificate, key
