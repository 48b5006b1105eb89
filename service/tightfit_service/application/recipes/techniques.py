"""Which techniques a job's search may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tightfit_service.application.recipes.steps import QUANTIZATION_STEP, quantization_of
from tightfit_service.domain.errors import InvalidRequestError, UnsupportedError
from tightfit_service.domain.hardware import WRITABLE, HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.job import JobSpec
from tightfit_service.domain.recipe import Recipe

PRUNING = "structured_pruning"
LOW_RANK = "low_rank"
PRECISION = "precision"
"""Its alternatives are no step of their own: they are carried out on export."""
NODE_PASSES = (LOW_RANK, PRECISION)
"""Passes that offer other ways to compute single nodes."""
NETWORK_PASSES = ("resolution", "depth_pruning")
"""Passes that offer other forms of the network as a whole."""
DOWNLOAD_PASSES = ("sparsity", "clustering")
"""Passes that make packed files smaller, and nothing else."""
TECHNIQUES = (PRUNING, *NODE_PASSES, *NETWORK_PASSES, *DOWNLOAD_PASSES)


def check_techniques(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names in order, each once.

    Raises:
        InvalidRequestError: A name that is none of `TECHNIQUES`.
    """
    for name in names:
        if name not in TECHNIQUES:
            raise InvalidRequestError(
                f"there is no technique {name!r}",
                field="techniques",
                remedy=f"choose from {', '.join(TECHNIQUES)}; without any, the search chooses",
            )
    return tuple(dict.fromkeys(names))


def written_target(spec: JobSpec) -> HardwareSpec:
    """Return a job's target with those of its number formats that the job's files can hold."""
    writable = WRITABLE[spec.format]
    kept = tuple(item for item in spec.target.number_formats if item in writable)
    return replace(spec.target, number_formats=kept)


def check_writable(recipe: Recipe, output_format: ModelFormat) -> None:
    """Refuse a recipe whose number formats a file of that format cannot hold.

    Raises:
        UnsupportedError: With the first of them.
        InvalidRequestError: The recipe's quantization is none.
    """
    settings = quantization_of(recipe)
    writable = WRITABLE[output_format]
    field = f"recipe.steps.{QUANTIZATION_STEP}"
    for place, number_format in (
        (f"{field}.number_format", settings.number_format),
        *(
            (f"{field}.node_formats[{node}]", own)
            for node, own in sorted(settings.node_formats.items())
        ),
    ):
        if number_format not in writable:
            raise UnsupportedError(
                f"the recipe computes in {number_format}, which files in {output_format} do not hold",
                field=place,
                remedy="choose another output format, or one of the number formats "
                + ", ".join(sorted(writable)),
            )


def may_prune(spec: JobSpec) -> bool:
    """Whether channels may be removed."""
    return not spec.techniques or PRUNING in spec.techniques


def node_passes(spec: JobSpec) -> tuple[str, ...]:
    """Return the node passes to consider.

    Left to itself, the search considers low rank, and another precision where the target computes in
    more than int8 and float32, and the file can hold that.
    """
    if spec.techniques:
        return tuple(name for name in NODE_PASSES if name in spec.techniques)
    common = {NumberFormat.INT8, NumberFormat.FLOAT32}
    finer = set(written_target(spec).number_formats) - common
    return NODE_PASSES if finer else (LOW_RANK,)


def network_passes(spec: JobSpec) -> tuple[str, ...]:
    """Return the network passes to consider where the budget is out of reach otherwise."""
    if spec.techniques:
        return tuple(name for name in NETWORK_PASSES if name in spec.techniques)
    return NETWORK_PASSES


def download_passes(spec: JobSpec) -> tuple[str, ...]:
    """Return the passes to consider where the packed file is larger than the limit on the download."""
    if spec.techniques:
        return tuple(name for name in DOWNLOAD_PASSES if name in spec.techniques)
    return DOWNLOAD_PASSES
