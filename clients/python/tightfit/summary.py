"""The result at a glance: which limits hold, and how baseline, int8-only and the winner stand to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tightfit.quantities import (
    bytes_option,
    energy_option,
    format_bytes,
    format_count,
    format_energy,
    format_latency,
    format_percent,
    format_range,
    latency_option,
)
from tightfit.words import METRICS

Figures = Mapping[str, Any]
"""The metrics of one model file as `result.json` holds them."""
INT8_ONLY = "int8 only"
"""What a user would otherwise ship."""
FIDELITY = "fidelity"
"""What accuracy is by where there is no dataset."""


@dataclass(frozen=True)
class CostFigure:
    """A cost that can be limited: where its figures are and how they are written."""

    quantity: str
    label: str
    metric: str
    """Key of the estimate in `result.json`; an object of value, low and high."""
    budget: str
    """Key of the limit in `result.json`'s budget."""
    option: str
    """Option of the command line that sets the limit."""
    show: Callable[[float], str]
    as_option: Callable[[float], str]
    target_limit: str = ""
    """Key of the target that implies a limit of its own."""

    @property
    def name(self) -> str:
        """The label as it stands inside a line."""
        return self.label[0].lower() + self.label[1:]


COSTS: tuple[CostFigure, ...] = (
    CostFigure(
        "latency",
        "Latency",
        "estimated_latency_ms",
        "max_latency_ms",
        "--max-latency",
        format_latency,
        latency_option,
    ),
    CostFigure(
        "energy",
        "Energy",
        "estimated_energy_mj",
        "max_energy_mj",
        "--max-energy",
        format_energy,
        energy_option,
    ),
    CostFigure(
        "ram",
        "Peak RAM",
        "estimated_peak_ram_bytes",
        "max_ram_bytes",
        "--max-ram",
        format_bytes,
        bytes_option,
        "ram_bytes",
    ),
    CostFigure(
        "size",
        "Flash",
        "flash_bytes",
        "max_size_bytes",
        "--max-size",
        format_bytes,
        bytes_option,
        "flash_bytes",
    ),
)
DOWNLOAD = CostFigure(
    "download",
    "Download",
    "download_bytes",
    "max_download_bytes",
    "--max-download",
    format_bytes,
    bytes_option,
)
"""What is known exactly: its metric is a number, where a packed file was made."""

COST_BY_QUANTITY: Mapping[str, CostFigure] = {cost.quantity: cost for cost in (*COSTS, DOWNLOAD)}


@dataclass(frozen=True)
class Limit:
    """A limit on one quantity; `is_users` is false where the target implies it."""

    quantity: str
    value: float
    text: str
    is_users: bool = True


@dataclass(frozen=True)
class Cell:
    """One figure of the table. `met` is None where nothing limits the quantity or it is unknown."""

    text: str
    detail: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Row:
    """One quantity over all columns."""

    quantity: str
    label: str
    limit: Limit | None
    cells: tuple[Cell, ...]
    note: str = ""
    """What the figures mean, in a word."""


