"""Who can reach an address."""

from __future__ import annotations

from tightfit_service.domain.addresses import is_loopback


def test_loopback_is_known_by_its_names() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.0.0.2", "::1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.com"))
