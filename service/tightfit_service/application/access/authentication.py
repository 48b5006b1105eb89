"""From what a caller shows to who it is."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from tightfit_service.application.ports import Clock
from tightfit_service.application.ports.access import ApiKeyStore, RolePolicy, TokenVerifier
from tightfit_service.domain.access import (
    ANONYMOUS,
    TOKEN_PREFIX,
    ApiKey,
    Principal,
    split_token,
)
from tightfit_service.domain.errors import (
    ExpiredCredentialsError,
    InvalidCredentialsError,
    RevokedCredentialsError,
    TightfitError,
    UnauthenticatedError,
)

CACHE_SECONDS = 3.0
"""For which a key is not looked up again: a revocation reaches every replica within this time."""
USE_INTERVAL = timedelta(minutes=10)
"""How exactly the time of a key's last use is known; the price is one write in this time."""
MOST_CACHED = 10_000
MOST_TOKEN_CHARACTERS = 8_192

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a caller shows.

    Attributes:
        token: Bearer token, "" for none; kept out of every representation.
        certificate_names: Common name and alternative names of a verified client certificate.
    """

    token: str = field(default="", repr=False)
    certificate_names: tuple[str, ...] = ()


class Authenticator:
    """Finds out who calls. Lives on one event loop.

    Args:
        required: Whether callers must show credentials; if not, everybody is ANONYMOUS and may do all.
        keys: API keys.
        tokens: Tokens of an identity provider; None where there is none.
        policy: Roles of client certificates.
        clock: For expiry.
    """

    def __init__(
        self,
        *,
        required: bool,
        keys: ApiKeyStore,
        tokens: TokenVerifier | None,
        policy: RolePolicy,
        clock: Clock,
    ) -> None:
        self.required = required
        self._keys = KeyCache(keys=keys, clock=clock)
        self._tokens = tokens
        self._policy = policy

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Return who calls. A token counts before a certificate.

        Raises:
            UnauthenticatedError: Nothing was shown, or nothing that is good.
            UnavailableError: The keys or the provider cannot be asked at present.
        """
        if not self.required:
            return ANONYMOUS
        if credentials.token:
            return await self._by_token(credentials.token)
        if credentials.certificate_names:
            return self._by_certificate(credentials.certificate_names)
        raise UnauthenticatedError(
            "the call has no credentials",
            remedy="give --token-file or set TIGHTFIT_TOKEN; "
            "an admin makes tokens by `tightfit auth create`",
        )

    async def _by_token(self, token: str) -> Principal:
        if token.startswith(TOKEN_PREFIX):
            return await self._keys.principal(token)
        if (
            self._tokens is not None
            and token.count(".") == 2
            and len(token) <= MOST_TOKEN_CHARACTERS
        ):
            return await asyncio.to_thread(self._tokens.verify, token)
        raise InvalidCredentialsError(
            "the token is of no kind that this server takes",
            remedy="send an API key, or a token of the identity provider where one is set up",
        )

    def _by_certificate(self, names: Sequence[str]) -> Principal:
        name, grants = self._policy.roles_of_certificate(names)
        return Principal(name=f"certificate:{name or names[0][:200]}", grants=grants)


@dataclass(kw_only=True)
class _Entry:
    key: ApiKey | None
    fetched: float
    use_noted: bool = False


class KeyCache:
    """API keys by id, looked up at most once in CACHE_SECONDS. Lives on one event loop."""

    def __init__(
        self, *, keys: ApiKeyStore, clock: Clock, cache_seconds: float = CACHE_SECONDS
    ) -> None:
        self._store = keys
        self._clock = clock
        self._cache_seconds = cache_seconds
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._pending: dict[str, asyncio.Task[_Entry]] = {}
        self._notes: set[asyncio.Task[None]] = set()

    async def principal(self, token: str) -> Principal:
        """Return who a token is of.

        Raises:
            InvalidCredentialsError: Malformed, or nobody made it.
            ExpiredCredentialsError, RevokedCredentialsError: It was good once; only its holder is told.
        """
        key_id, secret = split_token(token)
        entry = await self._entry(key_id)
        key = entry.key
        if key is None or not key.accepts(secret):
            raise InvalidCredentialsError(
                "the API key is not one of this server",
                remedy="check which server it was made for; an admin makes another one",
            )
        if key.revoke_time is not None:
            raise RevokedCredentialsError(
                f"the API key {key_id} was revoked", remedy="ask an admin for another one"
            )
        if key.expire_time is not None and key.expire_time <= self._clock.now():
            raise ExpiredCredentialsError(
                f"the API key {key_id} has expired", remedy="ask an admin for another one"
            )
        self._note_use(entry, key)
        return key.principal

    async def _entry(self, key_id: str) -> _Entry:
        entry = self._entries.get(key_id)
        if entry is not None and self._clock.monotonic() - entry.fetched < self._cache_seconds:
            return entry
        # All calls that come while a key is looked up wait for the one answer.
        task = self._pending.get(key_id)
        if task is None:
            task = asyncio.create_task(self._fetch(key_id))
            self._pending[key_id] = task
            task.add_done_callback(lambda _: self._pending.pop(key_id, None))
        return await asyncio.shield(task)

    async def _fetch(self, key_id: str) -> _Entry:
        began = self._clock.monotonic()
        key = await asyncio.to_thread(self._store.get_key, key_id)
        entry = _Entry(key=key, fetched=began)
        self._entries[key_id] = entry
        self._entries.move_to_end(key_id)
        while len(self._entries) > MOST_CACHED:
            self._entries.popitem(last=False)
        return entry

    def _note_use(self, entry: _Entry, key: ApiKey) -> None:
        now = self._clock.now()
        known = key.last_use_time
        if entry.use_noted or (known is not None and now - known < USE_INTERVAL):
            return
        entry.use_noted = True
        task = asyncio.create_task(self._write_use(key.key_id))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _write_use(self, key_id: str) -> None:
        try:
            await asyncio.to_thread(self._store.key_used, key_id, self._clock.now())
        except TightfitError as error:
            log.warning("use of an API key not noted", key_id=key_id, error=str(error))
