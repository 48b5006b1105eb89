"""Uploaded models as they were imported: what is known of them, and their working graphs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tightfit_service.application.assets.library import MODEL, import_unit
from tightfit_service.application.ports import AssetStore
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.model_import import IMPORT_MODEL


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """An uploaded model.

    Attributes:
        digest: Of the file as it was uploaded.
        graph_digest: Of its working graph.
    """

    digest: str
    graph_digest: str
    facts: ModelFacts


class ImportedModels:
    """Finds models, which were imported when they were uploaded; one that was forgotten is imported anew."""

    def __init__(self, *, records: AssetStore, units: CachedUnits) -> None:
        """Keep where models are listed and where the results of imports are remembered."""
        self._records = records
        self._units = units

    async def named(self, project: str, model_id: str) -> ImportedModel:
        """Return the project's model of that id.

        Raises:
            NotFoundError: There is no such model.
            TightfitError: What its import raises.
        """
        record = await asyncio.to_thread(self._records.get_asset, project, MODEL, model_id)
        return await self.with_digest(project, record.digest)

    async def with_digest(self, project: str, digest: str) -> ImportedModel:
        """Return the project's model whose file has that digest.

        Raises:
            TightfitError: What its import raises.
        """
        result = await self._units.run(import_unit(project, digest))
        return ImportedModel(
            digest=digest,
            graph_digest=result.outputs["graph"],
            facts=IMPORT_MODEL.outcome(result),
        )
