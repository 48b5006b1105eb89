"""What passes on single layers offer: other ways to compute the nodes of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tightfit_service.application.ports import GraphInspector, NodePass, PassContext
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import Alternative


@dataclass(frozen=True, kw_only=True)
class MeasuredAlternative:
    """Another way to compute a node, and the accuracy with it alone, without any training.

    `accuracy` is None where it was not measured; the alternative's own error then stands for it.
    """

    alternative: Alternative
    accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class NodeWays:
    """Asks node passes what they offer."""

    inspector: GraphInspector
    passes: Mapping[str, NodePass]

    def offered(
        self, graph: bytes, techniques: Sequence[str], target: HardwareSpec, context: PassContext
    ) -> Mapping[str, Sequence[Alternative]]:
        """Return what those of the techniques that are node passes offer, by node."""
        profile = self.inspector.profile(graph)
        found: dict[str, list[Alternative]] = {}
        for name in techniques:
            if name not in self.passes:
                continue
            offers = self.passes[name].alternatives(graph, profile, target, context=context)
            for node, choices in offers.items():
                found.setdefault(node, []).extend(choices)
        return found


def spread_by_error(alternatives: Sequence[Alternative], count: int) -> Sequence[Alternative]:
    """Return a few alternatives, from the one with the least error to the one with the greatest."""
    ordered = sorted(alternatives, key=lambda alternative: alternative.error)
    if len(ordered) <= count:
        return ordered
    places = np.linspace(0, len(ordered) - 1, count).round().astype(int)
    return [ordered[place] for place in places]
