"""From classes of index propagation to what a search can choose: groups of units, and widths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tightfit_service.domain.network import ChannelGroup, Width, WidthTerm
from tightfit_service.graph.channel_classes import IntArray
from tightfit_service.graph.propagation_state import Propagation, SliceRole

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
    group_of_label: IntArray
    """Per root, the index of its group; -1 where it has none. Other labels do not count."""
    lone_roots: frozenset[int]
    """Classes of which there is one of a kind: removing one would leave a tensor without channels."""

    def width(self, state: Propagation, labels: IntArray) -> Width:
        """Return the number of positions with these labels as a function of the units kept."""
        indices = self.group_of_label[state.classes.roots(labels)].reshape(-1)
        counts = np.bincount(indices + 1, minlength=1)
        return Width(
            fixed=int(counts[0]),
            terms=tuple(
                WidthTerm(
                    group_id=self.groups[index].channels.group_id,
                    multiplier=int(counts[index + 1]) // len(self.groups[index].roots),
                )
                for index in np.flatnonzero(counts[1:]).tolist()
            ),
        )


def unit_groups(state: Propagation) -> UnitGroups:
    """Put the classes that touch the same tensors, equally often, into groups.

    Groups are ordered by their first channel, and so are the units within one.
    """
    members: dict[bytes, list[int]] = {}
    for root, signature in _signatures(state):
        members.setdefault(signature, []).append(root)
    lone = frozenset(roots[0] for roots in members.values() if len(roots) == 1)
    choices = [roots for roots in members.values() if len(roots) > 1]
    group_of_label = np.full(state.classes.label_count, -1, dtype=np.int64)
    for index, roots in enumerate(choices):
        group_of_label[roots] = index
    groups = _named(state, choices, group_of_label)
    return UnitGroups(groups=groups, group_of_label=group_of_label, lone_roots=lone)


def _signatures(state: Propagation) -> Iterator[tuple[int, bytes]]:
    """Yield each class that is not frozen with the tensors it touches and how often, as a key."""
    parts: list[IntArray] = []
    for index, array in enumerate(state.labels.values()):
        roots, counts = np.unique(state.classes.roots(array), return_counts=True)
        free = ~state.classes.is_frozen(roots)
        parts.append(np.stack([roots[free], np.full(int(free.sum()), index), counts[free]], axis=1))
    table = np.concatenate([np.zeros((0, 3), dtype=np.int64), *parts])
    if not len(table):
        return
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    starts = np.flatnonzero(np.diff(table[:, 0], prepend=-1))
    for start, end in zip(starts, np.append(starts[1:], len(table)), strict=True):
        yield int(table[start, 0]), table[start:end, 1:].tobytes()


def _named(
    state: Propagation, choices: list[list[int]], group_of_label: IntArray
) -> tuple[UnitGroup, ...]:
    producers: list[list[str]] = [[] for _ in choices]
    consumers: list[list[str]] = [[] for _ in choices]
    for item in state.slices:
        for index in _groups_in(state, item.labels, group_of_label):
            if item.role in _MAKES and item.node not in producers[index]:
                producers[index].append(item.node)
            if item.role in _READS and item.node not in consumers[index]:
                consumers[index].append(item.node)
    first_nodes = _first_nodes(state, choices, group_of_label)
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


def _groups_in(state: Propagation, labels: IntArray, group_of_label: IntArray) -> list[int]:
    indices = np.unique(group_of_label[state.classes.roots(labels)])
    return [int(index) for index in indices if index >= 0]


def _first_nodes(
    state: Propagation, choices: list[list[int]], group_of_label: IntArray
) -> list[str]:
    """Return, per group, the first node whose output has its channels (a Pad, say)."""
    first = [""] * len(choices)
    for node in state.nodes:
        for name in node.output:
            if name in state.labels:
                for index in _groups_in(state, state.labels[name], group_of_label):
                    first[index] = first[index] or node.name
    return first
