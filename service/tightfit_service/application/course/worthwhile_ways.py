"""Which of the other ways to compute a node the solver is offered, and what each is predicted to lose."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tightfit_service.application.work.sensitivity import SensitivityOutcome
from tightfit_service.domain.network import Alternative

LEAST_RATE = 0.05
"""Loss of accuracy per relative error where nothing was lost: errors are never free."""

WAYS_PER_NODE = 3
"""Ways offered to the solver per node, besides the ordinary one."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to compute a node, and the loss of accuracy (fraction) with it alone, untrained.

    `alternative` is None for the ordinary way.
    """

    alternative: Alternative | None
    loss: float


def worthwhile_ways(sensitivity: SensitivityOutcome) -> Mapping[str, Sequence[Way]]:
    """Return, per node, a few ways from the one that loses most to the one that loses nothing.

    The loss of each is the relative error of its node's output times what such an error cost in that
    node, or in others where it was not measured there: single measurements are too noisy to tell
    mild ways apart. Losses count from the way that loses least, which need not be the ordinary one:
    a layer that int8 hurts is better off in float.
    """
    rates = _LossRates(sensitivity)
    by_node: dict[str, list[Way]] = {}
    for measured in sensitivity.alternatives:
        choice = measured.alternative
        way = Way(alternative=choice, loss=rates.of(choice) * choice.error)
        by_node.setdefault(choice.node, []).append(way)
    result: dict[str, Sequence[Way]] = {}
    for node, ways in by_node.items():
        ordered = sorted(ways, key=lambda way: -way.loss)
        steps = min(WAYS_PER_NODE, len(ordered))
        chosen = {round(index * (len(ordered) - 1) / max(1, steps - 1)) for index in range(steps)}
        plain = Way(alternative=None, loss=sensitivity.precision_costs.get(node, 0.0))
        offered = sorted([*(ordered[i] for i in chosen), plain], key=lambda way: -way.loss)
        least = offered[-1].loss
        result[node] = [replace(way, loss=way.loss - least) for way in offered]
    return result


class _LossRates:
    """Loss of accuracy for each unit of relative error of a node's output, by technique and node."""

    def __init__(self, sensitivity: SensitivityOutcome) -> None:
        self._by_node: dict[tuple[str, str], float] = {}
        seen: dict[str, list[float]] = {}
        for measured in sensitivity.alternatives:
            choice = measured.alternative
            if measured.accuracy is None or choice.error <= 0:
                continue
            loss = sensitivity.reference_accuracy - measured.accuracy
            rate = max(LEAST_RATE, loss / choice.error)
            self._by_node[choice.pass_name, choice.node] = rate
            seen.setdefault(choice.pass_name, []).append(rate)
        # A classifier's last layer may lose a hundred times what others do: it says nothing of them.
        self._typical = {name: statistics.median(rates) for name, rates in seen.items()}

    def of(self, choice: Alternative) -> float:
        typical = self._typical.get(choice.pass_name, 1.0)
        return self._by_node.get((choice.pass_name, choice.node), typical)
