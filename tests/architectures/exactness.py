"""Networks half of whose channels are copies that nothing reads: removing those must change nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tightfit_service.graph.channel_groups import UnitGroups, unit_groups
from tightfit_service.graph.index_propagation import propagate
from tightfit_service.graph.model_file import load_model, save_model
from tightfit_service.graph.propagation_state import Propagation, SliceRole
from tightfit_service.graph.structure import initializers, set_initializer

IntArray = npt.NDArray[np.int64]


def with_copies(graph: bytes) -> tuple[bytes, dict[str, list[int]]]:
    """Return the graph with the second half of each group's units a copy of the first, and who to keep.

    No layer reads the copies. That removing them changes no output also holds where channels are
    normalised together: mean and variance of values that all occur twice are those of the values.
    Groups with an odd number of units are left whole.
    """
    model = load_model(graph)
    state = propagate(model)
    groups = unit_groups(state)
    partner = _partners(state, groups)
    values = initializers(model)
    for item in state.slices:
        roots = state.classes.roots(item.labels)
        copies = np.flatnonzero(partner[roots] >= 0)
        if not copies.size:
            continue
        value = np.moveaxis(values[item.parameter].copy(), item.axis, 0)
        if item.role is SliceRole.INPUT:
            value[copies] = 0
        else:
            value[copies] = value[_sources(roots, partner, copies)]
        values[item.parameter] = np.moveaxis(value, 0, item.axis)
        set_initializer(model, item.parameter, values[item.parameter])
    keep = {
        group.channels.group_id: list(range(group.channels.unit_count // 2))
        for group in groups.groups
        if group.channels.unit_count % 2 == 0
    }
    return save_model(model), keep


def _partners(state: Propagation, groups: UnitGroups) -> IntArray:
    """Return, per class that is to be a copy, the class it copies; -1 elsewhere."""
    partner = np.full(state.classes.label_count, -1, dtype=np.int64)
    for group in groups.groups:
        half = len(group.roots) // 2
        if len(group.roots) == 2 * half:
            partner[group.roots[half:]] = group.roots[:half]
    return partner


def _sources(roots: IntArray, partner: IntArray, copies: IntArray) -> list[int]:
    """Return, per copy, the position with the same place among those of the class it copies."""
    places: dict[int, list[int]] = {}
    for position, root in enumerate(roots.tolist()):
        places.setdefault(root, []).append(position)
    return [
        places[int(partner[roots[position]])][places[int(roots[position])].index(int(position))]
        for position in copies
    ]
