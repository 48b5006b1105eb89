"""The unit of work that measures what single changes of a finished trial cost, which the search predicted.

Each cut and each other way to compute a layer is made alone in the network as it came, without training;
what the number format costs is measured layer by layer in the compressed network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tightfit_service.application.ports import (
    Evaluator,
    PassContext,
    PrecisionProbe,
    QuantizationSettings,
    WorkHandler,
)
from tightfit_service.application.recipes.attribution import ChangeLosses
from tightfit_service.application.recipes.steps import PRUNING_STEP, GraphSteps
from tightfit_service.application.recipes.techniques import LOW_RANK, NETWORK_PASSES
from tightfit_service.application.samples import Samples
from tightfit_service.application.units.kinds import UnitContext, UnitKind
from tightfit_service.application.work.data import Splits, UnitData
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.recipe import PassStep, Recipe


@dataclass(frozen=True, kw_only=True)
class AttributionTask:
    """What is to be measured.

    Attributes:
        steps: Of the trial's recipe, those that `measurable_steps` returns.
        quantization: How the trial was exported, where the cost of its number formats is to be
            measured, else None.
    """

    model: ModelFacts
    seed: int
    steps: tuple[PassStep, ...]
    quantization: QuantizationSettings | None = None


ATTRIBUTION = UnitKind("attribution", AttributionTask, ChangeLosses)


def measurable_steps(recipe: Recipe) -> tuple[PassStep, ...]:
    """Return the steps that make the form of the network, and those whose changes can be made alone."""
    wanted = {*NETWORK_PASSES, PRUNING_STEP, LOW_RANK}
    return tuple(step for step in recipe.steps if step.pass_name in wanted)


@dataclass(frozen=True, kw_only=True)
class AttributionWork:
    """Measures what changes cost alone; composed in the worker process.

    Attributes:
        evaluator: Of working graphs.
    """

    data: UnitData
    steps: GraphSteps
    evaluator: Evaluator
    precision_probe: PrecisionProbe

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handler by the kind of unit it runs."""
        return {ATTRIBUTION.name: ATTRIBUTION.handler(self.run)}

    def run(self, task: AttributionTask, context: UnitContext) -> ChangeLosses:
        """Measure the changes of a trial in the input `graph`, one by one.

        Cuts and other ways lose what they do alone and untrained, number formats what they do in the
        compressed network; gains are negative.

        The input `dataset` may be missing. `compressed` is the trial's float graph; it is read where
        `task.quantization` is given.
        """
        graph = context.read("graph")
        splits = Splits.of(self.data.open(task.model, context), task.steps)
        sample, calibration = splits.selection_sample(), splits.get(SplitName.CALIBRATION)
        pass_context = PassContext(calibration=calibration, seed=task.seed)
        for step in task.steps:
            if step.pass_name in NETWORK_PASSES:
                graph = self.steps.apply(graph, step, pass_context)
        whole = self.evaluator.evaluate(graph, sample).value
        changes = list(_single_changes(task.steps))
        groups: dict[str, float] = {}
        nodes: dict[str, float] = {}
        for done, (name, step) in enumerate(changes):
            context.on_progress(0.5 * done / len(changes), f"cost of {step.pass_name} in {name}")
            changed = self.steps.apply(graph, step, pass_context)
            lost = whole - self.evaluator.evaluate(changed, sample).value
            (groups if step.pass_name == PRUNING_STEP else nodes)[name] = lost
        return ChangeLosses(
            groups=groups,
            nodes=nodes,
            formats=self._format_costs(task, context, sample, calibration),
        )

    def _format_costs(
        self,
        task: AttributionTask,
        context: UnitContext,
        sample: Samples,
        calibration: Samples | None,
    ) -> Mapping[str, float]:
        if task.quantization is None or calibration is None:
            return {}
        found = self.precision_probe(
            context.read("compressed"),
            calibration=calibration,
            score=lambda data: self.evaluator.evaluate(data, sample).value,
            settings=task.quantization,
            on_progress=lambda share, text: context.on_progress(0.5 + 0.5 * share, text),
        )
        return {layer.node: found.cost(layer) for layer in found.layers}


def _single_changes(steps: tuple[PassStep, ...]) -> Iterator[tuple[str, PassStep]]:
    """Yield the name of every group and node that is changed, with a step that changes it alone."""
    for step in steps:
        if step.pass_name in NETWORK_PASSES:
            continue
        key = "keep" if step.pass_name == PRUNING_STEP else "nodes"
        for name, change in step.parameters.get(key, {}).items():
            yield name, PassStep(pass_name=step.pass_name, parameters={key: {name: change}})