@dataclass(frozen=True)
class SummaryTable:
    """Columns are model files, rows are quantities."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def limits_of(result: Mapping[str, Any]) -> dict[str, Limit]:
    """Return the limits that hold, by quantity; the tighter of the user's and the target's."""
    budget, target = result["budget"], result["target"]
    limits: dict[str, Limit] = {}
    for cost in COST_BY_QUANTITY.values():
        asked = budget.get(cost.budget)
        implied = target.get(cost.target_limit) if cost.target_limit else None
        if asked is not None and (not implied or asked <= implied):
            limits[cost.quantity] = Limit(cost.quantity, asked, f"≤ {cost.show(asked)}")
        elif implied:
            text = f"≤ {cost.show(implied)}"
            limits[cost.quantity] = Limit(cost.quantity, implied, text, is_users=False)
    floor = accuracy_floor(result)
    if floor is not None:
        limits["accuracy"] = Limit("accuracy", floor, f"≥ {format_percent(floor)}")
    return limits


def accuracy_floor(result: Mapping[str, Any]) -> float | None:
    """Return the least accuracy allowed, or None when it is free or the baseline is unknown."""
    budget = result["budget"]
    if budget.get("min_accuracy") is not None:
        return float(budget["min_accuracy"])
    drop, baseline = budget.get("max_accuracy_drop"), result.get("baseline")
    if drop is None or not baseline or baseline.get("accuracy") is None:
        return None
    return float(baseline["accuracy"] - drop)


def known_accuracy(figures: Figures) -> float | None:
    """Return the accuracy on the evaluation set, else the one that trials are ranked by."""
    accuracy = figures.get("accuracy")
    return accuracy if accuracy is not None else figures.get("selection_accuracy")


def metric_of(result: Mapping[str, Any]) -> str:
    """Return the metric that accuracy is by: a key of `METRICS`, FIDELITY without a dataset, "" if unknown."""
    if "dataset" not in result:
        return ""
    dataset = result["dataset"]
    return FIDELITY if dataset is None else str(dataset.get("metric") or "")


def accuracy_meaning(result: Mapping[str, Any]) -> str:
    """Say what accuracy means in this result; "" where it is not known."""
    metric = metric_of(result)
    if metric == FIDELITY:
        return "closeness to the model as it came, on inputs made from it: there is no dataset"
    return f"{metric}, {METRICS[metric]}" if metric in METRICS else metric


def role_text(trial: Mapping[str, Any]) -> str:
    """Return what a trial was run for; where the target computes in no int8, no trial is int8 only."""
    if trial["role"] != "baseline_int8":
        return str(trial["role"]).replace("_", " ")
    steps = (trial.get("recipe") or {}).get("steps") or ()
    of_pass = {step["pass_name"]: step.get("parameters") or {} for step in steps}
    number_format = of_pass.get("quantization", {}).get("number_format", "int8")
    return INT8_ONLY if number_format == "int8" else f"only exported, {number_format}"


def shown_trial(result: Mapping[str, Any]) -> tuple[str, Figures] | None:
    """Return the trial that the result is about, with its caption: the best, else the closest."""
    if result.get("best"):
        return "tightfit best", result["best"]
    closest = ((result.get("infeasibility") or {}).get("closest_trials") or [None])[0]
    for trial in result["trials"]:
        if closest is not None and trial["index"] == closest and has_costs(trial):
            return "closest trial", trial
    return None


def centre(figures: Figures, cost: CostFigure) -> float | None:
    """Return a cost of a model file, of an estimate its centre; None where it is unknown."""
    found = figures.get(cost.metric)
    value: float | None = found["value"] if isinstance(found, Mapping) else found
    return value


def has_costs(figures: Figures) -> bool:
    """Whether a trial got as far as estimates."""
    return bool(figures.get("estimated_latency_ms"))


def summary_table(result: Mapping[str, Any]) -> SummaryTable:
    """Return baseline, int8-only and the shown trial against the limits."""
    columns: list[tuple[str, Figures]] = []
    for caption, key in (("baseline", "baseline"), (INT8_ONLY, "baseline_int8")):
        if result.get(key):
            columns.append((caption, result[key]))
    shown = shown_trial(result)
    if shown is not None:
        columns.append(shown)
    limits = limits_of(result)
    floor = limits.get("accuracy")
    rows = [
        Row(
            "accuracy",
            "Accuracy",
            floor,
            tuple(_accuracy_cell(figures, floor) for _, figures in columns),
            note=metric_of(result),
        )
    ]
    for cost in COSTS:
        limit = limits.get(cost.quantity)
        cells = tuple(_cost_cell(figures, cost, limit) for _, figures in columns)
        rows.append(Row(cost.quantity, cost.label, limit, cells))
    rows.extend(_download_rows([figures for _, figures in columns], limits.get("download")))
    for quantity, label, key, show in (
        ("file", "File", "file_bytes", format_bytes),
        ("macs", "MACs", "macs", format_count),
    ):
        cells = tuple(_plain_cell(figures, key, show) for _, figures in columns)
        rows.append(Row(quantity, label, None, cells))
    return SummaryTable(tuple(caption for caption, _ in columns), tuple(rows))


def _accuracy_cell(figures: Figures, floor: Limit | None) -> Cell:
    value = known_accuracy(figures)
    if value is None:
        return Cell("unknown", "no labelled data")
    if figures.get("accuracy") is None:
        detail = "on the selection set"
    else:
        low, high = figures.get("accuracy_low"), figures.get("accuracy_high")
        known = low is not None and high is not None
        detail = f"{low * 100:.2f} to {high * 100:.2f}" if known else ""  # type: ignore[operator]  # both are known then
    met = None if floor is None else value >= floor.value - 1e-12
    return Cell(format_percent(value), detail, met)


def _measured_cell(figures: Figures, cost: CostFigure, limit: Limit | None) -> Cell | None:
    """Return what a device measured of a cost, which limits are then held against; None where none did."""
    seen = figures.get("measured") or {}
    values = {
        "latency": (seen.get("measured_latency_ms_p50"), seen.get("measured_latency_ms_p90")),
        "energy": (seen.get("measured_energy_mj"),) * 2,
    }
    value, judged = values.get(cost.quantity, (None, None))
    if value is None or judged is None:
        return None
    detail = "measured" if judged == value else f"measured, p90 {cost.show(judged)}"
    return Cell(cost.show(value), detail, None if limit is None else judged <= limit.value)


def _cost_cell(figures: Figures, cost: CostFigure, limit: Limit | None) -> Cell:
    measured = _measured_cell(figures, cost, limit)
    if measured is not None:
        return measured
    estimate = figures.get(cost.metric)
    if not estimate:
        return Cell("unknown")
    low, high = estimate["low"], estimate["high"]
    is_exact = high - low <= 1e-9 * max(abs(high), 1e-12)
    detail = "" if is_exact else format_range(cost.show, low, high)
    if limit is None:
        return Cell(cost.show(estimate["value"]), detail)
    size = (figures.get("file_bytes") or 0) if cost.quantity == "size" else 0
    if high <= limit.value < size:
        # who limits the size of a model expects its file to meet the limit too
        detail = ", ".join(filter(None, (detail, f"file {format_bytes(size)}")))
    return Cell(cost.show(estimate["value"]), detail, max(high, size) <= limit.value)


def _download_rows(columns: Sequence[Figures], limit: Limit | None) -> Iterator[Row]:
    """Yield the row of packed files, where any was made or their size is limited."""
    sizes = [figures.get(DOWNLOAD.metric) for figures in columns]
    if limit is None and not any(sizes):
        return
    cells = (
        Cell("unknown")
        if size is None
        else Cell(format_bytes(size), met=None if limit is None else size <= limit.value)
        for size in sizes
    )
    yield Row(DOWNLOAD.quantity, DOWNLOAD.label, limit, tuple(cells))


def _plain_cell(figures: Figures, key: str, show: Callable[[float], str]) -> Cell:
    value = figures.get(key)
    return Cell(show(value) if value else "unknown")


def verdict(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return the outcome in one short sentence, and a second one with the figures that matter."""
    state, target = result["state"], result["target"].get("name") or "the target"
    shown = shown_trial(result)
    if state == "SUCCEEDED" and result.get("best"):
        sentences = (_gain(result, result["best"]), measured_sentence(result["best"]))
        return f"Fits {target}", " ".join(filter(None, sentences))
    if state == "INFEASIBLE":
        reasons = (result.get("infeasibility") or {}).get("explanation") or ""
        return f"Nothing found fits {target} within the budget", reasons
    if state == "FAILED":
        return "The job failed", result["job"].get("error") or "The server gave no reason."
    if state == "CANCELLED":
        kept = "The best trial so far is kept below." if shown else "No trial had finished."
        return "The job was cancelled", kept
    return f"The job is {state.lower()}", "These are its figures so far."


