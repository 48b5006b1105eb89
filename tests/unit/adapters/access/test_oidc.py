"""Tokens of an identity provider: what is taken, and all that must not be."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from fakes.access import NOW, Authority, write_pair
from fakes.clock import FakeClock
from tightfit_service.adapters.access.jwks import (
    COOLDOWN_SECONDS,
    LIFETIME_SECONDS,
    MOST_STALE_SECONDS,
    KeySet,
    key_file,
    key_url,
    parse_keys,
)
from tightfit_service.adapters.access.oidc import OidcSettings, OidcVerifier, groups_in
from tightfit_service.adapters.access.policy_file import PolicyFile
from tightfit_service.domain.access import Grant, Role
from tightfit_service.domain.errors import (
    ExpiredCredentialsError,
    InvalidCredentialsError,
    InvalidRequestError,
    UnavailableError,
)

ISSUER, AUDIENCE = "https://id.example.com", "tightfit"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def _jwk(key: Any, kid: str) -> dict[str, Any]:
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}


def _set(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


JWKS = _set(_jwk(RSA_KEY, "rsa"), _jwk(EC_KEY, "ec"))


def _token(
    key: Any = RSA_KEY,
    *,
    kid: str = "rsa",
    algorithm: str = "RS256",
    without: str = "",
    **claims: Any,
) -> str:
    content = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "exp": (NOW + timedelta(hours=1)).timestamp(),
        "iat": NOW.timestamp(),
        "groups": ["vision-team"],
        **claims,
    }
    content.pop(without, None)
    return jwt.encode(content, key, algorithm=algorithm, headers={"kid": kid})


@pytest.fixture
def policy(tmp_path: Path) -> PolicyFile:
    path = tmp_path / "policy.yaml"
    path.write_text("groups:\n  vision-team: {vision: submitter}\n  ops: {'*': admin}\n")
    return PolicyFile(path)


@pytest.fixture
def verifier(policy: PolicyFile) -> OidcVerifier:
    return OidcVerifier(
        settings=OidcSettings(issuer=ISSUER, audience=AUDIENCE),
        keys=KeySet(lambda: JWKS),
        policy=policy,
        now=lambda: NOW,
    )


def test_a_good_token_names_the_caller_and_the_roles(verifier: OidcVerifier) -> None:
    principal = verifier.verify(_token())
    assert principal.name == "oidc:alice"
    assert principal.grants == (Grant("vision", Role.SUBMITTER),)
    assert principal.expire_time == NOW + timedelta(hours=1)
    assert verifier.verify(_token(EC_KEY, kid="ec", algorithm="ES256")).name == "oidc:alice"
    assert verifier.verify(_token(aud=["other", AUDIENCE])).name == "oidc:alice"
    assert verifier.verify(_token(groups=["strangers"])).grants == ()


def _unsigned() -> str:
    head, body, _ = _token().split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"rsa"}').rstrip(b"=").decode()
    del head
    return f"{none}.{body}."


def _signed_with_the_public_key() -> str:
    """Return a token by the classic attack: HS256 with the public key for a secret."""
    import hashlib
    import hmac

    pem = RSA_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"rsa"}').rstrip(b"=").decode()
    body = _token().split(".")[1]
    signature = hmac.new(pem, f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _changed() -> str:
    head, body, signature = _token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["groups"] = ["ops"]
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (_token(iss="https://evil.example.com"), "another issuer"),
        (_token(aud="other"), "another audience"),
        (_token(without="aud"), "lacks"),
        (_token(without="exp"), "lacks"),
        (_token(without="sub"), "lacks"),
        (_token(OTHER_KEY), "signature"),
        (_token(kid="unknown"), "no such key"),
        (_token(EC_KEY, kid="rsa", algorithm="ES256"), "malformed|signature"),
        (_token(algorithm="RS512"), "algorithm"),
        (_token(nbf=(NOW + timedelta(minutes=5)).timestamp()), "not good yet"),
        (_token(sub="a\nb"), "subject"),
        (_token(sub="x" * 500), "subject"),
        (_token(exp=1e300), "times"),
        (_unsigned(), "algorithm"),
        (_signed_with_the_public_key(), "algorithm"),
        (_changed(), "signature"),
        ("a.b.c", "no JSON web token"),
        ("..", "no JSON web token"),
    ],
)
def test_every_other_token_is_refused(verifier: OidcVerifier, token: str, words: str) -> None:
    with pytest.raises(InvalidCredentialsError, match=words) as caught:
        verifier.verify(token)
    assert token not in str(caught.value)


def test_clocks_may_differ_a_little(verifier: OidcVerifier) -> None:
    late = (NOW - timedelta(seconds=20)).timestamp()
    assert verifier.verify(_token(exp=late)).name == "oidc:alice"
    early = (NOW + timedelta(seconds=20)).timestamp()
    assert verifier.verify(_token(nbf=early, iat=early)).name == "oidc:alice"
    with pytest.raises(ExpiredCredentialsError):
        verifier.verify(_token(exp=(NOW - timedelta(seconds=31)).timestamp()))


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS1"])
def test_algorithms_without_a_private_key_cannot_be_allowed(algorithm: str) -> None:
    with pytest.raises(InvalidRequestError, match=algorithm):
        OidcSettings(issuer=ISSUER, audience=AUDIENCE, algorithms=(algorithm,))
    with pytest.raises(InvalidRequestError, match="audience"):
        OidcSettings(issuer=ISSUER, audience="")


def test_groups_are_found_by_name_or_path() -> None:
    claims = {"a.b": ["x"], "realm_access": {"roles": ["y", 7]}, "scope": "r w", "n": 3}
    assert groups_in(claims, "a.b") == ["x"]
    assert groups_in(claims, "realm_access.roles") == ["y"]
    assert groups_in(claims, "scope") == ["r", "w"]
    assert groups_in(claims, "n") == ()
    assert groups_in(claims, "none.of.it") == ()


class _Provider:
    """Counts fetches; gives what it is told to."""

    def __init__(self) -> None:
        self.data = _set(_jwk(RSA_KEY, "1"))
        self.fetches = 0
        self.is_down = False

    def __call__(self) -> bytes:
        self.fetches += 1
        if self.is_down:
            raise OSError("unreachable")
        return self.data


def test_a_rotated_key_is_fetched_and_made_up_ids_are_not_load() -> None:
    clock, provider = FakeClock(), _Provider()
    keys = KeySet(provider, monotonic=clock.monotonic)
    assert keys.key("1") is not None
    assert provider.fetches == 1
    provider.data = _set(_jwk(RSA_KEY, "1"), _jwk(OTHER_KEY, "2"))
    clock.advance(COOLDOWN_SECONDS)
    assert keys.key("2") is not None
    for n in range(100):
        assert keys.key(f"made-up-{n}") is None
    assert provider.fetches == 2


def test_a_key_that_was_taken_back_is_good_no_longer_than_the_lifetime() -> None:
    clock, provider = FakeClock(), _Provider()
    keys = KeySet(provider, monotonic=clock.monotonic)
    assert keys.key("1") is not None
    provider.data = _set(_jwk(OTHER_KEY, "2"))
    clock.advance(LIFETIME_SECONDS)
    assert keys.key("1") is None


def test_known_keys_outlive_an_outage_of_the_provider_but_not_for_ever() -> None:
    clock, provider = FakeClock(), _Provider()
    keys = KeySet(provider, monotonic=clock.monotonic)
    assert keys.key("1") is not None
    provider.is_down = True
    clock.advance(LIFETIME_SECONDS + 1)
    assert keys.key("1") is not None
    clock.advance(MOST_STALE_SECONDS)
    with pytest.raises(UnavailableError):
        keys.key("1")


def test_without_any_keys_nobody_is_refused_for_good() -> None:
    provider = _Provider()
    provider.is_down = True
    with pytest.raises(UnavailableError):
        KeySet(provider).key("1")


def test_keys_that_do_not_sign_are_left_out() -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"}
    encrypting = {**_jwk(OTHER_KEY, "enc"), "use": "enc"}
    broken = {"kty": "RSA", "kid": "broken", "n": "!", "e": "!"}
    keys = parse_keys(_set(secret, encrypting, broken, _jwk(RSA_KEY, "1")))
    assert set(keys) == {"1"}
    for data in (b"{}", b"[]", b"no json", _set(secret)):
        with pytest.raises(InvalidRequestError):
            parse_keys(data)


@pytest.fixture
def web() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("Location", "/keys")
                self.end_headers()
                return
            body = JWKS if self.path == "/keys" else b" " * (2 << 20)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_keys_come_from_a_url(web: HTTPServer) -> None:
    base = f"http://127.0.0.1:{web.server_port}"
    assert key_url(f"{base}/keys").key("rsa") is not None
    for path in ("elsewhere", "huge"):
        with pytest.raises(UnavailableError):
            key_url(f"{base}/{path}").key("rsa")
    with pytest.raises(InvalidRequestError, match="https"):
        key_url("http://id.example.com/keys")
    with pytest.raises(InvalidRequestError, match="https"):
        key_url("file:///etc/passwd")


def test_a_provider_of_a_private_authority_is_trusted_where_its_certificate_is_given(
    web: HTTPServer, tmp_path: Path
) -> None:
    own, other = Authority(), Authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(tmp_path, own.issue("id.example.com")))
    web.socket = context.wrap_socket(web.socket, server_side=True)
    url, trusted = f"https://127.0.0.1:{web.server_port}/keys", tmp_path / "ca.crt"
    with pytest.raises(UnavailableError):
        key_url(url).key("rsa")
    trusted.write_bytes(other.pem)
    keys = key_url(url, ca_file=trusted)
    trusted.write_bytes(own.pem)
    assert keys.key("rsa") is not None, "a file that was replaced counts"
    for unfit in (tmp_path / "missing", tmp_path / "tls.key"):
        with pytest.raises(InvalidRequestError) as caught:
            key_url(url, ca_file=unfit)
        assert caught.value.field == "oidc_ca_file"


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(JWKS)
    assert key_file(path).key("ec") is not None
    with pytest.raises(UnavailableError):
        key_file(tmp_path / "missing").key("ec")
