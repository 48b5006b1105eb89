"""The form of the network that is searched in: as it came, or a variant with fewer blocks or inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tightfit_service.application.costing import margins_of
from tightfit_service.application.job_notes import JobNotes
from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.application.ports import WorkUnit
from tightfit_service.application.proposals import Proposer
from tightfit_service.application.stages import Stages
from tightfit_service.application.techniques import (
    PRECISION,
    may_prune,
    network_passes,
    node_passes,
)
from tightfit_service.application.trial_book import UNIT_TIMEOUT_SECONDS, RunContext, TrialBook
from tightfit_service.application.work import (
    SENSITIVITY,
    VARIANTS,
    SensitivityOutcome,
    VariantOutcome,
)
from tightfit_service.domain.budget import Budget
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.job import JobSpec
from tightfit_service.domain.network import NetworkProfile, PruningSpace
from tightfit_service.domain.recipe import PassStep
from tightfit_service.domain.trial import Metrics

SENSITIVITY_SHARES = (0.25, 0.5)
"""Shares of a group that are cut, alone and untrained, to correct the importance scores."""

ROUNDING_FELT = 0.005
"""Loss of accuracy by quantizing alone from which precision is searched too, and trained for."""

COSTLY_LAYERS = 5
"""Layers named when rounding them costs accuracy."""


@dataclass(frozen=True, kw_only=True)
class NetworkForm:
    """One form of the network, the steps that make it, and what computing in it costs in accuracy.

    Attributes:
        space: What may be pruned in it.
        format_costs: Accuracy (fraction) that the ordinary number format costs by node, where it was
            measured.
    """

    profile: NetworkProfile
    space: PruningSpace
    steps: tuple[PassStep, ...] = ()
    format_costs: Mapping[str, float] = field(default_factory=dict)


class FormFinder:
    """Prepares forms of one job's network for the search."""

    def __init__(
        self,
        context: RunContext,
        *,
        spec: JobSpec,
        budget: Budget,
        number_format: NumberFormat,
        label: str,
        stages: Stages,
        book: TrialBook,
        notes: JobNotes,
    ) -> None:
        """Keep what forms are prepared with; `label` names the job in the units of work."""
        self._context = context
        self._spec = spec
        self._budget = budget
        self._format = number_format
        self._label = label
        self._stages = stages
        self._book = book
        self._notes = notes

    def as_it_came(self) -> NetworkForm:
        """Return the network as the user sent it."""
        return self._form(self._context.facts.profile, self._context.facts.space)

    async def prepare(self, form: NetworkForm) -> tuple[NetworkForm, Proposer]:
        """Measure what choices in a form cost; return it with what proposes candidates in it."""
        await self._stages.enter("sensitivity", "what each channel is worth", begin=0.1, end=0.15)
        techniques = self._node_passes()
        result = await self._stages.run(
            self._unit(
                SENSITIVITY,
                {
                    "seed": self._spec.seed,
                    "shares": list(SENSITIVITY_SHARES),
                    "steps": to_plain(form.steps),
                    "space": to_plain(form.space),
                    "techniques": list(techniques),
                    "number_format": str(self._format) if PRECISION in techniques else None,
                },
            )
        )
        sensitivity = from_plain(SensitivityOutcome, result.payload)
        for text in sensitivity.notes:
            await self._notes.add("SENSITIVITY", text)
        for node, cost in largest_costs(sensitivity.precision_costs):
            message = f"{self._format} costs {cost:.1%} of accuracy in this layer, measured alone"
            await self._notes.add("COSTLY_PRECISION", message, node=node)
        await self._stages.enter("solve", "widths that meet the whole budget", begin=0.15, end=0.15)
        costs = self._context.cost_model
        quantized = self._book.get(0)
        measured = quantized.metrics if quantized is not None else None
        whole = Metrics(
            cost=costs.estimate(self._context.facts.profile, self._format), file_bytes=0
        )
        proposer = await asyncio.to_thread(
            lambda: Proposer(
                costs=costs,
                profile=form.profile,
                space=form.space,
                number_format=self._format,
                sensitivity=sensitivity,
                budget=self._budget,
                objective=self._spec.objective,
                margins=margins_of(measured or whole),
                seed=self._spec.seed,
            )
        )
        found = NetworkForm(
            profile=form.profile,
            space=form.space,
            steps=form.steps,
            format_costs=sensitivity.precision_costs,
        )
        return found, proposer

    async def variant_in_reach(self) -> tuple[NetworkForm, Proposer] | None:
        """Return the mildest variant of the network in which the budget can be met by estimate."""
        techniques = network_passes(self._spec)
        if not techniques:
            return None
        await self._stages.enter("variants", "fewer blocks, smaller inputs", begin=0.12, end=0.15)
        result = await self._stages.run(self._unit(VARIANTS, {"techniques": list(techniques)}))
        outcomes = [from_plain(VariantOutcome, item) for item in result.payload["variants"]]
        for outcome in sorted(outcomes, key=lambda outcome: -outcome.profile.macs):
            variant = outcome.variant
            step = PassStep(pass_name=variant.pass_name, parameters=variant.parameters)
            form, proposer = await self.prepare(self._form(outcome.profile, outcome.space, step))
            if not await asyncio.to_thread(proposer.out_of_reach):
                await self._notes.add(
                    "VARIANT",
                    f"the budget is out of reach of the network as it is; searching {variant.label}",
                )
                return form, proposer
        return None

    def _form(self, profile: NetworkProfile, space: PruningSpace, *steps: PassStep) -> NetworkForm:
        """Return a form of the network; without channels to remove where that is not allowed."""
        if not may_prune(self._spec):
            space = PruningSpace(groups=(), frozen=space.frozen)
        return NetworkForm(profile=profile, space=space, steps=steps)

    def _node_passes(self) -> tuple[str, ...]:
        techniques = node_passes(self._spec)
        is_felt = self._book.loss_by_rounding() > ROUNDING_FELT
        if self._spec.techniques or not is_felt or PRECISION in techniques:
            return techniques
        return (*techniques, PRECISION)

    def _unit(self, kind: str, payload: Mapping[str, object]) -> WorkUnit:
        return WorkUnit(
            kind=kind,
            payload={
                "model": to_plain(self._context.facts),
                "target": to_plain(self._spec.target),
                **payload,
            },
            inputs={"graph": self._context.graph_digest, **self._book.dataset_inputs()},
            timeout_seconds=UNIT_TIMEOUT_SECONDS,
            label=f"{self._label} {kind}",
        )


def largest_costs(costs: Mapping[str, float]) -> Sequence[tuple[str, float]]:
    """Return the few layers whose number format costs most, the dearest first."""
    felt = [(node, cost) for node, cost in costs.items() if cost > ROUNDING_FELT]
    return sorted(felt, key=lambda item: -item[1])[:COSTLY_LAYERS]