def measured_sentence(figures: Figures) -> str:
    """Say what a device measured of a model; "" where none did."""
    seen = figures.get("measured")
    if not seen:
        return ""
    p50, p90 = seen["measured_latency_ms_p50"], seen["measured_latency_ms_p90"]
    energy = seen.get("measured_energy_mj")
    parts = [f"{format_latency(p50)}, nine of ten within {format_latency(p90)}"]
    if energy is not None:
        parts.append(format_energy(energy))
    if not seen["settled"]:
        parts.append(f"unsettled by {seen['noise_ratio']:.0%}")
    return f"Measured on {seen['runner']}: {', '.join(parts)}."


def _gain(result: Mapping[str, Any], best: Figures) -> str:
    """Compare the winner with what a user would otherwise ship."""
    reference, name = result.get("baseline_int8"), "int8 alone"
    if not reference:
        reference, name = result.get("baseline"), "the model as it came"
    if not reference or not has_costs(reference):
        return "It meets every limit."
    before = reference["estimated_latency_ms"]["value"]
    after = best["estimated_latency_ms"]["value"]
    parts = []
    if after > 0 and abs(before - after) > 0.005 * before:
        word = "faster" if after < before else "slower"
        ratio = before / after if after < before else after / before
        parts.append(f"{ratio:.2f} times {word} than {name}")
    one, other = known_accuracy(best), known_accuracy(reference)
    if one is not None and other is not None:
        parts.append(_accuracy_change(best, one, other))
    sentence = ", ".join(parts) + "." if parts else "It meets every limit."
    return sentence[0].upper() + sentence[1:]


def _accuracy_change(best: Figures, accuracy: float, reference: float) -> str:
    """Say what accuracy did; what the size of the evaluation set cannot tell apart is no change."""
    points = (accuracy - reference) * 100
    if abs(points) < 0.005:
        return "the same accuracy"
    words = f"{abs(points):.2f} points of accuracy {'gained' if points > 0 else 'lost'}"
    low, high = best.get("accuracy_low"), best.get("accuracy_high")
    if low is not None and high is not None and low <= reference <= high:
        words += ", which is within the error of the evaluation set"
    return words
