"""The metrics port over TLS: who is let in, and certificates that are replaced while it is open."""

from __future__ import annotations

import socket
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from fakes.access import Authority, write_pair
from tightfit_service.adapters.access.tls_contexts import TlsContexts
from tightfit_service.adapters.telemetry.metrics_port import MetricsPort
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.bootstrap.observability import make_metrics_port
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.settings import load_settings


def contexts(folder: Path, *, client_ca: Path | None = None) -> TlsContexts:
    return TlsContexts(
        certificate=folder / "tls.crt",
        key=folder / "tls.key",
        client_ca=client_ca,
        look_seconds=0.0,
    )


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def ports() -> Iterator[list[MetricsPort]]:
    opened: list[MetricsPort] = []
    yield opened
    for port in opened:
        port.stop()


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Path:
    write_pair(tmp_path, authority.issue("server"))
    return tmp_path


def opened(ports: list[MetricsPort], made: TlsContexts) -> str:
    telemetry = PrometheusTelemetry()
    ports.append(
        MetricsPort(registry=telemetry.registry, host="127.0.0.1", port=0, tls=made.context)
    )
    return ports[-1].start()


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.pem.decode())


def fetched(address: str, context: ssl.SSLContext) -> str:
    with urllib.request.urlopen(
        f"https://{address}/metrics", timeout=10, context=context
    ) as answer:
        body: bytes = answer.read()
    return body.decode()


def test_who_trusts_the_authority_reads_the_metrics(
    folder: Path, authority: Authority, ports: list[MetricsPort]
) -> None:
    address = opened(ports, contexts(folder))
    assert "tightfit_build_info" in fetched(address, trusting(authority))
    with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
        fetched(address, trusting(Authority("strangers")))


def test_a_replaced_certificate_counts_from_the_next_connection_on(
    folder: Path, authority: Authority, ports: list[MetricsPort]
) -> None:
    address = opened(ports, contexts(folder))
    assert fetched(address, trusting(authority))
    other = Authority("strangers")
    write_pair(folder, other.issue("server"))
    assert fetched(address, trusting(other))
    with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
        fetched(address, trusting(authority))


def test_a_broken_replacement_changes_nothing(
    folder: Path, authority: Authority, ports: list[MetricsPort]
) -> None:
    address = opened(ports, contexts(folder))
    (folder / "tls.key").write_bytes(authority.issue("other").key)
    assert fetched(address, trusting(authority))
    (folder / "tls.crt").write_text("no certificate")
    assert fetched(address, trusting(authority))


def test_only_scrapers_with_a_certificate_are_let_in(
    folder: Path, authority: Authority, ports: list[MetricsPort]
) -> None:
    scrapers = Authority("strangers")
    client_ca = folder / "ca.crt"
    client_ca.write_bytes(scrapers.pem)
    address = opened(ports, contexts(folder, client_ca=client_ca))
    with pytest.raises((URLError, OSError)):
        fetched(address, trusting(authority))
    context = trusting(authority)
    own = folder / "prometheus"
    own.mkdir()
    context.load_cert_chain(*write_pair(own, scrapers.issue("prometheus")))
    assert fetched(address, context)


def test_a_client_that_says_nothing_holds_up_nobody(
    folder: Path, authority: Authority, ports: list[MetricsPort]
) -> None:
    address = opened(ports, contexts(folder))
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as silent:
        silent.send(b"")
        assert fetched(address, trusting(authority))
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        plain.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with suppress(ConnectionResetError):
            assert b"tightfit" not in plain.recv(4096)
    assert fetched(address, trusting(authority))


def test_files_that_cannot_be_used_are_named(folder: Path, authority: Authority) -> None:
    (folder / "ca.crt").write_text("no certificate")
    with pytest.raises(InvalidRequestError) as caught:
        contexts(folder, client_ca=folder / "ca.crt")
    assert caught.value.field == "metrics_client_ca_file"
    (folder / "tls.key").write_bytes(authority.issue("other").key)
    with pytest.raises(InvalidRequestError) as caught:
        contexts(folder)
    assert caught.value.field == "tls_key_file"
    (folder / "tls.key").unlink()
    with pytest.raises(InvalidRequestError) as caught:
        contexts(folder)
    assert caught.value.field == "tls_key_file"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"metrics_tls": True}, "metrics_tls"),
        ({"metrics_client_ca_file": "ca.crt"}, "metrics_client_ca_file"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        load_settings(given, environment={})
    assert caught.value.field == field
    assert caught.value.remedy


def test_a_server_is_given_the_tls_of_its_settings(
    folder: Path, authority: Authority, ports: list[MetricsPort]
) -> None:
    settings = load_settings(
        {
            "metrics_listen": "127.0.0.1:0",
            "metrics_tls": True,
            "tls_cert_file": str(folder / "tls.crt"),
            "tls_key_file": str(folder / "tls.key"),
        },
        environment={},
    )
    port = make_metrics_port(settings, PrometheusTelemetry())
    assert port is not None
    ports.append(port)
    assert "tightfit_build_info" in fetched(port.start(), trusting(authority))
