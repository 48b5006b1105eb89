"""How the agent shows who it is, and how it keeps that from others on the way."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from tightfit_runner.failures import SettingsError


@dataclass(frozen=True)
class Credentials:
    """TLS and a token. Paths that are None are not used.

    A token in a file is read again for every call, so that it may be renewed while the agent runs.
    """

    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token_text: str = ""
    token_file: Path | None = None

    @property
    def uses_tls(self) -> bool:
        """Whether the line is encrypted."""
        return self.tls or any((self.ca, self.certificate, self.key))

    def check(self, server: str) -> None:
        """Check that the files can be read and that a token is not sent where others can read it.

        Raises:
            SettingsError: Something is wrong.
        """
        if (self.certificate is None) != (self.key is None):
            raise SettingsError("--tls-cert and --tls-key belong together: give both")
        self.channel_credentials()
        if self.token() and not self.uses_tls and not is_loopback(server):
            raise SettingsError(
                f"the token would go to {server} in plain text, where others can read it: "
                "give --tls, with --tls-ca where the certificate is not of a public authority"
            )

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Return what gRPC needs for TLS, None for plain text.

        Raises:
            SettingsError: A file cannot be read.
        """
        if not self.uses_tls:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=_content(self.ca, "--tls-ca"),
            private_key=_content(self.key, "--tls-key"),
            certificate_chain=_content(self.certificate, "--tls-cert"),
        )

    def token(self) -> str:
        """Return the token, "" where there is none.

        Raises:
            SettingsError: The file cannot be read.
        """
        content = _content(self.token_file, "--token-file")
        return self.token_text if content is None else content.decode("utf-8", "replace").strip()


def is_loopback(server: str) -> bool:
    """Whether `HOST:PORT` or `unix:PATH` is this machine; what cannot be told is not."""
    if server.startswith("unix:"):
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
        raise SettingsError(f"{option}: {error}") from error
