"""What is said of a model and its target before anything is searched: what cannot help, what is assumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tightfit_service.application.costing import CostModel
from tightfit_service.application.support import support_notes
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.job import PreflightNote
from tightfit_service.domain.network import NetworkProfile, OperatorKind, PruningSpace


def preflight_notes(
    *, costs: CostModel, profile: NetworkProfile, space: PruningSpace, warnings: Sequence[str]
) -> tuple[PreflightNote, ...]:
    """Say before the search what cannot help, what is frozen and what is assumed."""
    target = costs.target
    notes = [PreflightNote(code="MODEL", message=warning) for warning in warnings]
    as_float = costs.estimate(profile, NumberFormat.FLOAT32)
    exported, caveats = costs.preferred_format(profile), as_float.warnings
    if NumberFormat.INT8 not in target.number_formats:
        notes.append(
            PreflightNote(
                code="INT8_NOT_OFFERED",
                message=f"{target.name} has no int8 kernels: models stay in float32 there",
            )
        )
    else:
        as_int8 = costs.estimate(profile, NumberFormat.INT8)
        if exported is NumberFormat.INT8:
            caveats = as_int8.warnings
        if as_int8.latency_ms.value > as_float.latency_ms.value:
            notes.append(
                PreflightNote(
                    code="INT8_NOT_FASTER",
                    message=(
                        f"int8 is estimated at {as_int8.latency_ms.value:.3g} ms against "
                        f"{as_float.latency_ms.value:.3g} ms in float32 on {target.name}"
                    ),
                )
            )
    notes.extend(support_notes(profile, target, exported))
    notes.extend(_compiler_notes(costs))
    notes.extend(
        PreflightNote(
            code="NOT_PRUNABLE",
            node=frozen.node,
            message=f"{frozen.channel_count} channels stay: {frozen.reason}",
        )
        for frozen in space.frozen
    )
    multiple = target.channel_multiple
    odd = [
        op.node
        for op in profile.operators
        if op.kind in (OperatorKind.CONV, OperatorKind.DENSE)
        and multiple > 1
        and op.out_channels % multiple
    ]
    if odd:
        notes.append(
            PreflightNote(
                code="WIDTH_ROUNDED_UP",
                message=(
                    f"{target.name} rounds widths up to a multiple of {multiple}, those of "
                    f"{len(odd)} {'layer' if len(odd) == 1 else 'layers'} as they came; widths in "
                    "between bring nothing"
                ),
                node=odd[0],
            )
        )
    if target.assumed_fields:
        notes.append(
            PreflightNote(
                code="TARGET_ASSUMED",
                message="taken from the classes of core and accelerator, which widens the intervals: "
                + ", ".join(target.assumed_fields),
            )
        )
    notes.extend(PreflightNote(code="EMULATOR", message=text) for text in caveats)
    return tuple(notes)


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
