"""Signed envelopes: DSSE 1.0.2 with Ed25519 (RFC 8032).

https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

from __future__ import annotations

import base64
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tightfit_service.adapters.provenance.signing_key import key_id, public_pem


class Ed25519Signer:
    """Implements `ports.provenance.StatementSigner`. Safe for several threads."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public_pem = public_pem(key.public_key()).decode()
        self.key_id = key_id(key.public_key())

    def sign(self, payload_type: str, payload: bytes) -> bytes:
        """Return the payload in a signed envelope, as JSON.

        The envelope brings the public key with it (`public_key`, which DSSE lets readers ignore): who
        has no key of the deployment can still see that nothing was changed since it was signed.
        """
        signature = self._key.sign(pre_authentication(payload_type, payload))
        envelope = {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [
                {
                    "keyid": self.key_id,
                    "public_key": self._public_pem,
                    "sig": base64.b64encode(signature).decode(),
                }
            ],
        }
        return json.dumps(envelope, indent=2, sort_keys=True).encode() + b"\n"


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed: DSSE's PAE, which binds the type to the payload."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
