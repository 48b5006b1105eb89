"""What of a network a target's accelerator does not run."""

from __future__ import annotations

from tightfit_service.domain.hardware import Fallback, HardwareSpec, NumberFormat, Placement
from tightfit_service.domain.job import PreflightNote
from tightfit_service.domain.network import NetworkProfile

MAX_NAMED = 8
"""Operators that a note names; the rest are counted."""


def support_notes(
    profile: NetworkProfile, target: HardwareSpec, number_format: NumberFormat
) -> tuple[PreflightNote, ...]:
    """Name the operators that run on the cores although the target has an accelerator.

    Args:
        profile: The network.
        target: The target, whose accelerator brings its rules of support.
        number_format: What the network would be exported in.
    """
    accelerator = target.accelerator
    if accelerator is None:
        return ()
    places = accelerator.placements((op.kind, number_format) for op in profile.operators)
    left = [
        op
        for op, place in zip(profile.operators, places, strict=True)
        if place is not Placement.ACCELERATOR
    ]
    if not left:
        return ()
    named = ", ".join(f"{op.op_type} ({op.node})" for op in left[:MAX_NAMED])
    if len(left) > MAX_NAMED:
        named += f" and {len(left) - MAX_NAMED} more"
    share = sum(op.macs for op in left) / profile.macs if profile.macs else 0.0
    name = accelerator.name or accelerator.kind.value
    why = f"{name} does not run them"
    if accelerator.fallback is Fallback.CPU_FROM_FIRST:
        why = f"{name} does not run the first, and what follows stays there"
    return (
        PreflightNote(
            code="RUNS_ON_CORES",
            node=left[0].node,
            message=(
                f"{len(left)} of {len(places)} operators, {share:.0%} of the multiply-accumulates, "
                f"run on the cores in {number_format}, because {why}: {named}"
            ),
        ),
    )
