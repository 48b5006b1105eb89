"""Importance of channels by the norm of the weights that make them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from tightfit_service.domain.network import PruningSpace
from tightfit_service.graph.batch_norm import fold_batch_norms
from tightfit_service.graph.channel_groups import UnitGroup, unit_groups
from tightfit_service.graph.index_propagation import propagate
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.propagation_state import Propagation, SliceRole
from tightfit_service.graph.structure import Array, initializers

_MAKES = (SliceRole.OUTPUT, SliceRole.PER_CHANNEL)


def weight_magnitude(graph: bytes, space: PruningSpace) -> dict[str, list[float]]:
    """Return, per group id, the L2 norm of each unit's weights against the mean of its group.

    The weights of a unit are the filters, rows or gates that make its channels (Li et al., ICLR
    2017), each with the scale of the BatchNormalization behind it. Where several layers make them, as
    around a residual connection, each layer's norms count in units of that layer's mean. Norms of
    different layers cannot be compared, because the scale of their inputs is not known: the mean of
    each group is 1 therefore, and what tells groups apart is what the search measures. Units that no
    weight makes have an importance of 1.
    """
    model = load_model(graph)
    state = propagate(model)
    weights = _folded_weights(state, fold_batch_norms(model))
    wanted = {group.group_id for group in space.groups}
    return {
        group.channels.group_id: _of_group(state, group, weights).tolist()
        for group in unit_groups(state).groups
        if group.channels.group_id in wanted
    }


def _of_group(
    state: Propagation, group: UnitGroup, weights: Mapping[tuple[str, str], Array]
) -> npt.NDArray[np.float64]:
    """Return the norms of one group's units, shape (units,)."""
    count = len(group.roots)
    squares: dict[str, npt.NDArray[np.float64]] = {}
    unit_of = {root: unit for unit, root in enumerate(group.roots.tolist())}
    for item in state.slices:
        if item.role not in _MAKES or item.node not in group.channels.producers:
            continue
        roots = state.classes.roots(item.labels).tolist()
        units = np.asarray([unit_of.get(root, -1) for root in roots], dtype=np.int64)
        weight = np.moveaxis(weights[item.node, item.parameter].astype(np.float64), item.axis, 0)
        per_channel = np.square(weight).reshape(len(units), -1).sum(axis=1)
        known = units >= 0
        np.add.at(squares.setdefault(item.node, np.zeros(count)), units[known], per_channel[known])
    norms = [np.sqrt(found) for found in squares.values() if found.any()]
    if not norms:
        return np.ones(count)
    return np.asarray(np.mean([norm / norm.mean() for norm in norms], axis=0))


def _folded_weights(state: Propagation, folded: ModelProto) -> Mapping[tuple[str, str], Array]:
    """Return, per node and parameter that makes channels, its values with what follows folded in."""
    values = initializers(folded)
    nodes = {node.name: node for node in folded.graph.node}
    places = {node.name: list(node.input) for node in state.nodes}
    found = {}
    for item in state.slices:
        if item.role in _MAKES:
            place = places[item.node].index(item.parameter)
            name = nodes[item.node].input[place] if item.node in nodes else item.parameter
            found[item.node, item.parameter] = values.get(name, state.constants[item.parameter])
    return found
