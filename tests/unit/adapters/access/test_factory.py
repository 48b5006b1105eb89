"""Which ports are refused, and which settings contradict one another."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from fakes.access import Authority, write_pair
from fakes.clock import FakeClock
from tightfit_service.adapters.access.factory import (
    check_exposure,
    is_local,
    open_access,
    open_tls,
)
from tightfit_service.adapters.access.oidc import OidcSettings
from tightfit_service.domain.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("listen", "local"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.8.8:1", True),
        ("localhost:0", True),
        ("[::1]:50051", True),
        ("unix:/run/tightfit.sock", True),
        ("0.0.0.0:50051", False),
        ("[::]:50051", False),
        ("10.0.0.7:50051", False),
        ("127.0.0.1.evil.example:50051", False),
        ("localhost.example:50051", False),
    ],
)
def test_a_port_is_local_only_where_that_is_certain(listen: str, local: bool) -> None:
    assert is_local(listen) is local


@pytest.mark.parametrize(
    ("has_tls", "knows_callers", "lacking"),
    [
        (False, False, "TLS and authentication"),
        (True, False, "authentication"),
        (False, True, "TLS"),
    ],
)
def test_a_port_for_others_without_protection_is_refused(
    has_tls: bool, knows_callers: bool, lacking: str
) -> None:
    def check(listen: str, *, allowed: bool) -> None:
        check_exposure(listen=listen, has_tls=has_tls, knows_callers=knows_callers, allowed=allowed)

    with pytest.raises(InvalidRequestError, match=rf"without {lacking} \[") as caught:
        check("0.0.0.0:50051", allowed=False)
    assert caught.value.field == "listen"
    assert "TIGHTFIT_ALLOW_INSECURE" in caught.value.remedy
    check("0.0.0.0:50051", allowed=True)
    check("127.0.0.1:50051", allowed=False)


def test_a_port_with_both_is_served() -> None:
    check_exposure(listen="0.0.0.0:1", has_tls=True, knows_callers=True, allowed=False)


def test_tls_needs_files_that_belong_together(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = write_pair(tmp_path, authority.issue("server"))
    assert open_tls(certificate="", key="") is None
    ends: list[datetime] = []
    assert open_tls(certificate=str(certificate), key=str(key), on_read=ends.append) is not None
    assert len(ends) == 1
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"certificate": str(certificate), "key": ""}, "tls_key_file"),
        ({"certificate": "", "key": str(key)}, "tls_cert_file"),
        ({"certificate": "", "key": "", "client_ca": str(certificate)}, "tls_cert_file"),
        ({"certificate": str(certificate), "key": str(tmp_path / "none")}, "tls_key_file"),
        ({"certificate": str(key), "key": str(key)}, "tls_cert_file"),
        (
            {"certificate": str(certificate), "key": str(key), "client_ca": str(key)},
            "tls_client_ca_file",
        ),
    )
    for given, field in cases:
        with pytest.raises(InvalidRequestError) as caught:
            open_tls(**given)
        assert caught.value.field == field
    key.write_bytes(authority.issue("other").key)
    with pytest.raises(InvalidRequestError, match="not that of the certificate"):
        open_tls(certificate=str(certificate), key=str(key))


@pytest.mark.parametrize(("url", "file"), [("", ""), ("https://id.example/keys", "keys.json")])
def test_the_keys_of_a_provider_have_one_place(url: str, file: str) -> None:
    with pytest.raises(InvalidRequestError, match="one place"):
        open_access(
            engine=create_engine("sqlite://"),
            clock=FakeClock(),
            required=True,
            oidc=OidcSettings(issuer="https://id.example", audience="tightfit"),
            jwks_url=url,
            jwks_file=file,
        )


def test_authorities_are_for_keys_at_a_url() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        open_access(
            engine=create_engine("sqlite://"),
            clock=FakeClock(),
            required=True,
            oidc=OidcSettings(issuer="https://id.example", audience="tightfit"),
            jwks_file="keys.json",
            jwks_ca_file="ca.crt",
        )
    assert caught.value.field == "oidc_ca_file"
