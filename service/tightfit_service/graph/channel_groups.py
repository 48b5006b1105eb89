"""From classes of index propagation to what a search can choose: groups of units, and widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tightfit_service.domain.network import ChannelGroup, Width, WidthTerm
from tightfit_service.graph.channel_classes import IntArray
from tightfit_service.graph.propagation_state import ParameterSlice, Propagation, SliceRole

_MAKES = (SliceRole.OUTPUT, SliceRole.PER_CHANNEL)
_READS = (SliceRole.INPUT, SliceRole.PER_CHANNEL)


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitGroup:
    """A group with the classes of its units: `roots[i]` is the class of unit i."""

    channels: ChannelGroup
    roots: IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitGroups:
    """All groups of a graph, and the way from a class to its group."""

    groups: tuple[UnitGroup, ...]
    group_of_root: Mapping[int, int]
    lone_roots: frozenset[int]
    """Classes of which there is one of a kind: removing one would leave a tensor without channels."""

    def width(self, state: Propagation, labels: IntArray) -> Width:
        """Return the number of positions with these labels as a function of the units kept."""
        roots, counts = np.unique(state.classes.roots(labels), return_counts=True)
        fixed = 0
        positions: dict[int, int] = {}
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            index = self.group_of_root.get(root)
            if index is None:
                fixed += count
            else:
                positions[index] = positions.get(index, 0) + count
        return Width(
            fixed=fixed,
            terms=tuple(
                WidthTerm(
                    group_id=self.groups[index].channels.group_id,
                    multiplier=count // len(self.groups[index].roots),
                )
                for index, count in sorted(positions.items())
            ),
        )


def unit_groups(state: Propagation) -> UnitGroups:
    """Put the classes that touch the same tensors, equally often, into groups.

    Groups are ordered by their first channel, and so are the units within one.
    """
    touched: dict[int, list[tuple[int, int]]] = {}
    for index, array in enumerate(state.labels.values()):
        roots, counts = np.unique(state.classes.roots(array), return_counts=True)
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            touched.setdefault(root, []).append((index, count))
    ordered = np.asarray(sorted(touched), dtype=np.int64)
    frozen = state.classes.is_frozen(ordered) if ordered.size else np.zeros(0, dtype=np.bool_)
    members: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for root in ordered[~frozen].tolist():
        members.setdefault(tuple(touched[root]), []).append(root)
    lone = frozenset(roots[0] for roots in members.values() if len(roots) == 1)
    choices = [roots for roots in members.values() if len(roots) > 1]
    index_of = {root: index for index, roots in enumerate(choices) for root in roots}
    groups = _named(state, choices, index_of)
    return UnitGroups(groups=groups, group_of_root=index_of, lone_roots=lone)


def _named(
    state: Propagation, choices: list[list[int]], index_of: Mapping[int, int]
) -> tuple[UnitGroup, ...]:
    producers: list[list[str]] = [[] for _ in choices]
    consumers: list[list[str]] = [[] for _ in choices]
    for item in state.slices:
        for index in _groups_in(state, item, index_of):
            if item.role in _MAKES and item.node not in producers[index]:
                producers[index].append(item.node)
            if item.role in _READS and item.node not in consumers[index]:
                consumers[index].append(item.node)
    first_nodes = _first_nodes(state, choices)
    used: set[str] = set()
    groups = []
    for index, roots in enumerate(choices):
        stem = producers[index][0] if producers[index] else first_nodes[index]
        group_id = stem
        suffix = 1
        while group_id in used:
            suffix += 1
            group_id = f"{stem}#{suffix}"
        used.add(group_id)
        groups.append(
            UnitGroup(
                channels=ChannelGroup(
                    group_id=group_id,
                    unit_count=len(roots),
                    producers=tuple(producers[index]),
                    consumers=tuple(consumers[index]),
                ),
                roots=np.asarray(roots, dtype=np.int64),
            )
        )
    return tuple(groups)


def _groups_in(state: Propagation, item: ParameterSlice, index_of: Mapping[int, int]) -> list[int]:
    roots = np.unique(state.classes.roots(item.labels)).tolist()
    return sorted({index_of[root] for root in roots if root in index_of})


def _first_nodes(state: Propagation, choices: list[list[int]]) -> list[str]:
    """Return, per group, the first node whose output has its channels (a Pad, say)."""
    first = [""] * len(choices)
    index_of = {roots[0]: index for index, roots in enumerate(choices)}
    for node in state.nodes:
        for name in node.output:
            if name not in state.labels:
                continue
            for root in np.unique(state.classes.roots(state.labels[name])).tolist():
                if root in index_of and not first[index_of[root]]:
                    first[index_of[root]] = node.name
    return first
