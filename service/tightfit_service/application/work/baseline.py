"""The unit of work that measures the model as it came, and proves that it was imported rightly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tightfit_service.application.ports import Evaluator, ModelImporter, WorkHandler
from tightfit_service.application.units.kinds import UnitContext, UnitKind
from tightfit_service.application.work.data import Splits, UnitData, accuracy_of
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.quantities import Accuracy

PARITY_SAMPLES = 16
"""Real inputs on which the imported graph is compared with the file as it came."""


@dataclass(frozen=True, kw_only=True)
class BaselineTask:
    """A model as it came."""

    model: ModelFacts


@dataclass(frozen=True, kw_only=True)
class BaselineOutcome:
    """Accuracy of the model as it came, and the proof of its import.

    It is computed in onnxruntime; that of quantized files whose rounding the working graph does not
    have, in their own runtime.
    """

    accuracy: Accuracy | None
    selection_accuracy: Accuracy | None
    parity: float
    file_bytes: int
    train_count: int
    evaluation_count: int


BASELINE = UnitKind("baseline", BaselineTask, BaselineOutcome)


@dataclass(frozen=True, kw_only=True)
class BaselineWork:
    """Measures models as they came; composed in the worker process.

    Attributes:
        evaluator: Of working graphs.
        of_quantized: Of quantized files as they came, by their format, where their working graphs do not
            round as they do.
    """

    data: UnitData
    importer: ModelImporter
    evaluator: Evaluator
    of_quantized: Mapping[ModelFormat, Evaluator] = field(default_factory=dict)

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handler by the kind of unit it runs."""
        return {BASELINE.name: BASELINE.handler(self.run)}

    def run(self, task: BaselineTask, context: UnitContext) -> BaselineOutcome:
        """Compare the inputs `model` (the file) and `graph` on real inputs, and measure accuracies.

        The input `dataset` may be missing.
        """
        graph, original = context.read("graph"), context.read("model")
        splits = Splits(dataset=self.data.open(task.model, context))
        evaluation = splits.need(SplitName.EVALUATION)
        context.on_progress(0.05, "comparing with the original file on real inputs")
        names = [signature.name for signature in task.model.inputs]
        feeds = evaluation.feeds(slice(0, min(PARITY_SAMPLES, len(evaluation))), names)
        parity = self.importer.check_parity(original, graph, list(feeds.values()))
        context.on_progress(0.2, "accuracy of the model as it came")
        train = splits.get(SplitName.TRAIN)
        evaluator, judged = self.evaluator, graph
        if task.model.is_quantized and task.model.source_format in self.of_quantized:
            evaluator, judged = self.of_quantized[task.model.source_format], original
        return BaselineOutcome(
            accuracy=accuracy_of(evaluator, judged, evaluation),
            selection_accuracy=accuracy_of(evaluator, judged, splits.get(SplitName.SELECTION)),
            parity=parity,
            file_bytes=len(original),
            train_count=0 if train is None else len(train),
            evaluation_count=len(evaluation),
        )
