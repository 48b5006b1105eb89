"""Use cases on API keys: made, listed and revoked by admins of all that they open."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

from tightfit_service.application.access.caller import caller
from tightfit_service.application.ports import Clock, Page
from tightfit_service.application.ports.access import ApiKeyStore
from tightfit_service.domain.access import (
    ALL_PROJECTS,
    ApiKey,
    Grant,
    Principal,
    Role,
    hash_secret,
    new_token,
)
from tightfit_service.domain.errors import (
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)

MOST_GRANTS = 100
MOST_NAME_CHARACTERS = 100


class ApiKeyDesk:
    """Makes and revokes API keys.

    Args:
        keys: Where they are.
        clock: For their times.
        required: Whether the server asks callers for credentials. If not, nobody is known to be an
            admin, and keys that anybody made would stay good once it does.
    """

    def __init__(self, *, keys: ApiKeyStore, clock: Clock, required: bool) -> None:
        self._keys = keys
        self._clock = clock
        self._required = required

    async def create(
        self, *, display_name: str, grants: Sequence[Grant], expire_time: datetime | None
    ) -> tuple[ApiKey, str]:
        """Store a new key for the present caller, and return it with its token.

        Raises:
            InvalidRequestError: No grants, too many, a long name, or an expiry in the past.
            PermissionDeniedError: The caller is not an admin of all that the key opens.
            PreconditionError: The server knows no callers.
        """
        self.check_required()
        caller().require({Role.ADMIN}, [grant.project for grant in grants])
        key, token = self.make(
            display_name=display_name,
            grants=grants,
            expire_time=expire_time,
            creator=caller().name,
        )
        await asyncio.to_thread(self._keys.add_key, key)
        return key, token

    def make(
        self,
        *,
        display_name: str,
        grants: Sequence[Grant],
        expire_time: datetime | None,
        creator: str,
    ) -> tuple[ApiKey, str]:
        """Return a new key and its token; nothing is stored.

        Raises:
            InvalidRequestError: No grants, too many, a long name, or an expiry in the past.
        """
        now = self._clock.now()
        if not 1 <= len(grants) <= MOST_GRANTS:
            raise InvalidRequestError(
                f"{len(grants)} grants",
                field="api_key.grants",
                remedy=f"give 1 to {MOST_GRANTS}: a project and a role each",
            )
        if len(display_name) > MOST_NAME_CHARACTERS or not display_name.isprintable():
            raise InvalidRequestError(
                "the display name is long or unprintable",
                field="api_key.display_name",
                remedy=f"at most {MOST_NAME_CHARACTERS} printable characters",
            )
        if expire_time is not None and expire_time <= now:
            raise InvalidRequestError(
                f"the key would expire at {expire_time:%Y-%m-%d %H:%M} UTC, which is past",
                field="api_key.expire_time",
                remedy="give a time to come, or none",
            )
        token, key_id, secret = new_token()
        key = ApiKey(
            key_id=key_id,
            secret_hash=hash_secret(secret),
            display_name=display_name,
            grants=tuple(sorted(set(grants))),
            creator=creator,
            create_time=now,
            expire_time=expire_time,
        )
        return key, token

    async def get(self, key_id: str) -> ApiKey:
        """Return a key.

        Raises:
            NotFoundError: There is none, or the caller is not an admin of all that it opens.
            PreconditionError: The server knows no callers.
        """
        self.check_required()
        key = await asyncio.to_thread(self._keys.get_key, key_id)
        if key is None or not _may_manage(caller(), key):
            raise _no_key(key_id)
        return key

    async def list(self, page: Page) -> Sequence[ApiKey]:
        """Return keys that the caller may revoke, by id; fewer than the page's size only at the end.

        Raises:
            PreconditionError: The server knows no callers.
        """
        self.check_required()
        found: list[ApiKey] = []
        after = page.after
        while len(found) < page.size:
            keys = await asyncio.to_thread(self._keys.list_keys, Page(size=page.size, after=after))
            found += [key for key in keys if _may_manage(caller(), key)]
            if len(keys) < page.size:
                break
            after = keys[-1].key_id
        return found[: page.size]

    async def revoke(self, key_id: str) -> ApiKey:
        """End a key; one that has ended is returned as it is.

        Raises:
            NotFoundError: There is none, or the caller is not an admin of all that it opens.
            PreconditionError: The server knows no callers.
        """
        await self.get(key_id)
        key = await asyncio.to_thread(self._keys.revoke_key, key_id, self._clock.now())
        if key is None:
            raise _no_key(key_id)
        return key

    def check_required(self) -> None:
        """Check that the server knows its callers.

        Raises:
            PreconditionError: It asks nobody.
        """
        if not self._required:
            raise PreconditionError(
                "this server asks nobody for credentials, so it has no keys",
                remedy="set TIGHTFIT_AUTH_REQUIRED=true; the first key is made by "
                "`tightfit-service create-admin-key`",
            )


def _may_manage(principal: Principal, key: ApiKey) -> bool:
    return all(principal.has({Role.ADMIN}, grant.project) for grant in key.grants)


def admin_grants() -> tuple[Grant, ...]:
    """Return what the first key of a deployment opens: everything."""
    return (Grant(ALL_PROJECTS, Role.ADMIN),)


def _no_key(key_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no API key {key_id[:100]}",
        field="name",
        remedy="`tightfit auth list` has those that you may revoke",
    )
