"""How a running job is shown: live on a terminal, as plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tightfit.quantities import format_bytes, format_duration, format_percent
from tightfit.summary import (
    COST_BY_QUANTITY,
    COSTS,
    DOWNLOAD,
    INT8_ONLY,
    CostFigure,
    centre,
    has_costs,
    known_accuracy,
    limits_of,
)
from tightfit.v1 import job_pb2
from tightfit.words import event_kind_word, job_state_word

STAGES = ("preflight", "baseline", "sensitivity", "solve", "trial", "finish", "package")


class Course:
    """What is known of a running job, gathered from its events."""

    def __init__(self, title: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing known: nothing is told of a job before its turn comes."""
        self.title = title
        self.stage = ""
        self.state = ""
        self.message = "in the queue"
        self.fraction = 0.0
        self.finished_trials: set[str] = set()
        self.result: Mapping[str, Any] = {}
        """Budget, target and baseline as `result.json` spells them, once known."""
        self.best: Mapping[str, Any] | None = None
        self._clock = clock
        self._start = clock()

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the course was begun."""
        return self._clock() - self._start

    def take(self, event: job_pb2.JobEvent) -> None:
        """Take note of an event."""
        self.message = event.message or self.message
        if event.stage:
            self.stage = event.stage
        if event.state:
            self.state = job_state_word(event.state).lower()
        if event.HasField("fraction"):
            self.fraction = max(self.fraction, min(1.0, event.fraction))

    def offer(self, trial: Mapping[str, Any]) -> bool:
        """Keep a finished trial if it is better than the best so far; returns whether it is.

        Feasible ones come first, then those nearest to the limits, then the more accurate.
        """
        if not has_costs(trial) or trial["role"] in ("baseline", "baseline_int8"):
            return False
        if self.best is not None and _rank(trial) <= _rank(self.best):
            return False
        self.best = trial
        return True


def _rank(trial: Mapping[str, Any]) -> tuple[float, ...]:
    excess = sum(
        abs(item["actual"] - item["limit"]) / abs(item["limit"] or 1.0)
        for item in trial["violations"]
    )
    is_final = trial.get("accuracy") is not None
    return (
        0.0 if trial["violations"] else 1.0,
        -excess,
        float(is_final),
        known_accuracy(trial) or 0.0,
    )


class Display(Protocol):
    """Shows the course of a job. `start` and `stop` are called once each, in this order."""

    def start(self) -> None:
        """Begin to show."""
        ...

    def event(self, event: job_pb2.JobEvent) -> None:
        """Show an event; the course has taken it already."""
        ...

    def better(self) -> None:
        """Show that the course has a better trial."""
        ...

    def stop(self) -> None:
        """Stop showing and leave the terminal as it was."""
        ...


def display_for(course: Course, *, is_json: bool, verbose: bool) -> Display:
    """Return the live display where someone watches, plain lines where a log is written."""
    watched = sys.stderr.isatty() and (is_json or sys.stdout.isatty())
    if watched and not verbose:
        return LiveDisplay(course, Console(stderr=True, highlight=False))
    return PlainDisplay(course, verbose=verbose)


class Showing:
    """A display that is started and stopped with a block."""

    def __init__(self, display: Display) -> None:
        """Keep the display."""
        self.display = display

    def __enter__(self) -> Display:
        """Start the display."""
        self.display.start()
        return self.display

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the display, whatever happened."""
        self.display.stop()


class PlainDisplay:
    """One line per stage, trial, note and change of state."""

    def __init__(self, course: Course, *, verbose: bool) -> None:
        """Keep what is to be shown."""
        self._course = course
        self._verbose = verbose

    def start(self) -> None:
        """Say what runs."""
        self._print(self._course.title)

    def event(self, event: job_pb2.JobEvent) -> None:
        """Print the event, unless it only tells that work went on."""
        kind = event_kind_word(event.kind)
        if kind == "progress" and not self._verbose:
            return
        word = event.stage or (self._course.state if kind == "state" else kind)
        self._print(f"{word:<11} {event.message}")

    def better(self) -> None:
        """Print the best trial so far."""
        self._print(f"{'best so far':<11} {best_text(self._course)}")

    def stop(self) -> None:
        """Nothing is left to do."""

    def _print(self, text: str) -> None:
        elapsed = format_duration(self._course.elapsed_seconds)
        print(f"[{elapsed:>6}] {text}", file=sys.stderr, flush=True)


