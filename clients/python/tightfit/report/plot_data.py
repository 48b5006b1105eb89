"""What the script of the report needs for the Pareto plot: points, axes and limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tightfit.quantities import format_count, format_percent, format_range
from tightfit.summary import (
    COSTS,
    DOWNLOAD,
    INT8_ONLY,
    Figures,
    has_costs,
    known_accuracy,
    limits_of,
    role_text,
)

_MAX_GROUPS = 200
_MARKS = {"baseline": "baseline", INT8_ONLY: "int8"}


def plot_data(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the points, axes and limits as plain JSON data."""
    limits = limits_of(result)
    is_packed = any(trial.get(DOWNLOAD.metric) for trial in result["trials"])
    axes: list[dict[str, Any]] = [
        {
            "key": cost.quantity,
            "label": cost.label,
            "unit": {"latency": "ms", "energy": "mJ"}.get(cost.quantity, "bytes"),
            "limit": limits[cost.quantity].value if cost.quantity in limits else None,
            "limit_text": limits[cost.quantity].text if cost.quantity in limits else "",
        }
        for cost in (*COSTS, *([DOWNLOAD] if is_packed else []))
    ]
    axes.append({"key": "macs", "label": "MACs", "unit": "count", "limit": None, "limit_text": ""})
    floor = limits.get("accuracy")
    return {
        "axes": axes,
        "floor": floor.value if floor else None,
        "floor_text": floor.text if floor else "",
        "points": list(_points(result)),
    }


def _points(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    best = (result.get("best") or {}).get("index")
    roles = {trial["role"] for trial in result["trials"] if has_costs(trial)}
    for key, caption in (("baseline", "baseline"), ("baseline_int8", INT8_ONLY)):
        figures = result.get(key)
        if figures and key not in roles:
            yield _point(figures, caption=caption, mark=_MARKS[caption], result=result)
    for trial in result["trials"]:
        if not has_costs(trial) or known_accuracy(trial) is None:
            continue
        role, caption = role_text(trial), f"trial #{trial['index']}"
        mark = _MARKS.get(role) or ("missed" if trial["violations"] else "trial")
        if trial["index"] == best:
            mark, caption = "best", f"best: {caption}"
        elif trial["role"] in ("baseline", "baseline_int8"):
            caption = f"{role}, {caption}"
        yield _point(trial, caption=caption, mark=mark, result=result)


def _point(
    figures: Figures, *, caption: str, mark: str, result: Mapping[str, Any]
) -> dict[str, Any]:
    accuracy = known_accuracy(figures)
    values = {cost.quantity: figures[cost.metric] for cost in COSTS if figures.get(cost.metric)}
    macs = figures.get("macs")
    if packed := figures.get(DOWNLOAD.metric):
        values[DOWNLOAD.quantity] = {"value": packed, "low": packed, "high": packed}
    if macs:
        values["macs"] = {"value": macs, "low": macs, "high": macs}
    facts = [["accuracy", "unknown" if accuracy is None else format_percent(accuracy)]]
    if figures.get("accuracy") is None and accuracy is not None:
        facts[0][1] += " on the selection set"
    elif figures.get("accuracy_low") is not None:
        low, high = figures["accuracy_low"], figures["accuracy_high"]
        facts[0][1] += f" ({low * 100:.2f} to {high * 100:.2f})"
    for cost in COSTS:
        estimate = figures.get(cost.metric)
        if estimate:
            spread = format_range(cost.show, estimate["low"], estimate["high"])
            is_exact = estimate["low"] == estimate["high"]
            text = cost.show(estimate["value"]) + ("" if is_exact else f" ({spread})")
            facts.append([cost.name, text])
    if packed:
        facts.append([DOWNLOAD.name, DOWNLOAD.show(packed)])
    if macs:
        facts.append(["MACs", format_count(macs)])
    recipe = figures.get("recipe") or {}
    return {
        "caption": caption,
        "mark": mark,
        "is_front": figures.get("index") in set(result["pareto"]),
        "is_measured": figures.get("accuracy") is not None,
        "accuracy": {
            "value": accuracy,
            "low": figures.get("accuracy_low"),
            "high": figures.get("accuracy_high"),
        },
        "values": values,
        "facts": facts,
        "recipe": recipe_lines(recipe.get("steps") or []),
        "notes": [*(figures.get("notes") or ()), *(figures.get("format_notes") or ())],
    }


def recipe_lines(steps: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return each step of a recipe as its name and its parameters in words."""
    return [
        [step["pass_name"].replace("_", " "), _parameters(step.get("parameters") or {})]
        for step in steps
    ]


def _parameters(parameters: Mapping[str, Any]) -> str:
    """Write parameters short: lists of units become their number."""
    parts = []
    for key, value in parameters.items():
        if key == "keep" and isinstance(value, Mapping):
            groups = [f"{name} {len(units)}" for name, units in value.items()]
            more = f", and {len(groups) - _MAX_GROUPS} more" if len(groups) > _MAX_GROUPS else ""
            parts.append("channels kept: " + (", ".join(groups[:_MAX_GROUPS]) + more or "all"))
        elif isinstance(value, Mapping):
            if value:
                told = [f"{name} {_inner(item)}" for name, item in value.items()]
                parts.append(f"{_words(key)}: {', '.join(told[:_MAX_GROUPS])}")
        elif isinstance(value, float):
            parts.append(f"{_words(key)} {value:g}")
        elif isinstance(value, (list, tuple)):
            if value:
                parts.append(f"{_words(key)} {', '.join(str(item) for item in value[:20])}")
        elif value is True:
            parts.append(_words(key))
        elif value is not None and value is not False:
            parts.append(f"{_words(key)} {value}")
    return "; ".join(parts)


def _inner(value: Any) -> str:
    """Write what is done to one node."""
    if isinstance(value, Mapping):
        return " ".join(f"{_words(key)} {item}" for key, item in value.items())
    return str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")
