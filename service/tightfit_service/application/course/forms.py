"""The form of the network that is searched in: as it came, or a variant with fewer blocks or inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tightfit_service.application.costs.costing import ProblemBuilder, margins_of
from tightfit_service.application.course.life import JobLife
from tightfit_service.application.course.proposals import Aim, Proposer
from tightfit_service.application.recipes.techniques import (
    NETWORK_PASSES,
    PRECISION,
    may_prune,
    node_passes,
    written_target,
)
from tightfit_service.application.work.node_ways import MeasuredAlternative
from tightfit_service.application.work.sensitivity import (
    SENSITIVITY,
    SensitivityOutcome,
    SensitivityTask,
)
from tightfit_service.application.work.variants import VARIANTS, MeasuredVariant, VariantsTask
from tightfit_service.domain.errors import UnsupportedError, WorkFailedError
from tightfit_service.domain.network import DEFAULT_IMPORTANCE, NetworkProfile, PruningSpace
from tightfit_service.domain.recipe import PassStep
from tightfit_service.domain.trial import Metrics, Trial

SENSITIVITY_SHARES = (0.25, 0.5)
"""Shares of a group that are cut, alone and untrained, to correct the importance scores."""

ROUNDING_FELT = 0.005
"""Loss of accuracy by quantizing alone from which precision is searched too, and trained for."""

COSTLY_LAYERS = 5
"""Layers named when rounding them costs accuracy."""


@dataclass(frozen=True, kw_only=True)
class NetworkForm:
    """One form of the network, the steps that make it, and what choices in it cost in accuracy.

    Attributes:
        label: A few words for people; empty for the network as it came.
        space: What may be pruned in it.
        lost: Accuracy (fraction) that the form itself loses, without any training.
    """

    label: str
    profile: NetworkProfile
    space: PruningSpace
    sensitivity: SensitivityOutcome
    lost: float
    steps: tuple[PassStep, ...] = ()

    def made(self, trial: Trial) -> bool:
        """Whether a trial's network has this form."""
        found = tuple(s for s in trial.recipe.steps if s.pass_name in NETWORK_PASSES)
        return found == self.steps


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A form with what proposes candidates in it."""

    form: NetworkForm
    proposer: Proposer


class FormFinder:
    """Prepares forms of one job's network for the search."""

    def __init__(self, life: JobLife) -> None:
        self._life = life
        self._spec = life.spec
        self._format = life.number_format
        self._stages = life.stages
        self._notes = life.notes

    async def as_it_came(self) -> Prepared:
        """Measure what choices in the network as the user sent it cost."""
        facts = self._life.facts
        space = self._allowed(facts.space)
        await self._stages.enter("sensitivity", "what each channel is worth", begin=0.1, end=0.15)
        techniques = self._node_passes()
        sensitivity = await self._stages.ask(
            SENSITIVITY,
            SensitivityTask(
                model=facts,
                target=written_target(self._spec),
                seed=self._spec.seed,
                space=space,
                importance=self._spec.importance or DEFAULT_IMPORTANCE,
                shares=SENSITIVITY_SHARES,
                techniques=techniques,
                number_format=self._format if PRECISION in techniques else None,
            ),
            self._life.inputs,
        )
        for text in sensitivity.notes:
            await self._notes.add("SENSITIVITY", text)
        for node, cost in largest_costs(sensitivity.precision_costs):
            message = f"{self._format} costs {cost:.1%} of accuracy in this layer, measured alone"
            await self._notes.add("COSTLY_PRECISION", message, node=node)
        form = NetworkForm(
            label="", profile=facts.profile, space=space, sensitivity=sensitivity, lost=0.0
        )
        return await self._prepared(form)

    async def variants(self, known: Prepared, techniques: Sequence[str]) -> list[Prepared]:
        """Return the forms that network passes make, mildest first.

        What choices in them cost is taken from the network as it came: it was measured there.
        """
        if not techniques:
            return []
        await self._stages.enter("sensitivity", "other forms of the network", begin=0.12, end=0.15)
        sensitivity = known.form.sensitivity
        task = VariantsTask(
            model=self._life.facts,
            target=written_target(self._spec),
            techniques=tuple(techniques),
            node_techniques=self._node_passes(),
        )
        try:
            found = await self._stages.ask(VARIANTS, task, self._life.inputs)
        except (WorkFailedError, UnsupportedError) as error:
            # the network as it came can still be searched
            await self._notes.add("NO_VARIANTS", f"other forms could not be made: {error.message}")
            return []
        return [
            await self._prepared(
                NetworkForm(
                    label=measured.variant.label,
                    profile=measured.profile,
                    space=self._allowed(measured.space),
                    sensitivity=adapted(sensitivity, measured),
                    lost=max(0.0, sensitivity.reference_accuracy - measured.accuracy),
                    steps=(
                        PassStep(
                            pass_name=measured.variant.pass_name,
                            parameters=measured.variant.parameters,
                        ),
                    ),
                )
            )
            for measured in sorted(found.variants, key=lambda measured: -measured.profile.macs)
        ]

    async def _prepared(self, form: NetworkForm) -> Prepared:
        await self._stages.enter("solve", "widths that meet the whole budget", begin=0.15, end=0.15)
        costs = self._life.book.costs
        quantized = self._life.book.get(0)
        whole = quantized.metrics if quantized is not None else None
        if whole is None:
            estimate = costs.estimate(self._life.facts.profile, self._format)
            whole = Metrics(cost=estimate, file_bytes=0)
        problems = ProblemBuilder(
            costs=costs, profile=form.profile, space=form.space, number_format=self._format
        )
        aim = Aim(
            budget=self._life.budget,
            objective=self._spec.objective,
            margins=margins_of(whole),
        )
        proposer = await asyncio.to_thread(
            Proposer,
            problems=problems,
            sensitivity=form.sensitivity,
            aim=aim,
            seed=self._spec.seed,
        )
        return Prepared(form=form, proposer=proposer)

    def _allowed(self, space: PruningSpace) -> PruningSpace:
        """Return what may be pruned; nothing where that is not allowed."""
        return space if may_prune(self._spec) else PruningSpace(groups=(), frozen=space.frozen)

    def _node_passes(self) -> tuple[str, ...]:
        techniques = node_passes(self._spec)
        is_felt = self._life.book.loss_by_rounding() > ROUNDING_FELT
        if self._spec.techniques or not is_felt or PRECISION in techniques:
            return techniques
        return (*techniques, PRECISION)


def largest_costs(costs: Mapping[str, float]) -> Sequence[tuple[str, float]]:
    """Return the few layers whose number format costs most, the dearest first."""
    felt = [(node, cost) for node, cost in costs.items() if cost > ROUNDING_FELT]
    return sorted(felt, key=lambda item: -item[1])[:COSTLY_LAYERS]


def adapted(known: SensitivityOutcome, variant: MeasuredVariant) -> SensitivityOutcome:
    """Return what was measured in the network as it came, for the groups and ways of a variant."""
    groups = {group.group_id: group.unit_count for group in variant.space.groups}
    seen = {
        (measured.alternative.node, measured.alternative.label): measured.accuracy
        for measured in known.alternatives
    }
    return replace(
        known,
        importance={
            group_id: known.importance.get(group_id, (1.0,) * count)
            for group_id, count in groups.items()
        },
        points=tuple(point for point in known.points if point.group_id in groups),
        alternatives=tuple(
            MeasuredAlternative(
                alternative=alternative, accuracy=seen.get((alternative.node, alternative.label))
            )
            for alternative in variant.alternatives
        ),
    )
