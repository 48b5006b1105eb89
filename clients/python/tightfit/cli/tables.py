"""What is printed when a command is done: tables and explanations for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tightfit.quantities import format_count, format_range
from tightfit.relaxations import relaxation_commands
from tightfit.summary import COSTS, Cell, shown_trial, summary_table, verdict

_LIMIT_OPTIONS = frozenset(
    {
        "--max-latency",
        "--max-energy",
        "--max-ram",
        "--max-size",
        "--max-download",
        "--min-accuracy",
        "--max-accuracy-drop",
    }
)
_ACCURACY_OPTIONS = frozenset({"--min-accuracy", "--max-accuracy-drop"})
_LIST_WIDTH = 200
_VERDICT_STYLES = {"SUCCEEDED": "bold green", "INFEASIBLE": "bold red", "FAILED": "bold red"}


def outcome(result: Mapping[str, Any], *, command: Sequence[str] = ()) -> RenderableType:
    """Return the verdict, the table and, where nothing fits, why; to be printed without cropping.

    Args:
        result: Content of `result.json`.
        command: The command as it was given, for the commands that would do.
    """
    headline, sentence = verdict(result)
    parts: list[RenderableType] = [
        Text(headline, style=_VERDICT_STYLES.get(result["state"], "bold")),
    ]
    if sentence:
        parts.append(Text(sentence))
    if shown_trial(result) is not None or result["baseline"]:
        parts.append(summary(result))
    if result.get("infeasibility"):
        parts.append(infeasibility(result, command=command))
    return Group(*parts)


def summary(result: Mapping[str, Any], *, with_accuracy: bool = True) -> Table:
    """Return baseline, int8-only and the result beside the limits."""
    content = summary_table(result)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in content.columns:
        table.add_column(column, no_wrap=True)
    table.add_column("limit", no_wrap=True)
    for row in content.rows:
        if row.quantity == "accuracy" and not with_accuracy:
            continue
        if row.quantity == "file" and all(cell.text == "unknown" for cell in row.cells):
            continue
        limit = "" if row.limit is None else row.limit.text
        if row.limit is not None and not row.limit.is_users:
            limit += "\nthe target's"
        label = Text(row.label)
        if row.note:
            label.append(f"\n{row.note}", style="dim")
        table.add_row(label, *(_cell(cell) for cell in row.cells), Text(limit, style="dim"))
    return table


def _cell(cell: Cell) -> Text:
    text = Text()
    if cell.met is not None:
        sign, style = ("✓ ", "green") if cell.met else ("✗ ", "red")
        text.append(sign, style=style)
    text.append(cell.text, style="bold" if cell.met is not None else "")
    if cell.detail:
        text.append(f"\n{cell.detail}", style="dim")
    return text


def infeasibility(result: Mapping[str, Any], *, command: Sequence[str]) -> RenderableType:
    """Return what binds, which trials come closest, and the commands that would do."""
    why = result["infeasibility"]
    lines: list[Text] = []
    if why["binding"]:
        lines.append(Text(f"Binding: {', '.join(why['binding'])}"))
    if why["closest_trials"]:
        closest = ", ".join(f"#{index}" for index in why["closest_trials"])
        lines.append(Text(f"Closest trials: {closest}"))
    commands = relaxation_commands(result)
    if commands:
        lines.append(Text("The smallest relaxation of each limit, the others unchanged:"))
    for relaxation, (asked, needed, option) in zip(why["relaxations"], commands, strict=True):
        quantity = relaxation["quantity"]
        if not option:
            lines.append(
                Text(f"  {quantity} {asked}: no known model meets the other limits", style="dim")
            )
            continue
        by_solver = " by the solver's estimate" if relaxation["trial_index"] is None else ""
        lines.append(Text(f"  {quantity} {asked}: {needed} would do{by_solver}"))
        # one line however long, so that it can be copied
        rerun = rerun_command(command, option)
        lines.append(Text(f"    {rerun}", style="cyan", no_wrap=True, overflow="ignore"))
    return Group(*lines)


def rerun_command(command: Sequence[str], option: str) -> str:
    """Return the command with one limit replaced; just the option where the command is not known."""
    if not command:
        return option
    name, value = option.split(" ", 1)
    same = _ACCURACY_OPTIONS if name in _ACCURACY_OPTIONS else {name}
    kept: list[str] = []
    is_value = False
    for word in command:
        if is_value:
            is_value = False
        elif word in same:
            is_value = True
        elif word.split("=", 1)[0] not in same or word.split("=", 1)[0] not in _LIMIT_OPTIONS:
            kept.append(word)
    return shlex.join([*kept, name, value])


def estimates(content: Mapping[str, Any]) -> Table:
    """Return the cost per number format."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(content["target"]["name"])
    for name in content["estimates"]:
        table.add_column(name, no_wrap=True)
    costs = list(content["estimates"].values())
    for cost in COSTS:
        cells = [Text("unknown")] * len(costs)
        for position, figures in enumerate(costs):
            estimate = figures[cost.metric]
            if estimate:
                cells[position] = Text(cost.show(estimate["value"]))
                if estimate["high"] > estimate["low"]:
                    spread = format_range(cost.show, estimate["low"], estimate["high"])
                    cells[position].append(f"\n{spread}", style="dim")
        table.add_row(cost.label, *cells)
    table.add_row("MACs", *(Text(format_count(figures["macs"] or 0)) for figures in costs))
    return table


def print_wide(table: Table) -> None:
    """Print a list with one line per entry, however narrow the terminal is, so that it can be searched."""
    console = Console(highlight=False)
    console.width = max(console.width, _LIST_WIDTH)
    console.print(table)


def note_text(note: Mapping[str, Any]) -> str:
    """Return a note of the preflight in one line."""
    return f"{note['node']}: {note['message']}" if note["node"] else str(note["message"])
