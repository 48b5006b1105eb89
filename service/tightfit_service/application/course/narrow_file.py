"""A narrower file beside the quantized one: from both, a plan knows how a compiler's figures grow with width.

A compiler rounds channels up to blocks, and some of what an operator takes does not depend on its width.
One file says how large its figures are; how they change, only another one does. It is the network at about
half of its prunable channels, untrained, for its weights do not matter: it is costed, and thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tightfit_service.application.costs.costing import levels
from tightfit_service.application.costs.files import NOT_THE_FILES
from tightfit_service.application.course.life import JobLife
from tightfit_service.application.recipes.steps import quantization_of
from tightfit_service.application.recipes.techniques import may_prune
from tightfit_service.application.work.narrow_file import NARROW_FILE, NarrowFileTask
from tightfit_service.domain.errors import TightfitError
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.network import PruningSpace

KEPT_SHARE = 0.5
"""Of the channels of each group, as near as the target's multiples allow: the middle of what plans choose from."""


def narrow_widths(space: PruningSpace, channel_multiple: int) -> Mapping[str, tuple[int, ...]]:
    """Return the units that stay per group, for the groups that can be narrowed at all.

    Args:
        space: What may be pruned.
        channel_multiple: Multiples that the target's kernels round channels up to.
    """
    keep = {}
    for group in space.groups:
        narrower = [
            level
            for level in levels(group.unit_count, channel_multiple)
            if level < group.unit_count
        ]
        if narrower:
            wanted = KEPT_SHARE * group.unit_count
            keep[group.group_id] = tuple(range(min(narrower, key=lambda at: abs(at - wanted))))
    return keep


async def learn_narrow_file(life: JobLife) -> None:
    """Have a narrower network written and costed, and plans brought to it; say where that fails.

    Does nothing where no compiler costs the job's files, or no channels may be removed. Plans then scale an
    emulator's figures in proportion.

    Raises:
        UnavailableError: A store is away for long.
    """
    spec, book = life.spec, life.book
    keep = narrow_widths(life.facts.space, spec.target.channel_multiple)
    if not (book.files.has_learned and may_prune(spec) and keep):
        return
    await life.stages.enter(
        "baseline", "what a network of half the channels costs", begin=0.1, end=0.1
    )
    # the compiler takes this format; what a job exports around it costs no less nor more
    recipe = replace(life.recipes.make(keep=keep), output_format=str(ModelFormat.TFLITE))
    unit = NARROW_FILE.unit(
        NarrowFileTask(model=life.facts, recipe=recipe, target=spec.target),
        project=life.context.project,
        inputs=life.inputs,
        label=f"{life.journal.job.job_id} {NARROW_FILE.name}",
    )
    try:
        result = await life.stages.run(unit)
        problem = await book.files.learn_narrow(
            NARROW_FILE.outcome(result).profile,
            quantization_of(recipe),
            digest=result.outputs["model"],
        )
    except NOT_THE_FILES:
        raise
    except TightfitError as error:
        problem = error.message
    if problem:
        await life.notes.add(
            "COSTED_AT_ONE_WIDTH",
            "plans take costs to grow in proportion to the emulator's from the quantized model on, for a "
            f"narrower file could not be costed: {problem}",
        )
