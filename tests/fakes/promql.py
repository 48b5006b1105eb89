"""Which metrics and labels a PromQL expression names: enough of its grammar to hold rules against code."""

from __future__ import annotations

import re
from collections.abc import Sequence

_KEYWORDS = frozenset(
    [
        "and",
        "or",
        "unless",
        "by",
        "without",
        "on",
        "ignoring",
        "group_left",
        "group_right",
        "bool",
        "offset",
        "start",
        "end",
        "inf",
        "nan",
    ]
)
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_CLAUSE = r"\b(?:{words})\s*\(([^()]*)\)"
_CLAUSES = re.compile(
    _CLAUSE.format(words="by|without|on|ignoring|group_left|group_right"), re.IGNORECASE
)
_METRIC = re.compile(r"(?<![\w:.$])([a-zA-Z_:][\w:]*)\s*(\{[^{}]*\})?(?!\s*\()(?![\w:])")


def metrics_with_labels(expression: str) -> Sequence[tuple[str, set[str]]]:
    """Return the metrics that an expression selects, each with the labels that it matches on."""
    bare = re.sub(r"\[[^\]]*\]", "", _STRINGS.sub('""', expression))
    bare = _CLAUSES.sub(" ", bare)
    return [
        (match[1], set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", match[2] or "")))
        for match in _METRIC.finditer(bare)
        if match[1].lower() not in _KEYWORDS
    ]


def metric_names(expression: str) -> set[str]:
    """Return the metrics that an expression selects."""
    return {name for name, _ in metrics_with_labels(expression)}


def words_of(expression: str, *clauses: str) -> set[str]:
    """Return the labels that clauses such as `by (...)` name."""
    bare = _STRINGS.sub('""', expression)
    found = re.findall(_CLAUSE.format(words="|".join(clauses)), bare)
    return {word for group in found for word in re.findall(r"\w+", group)}