class LiveDisplay:
    """A few lines that stay in place: stages, progress, trials, best so far against the budget."""

    def __init__(self, course: Course, console: Console) -> None:
        """Keep what is to be shown, and where."""
        self._course = course
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(
            console=console,
            get_renderable=self._content,
            refresh_per_second=8,
            transient=True,
        )

    def start(self) -> None:
        """Take the lines."""
        self._live.start()

    def event(self, event: job_pb2.JobEvent) -> None:
        """Keep notes above the live lines; all else is in them."""
        if event.kind == job_pb2.JobEvent.KIND_NOTE:
            self._live.console.print(Text(f"note: {event.message}", style="dim"))

    def better(self) -> None:
        """The next refresh shows it."""

    def stop(self) -> None:
        """Give the lines back."""
        self._live.stop()

    def _content(self) -> RenderableType:
        course = self._course
        head = Table.grid(padding=(0, 1))
        elapsed = format_duration(course.elapsed_seconds)
        head.add_row(self._spinner, Text(course.title, style="bold"), Text(elapsed, style="dim"))
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=1.0, completed=course.fraction, width=40),
            Text(f"{course.fraction * 100:3.0f} %"),
            Text(_trial_count(len(course.finished_trials)), style="dim"),
        )
        lines: list[RenderableType] = [head, _stage_line(course), bar]
        standing = _standing(course)
        if standing is not None:
            lines.append(standing)
        if course.message:
            lines.append(Text(course.message, style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


def _trial_count(count: int) -> str:
    return f"{count} trial" if count == 1 else f"{count} trials"


def _stage_line(course: Course) -> Text:
    line = Text()
    for stage in STAGES:
        is_now = stage == course.stage
        line.append("● " if is_now else "○ ", style="cyan" if is_now else "dim")
        line.append(f"{stage}  ", style="bold" if is_now else "dim")
    return line


def _standing(course: Course) -> Table | None:
    """Return the limits with the best trial so far below them."""
    if not course.result:
        return None
    limits = limits_of(course.result)
    costs = [*COSTS, *([DOWNLOAD] if DOWNLOAD.quantity in limits else [])]
    table = Table.grid(padding=(0, 3, 0, 0))
    names = ("accuracy", *(cost.name for cost in costs))
    table.add_row("", *(Text(name, style="dim") for name in names))
    floor = limits.get("accuracy")
    table.add_row(
        Text("limit", style="dim"),
        Text(floor.text if floor else "", style="dim"),
        *(
            Text(limits[cost.quantity].text if cost.quantity in limits else "", style="dim")
            for cost in costs
        ),
    )
    for caption, figures in (
        ("baseline", course.result.get("baseline")),
        (INT8_ONLY, course.result.get("baseline_int8")),
        ("best so far", course.best),
    ):
        if figures and has_costs(figures):
            missed = {item["quantity"] for item in figures.get("violations", ())}
            style = "bold" if figures is course.best else ""
            accuracy = known_accuracy(figures)
            table.add_row(
                Text(caption, style=style),
                Text(
                    "" if accuracy is None else format_percent(accuracy),
                    style="red" if "accuracy" in missed else style,
                ),
                *(
                    Text(
                        _cost_text(figures, cost),
                        style="red" if cost.quantity in missed else style,
                    )
                    for cost in costs
                ),
            )
    return table


def _cost_text(figures: Mapping[str, Any], cost: CostFigure) -> str:
    value = centre(figures, cost)
    return "" if value is None else cost.show(value)


def best_text(course: Course) -> str:
    """Return the best trial so far in one line."""
    best = course.best
    if best is None:
        return "none"
    accuracy = known_accuracy(best)
    figures: list[str] = []
    if accuracy is not None:
        # a screening trial may look better than the finalist that is made of it: it was judged on other samples
        where = " on the selection set" if best.get("accuracy") is None else ""
        figures.append(f"{format_percent(accuracy)}{where}")
    figures += [
        f"{text} {cost.name}"
        for cost in COST_BY_QUANTITY.values()
        if (text := _cost_text(best, cost))
    ]
    missed = ", ".join(item["quantity"] for item in best["violations"])
    return f"#{best['index']}: {', '.join(figures)}; {f'misses {missed}' if missed else 'fits'}"


class TransferLine:
    """Shows how far a large upload is; small ones pass without a word."""

    def __init__(self, noun: str, *, least_bytes: int = 8 << 20) -> None:
        """Keep what is sent."""
        self._noun = noun
        self._least = least_bytes
        self._is_live = sys.stderr.isatty()
        self._shown = False

    def __call__(self, done: int, size: int) -> None:
        """Show `done` of `size` bytes."""
        if size < self._least or not self._is_live:
            return
        self._shown = True
        share = f"{done * 100 // size:3d} % of {format_bytes(size)}"
        print(f"\ruploading {self._noun}: {share}", end="", file=sys.stderr, flush=True)
        if done >= size:
            print(file=sys.stderr)
