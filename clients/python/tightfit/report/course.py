"""The search's course in the report: its stages in time, and every trial with its verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tightfit.quantities import format_duration, format_percent, format_range
from tightfit.report.markup import NOTHING, Markup, element, joined, section
from tightfit.summary import (
    COST_BY_QUANTITY,
    CostFigure,
    Figures,
    centre,
    known_accuracy,
    limits_of,
    role_text,
)
from tightfit.timestamps import seconds_between

Result = Mapping[str, Any]


def course(result: Result) -> Markup | None:
    """How the search went: its stages in time, and every trial."""
    if not result["trials"] and not result["events"]:
        return None
    return section(
        "course",
        "The search's course",
        None,
        _stages(result["events"]),
        _trials(result),
    )


def _stages(events: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Return one bar cut into the stages, wide as they were long."""
    marks = [e for e in events if e["kind"] == "stage" and e["stage"]]
    if not marks:
        return None
    ends = [*marks[1:], events[-1]]
    spans: list[tuple[str, float]] = []
    for mark, end in zip(marks, ends, strict=True):
        seconds = max(0.0, seconds_between(mark["time"], end["time"]))
        if spans and spans[-1][0] == mark["stage"]:
            spans[-1] = (mark["stage"], spans[-1][1] + seconds)
        else:
            spans.append((mark["stage"], seconds))
    total = sum(seconds for _, seconds in spans) or 1.0
    pieces = [
        element(
            "span",
            element("span", f"{stage} {format_duration(seconds)}"),
            class_=f"stage stage-{stage}",
            style=f"flex-grow:{max(seconds / total, 0.004):.4f}",
            title=f"{stage}: {format_duration(seconds)}",
        )
        for stage, seconds in spans
    ]
    seconds_by_stage: dict[str, float] = {}
    for stage, seconds in spans:
        seconds_by_stage[stage] = seconds_by_stage.get(stage, 0.0) + seconds
    key = [
        element(
            "li",
            element("span", class_=f"swatch stage-{stage}"),
            f"{stage} ",
            element("span", format_duration(seconds), class_="detail-inline"),
        )
        for stage, seconds in seconds_by_stage.items()
    ]
    return joined(
        (
            element("div", pieces, class_="stages", role="img", aria_label="stages of the search"),
            element("ul", key, class_="stage-key"),
        )
    )


def _trials(result: Result) -> Markup | None:
    if not result["trials"]:
        return None
    limits = limits_of(result)
    limited = [
        cost
        for cost in COST_BY_QUANTITY.values()
        if cost.quantity in limits or cost.quantity == "latency"
    ]
    best = (result.get("best") or {}).get("index")
    front = set(result["pareto"])
    head = [
        "trial",
        "role",
        "accuracy",
        *[cost.name for cost in limited],
        "time",
        "verdict",
    ]
    body = []
    for item in result["trials"]:
        accuracy = known_accuracy(item)
        on_selection = item.get("accuracy") is None and accuracy is not None
        cells = [
            element("td", role_text(item), data_label="role"),
            element(
                "td",
                NOTHING if accuracy is None else format_percent(accuracy),
                element("span", "selection set", class_="detail") if on_selection else None,
                _predicted(item),
                data_label="accuracy",
            ),
        ]
        cells += [_cost_cell(item, cost) for cost in limited]
        seconds = sum(item["stage_seconds"].values())
        cells.append(
            element("td", format_duration(seconds) if seconds else NOTHING, data_label="time")
        )
        cells.append(element("td", _trial_verdict(item, best, front), data_label="verdict"))
        body.append(
            element(
                "tr",
                element("th", f"#{item['index']}", scope="row"),
                cells,
                id=f"trial-{item['index']}",
                class_="best" if item["index"] == best else None,
            )
        )
    return element(
        "table",
        element("thead", element("tr", [element("th", text, scope="col") for text in head])),
        element("tbody", body),
        class_="trials",
    )


def _cost_cell(item: Figures, cost: CostFigure) -> Markup:
    value, known = centre(item, cost), item.get(cost.metric)
    text = NOTHING if value is None else cost.show(value)
    spread = None
    if isinstance(known, Mapping):
        spread = format_range(cost.show, known["low"], known["high"])
    return element("td", text, title=spread, data_label=cost.name)


def _predicted(item: Mapping[str, Any]) -> Markup | None:
    """What the search expected of a trial before it ran; it stands beside what came of it."""
    expected = item.get("predicted_accuracy")
    if expected is None:
        return None
    return element("span", f"predicted {format_percent(expected)}", class_="detail")


def _trial_verdict(item: Mapping[str, Any], best: int | None, front: set[int]) -> list[object]:
    parts: list[object] = []
    if item["index"] == best:
        parts.append(element("span", "best", class_="badge good"))
    elif item["index"] in front:
        parts.append(element("span", "on the front", class_="badge neutral"))
    if item["state"] == "failed":
        parts.append(element("span", f"failed: {item['error']}", class_="missed"))
    elif item["state"] == "stopped":
        parts.append(element("span", "stopped early", class_="detail-inline"))
    elif item["state"] != "completed":
        parts.append(element("span", "not finished", class_="detail-inline"))
    if item["violations"]:
        missed = ", ".join(_violation_text(violation) for violation in item["violations"])
        parts.append(element("span", missed, class_="missed"))
    told = (*item["notes"], *item["format_notes"])
    parts.extend(element("span", note, class_="detail") for note in told)
    return [joined((part, " ")) for part in parts] if parts else ["fits"]


def _violation_text(violation: Mapping[str, Any]) -> str:
    quantity, limit, actual = violation["quantity"], violation["limit"], violation["actual"]
    if quantity == "accuracy":
        return f"accuracy {(limit - actual) * 100:.2f} points too low"
    cost = COST_BY_QUANTITY[quantity]
    over = (actual - limit) / limit if limit else 0.0
    much = f"{over * 100:.0f} %" if over < 10 else f"{actual / limit:.0f} times"
    return f"{cost.name} {much} over"
