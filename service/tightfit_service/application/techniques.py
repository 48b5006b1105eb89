"""Which techniques a job's search may use."""

from __future__ import annotations

from collections.abc import Sequence

from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.job import JobSpec

PRUNING = "structured_pruning"
PRECISION = "precision"
"""Its alternatives are no step of their own: they are carried out on export."""
NODE_PASSES = ("low_rank", PRECISION)
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


def may_prune(spec: JobSpec) -> bool:
    """Whether channels may be removed."""
    return not spec.techniques or PRUNING in spec.techniques


def node_passes(spec: JobSpec) -> tuple[str, ...]:
    """Return the node passes to consider.

    Left to itself, the search considers low rank, and another precision where the target computes in
    more than int8 and float32.
    """
    if spec.techniques:
        return tuple(name for name in NODE_PASSES if name in spec.techniques)
    common = {NumberFormat.INT8, NumberFormat.FLOAT32}
    finer = set(spec.target.number_formats) - common
    return NODE_PASSES if finer else ("low_rank",)


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
