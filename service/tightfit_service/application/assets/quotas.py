"""What a project may use, asked before anything is taken in."""

from __future__ import annotations

import asyncio

from tightfit_service.application.ports import QuotaStore
from tightfit_service.domain.quota import Quota, check_room, check_stored_bytes


class Quotas:
    """The deployment's default quota with what operators set for single projects."""

    def __init__(self, *, store: QuotaStore, default: Quota) -> None:
        self._store = store
        self._default = default

    async def of(self, project: str) -> Quota:
        """Return the quota that holds for a project."""
        overrides = await asyncio.to_thread(self._store.get_quota, project)
        return self._default.with_overrides(overrides)

    async def check_stored_bytes(self, project: str, size_bytes: int) -> None:
        """Refuse an upload that would exceed the quota.

        Raises:
            ResourceExhaustedError: The project would hold more bytes than it may.
        """
        quota = await self.of(project)
        if quota.stored_bytes:
            check_stored_bytes(quota, await self._stored_bytes(project), size_bytes)

    async def check_room(self, project: str, quota: Quota) -> None:
        """Refuse a job of a project that can store nothing more under its quota.

        Raises:
            ResourceExhaustedError: The project holds as many bytes as it may.
        """
        if quota.stored_bytes:
            check_room(quota, await self._stored_bytes(project))

    async def _stored_bytes(self, project: str) -> int:
        return (await asyncio.to_thread(self._store.get_usage, project)).stored_bytes
