"""The layers of the report: where the time goes, what was done to each layer, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tightfit.quantities import format_count, format_latency
from tightfit.report.markup import Markup, element, section

Row = Mapping[str, Any]
"""A layer as `result.json` has it: latencies in ms, costs in accuracy as fractions, None for unknown."""

_MAX_LAYERS = 400
_HEAD = (
    "layer",
    "latency before and after",
    "channels and form",
    "MACs",
    "accuracy cost",
    "alone, untrained: predicted and measured",
)


@dataclass(frozen=True)
class _Scale:
    """What the bars of all rows are drawn against."""

    longest_ms: float
    dearest: float
    is_predicted: bool
    """Whether any cost was predicted: without a search, as for a given recipe, none is."""


def layers(result: Mapping[str, Any]) -> Markup | None:
    """Per layer: latency before and after, what was done, and what that costs in accuracy."""
    rows = result["layers"][:_MAX_LAYERS]
    if not rows:
        return None
    costs = [row["accuracy_cost"] for row in rows if row["accuracy_cost"] is not None]
    scale = _Scale(
        longest_ms=max(max(r["latency_ms_before"], r["latency_ms_after"]) for r in rows) or 1.0,
        dearest=max([0.0, *costs]) or 1.0,
        is_predicted=bool(costs),
    )
    hidden = len(result["layers"]) - len(rows)
    return section(
        "layers",
        "Layer by layer",
        "Where the time goes, and what the cut of each layer is predicted to cost in accuracy. In the "
        "last column, the same before any training and with nothing else changed: as it was predicted "
        "before the search, and as it was measured in the end.",
        element(
            "table",
            element("thead", element("tr", [element("th", text, scope="col") for text in _HEAD])),
            element("tbody", [_row(row, scale) for row in rows]),
            class_="layers",
        ),
        element("p", f"{hidden} more layers are in result.json.") if hidden > 0 else None,
    )


def _row(row: Row, scale: _Scale) -> Markup:
    return element(
        "tr",
        element(
            "th",
            element("span", row["node"], class_="node", title=row["node"]),
            element("span", row["op_type"], class_="detail"),
            scope="row",
        ),
        _latency(row, scale),
        _channels(row),
        element("td", _macs(row), data_label="MACs"),
        _accuracy_cost(row, scale),
        element("td", _alone(row), data_label="alone, untrained"),
    )


def _latency(row: Row, scale: _Scale) -> Markup:
    before, after = row["latency_ms_before"], row["latency_ms_after"]
    bars = element(
        "div",
        _bar(before / scale.longest_ms, "before", format_latency(before)),
        _bar(after / scale.longest_ms, "after", format_latency(after)),
        class_="bars",
    )
    return element("td", bars, data_label="latency")


def _channels(row: Row) -> Markup:
    before, after = row["channels_before"], row["channels_after"]
    return element(
        "td",
        f"{before} → {after}" if _is_narrower(row) else str(before or ""),
        [element("span", text, class_="detail") for text in row["changes"]],
        class_="narrower" if _is_changed(row) else None,
        data_label="channels",
    )


def _macs(row: Row) -> str:
    before, after = format_count(row["macs_before"]), format_count(row["macs_after"])
    return before if row["macs_before"] == row["macs_after"] else f"{before} → {after}"


def _accuracy_cost(row: Row, scale: _Scale) -> Markup:
    """Return what the changes of a layer cost in the result, and its number format where it was measured."""
    cost, rounding = row["accuracy_cost"], row["format_cost"]
    return element(
        "td",
        _bar(cost / scale.dearest, "cost", f"{cost * 100:.2f} points")
        if cost is not None
        else element("span", _without_cost(row, scale), class_="detail"),
        element("span", _rounding_cost(row), class_="detail") if rounding is not None else None,
        data_label="accuracy cost",
    )


def _rounding_cost(row: Row) -> str:
    """Say what a layer's number format costs, before any cut and, where it was measured, in the result."""
    text = f"{row['number_format']}: {row['format_cost'] * 100:.2f} points measured"
    after = row.get("format_cost_after")
    return text if after is None else f"{text}, {after * 100:.2f} in the result"


def _alone(row: Row) -> str:
    """Set the loss predicted for a layer's changes alone beside the measured one; `-` for what is not known.

    Files of servers before these were measured do not have them.
    """
    found = (row.get("predicted_cost_alone"), row.get("measured_cost_alone"))
    if found == (None, None):
        return "-"
    predicted, measured = ("-" if loss is None else f"{loss * 100:.2f}" for loss in found)
    return f"{predicted} | {measured} points"


def _without_cost(row: Row, scale: _Scale) -> str:
    """Say why no cost stands beside a layer."""
    if not _is_changed(row):
        return "not changed"
    return "follows its inputs" if _is_narrower(row) and scale.is_predicted else "not predicted"


def _is_narrower(row: Row) -> bool:
    return bool(row["channels_after"] != row["channels_before"])


def _is_changed(row: Row) -> bool:
    return _is_narrower(row) or bool(row["changes"])


def _bar(share: float, kind: str, text: str) -> Markup:
    width = f"{max(0.0, min(1.0, share)) * 100:.1f}%"
    return element(
        "div",
        element(
            "span",
            element("span", style=f"width:{width}", class_=f"fill {kind}"),
            class_="track",
        ),
        element("span", text, class_="bar-text"),
        class_="bar",
    )
