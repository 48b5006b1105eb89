"""What is said of a model and its target before anything is searched: what cannot help, what is assumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tightfit_service.application.costs.costing import (
    CostModel,
    FormatEstimates,
    ProblemBuilder,
    margins_of,
    with_target_limits,
)
from tightfit_service.application.costs.support import support_notes
from tightfit_service.application.use_cases import CheckReport, JobRequest
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.domain.budget import Budget, Quantity, quantity_text
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.domain.job import PreflightNote
from tightfit_service.domain.network import NetworkProfile, OperatorKind, PruningSpace
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.trial import Metrics, violations
from tightfit_service.search.solver import smallest_costs


def check_report(
    request: JobRequest, *, costs: CostModel, facts: ModelFacts, accuracy: Accuracy | None = None
) -> CheckReport:
    """Return the preflight of a model on a target under a budget.

    `accuracy` is that of the model as it came, where it was measured.
    """
    budget = with_target_limits(request.budget, costs.target)
    estimates = costs.in_formats(facts.profile)
    baseline = Metrics(cost=estimates.as_float, file_bytes=0, accuracy=accuracy)
    shipped = Metrics(cost=estimates.shipped, file_bytes=0)
    # What compression makes of the accuracy is not known before anything ran: only costs count here.
    missed = tuple(
        v
        for v in violations(shipped, budget, baseline_accuracy=None)
        if v.quantity is not Quantity.ACCURACY
    )
    out_of_reach = _out_of_reach(
        ProblemBuilder(
            costs=costs,
            profile=facts.profile,
            space=facts.space,
            number_format=estimates.preferred,
        ),
        budget,
        margins=margins_of(shipped),
    )
    notes = preflight_notes(facts, costs=costs, estimates=estimates)
    return CheckReport(
        target=costs.target,
        baseline=baseline,
        baseline_int8=shipped if estimates.preferred is NumberFormat.INT8 else None,
        violations=missed,
        notes=(*notes, *out_of_reach),
        fits_already=not missed,
        reachable=not out_of_reach,
    )


def _out_of_reach(
    builder: ProblemBuilder, budget: Budget, *, margins: Mapping[Quantity, float]
) -> tuple[PreflightNote, ...]:
    """Say which limits are missed at any widths by estimate."""
    problem = builder.build_without_losses(budget, margins=margins)
    least = smallest_costs(problem)
    return tuple(
        PreflightNote(
            code="BUDGET_BELOW_REACH",
            message=(
                f"the {quantity} limit is below what pruning can reach on "
                f"{builder.costs.target.name}: "
                f"at least {quantity_text(quantity, least[quantity] * margins.get(quantity, 1.0))} is needed"
            ),
        )
        for quantity, limit in problem.limits.items()
        if least[quantity] > limit
    )


def preflight_notes(
    facts: ModelFacts, *, costs: CostModel, estimates: FormatEstimates
) -> tuple[PreflightNote, ...]:
    """Say before the search what cannot help, what is frozen and what is assumed.

    Args:
        facts: What is known of the model as it came.
        costs: Of the target.
        estimates: Of the model as it came, by `costs`.
    """
    profile, target = facts.profile, costs.target
    caveats = estimates.shipped.warnings
    return (
        *(PreflightNote(code="MODEL", message=warning) for warning in facts.warnings),
        *_int8_notes(estimates, target),
        *support_notes(profile, target, estimates.preferred),
        *_compiler_notes(costs),
        *_frozen_notes(facts.space),
        *_width_notes(profile, target),
        *_assumption_notes(target),
        *(PreflightNote(code="EMULATOR", message=caveat) for caveat in caveats),
    )


def _int8_notes(estimates: FormatEstimates, target: HardwareSpec) -> Iterator[PreflightNote]:
    """Say where quantization brings no speed."""
    if estimates.as_int8 is None:
        yield PreflightNote(
            code="INT8_NOT_OFFERED",
            message=f"{target.name} has no int8 kernels: models stay in float32 there",
        )
    elif not estimates.is_int8_as_fast:
        yield PreflightNote(
            code="INT8_NOT_FASTER",
            message=(
                f"int8 is estimated at {estimates.as_int8.latency_ms.value:.3g} ms against "
                f"{estimates.as_float.latency_ms.value:.3g} ms in float32 on {target.name}"
            ),
        )


def _frozen_notes(space: PruningSpace) -> Iterator[PreflightNote]:
    """Say which channels cannot be pruned, and why."""
    for frozen in space.frozen:
        yield PreflightNote(
            code="NOT_PRUNABLE",
            node=frozen.node,
            message=f"{frozen.channel_count} channels stay: {frozen.reason}",
        )


def _width_notes(profile: NetworkProfile, target: HardwareSpec) -> Iterator[PreflightNote]:
    """Say where the target's kernels round the network's own widths up."""
    multiple = target.channel_multiple
    odd = [
        op.node
        for op in profile.operators
        if op.kind in (OperatorKind.CONV, OperatorKind.DENSE)
        and multiple > 1
        and op.out_channels % multiple
    ]
    if odd:
        yield PreflightNote(
            code="WIDTH_ROUNDED_UP",
            message=(
                f"{target.name} rounds widths up to a multiple of {multiple}, those of "
                f"{len(odd)} {'layer' if len(odd) == 1 else 'layers'} as they came; widths in "
                "between bring nothing"
            ),
            node=odd[0],
        )


def _assumption_notes(target: HardwareSpec) -> Iterator[PreflightNote]:
    """Say what the description of the target leaves open."""
    if target.assumed_fields:
        yield PreflightNote(
            code="TARGET_ASSUMED",
            message="taken from the classes of core and accelerator, which widens the intervals: "
            + ", ".join(target.assumed_fields),
        )


def _compiler_notes(costs: CostModel) -> Iterator[PreflightNote]:
    """Say whether the compiler of the target gives the costs of files."""
    compiler, target = costs.compiler, costs.target
    if compiler is None:
        return
    if compiler.supports(target):
        message = (
            f"exported files are costed by {compiler.name} {compiler.version}, and the search aims by what "
            "it says of the quantized model; estimates before that are the emulator's"
        )
        yield PreflightNote(code="COSTED_BY_COMPILER", message=message)
        return
    message = (
        f"costs are estimated from the figures of {target.name}: {compiler.name}, which compiles for it "
        f"and knows more, is not installed where this service runs; {compiler.remedy} there"
    )
    yield PreflightNote(code="COMPILER_MISSING", message=message)
