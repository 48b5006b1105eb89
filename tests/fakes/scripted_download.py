"""Packed files made up from what a recipe does to weights: their sizes, and what is offered for an aim.

Zeros save their share of a file but for a fifth, clusters the bits that they do not need. Both lose accuracy,
most of which training brings back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tightfit_service.application.work.download import DownloadOffer, DownloadOption
from tightfit_service.domain.recipe import Recipe

RATIOS = (0.25, 0.5, 0.75, 0.9)
CLUSTERS = (64, 16, 4)
PACKED_SHARE = 0.8
"""Of a file, where nothing was done to its weights."""


def strength(recipe: Recipe) -> tuple[float, int]:
    """Return the share of zeros and the number of clusters that a recipe makes; 0 for none."""
    sparsity, clustering = recipe.step("sparsity"), recipe.step("clustering")
    ratio = 0.0 if sparsity is None else float(sparsity.parameters["nodes"]["b"]["ratio"])
    count = 0 if clustering is None else int(clustering.parameters["nodes"]["b"]["clusters"])
    return ratio, count


def share(ratio: float, clusters: int) -> float:
    """Return what is left of a packed file."""
    return (1 - 0.8 * ratio) * (math.log2(clusters) / 8 if clusters else 1.0)


def loss(ratio: float, clusters: int) -> float:
    """Return the accuracy lost without training."""
    return 0.4 * ratio**2 + (0.8 / clusters if clusters else 0.0)


def offer(payload: Mapping[str, Any]) -> DownloadOffer:
    """Return what would bring a trial's packed file to the aim, by the figures above."""
    techniques = payload["techniques"]
    ratios = [0.0, *(RATIOS if "sparsity" in techniques else ())]
    counts = [0, *(CLUSTERS if "clustering" in techniques else ())]
    packed, aim = payload["packed_bytes"], payload["aim_bytes"]
    reached = []
    for count in counts:
        fits = [ratio for ratio in ratios if packed * share(ratio, count) <= aim]
        if fits:
            reached.append((fits[0], count))
    found = [_option(packed, *pair) for pair in reached]
    return DownloadOffer(
        options=tuple(sorted(found, key=lambda option: option.harm)),
        least=_option(packed, ratios[-1], counts[-1]),
    )


def _option(packed: int, ratio: float, clusters: int) -> DownloadOption:
    zeros = {"pattern": "block", "block": [1, 4], "ratio": ratio}
    return DownloadOption(
        sparsity={"nodes": {"b": zeros}} if ratio else None,
        clustering={"nodes": {"b": {"clusters": clusters}}} if clusters else None,
        download_bytes=math.ceil(packed * share(ratio, clusters)),
        error=min(1.0, loss(ratio, clusters)),
        lost=loss(ratio, clusters),
        label=f"{ratio:.0%} zeros, {clusters} clusters",
    )
