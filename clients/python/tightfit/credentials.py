"""How the client shows who calls, and how it keeps that from others on the way."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from tightfit.errors import InvalidInputError

TRUE, FALSE = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True)
class Credentials:
    """TLS and a token.

    Attributes:
        tls: Connect by TLS; any of the files of certificates implies it.
        ca_file: PEM file of the authorities to trust; the system's where there is none.
        cert_file: PEM file of a client certificate, for servers that ask for one; with `key_file`.
        key_file: PEM file of its key.
        token: Bearer token: an API key or a token of an identity provider.
        token_file: File that holds the token, read again for every call, so that it may be renewed.
    """

    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    token: str = field(default="", repr=False)
    token_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Credentials:
        """Return what TIGHTFIT_TLS, _CA_FILE, _CERT_FILE, _KEY_FILE, _TOKEN and _TOKEN_FILE say.

        Raises:
            InvalidInputError: TIGHTFIT_TLS is neither true nor false.
        """
        values = os.environ if environment is None else environment
        tls = values.get("TIGHTFIT_TLS", "").lower()
        if tls not in (*TRUE, *FALSE):
            raise InvalidInputError(
                f"TIGHTFIT_TLS is {tls!r}", field="TIGHTFIT_TLS", remedy="write true or false"
            )
        paths = {
            name: Path(text) if (text := values.get(f"TIGHTFIT_{name.upper()}", "")) else None
            for name in ("ca_file", "cert_file", "key_file", "token_file")
        }
        return cls(tls=tls in TRUE, token=values.get("TIGHTFIT_TOKEN", ""), **paths)

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or any((self.ca_file, self.cert_file, self.key_file))

    def check(self, server: str) -> None:
        """Check that a token goes to this server over TLS, or does not leave this machine.

        Raises:
            InvalidInputError: Everybody on the way could read it, or only one of certificate and key is given.
        """
        if (self.cert_file is None) != (self.key_file is None):
            raise InvalidInputError(
                "a client certificate needs its key, and the key its certificate",
                field="--cert-file",
                remedy="give --cert-file and --key-file",
            )
        if (self.token or self.token_file) and not self.uses_tls and not is_loopback(server):
            raise InvalidInputError(
                f"the token would go to {server} in plain text, where others can read it",
                field="--tls",
                remedy="give --tls, with --ca-file where the server's certificate is not of a "
                "public authority; or TIGHTFIT_TLS=true and TIGHTFIT_CA_FILE",
            )

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Return what gRPC needs for TLS, None for plain text.

        Raises:
            InvalidInputError: A file cannot be read.
        """
        if not self.uses_tls:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=_content(self.ca_file, "--ca-file"),
            private_key=_content(self.key_file, "--key-file"),
            certificate_chain=_content(self.cert_file, "--cert-file"),
        )

    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """Return the metadata of a call.

        Raises:
            InvalidInputError: The token's file cannot be read, or holds no token.
        """
        token = self.token
        if self.token_file is not None:
            content = _content(self.token_file, "--token-file") or b""
            token = content.decode("utf-8", "replace").strip()
        if not token and self.token_file is None:
            return None
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise InvalidInputError(
                "what is given as a token is none",
                field="--token-file" if self.token_file else "--token",
                remedy="give it as `tightfit auth create` or the identity provider showed it",
            )
        return (("authorization", f"Bearer {token}"),)


def is_loopback(server: str) -> bool:
    """Whether `HOST:PORT` or `unix:PATH` is this machine; what cannot be told is not."""
    if server.startswith(("unix:", "unix-abstract:")):
        return True
    host = server.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _content(path: Path | None, option: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read: {error.strerror or error}",
            field=option,
            remedy="check the path",
        ) from error
