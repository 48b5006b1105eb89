"""Which samples belong to which split: selection held out, calibration drawn, all seeded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tightfit_service.application.samples import IntArray

SELECTION_SHARE = 0.1
SELECTION_LIMIT = 2000


def held_out(
    sample_count: int, labels: IntArray | None, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Return the sorted indices that stay and those held out of `sample_count` training samples.

    A tenth is held out, at least 1 and at most 2000, each class by its share (largest remainders).
    """
    wanted = min(SELECTION_LIMIT, max(1, round(sample_count * SELECTION_SHARE)))
    if labels is None:
        out = rng.permutation(sample_count)[:wanted]
    else:
        out = _stratified(labels, wanted, rng)
    mask = np.zeros(sample_count, dtype=bool)
    mask[out] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def halves(sample_count: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Return the sorted indices of the first and second half of a shuffled set."""
    order = rng.permutation(sample_count)
    middle = sample_count // 2
    return np.sort(order[:middle]), np.sort(order[middle:])


def drawn(sample_count: int, wanted: int, rng: np.random.Generator) -> IntArray:
    """Return sorted indices of `wanted` samples, or of all where there are fewer."""
    if wanted >= sample_count:
        return np.arange(sample_count)
    return np.sort(rng.choice(sample_count, size=wanted, replace=False))


def _stratified(labels: IntArray, wanted: int, rng: np.random.Generator) -> IntArray:
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * (wanted / len(labels))
    quota = np.floor(shares).astype(np.int64)
    remainder = shares - quota
    # Ties are broken by class order, which is the same everywhere.
    for index in np.argsort(-remainder, kind="stable")[: wanted - int(quota.sum())]:
        quota[index] += 1
    chosen: list[npt.NDArray[np.int64]] = []
    for label, count in zip(classes, quota, strict=True):
        members = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(members)[:count])
    return np.concatenate(chosen)
