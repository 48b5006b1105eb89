"""A deployment looked at from the client's end: connection, certificate, clock, versions, and what the server finds."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from tightfit import __version__
from tightfit.client import Client
from tightfit.contract import contract_digest
from tightfit.credentials import Credentials
from tightfit.errors import TightfitError
from tightfit.v1 import diagnostics_pb2

OK, WARNING, FAILED = "ok", "warn", "fail"
CONNECT_SECONDS = 5.0
SKEW_WARNING_SECONDS, SKEW_FAILED_SECONDS = 5.0, 60.0
"""Between this clock and the server's: tokens and signed addresses are valid for minutes."""
EXPIRY_WARNING = timedelta(days=14)
_OUTCOMES = {
    diagnostics_pb2.Check.OUTCOME_OK: OK,
    diagnostics_pb2.Check.OUTCOME_WARNING: WARNING,
    diagnostics_pb2.Check.OUTCOME_FAILED: FAILED,
}


@dataclass(frozen=True)
class Finding:
    """The outcome of one look at one thing: `ok`, `warn` or `fail`, and what to do about it.

    Attributes:
        side: Who looked: `client` or `server`.
    """

    side: str
    subject: str
    outcome: str
    message: str
    remedy: str = ""


def examine(client: Client, credentials: Credentials) -> Iterator[Finding]:
    """Yield what is found, one after the other; what cannot be reached ends it."""
    connection = _connection(client.server)
    yield connection
    if connection.outcome == FAILED:
        return
    if credentials.uses_tls:
        yield _certificate(client.server, credentials)
    before = time.time()
    try:
        answer = client.diagnose()
    except TightfitError as error:
        yield Finding("client", "call", FAILED, error.message, error.remedy)
        return
    after = time.time()
    yield clock_finding(answer.server_time.ToDatetime(tzinfo=timezone.utc), before, after)
    yield _versions(answer)
    for check in answer.checks:
        outcome = _OUTCOMES.get(check.outcome, FAILED)
        yield Finding("server", check.subject, outcome, check.message, check.remedy)


def clock_finding(server_time: datetime, before: float, after: float) -> Finding:
    """Return whether the server's clock agrees with this one.

    Args:
        server_time: That the server told.
        before: Unix time at which it was asked.
        after: Unix time at which its answer was there.
    """
    told = server_time.timestamp()
    skew = told - after if told > after else min(told - before, 0.0)
    message = f"the server's clock differs by {abs(skew):.1f} s from this machine's"
    remedy = "let time synchronisation (chrony, systemd-timesyncd) run on both machines"
    if abs(skew) > SKEW_FAILED_SECONDS:
        return Finding("client", "clock", FAILED, message, remedy)
    if abs(skew) > SKEW_WARNING_SECONDS:
        return Finding("client", "clock", WARNING, message, remedy)
    return Finding("client", "clock", OK, message)


def certificate_finding(end: datetime, now: datetime) -> Finding:
    """Return whether a certificate is valid for long enough."""
    left = end - now
    message = f"valid until {end:%Y-%m-%d %H:%M} UTC"
    if left < EXPIRY_WARNING:
        remedy = "renew it; the server reads a changed file without a restart"
        return Finding("client", "certificate", WARNING, f"{message}, {left.days} days", remedy)
    return Finding("client", "certificate", OK, message)


def _connection(server: str) -> Finding:
    host, port = _address(server)
    start = time.perf_counter()
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return Finding(
            "client",
            "connection",
            FAILED,
            f"cannot connect to {server}: {error.strerror or error}",
            "see whether the server runs, the address is right, and no firewall is in between",
        )
    milliseconds = (time.perf_counter() - start) * 1000
    return Finding("client", "connection", OK, f"connected to {server} in {milliseconds:.0f} ms")


def _certificate(server: str, credentials: Credentials) -> Finding:
    host, port = _address(server)
    try:
        context = ssl.create_default_context(
            cafile=str(credentials.ca_file) if credentials.ca_file else None
        )
        if credentials.cert_file is not None:
            context.load_cert_chain(credentials.cert_file, credentials.key_file)
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((host, port), timeout=CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            found = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return Finding(
            "client",
            "certificate",
            FAILED,
            f"the certificate is refused: {error.verify_message}",
            "give the right --ca-file, call the server by a name in its certificate, or renew it",
        )
    except OSError as error:
        return Finding(
            "client",
            "certificate",
            FAILED,
            f"no TLS connection: {error.strerror or error}",
            "see whether the port speaks TLS, and whether it asks for a client certificate",
        )
    end = ssl.cert_time_to_seconds(str(found["notAfter"]))
    now = datetime.now(timezone.utc)
    return certificate_finding(datetime.fromtimestamp(end, timezone.utc), now)


def _versions(answer: diagnostics_pb2.DiagnoseResponse) -> Finding:
    message = f"client {__version__}, server {answer.server_version}"
    if answer.contract_digest == contract_digest():
        return Finding("client", "versions", OK, f"{message}, the same contract")
    return Finding(
        "client",
        "versions",
        WARNING,
        f"{message}: their contracts differ",
        f"install tightfit=={answer.server_version}",
    )


def _address(server: str) -> tuple[str, int]:
    """Return host and port; a server without a port is meant at that of TLS, as gRPC does it."""
    host, colon, port = server.removeprefix("dns:///").rpartition(":")
    if not colon or not port.isdigit():
        return server.strip("[]"), 443
    return host.strip("[]"), int(port)
