"""The unit of work that brings an uploaded model into working form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tightfit_service.application.ports import (
    GraphInspector,
    ImportedModel,
    ModelImporter,
    StructuredPruning,
    WorkHandler,
)
from tightfit_service.application.samples import FloatArray
from tightfit_service.application.units.kinds import Nothing, UnitContext, UnitKind
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.domain.network import PruningSpace

IMPORT_MODEL = UnitKind("import_model", Nothing, ModelFacts)

_PARITY_INPUTS = 2
"""Random inputs on which the graph is compared with the file; nothing else is there to compare on."""


@dataclass(frozen=True, kw_only=True)
class ImportWork:
    """Imports models; composed in the worker process."""

    importer: ModelImporter
    inspector: GraphInspector
    pruning: StructuredPruning

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handler by the kind of unit it runs."""
        return {IMPORT_MODEL.name: IMPORT_MODEL.handler(self.run)}

    def run(self, task: Nothing, context: UnitContext) -> ModelFacts:
        """Import the input `model` as the output `graph`, and list what can be pruned in it."""
        del task
        data = context.read("model")
        context.on_progress(0.1, "importing the model")
        imported = self.importer.import_model(data)
        self.importer.check_parity(data, imported.graph, _random_inputs(imported, _PARITY_INPUTS))
        context.on_progress(0.6, "reading the graph")
        facts = ModelFacts.of(
            imported,
            profile=self.inspector.profile(imported.graph),
            space=(
                PruningSpace(groups=())
                if imported.is_quantized
                else self.pruning.space(imported.graph)
            ),
            architecture=self.inspector.architecture(imported.graph),
        )
        context.write("graph", imported.graph, file_name="graph.onnx")
        return facts


def _random_inputs(model: ImportedModel, count: int) -> list[FloatArray]:
    """Return seeded standard normal arrays for every input of the model, `count` samples each."""
    generator = np.random.default_rng(0)
    return [
        generator.standard_normal(
            [count if size == -1 else size for size in signature.shape]
        ).astype(np.float32)
        for signature in model.inputs
    ]
