"""Which layer pays what: cost before and after, and the predicted loss of accuracy of each cut."""

from __future__ import annotations

from collections.abc import Mapping

from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.job import LayerAttribution
from tightfit_service.domain.network import NetworkProfile, PruningSpace


def attribute_layers(
    *,
    before: NetworkProfile,
    before_cost: CostEstimate,
    after: NetworkProfile,
    after_cost: CostEstimate,
    space: PruningSpace,
    kept: Mapping[str, int],
    losses: Mapping[str, float],
) -> tuple[LayerAttribution, ...]:
    """Return one entry per operator of the network as it came, in schedule order.

    A group's loss is shared evenly by the operators that produce its channels, so that the entries
    add up to the predicted loss of the whole.

    Args:
        before: The network as it came.
        before_cost: Its cost, in the number format of the export.
        after: The compressed network.
        after_cost: Its cost.
        space: What could be pruned.
        kept: Units kept per group; groups that are missing are whole.
        losses: Predicted loss of accuracy (fraction) per group at the kept width.
    """
    costs_before = {layer.node: layer for layer in before_cost.layers}
    costs_after = {layer.node: layer for layer in after_cost.layers}
    operators_after = {operator.node: operator for operator in after.operators}
    names = {operator.node for operator in before.operators}
    shares: dict[str, float] = {}
    for group in space.groups:
        if kept.get(group.group_id, group.unit_count) == group.unit_count:
            continue
        producers = [node for node in group.producers if node in names]
        for node in producers:
            loss = losses.get(group.group_id, 0.0) / len(producers)
            shares[node] = shares.get(node, 0.0) + loss
    result = []
    for operator in before.operators:
        later = operators_after.get(operator.node)
        cost_before = costs_before.get(operator.node)
        cost_after = costs_after.get(operator.node)
        result.append(
            LayerAttribution(
                node=operator.node,
                op_type=operator.op_type,
                macs_before=operator.macs,
                macs_after=0 if later is None else later.macs,
                latency_ms_before=0.0 if cost_before is None else cost_before.latency_ms,
                latency_ms_after=0.0 if cost_after is None else cost_after.latency_ms,
                channels_before=operator.out_channels,
                channels_after=0 if later is None else later.out_channels,
                accuracy_cost=shares.get(operator.node),
            )
        )
    return tuple(result)
