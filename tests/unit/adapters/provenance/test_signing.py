"""Keys and envelopes."""

from __future__ import annotations

import base64
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tightfit_service.adapters.provenance.dsse import Ed25519Signer, pre_authentication
from tightfit_service.adapters.provenance.signing_key import (
    kept_public_keys,
    key_id,
    open_signing_key,
)
from tightfit_service.domain.errors import InvalidRequestError, UnavailableError


def ids(folder: Path) -> list[str]:
    blocks = kept_public_keys(folder).split(b"-----BEGIN")[1:]
    keys = [serialization.load_pem_public_key(b"-----BEGIN" + block) for block in blocks]
    return [key_id(key) for key in keys]  # type: ignore[arg-type]


def private_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: str = "") -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(password.encode())
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def test_the_first_start_makes_a_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    key = open_signing_key(folder)
    assert stat.S_IMODE((folder / "signing-key.pem").stat().st_mode) == 0o600
    assert key_id(open_signing_key(folder).public_key()) == key_id(key.public_key())
    assert ids(folder) == [key_id(key.public_key())]
    assert sorted(path.name for path in folder.iterdir()) == ["public", "signing-key.pem"]


def test_two_first_starts_at_a_time_agree_on_a_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: open_signing_key(tmp_path), range(8)))
    assert len({key_id(key.public_key()) for key in keys}) == 1


def test_after_a_rotation_the_old_public_key_is_still_known(tmp_path: Path) -> None:
    old = open_signing_key(tmp_path / "keys")
    secret = tmp_path / "secret.pem"
    secret.write_bytes(private_pem(Ed25519PrivateKey.generate()))
    new = open_signing_key(tmp_path / "keys", key_file=secret)
    assert sorted(ids(tmp_path / "keys")) == sorted(
        [key_id(old.public_key()), key_id(new.public_key())]
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no key",
        private_pem(ec.generate_private_key(ec.SECP256R1())),
        private_pem(Ed25519PrivateKey.generate(), password="secret"),
    ],
    ids=["empty", "text", "another kind", "encrypted"],
)
def test_a_file_without_a_usable_key_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=r"key\.pem") as caught:
        open_signing_key(tmp_path / "keys", key_file=path)
    assert caught.value.field == "provenance_key_file"
    assert "openssl" in caught.value.remedy


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"gone\.pem"):
        open_signing_key(tmp_path / "keys", key_file=tmp_path / "gone.pem")


def test_the_signature_covers_type_and_payload() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    envelope = json.loads(Ed25519Signer(key).sign("text/plain", b"hello world"))
    (signature,) = envelope["signatures"]
    value = base64.b64decode(signature["sig"])
    assert base64.b64decode(envelope["payload"]) == b"hello world"
    assert signature["keyid"] == key_id(key.public_key())
    key.public_key().verify(value, b"DSSEv1 10 text/plain 11 hello world")
    for kind, payload in (("text/html", b"hello world"), ("text/plain", b"hello worlds")):
        with pytest.raises(InvalidSignature):
            key.public_key().verify(value, pre_authentication(kind, payload))


def test_the_protocols_own_example_of_what_is_signed() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
    assert (
        pre_authentication("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
