"""Labels of channels and the classes they form: a union-find that also knows what is frozen, and why."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_FREE = -1


class ChannelClasses:
    """A growing set of labels, joined into classes; the class of a label is named by its root.

    The root is always the smallest label of its class, so that classes are ordered by the first
    channel that belongs to them. Not thread-safe; made for one walk over one graph.
    """

    def __init__(self) -> None:
        self._parent: IntArray = np.zeros(0, dtype=np.int64)
        self._reason: IntArray = np.zeros(0, dtype=np.int64)
        self._reasons: list[str] = []

    @property
    def label_count(self) -> int:
        """Number of labels given out; they are 0 to this number, exclusive."""
        return len(self._parent)

    def fresh(self, count: int) -> IntArray:
        """Return `count` new labels, each a class of its own."""
        first = len(self._parent)
        labels = np.arange(first, first + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, labels])
        self._reason = np.concatenate([self._reason, np.full(count, _FREE, dtype=np.int64)])
        return labels

    def roots(self, labels: IntArray) -> IntArray:
        """Return the root of each label, in the shape given."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above

    def unite(self, one: IntArray, other: IntArray) -> None:
        """Join the classes of two label arrays position by position, with numpy's broadcasting."""
        left, right = np.broadcast_arrays(self.roots(one), self.roots(other))
        differs = left != right
        if not differs.any():
            return
        pairs = np.unique(np.stack([left[differs], right[differs]], axis=1), axis=0)
        for a, b in pairs.tolist():
            self._join(self._root(a), self._root(b))

    def freeze(self, labels: IntArray, reason: str, *, overrule: bool = False) -> None:
        """Mark the classes of the labels as not removable.

        The first reason given stays, unless a later one overrules it.
        """
        roots = np.unique(self.roots(labels))
        free = roots if overrule else roots[self._reason[roots] == _FREE]
        if free.size:
            self._reason[free] = len(self._reasons)
            self._reasons.append(reason)

    def is_frozen(self, labels: IntArray) -> npt.NDArray[np.bool_]:
        """Return, per label, whether its class is frozen."""
        return np.not_equal(self._reason[self.roots(labels)], _FREE)

    def reason(self, label: int) -> str:
        """Return why the label's class is frozen, or ""."""
        index = int(self._reason[self._root(label)])
        return "" if index == _FREE else self._reasons[index]

    def _root(self, label: int) -> int:
        while (above := int(self._parent[label])) != label:
            self._parent[label] = self._parent[above]
            label = above
        return label

    def _join(self, one: int, other: int) -> None:
        if one == other:
            return
        low, high = min(one, other), max(one, other)
        self._parent[high] = low
        if self._reason[low] == _FREE:
            self._reason[low] = self._reason[high]
