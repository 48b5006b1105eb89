"""The sections of the report: each takes the content of `result.json` and returns HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tightfit.quantities import (
    format_bytes,
    format_duration,
    format_energy,
)
from tightfit.relaxations import relaxation_commands
from tightfit.report.course import course
from tightfit.report.layer_table import layers
from tightfit.report.markup import NOTHING, Markup, element, joined, section
from tightfit.summary import (
    Cell,
    SummaryTable,
    accuracy_meaning,
    has_costs,
    summary_table,
    verdict,
)

Result = Mapping[str, Any]


def all_sections(result: Result) -> Markup:
    """Return the body of the report in reading order."""
    return joined(
        (
            header(result),
            infeasibility(result),
            comparison(result),
            plot(result),
            layers(result),
            preflight(result),
            course(result),
            provenance(result),
        )
    )


def header(result: Result) -> Markup:
    """The verdict, and the figures that matter most."""
    headline, sentence = verdict(result)
    table = summary_table(result)
    target = result["target"]
    about = " · ".join(
        part
        for part in (
            result["model"].get("file") or result["model"].get("name"),
            target.get("display_name") or target.get("name"),
            f"{target.get('core')} at {target.get('clock_mhz'):g} MHz"
            if target.get("clock_mhz")
            else target.get("core"),
            target.get("runtime"),
        )
        if part
    )
    state = result["state"]
    kind = {"SUCCEEDED": "good", "INFEASIBLE": "bad", "FAILED": "bad"}.get(state, "neutral")
    return element(
        "header",
        element(
            "p",
            element("span", state.lower(), class_=f"badge {kind}"),
            element("span", about, class_="about"),
            class_="eyebrow",
        ),
        element("h1", headline),
        element("p", sentence, class_="lead"),
        element("div", _cards(table), class_="cards") if table.columns else None,
    )


def _cards(table: SummaryTable) -> list[Markup]:
    cards = []
    for row in table.rows:
        if row.quantity in ("file", "macs"):
            continue
        cell, *others = reversed(row.cells)
        limit = row.limit.text if row.limit is not None and row.limit.is_users else ""
        against = f"{table.columns[-2]} {others[0].text}" if others else ""
        cards.append(
            element(
                "div",
                element("div", row.label, class_="card-label"),
                element("div", cell.text, class_="card-figure"),
                element(
                    "div",
                    _mark(cell) if limit else None,
                    f"limit {limit}" if limit else "no limit",
                    class_="card-limit",
                ),
                element("div", against, class_="card-note"),
                class_="card" + (_verdict_class(cell) if limit else ""),
            )
        )
    return cards


def _verdict_class(cell: Cell) -> str:
    return {True: " met", False: " missed", None: ""}[cell.met]


def _mark(cell: Cell) -> Markup | None:
    if cell.met is None:
        return None
    word, sign = ("met", "✓") if cell.met else ("missed", "✗")
    return element("span", sign, class_=f"mark {word}", title=word, role="img", aria_label=word)


def comparison(result: Result) -> Markup | None:
    """Baseline, int8 only and the result beside the limits."""
    table = summary_table(result)
    if not table.columns:
        return None
    meaning = f" ({said})" if (said := accuracy_meaning(result)) else ""
    head = [element("th", "", scope="col")]
    head += [element("th", column, scope="col") for column in table.columns]
    head.append(element("th", "limit", scope="col"))
    rows = []
    for row in table.rows:
        cells = [
            element(
                "td",
                element("span", _mark(cell), cell.text, class_="figure"),
                element("span", cell.detail, class_="detail") if cell.detail else None,
                class_=_verdict_class(cell).strip() or None,
                data_label=column,
            )
            for column, cell in zip(table.columns, row.cells, strict=True)
        ]
        limit = "" if row.limit is None else row.limit.text
        by = None if row.limit is None or row.limit.is_users else "of the target"
        cells.append(
            element(
                "td",
                limit or NOTHING,
                element("span", by, class_="detail") if by else None,
                class_="limit",
                data_label="limit",
            )
        )
        note = element("span", row.note, class_="detail") if row.note else None
        rows.append(element("tr", element("th", row.label, note, scope="row"), cells))
    return section(
        "comparison",
        "Before and after",
        "A limit on cost is met when the upper end of the estimate meets it. "
        f"Accuracy{meaning} is measured on the exported file, with its 95 % "
        "interval.",
        element(
            "table",
            element("thead", element("tr", head)),
            element("tbody", rows),
            class_="comparison",
        ),
    )


def plot(result: Result) -> Markup | None:
    """The place of the Pareto plot; the script draws it from the embedded data."""
    if not any(has_costs(item) for item in result["trials"]) and not result.get("baseline"):
        return None
    selectors = element(
        "div",
        element(
            "label", "across ", element("select", id="plot-x", aria_label="quantity on the x axis")
        ),
        element(
            "label", element("input", type="checkbox", id="plot-bars", checked=""), " intervals"
        ),
        class_="controls",
    )
    return section(
        "pareto",
        "Accuracy against cost",
        "Each point is one model file. Hover, tap or use the arrow keys to see its recipe.",
        selectors,
        element(
            "div",
            element("div", id="plot"),
            element("aside", id="plot-detail", aria_live="polite"),
            class_="plot-and-detail",
        ),
        element("div", id="plot-legend", class_="legend"),
        element(
            "noscript",
            element("p", "The plot needs JavaScript; the table of trials below holds its figures."),
        ),
    )


def preflight(result: Result) -> Markup | None:
    """What cannot be pruned and why, and the other notes of the preflight."""
    notes = result["notes"]
    frozen = [note for note in notes if note["code"] == "NOT_PRUNABLE"]
    others = [note for note in notes if note["code"] != "NOT_PRUNABLE"]
    formats = (result["best"] or {}).get("format_notes")
    if not notes and not formats:
        return None
    return section(
        "notes",
        "What could not help, and why",
        None,
        element("h3", "Not prunable") if frozen else None,
        element("dl", [_note(note) for note in frozen], class_="notes") if frozen else None,
        element("h3", "In another number format") if formats else None,
        element("ul", [element("li", note) for note in formats]) if formats else None,
        element("h3", "Notes of the preflight") if others else None,
        element("dl", [_note(note) for note in others], class_="notes") if others else None,
    )


def _note(note: Mapping[str, Any]) -> Markup:
    name = note["node"] or note["code"].replace("_", " ").lower()
    return element("div", element("dt", name), element("dd", note["message"]))


def infeasibility(result: Result) -> Markup | None:
    """Why nothing fits, the closest trials, and what would do."""
    outcome = result.get("infeasibility")
    if not outcome:
        return None
    rows = []
    for relaxation, (asked, needed, option) in zip(
        outcome["relaxations"], relaxation_commands(result), strict=True
    ):
        trial = relaxation["trial_index"]
        source = "" if not needed else "solver's estimate" if trial is None else f"trial #{trial}"
        rows.append(
            element(
                "tr",
                element("th", relaxation["quantity"], scope="row"),
                element("td", asked, data_label="asked"),
                element("td", needed or "no known model meets the others", data_label="would do"),
                element("td", source or NOTHING, data_label="because of"),
                element(
                    "td",
                    element("code", option) if option else NOTHING,
                    data_label="run again with",
                ),
            )
        )
    head = ("limit", "asked", "would do, the others unchanged", "because of", "run again with")
    closest = ", ".join(f"#{index}" for index in outcome["closest_trials"])
    return section(
        "infeasible",
        "Why nothing fits",
        None,
        element(
            "p",
            "Binding: ",
            [(element("span", name, class_="badge bad"), " ") for name in outcome["binding"]],
            f" · closest trials: {closest}" if closest else None,
        )
        if outcome["binding"]
        else None,
        element("h3", "The smallest relaxation of each limit"),
        element(
            "table",
            element("thead", element("tr", [element("th", text, scope="col") for text in head])),
            element("tbody", rows),
            class_="relaxations",
        )
        if rows
        else element("p", "No single limit, loosened alone, lets a known model through."),
    )


def provenance(result: Result) -> Markup:
    """What went in, so that the result can be told apart and repeated."""
    job, target, limits = result["job"], result["target"], result["search_limits"]
    power = target.get("power_active_mw")
    facts: list[tuple[str, str]] = [
        ("job", job.get("name") or ""),
        ("model", f"{result['model'].get('name', '')} sha256:{result['model'].get('digest', '')}"),
        ("objective", f"{result['objective']}, format {result['format']}, seed {result['seed']}"),
        ("search limits", _search_limits(limits)),
        *_choices(result),
        (
            "target",
            f"{target.get('name')}: {target.get('core_count') or 1} x {target.get('core')}, "
            f"{format_bytes(target.get('ram_bytes') or 0)} RAM, "
            f"{format_bytes(target.get('flash_bytes') or 0)} flash, "
            f"{target.get('runtime')} {target.get('runtime_version') or ''}".strip(),
        ),
    ]
    if result.get("dataset"):
        dataset = result["dataset"]
        metric = f", {dataset['metric']}" if dataset.get("metric") else ""
        facts.insert(2, ("dataset", f"{dataset['name']} sha256:{dataset['digest']}{metric}"))
    if power:
        facts.append(("active power", format_energy(power).replace("J", "W")))
    if target.get("assumed_fields"):
        facts.append(("assumed, not given", ", ".join(target["assumed_fields"])))
    if job.get("start_time"):
        spent = job.get("elapsed_seconds")
        lasted = f", {format_duration(spent)}" if spent else ""
        facts.append(("run", f"{job['start_time']}{lasted}"))
    rows = [element("div", element("dt", name), element("dd", text)) for name, text in facts]
    return section("provenance", "Provenance", None, element("dl", rows, class_="notes"))


def _choices(result: Result) -> Iterator[tuple[str, str]]:
    """Yield what was asked of the search besides its limits."""
    if result.get("techniques"):
        yield "techniques", ", ".join(result["techniques"])
    if result.get("importance"):
        yield "channels chosen by", result["importance"]
    teachers = zip(result.get("teachers") or (), result.get("teacher_digests") or (), strict=False)
    for name, digest in teachers:
        yield "teacher", f"{name} sha256:{digest}"
    if result.get("verification") not in (None, "none"):
        yield "measured on a device", result["verification"]
    if result.get("runner_labels"):
        labels = (f"{key}={value}" for key, value in result["runner_labels"].items())
        yield "by a runner with", ", ".join(sorted(labels))
    if result.get("packed"):
        yield "packed for download", "yes"


def _search_limits(limits: Mapping[str, Any]) -> str:
    trials, seconds = limits["max_trials"], limits["max_seconds"]
    return ", ".join(
        (
            f"{trials} trials" if trials else "trials by the server's default",
            format_duration(seconds) if seconds else "time by the server's default",
        )
    )
