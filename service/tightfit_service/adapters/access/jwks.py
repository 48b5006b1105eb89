"""The public keys of an identity provider: from a URL or a file, kept for a while, and asked for again."""

from __future__ import annotations

import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import structlog

from tightfit_service.adapters.access.watched_files import read_bytes
from tightfit_service.domain.errors import InvalidRequestError, UnavailableError

LIFETIME_SECONDS = 300.0
"""After which keys are fetched again: a key that the provider took back is good no longer than this."""
COOLDOWN_SECONDS = 10.0
"""Between two fetches, whatever callers send: made-up key ids must not become load on the provider."""
MOST_STALE_SECONDS = 3_600.0
"""For which known keys stay good while the provider cannot be reached."""
FETCH_TIMEOUT_SECONDS = 5.0
MOST_BYTES = 1 << 20

log = structlog.get_logger(__name__)


class KeySet:
    """Keys by id. Thread-safe; one thread fetches while others wait for it.

    Args:
        fetch: Returns the JSON of a JWK set (RFC 7517).
        monotonic: Seconds that never jump.
    """

    def __init__(
        self, fetch: Callable[[], bytes], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._fetched = float("-inf")
        self._tried = float("-inf")

    def key(self, key_id: str) -> jwt.PyJWK | None:
        """Return the key of this id, or None where the provider has none.

        Raises:
            UnavailableError: No keys are known, and the provider cannot be reached.
        """
        with self._lock:
            is_old = self._age(self._fetched) >= LIFETIME_SECONDS
            if (is_old or key_id not in self._keys) and self._age(self._tried) >= COOLDOWN_SECONDS:
                self._refresh()
            if self._age(self._fetched) >= LIFETIME_SECONDS + MOST_STALE_SECONDS:
                raise UnavailableError(
                    "the keys of the identity provider cannot be fetched",
                    field="oidc_jwks_url",
                    remedy="try again; check that the server reaches the provider",
                )
            return self._keys.get(key_id)

    def _age(self, moment: float) -> float:
        return self._monotonic() - moment

    def _refresh(self) -> None:
        self._tried = self._monotonic()
        try:
            self._keys = parse_keys(self._fetch())
        except (InvalidRequestError, OSError) as error:
            log.warning("keys of the identity provider not fetched", error=str(error))
            return
        self._fetched = self._monotonic()


def parse_keys(data: bytes) -> dict[str, jwt.PyJWK]:
    """Return the keys of a JWK set that sign, by id; kinds that are not understood are left out.

    Raises:
        InvalidRequestError: It is no JWK set, or none of its keys can be used.
    """
    try:
        content: Any = json.loads(data)
        entries = content["keys"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequestError(
            "what the identity provider gave is no JWK set", field="oidc_jwks_url"
        ) from error
    keys: dict[str, jwt.PyJWK] = {}
    for entry in entries if isinstance(entries, list) else []:
        # A symmetric key in here could be known to anybody who can read the set.
        if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        if entry.get("use", "sig") != "sig":
            continue
        try:
            keys[str(entry.get("kid", ""))] = jwt.PyJWK(entry)
        except (jwt.exceptions.PyJWTError, ValueError) as error:
            log.warning("a key of the identity provider is left out", error=str(error))
    if not keys:
        raise InvalidRequestError("the JWK set has no key that signs", field="oidc_jwks_url")
    return keys


def key_file(path: Path) -> KeySet:
    """Return the keys in a file, which may be replaced."""
    return KeySet(lambda: read_bytes(path, field="oidc_jwks_file"))


def key_url(url: str, *, ca_file: Path | None = None) -> KeySet:
    """Return the keys at a URL.

    Args:
        url: Where they are.
        ca_file: PEM file of the authorities to trust, which may be replaced; None trusts the usual ones.

    Raises:
        InvalidRequestError: It is not https, nor of this machine: anybody on the way could put keys in.
            Or the file has no certificates.
    """
    parts = urlsplit(url)
    is_local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_local):
        raise InvalidRequestError(
            f"{url} is not an https URL", field="oidc_jwks_url", remedy="give an https URL"
        )
    _trusting(ca_file)

    def fetch() -> bytes:
        # made for each of the rare fetches, so that a file that was replaced counts
        https = urllib.request.HTTPSHandler(context=_trusting(ca_file))
        opener = urllib.request.build_opener(_NoRedirect, https)
        with opener.open(url, timeout=FETCH_TIMEOUT_SECONDS) as answer:
            data: bytes = answer.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise InvalidRequestError("the JWK set is too large", field="oidc_jwks_url")
        return data

    return KeySet(fetch)


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise InvalidRequestError(
            f"{ca_file} cannot be used: {error}",
            field="oidc_ca_file",
            remedy="give a PEM file with the certificates of the provider's authorities",
        ) from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come from where the settings say, and from nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Refuse; urllib then raises the redirect as an error."""
