"""The unit of work that builds the other forms which a network can take as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightfit_service.application.ports import (
    Evaluator,
    GraphInspector,
    NetworkPass,
    PassContext,
    WorkHandler,
)
from tightfit_service.application.recipes.steps import GraphSteps
from tightfit_service.application.units.kinds import UnitContext, UnitKind
from tightfit_service.application.work.data import Splits, UnitData
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.node_ways import NodeWays
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import Alternative, NetworkProfile, PruningSpace, Variant
from tightfit_service.domain.recipe import PassStep


@dataclass(frozen=True, kw_only=True)
class VariantsTask:
    """What forms are asked for.

    Attributes:
        techniques: Network passes to consider.
        node_techniques: Node passes that may be used in the forms they make.
    """

    model: ModelFacts
    target: HardwareSpec
    techniques: tuple[str, ...]
    node_techniques: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MeasuredVariant:
    """Another form of the whole network: what is left to do in it, and what can be pruned there.

    Attributes:
        alternatives: Ways to compute its nodes, with accuracies where they were measured in the network
            as it came.
        accuracy: Of the form as it is, without any training.
    """

    variant: Variant
    profile: NetworkProfile
    space: PruningSpace
    accuracy: float
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VariantsOutcome:
    """The forms, mildest first per technique."""

    variants: tuple[MeasuredVariant, ...]


VARIANTS = UnitKind("variants", VariantsTask, VariantsOutcome)


@dataclass(frozen=True, kw_only=True)
class VariantsWork:
    """Builds other forms of networks; composed in the worker process.

    Attributes:
        evaluator: Of working graphs.
        ways: Knows other ways to compute single layers.
        passes: Make other forms, by their names.
    """

    data: UnitData
    steps: GraphSteps
    inspector: GraphInspector
    evaluator: Evaluator
    ways: NodeWays
    passes: Mapping[str, NetworkPass]

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handler by the kind of unit it runs."""
        return {VARIANTS.name: VARIANTS.handler(self.run)}

    def run(self, task: VariantsTask, context: UnitContext) -> VariantsOutcome:
        """Build and measure other forms of the input `graph`; the input `dataset` may be missing."""
        graph = context.read("graph")
        dataset = self.data.open(task.model, context)
        pass_context = PassContext(calibration=dataset.samples(SplitName.CALIBRATION))
        found: list[MeasuredVariant] = []
        for name in task.techniques:
            if name not in self.passes:
                continue
            offered = self.passes[name].variants(graph, task.target, context=pass_context)
            for variant in offered:
                context.on_progress(0.5, f"{name}: {variant.label}")
                step = PassStep(pass_name=name, parameters=variant.parameters)
                changed = self.steps.apply(graph, step, pass_context)
                splits = Splits.of(dataset, [step])
                found.append(self._measured(variant, changed, splits, task))
        return VariantsOutcome(variants=tuple(found))

    def _measured(
        self, variant: Variant, graph: bytes, splits: Splits, task: VariantsTask
    ) -> MeasuredVariant:
        sample = splits.selection_sample()
        pass_context = PassContext(calibration=splits.get(SplitName.CALIBRATION))
        offered = self.ways.offered(graph, task.node_techniques, task.target, pass_context)
        return MeasuredVariant(
            variant=variant,
            profile=self.inspector.profile(graph),
            space=self.steps.pruning.space(graph),
            accuracy=self.evaluator.evaluate(graph, sample).value,
            alternatives=tuple(a for choices in offered.values() for a in choices),
        )
