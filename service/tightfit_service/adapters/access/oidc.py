"""Tokens of an identity provider: JSON web tokens as OpenID Connect signs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from tightfit_service.adapters.access.jwks import KeySet
from tightfit_service.application.ports.access import RolePolicy
from tightfit_service.domain.access import Principal
from tightfit_service.domain.errors import (
    ExpiredCredentialsError,
    InvalidCredentialsError,
    InvalidRequestError,
)

ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""All that may be allowed: signatures by a private key. `none` signs nothing, and HS* would take the
provider's public key for a shared secret (RFC 8725, section 2.1)."""
MOST_SUBJECT_CHARACTERS = 200
MOST_GROUPS = 1_000


@dataclass(frozen=True, kw_only=True)
class OidcSettings:
    """What a token must be.

    Attributes:
        issuer: Its `iss`, exactly.
        audience: One of its `aud`.
        algorithms: Of its signature, some of ALGORITHMS.
        roles_claim: Claim with the caller's groups or roles; a path such as `realm_access.roles` too.
        leeway_seconds: By which the provider's clock may differ from ours.

    Raises:
        InvalidRequestError: Issuer or audience is empty, or an algorithm is not to be allowed.
    """

    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    roles_claim: str = "groups"
    leeway_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("issuer", "audience"):
            if not getattr(self, name):
                raise InvalidRequestError(
                    f"oidc_{name} is empty",
                    field=f"oidc_{name}",
                    remedy="tokens for others would be taken without it; set it",
                )
        wrong = set(self.algorithms) - set(ALGORITHMS)
        if wrong or not self.algorithms:
            raise InvalidRequestError(
                f"{', '.join(sorted(wrong)) or 'no algorithm'} cannot be allowed",
                field="oidc_algorithms",
                remedy=f"choose of {', '.join(ALGORITHMS)}",
            )


class OidcVerifier:
    """Implements `TokenVerifier`."""

    def __init__(
        self,
        *,
        settings: OidcSettings,
        keys: KeySet,
        policy: RolePolicy,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._policy = policy
        self._now = now or (lambda: datetime.now(UTC))

    def verify(self, token: str) -> Principal:
        """See `TokenVerifier`."""
        claims = self._claims(token)
        subject = str(claims["sub"])
        if not (0 < len(subject) <= MOST_SUBJECT_CHARACTERS and subject.isprintable()):
            raise _invalid("its subject cannot be written down")
        end = datetime.fromtimestamp(float(claims["exp"]), UTC)
        groups = groups_in(claims, self._settings.roles_claim)
        return Principal(
            name=f"oidc:{subject}",
            grants=self._policy.roles_of_groups(groups),
            expire_time=end,
        )

    def _claims(self, token: str) -> Mapping[str, Any]:
        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
        except jwt.exceptions.PyJWTError as error:
            raise _invalid("it is no JSON web token") from error
        if header.get("alg") not in settings.algorithms:
            raise _invalid("its algorithm is not allowed")
        key = self._keys.key(str(header.get("kid", "")))
        if key is None:
            raise _invalid("the identity provider has no such key")
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(settings.algorithms),
                audience=settings.audience,
                issuer=settings.issuer,
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    # Times are checked below, by the clock that tests can set.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.exceptions.PyJWTError, ValueError, TypeError) as error:
            raise _invalid(_words(error)) from error
        self._check_times(claims)
        return claims

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now, leeway = self._now().timestamp(), self._settings.leeway_seconds
        try:
            end = float(claims["exp"])
            begin = max(float(claims.get(name) or 0.0) for name in ("nbf", "iat"))
            # Beyond, it could not be written as a date.
            is_sane = 0 <= end < 253_402_300_800 and begin >= 0
        except (TypeError, ValueError) as error:
            raise _invalid("its times are no numbers") from error
        if not is_sane:
            raise _invalid("its times are no times")
        if end <= now - leeway:
            raise ExpiredCredentialsError(
                "the token has expired", remedy="fetch another one from the identity provider"
            )
        if begin > now + leeway:
            raise _invalid("it is not good yet: compare the clocks of provider and server")


def groups_in(claims: Mapping[str, Any], path: str) -> Sequence[str]:
    """Return the texts in a claim, which may be one or a list, by name or by a path of names and dots."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        found = found.split()
    if not isinstance(found, list):
        return ()
    return [item for item in found[:MOST_GROUPS] if isinstance(item, str)]


def _words(error: Exception) -> str:
    """Return what is wrong, without repeating anything of the token."""
    for kind, words in (
        (jwt.InvalidSignatureError, "its signature does not fit"),
        (jwt.InvalidAudienceError, "it is for another audience"),
        (jwt.InvalidIssuerError, "it is of another issuer"),
        (jwt.MissingRequiredClaimError, "it lacks exp, iss, aud or sub"),
    ):
        if isinstance(error, kind):
            return words
    return "it is malformed"


def _invalid(words: str) -> InvalidCredentialsError:
    return InvalidCredentialsError(
        f"the token is not accepted: {words}",
        remedy="fetch one for this server from its identity provider",
    )
