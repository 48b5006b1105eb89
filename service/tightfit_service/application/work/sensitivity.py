"""The unit of work that finds out what each choice in a network costs in accuracy, before any is made.

Every prunable unit gets an importance; a few cuts, some of the other ways to compute single layers, and the
number formats of layers are measured alone and untrained, to correct what is predicted from scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tightfit_service.application.ports import (
    Evaluator,
    PassContext,
    PrecisionProbe,
    ProgressCallback,
    QuantizationSettings,
    Trainer,
    WorkHandler,
)
from tightfit_service.application.recipes.steps import GraphSteps
from tightfit_service.application.samples import Samples
from tightfit_service.application.units.kinds import UnitContext, UnitKind
from tightfit_service.application.work.data import Splits, UnitData
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.node_ways import (
    MeasuredAlternative,
    NodeWays,
    spread_by_error,
)
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.domain.network import ImportanceCriterion, PruningSpace
from tightfit_service.domain.recipe import PassStep

MEASURED_ALTERNATIVES = 12
"""Alternatives of a technique that are measured; the others are predicted from these by their errors."""

Importance = Mapping[str, Sequence[float]]
"""What the removal of each unit is predicted to cost, by group."""


@dataclass(frozen=True, kw_only=True)
class SensitivityTask:
    """What is asked of a network.

    Attributes:
        space: What can be pruned.
        importance: What units are scored by.
        shares: Shares of a group to cut for the measured points.
        techniques: Node passes to consider.
        number_format: Where it is to be measured what that costs layer by layer, else None.
    """

    model: ModelFacts
    target: HardwareSpec
    seed: int
    space: PruningSpace
    importance: ImportanceCriterion
    shares: tuple[float, ...]
    techniques: tuple[str, ...]
    number_format: NumberFormat | None


@dataclass(frozen=True, kw_only=True)
class MeasuredPoint:
    """Accuracy with one group alone cut to `kept` units, without any training."""

    group_id: str
    kept: int
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class SensitivityOutcome:
    """Importance of every unit, and a few measured points to correct them by."""

    importance: Mapping[str, tuple[float, ...]]
    points: tuple[MeasuredPoint, ...]
    reference_accuracy: float
    alternatives: tuple[MeasuredAlternative, ...] = ()
    precision_costs: Mapping[str, float] = field(default_factory=dict)
    """Accuracy that the ordinary number format costs, by node, where it was measured."""
    notes: tuple[str, ...] = ()


SENSITIVITY = UnitKind("sensitivity", SensitivityTask, SensitivityOutcome)


@dataclass(frozen=True, kw_only=True)
class SensitivityWork:
    """Measures what choices cost; composed in the worker process.

    Attributes:
        evaluator: Of working graphs.
        ways: Knows other ways to compute single layers.
    """

    data: UnitData
    steps: GraphSteps
    trainer: Trainer
    evaluator: Evaluator
    ways: NodeWays
    precision_probe: PrecisionProbe

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handler by the kind of unit it runs."""
        return {SENSITIVITY.name: SENSITIVITY.handler(self.run)}

    def run(self, task: SensitivityTask, context: UnitContext) -> SensitivityOutcome:
        """Score every prunable unit of the input `graph`, then measure what single choices cost.

        The input `dataset` may be missing.
        """
        splits = Splits(dataset=self.data.open(task.model, context))
        network = _Network(
            graph=context.read("graph"),
            sample=splits.selection_sample(),
            calibration=splits.get(SplitName.CALIBRATION),
            task=task,
        )
        scored_on = splits.get(SplitName.TRAIN) or splits.need(SplitName.SELECTION)
        context.on_progress(0.0, "importance of every channel")
        importance, notes = self._importance(network, scored_on)
        points = self._points(network, importance, context.on_progress)
        context.on_progress(0.7, "other ways to compute each layer")
        return SensitivityOutcome(
            importance={key: tuple(float(v) for v in vs) for key, vs in importance.items()},
            points=points,
            reference_accuracy=self._accuracy(network.graph, network),
            alternatives=self._alternatives(network),
            precision_costs=self._precision_costs(network, context.on_progress),
            notes=notes,
        )

    def _importance(
        self, network: _Network, samples: Samples
    ) -> tuple[Importance, tuple[str, ...]]:
        """Return the scores of every unit; those of its weights where there are no gradients."""
        task = network.task

        def scored(criterion: ImportanceCriterion) -> Importance:
            return self.trainer.importance(
                network.graph, task.space, samples, seed=task.seed, criterion=criterion
            )

        try:
            return scored(task.importance), ()
        except UnsupportedError as error:
            note = f"no gradients, so channels are ranked by their weights: {error.message}"
        return scored(ImportanceCriterion.MAGNITUDE), (note,)

    def _points(
        self, network: _Network, importance: Importance, on_progress: ProgressCallback
    ) -> tuple[MeasuredPoint, ...]:
        """Cut each group alone by some shares, its least important units first."""
        wanted = [
            (group, kept)
            for group in network.task.space.groups
            for share in network.task.shares
            if 0 < (kept := max(1, round(group.unit_count * (1 - share)))) < group.unit_count
        ]
        points: list[MeasuredPoint] = []
        for done, (group, kept) in enumerate(wanted):
            on_progress(0.3 + 0.4 * done / len(wanted), f"cost of cutting {group.group_id}")
            keep = {group.group_id: most_important(importance[group.group_id], kept)}
            accuracy = self._accuracy(self.steps.pruning.apply(network.graph, keep), network)
            points.append(MeasuredPoint(group_id=group.group_id, kept=kept, accuracy=accuracy))
        return tuple(points)

    def _alternatives(self, network: _Network) -> tuple[MeasuredAlternative, ...]:
        """Return what node passes offer, some of it measured alone where the graph itself changes."""
        graph, task, context = network.graph, network.task, network.pass_context
        found: list[MeasuredAlternative] = []
        for name in task.techniques:
            offered = self.ways.offered(graph, [name], task.target, context)
            strongest = [choices[-1] for choices in offered.values() if choices]
            measured = spread_by_error(strongest, MEASURED_ALTERNATIVES)
            for alternative in (a for choices in offered.values() for a in choices):
                accuracy = None
                if alternative in measured:
                    nodes = {alternative.node: alternative.parameters}
                    step = PassStep(pass_name=name, parameters={"nodes": nodes})
                    changed = self.steps.apply(graph, step, context)
                    if changed != graph:
                        accuracy = self._accuracy(changed, network)
                found.append(MeasuredAlternative(alternative=alternative, accuracy=accuracy))
        return tuple(found)

    def _precision_costs(
        self, network: _Network, on_progress: ProgressCallback
    ) -> Mapping[str, float]:
        """Return the accuracy that the number format costs by layer: alone, and among the others."""
        number_format, calibration = network.task.number_format, network.calibration
        if number_format is None or calibration is None:
            return {}
        measured = self.precision_probe(
            network.graph,
            calibration=calibration,
            score=lambda data: self._accuracy(data, network),
            settings=QuantizationSettings(number_format=number_format),
            on_progress=lambda share, text: on_progress(0.8 + 0.2 * share, text),
        )
        return {layer.node: max(0.0, measured.cost(layer)) for layer in measured.layers}

    def _accuracy(self, graph: bytes, network: _Network) -> float:
        return self.evaluator.evaluate(graph, network.sample).value


@dataclass(frozen=True, kw_only=True)
class _Network:
    """The network that is asked about, and the samples that changes of it are measured on."""

    graph: bytes
    sample: Samples
    calibration: Samples | None
    task: SensitivityTask

    @property
    def pass_context(self) -> PassContext:
        return PassContext(calibration=self.calibration)


def most_important(scores: Sequence[float], count: int) -> list[int]:
    """Return the indices of the `count` highest scores, ascending; ties go to the lower index."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    return sorted(int(index) for index in order[:count])
