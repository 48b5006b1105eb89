"""What `tightfit doctor` makes of deployments that are well, old, late, refused, or not there."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.timestamp_pb2 import Timestamp

from tightfit import Client, __version__
from tightfit.cli import main
from tightfit.contract import contract_digest
from tightfit.credentials import Credentials
from tightfit.deployment import Finding, certificate_finding, clock_finding, examine
from tightfit.v1 import diagnostics_pb2, diagnostics_pb2_grpc

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class _Servicer(diagnostics_pb2_grpc.DiagnosticsServiceServicer):
    def __init__(self) -> None:
        self.answer = diagnostics_pb2.DiagnoseResponse(
            server_version=__version__, contract_digest=contract_digest()
        )
        self.refuses = False
        self.late = timedelta(0)

    def Diagnose(  # noqa: N802  # gRPC gives the name
        self, request: diagnostics_pb2.DiagnoseRequest, context: grpc.ServicerContext
    ) -> diagnostics_pb2.DiagnoseResponse:
        if self.refuses:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "needs the role admin")
        time = Timestamp()
        time.FromDatetime(datetime.now(UTC) - self.late)
        self.answer.server_time.CopyFrom(time)
        return self.answer


class _Server:
    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.servicer = _Servicer()
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        diagnostics_pb2_grpc.add_DiagnosticsServiceServicer_to_server(self.servicer, self._server)
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def add(
        self, subject: str, outcome: diagnostics_pb2.Check.Outcome.ValueType, remedy: str = ""
    ) -> None:
        check = diagnostics_pb2.Check(
            subject=subject, outcome=outcome, message=f"of {subject}", remedy=remedy
        )
        self.servicer.answer.checks.append(check)

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def server() -> Iterator[_Server]:
    running = _Server()
    yield running
    running.stop()


def _examine(address: str, credentials: Credentials | None = None) -> dict[str, Finding]:
    credentials = credentials or Credentials()
    with Client(address, credentials=credentials) as client:
        return {finding.subject: finding for finding in examine(client, credentials)}


def _outcomes(found: dict[str, Finding]) -> dict[str, str]:
    return {subject: finding.outcome for subject, finding in found.items()}


def test_both_ends_are_looked_at(server: _Server) -> None:
    server.add("database", diagnostics_pb2.Check.OUTCOME_OK)
    server.add("disk", diagnostics_pb2.Check.OUTCOME_WARNING, "enlarge it")

    found = _examine(server.address)

    assert _outcomes(found) == {
        "connection": "ok",
        "clock": "ok",
        "versions": "ok",
        "database": "ok",
        "disk": "warn",
    }
    assert found["disk"] == Finding("server", "disk", "warn", "of disk", "enlarge it")


def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        found = _examine(address)

    assert _outcomes(found) == {"connection": "fail"}
    assert "firewall" in found["connection"].remedy


def test_another_contract_and_another_time(server: _Server) -> None:
    server.servicer.answer.server_version = "9.1"
    server.servicer.answer.contract_digest = "0" * 64
    server.servicer.late = timedelta(minutes=10)

    found = _examine(server.address)

    assert found["versions"].outcome == "warn"
    assert found["versions"].remedy == "install tightfit==9.1"
    assert found["clock"].outcome == "fail"


def test_a_caller_without_the_role(server: _Server) -> None:
    server.servicer.refuses = True

    found = _examine(server.address)

    assert found["call"].outcome == "fail"
    assert "admin" in found["call"].message


@pytest.mark.parametrize(
    ("told", "outcome"),
    [(0.0, "ok"), (1.5, "ok"), (-8.0, "warn"), (9.0, "warn"), (-90.0, "fail"), (90.0, "fail")],
)
def test_clocks(told: float, outcome: str) -> None:
    before = NOW.timestamp()

    found = clock_finding(NOW + timedelta(seconds=told), before, before + 1.0)

    assert found.outcome == outcome


@pytest.mark.parametrize(("days", "outcome"), [(40, "ok"), (13, "warn")])
def test_certificates(days: int, outcome: str) -> None:
    assert certificate_finding(NOW + timedelta(days=days), NOW).outcome == outcome


def _make_certificate(folder: Path, *, days: int) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


@pytest.mark.parametrize(("days", "outcome"), [(90, "ok"), (3, "warn")])
def test_the_certificate_of_the_port(tmp_path: Path, days: int, outcome: str) -> None:
    cert, key = _make_certificate(tmp_path, days=days)
    server = _Server(grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())]))
    try:
        found = _examine(server.address, Credentials(ca_file=cert))
    finally:
        server.stop()

    assert found["certificate"].outcome == outcome
    assert found["versions"].outcome == "ok"


def test_a_certificate_that_is_not_trusted(tmp_path: Path) -> None:
    cert, key = _make_certificate(tmp_path, days=90)
    other = tmp_path / "other"
    other.mkdir()
    foreign, _ = _make_certificate(other, days=90)
    server = _Server(grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())]))
    try:
        context = Credentials(ca_file=foreign)
        with Client(server.address, credentials=context, timeout_seconds=2.0) as client:
            findings = examine(client, context)
            assert next(findings).outcome == "ok"
            certificate = next(findings)
            findings.close()  # type: ignore[attr-defined]  # a generator
    finally:
        server.stop()

    assert (certificate.subject, certificate.outcome) == ("certificate", "fail")
    assert "--ca-file" in certificate.remedy


def test_the_command_shows_and_exits(
    server: _Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIGHTFIT_SERVER", server.address)
    server.add("disk", diagnostics_pb2.Check.OUTCOME_WARNING, "enlarge it")

    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "warn  server  disk" in shown
    assert "try: enlarge it" in shown

    server.add("artifacts", diagnostics_pb2.Check.OUTCOME_FAILED, "start it")
    assert main(["doctor", "--json"]) == 1
    last = json.loads(capsys.readouterr().out)[-1]
    assert last == {
        "side": "server",
        "subject": "artifacts",
        "outcome": "fail",
        "message": "of artifacts",
        "remedy": "start it",
    }
