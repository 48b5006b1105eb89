"""Watching a job to its end: what `compress` and `jobs watch` share."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from rich.console import Console

from tightfit.cli import exit_codes, outputs, tables
from tightfit.cli.display import Course, Display, Showing, display_for
from tightfit.client import Client
from tightfit.errors import TightfitError, UnavailableError
from tightfit.names import last_segment
from tightfit.result_file import build_result, trial_content
from tightfit.summary import shown_trial
from tightfit.v1 import job_pb2

Found = TypeVar("Found")


def watch(
    client: Client, job: job_pb2.CompressionJob, *, title: str, is_json: bool, verbose: bool
) -> list[job_pb2.JobEvent]:
    """Show a job until it is final, and return its events."""
    course = Course(title)
    events: list[job_pb2.JobEvent] = []
    with Showing(display_for(course, is_json=is_json, verbose=verbose)) as display:
        for event in client.watch_job(job.name):
            events.append(event)
            course.take(event)
            display.event(event)
            _look_up(client, job.name, event, course, display)
    return events


def _look_up(
    client: Client, job: str, event: job_pb2.JobEvent, course: Course, display: Display
) -> None:
    """Fetch what an event only names; figures for the eye, so that a failure is no loss."""
    try:
        if event.kind == job_pb2.JobEvent.KIND_STAGE or not course.result:
            course.result = build_result(client.get_job(job), (), ())
        if event.trial and event.trial not in course.finished_trials:
            trial = trial_content(client.get_trial(event.trial))
            if trial["state"] in ("completed", "stopped", "failed"):
                course.finished_trials.add(event.trial)
                if course.offer(trial):
                    display.better()
    except TightfitError:
        return


def finish(
    client: Client,
    job_name: str,
    events: Sequence[job_pb2.JobEvent],
    *,
    model_file: str,
    folder: Path | None,
    is_json: bool,
    command: Sequence[str] = (),
) -> int:
    """Print the result of a final job, write its files, and return the exit code."""
    result = result_of(client, job_name, events, model_file=model_file)
    written = outputs.write(folder, result, client) if folder is not None else []
    if is_json:
        print(json.dumps(result, indent=2))
    else:
        console = Console(highlight=False)
        console.print()
        console.print(tables.outcome(result, command=command), crop=False)
        if folder is not None:
            console.print(
                f"\nwritten to {folder}: {', '.join(written)}", markup=False, soft_wrap=True
            )
        elif shown_trial(result) is not None:
            console.print(
                f"\n`tightfit jobs show {last_segment(job_name)} -o DIR` fetches the files, with the same "
                "--server or --local",
                markup=False,
                style="dim",
                soft_wrap=True,
            )
    return exit_codes.code_for_state(result["state"])


def follow(
    client: Client,
    job: job_pb2.CompressionJob,
    *,
    title: str,
    model_file: str,
    folder: Path | None,
    is_json: bool,
    verbose: bool,
) -> int:
    """Show a job that this command queued to its end, cancel it on interrupt; return the exit code.

    Raises:
        UnavailableError: The server went away and did not come back; says how the job is found again.
    """
    try:
        with cancelling_on_interrupt(client, job.name) as interruption:
            events = watch(client, job, title=title, is_json=is_json, verbose=verbose)
        code = finish(
            client,
            job.name,
            events,
            model_file=model_file,
            folder=folder,
            is_json=is_json,
            command=["tightfit", *sys.argv[1:]],
        )
    except UnavailableError as error:
        raise UnavailableError(
            error.message,
            field=error.field,
            remedy="the job goes on when the server is back: "
            f"`tightfit jobs watch {last_segment(job.name)}` waits for it, with -o DIR for its files",
            reason=error.reason,
            request_id=error.request_id,
        ) from error
    return exit_codes.INTERRUPTED if interruption.was_asked else code


def result_of(
    client: Client, job_name: str, events: Sequence[job_pb2.JobEvent], *, model_file: str
) -> dict[str, Any]:
    """Return the content of `result.json` for a job as it stands."""
    from tightfit import __version__

    job = client.get_job(job_name)
    model, dataset = job.spec.model, job.spec.dataset
    if not model_file and (uploaded := _known(lambda: client.get_model(model))) is not None:
        model_file = uploaded.display_name
    return build_result(
        job,
        client.list_trials(job_name),
        events,
        model_file=model_file,
        dataset=_known(lambda: client.get_dataset(dataset)) if dataset else None,
        client_version=__version__,
    )


def _known(look_up: Callable[[], Found]) -> Found | None:
    """Return what is for the eye only, or None where it was deleted or nobody tells."""
    try:
        return look_up()
    except TightfitError:
        return None


class Interruption:
    """Whether Ctrl-C was pressed while a job was watched, and the call that it made."""

    def __init__(self, client: Client, job_name: str) -> None:
        """Begin with no key pressed."""
        self.was_asked = False
        self._call = threading.Thread(target=_cancel, args=(client, job_name), daemon=True)

    def ask(self) -> None:
        """Cancel the job, without waiting for the answer."""
        self.was_asked = True
        self._call.start()

    def settle(self) -> None:
        """Wait for the answer, if anything was asked."""
        if self.was_asked:
            self._call.join()


@contextmanager
def cancelling_on_interrupt(client: Client, job_name: str) -> Iterator[Interruption]:
    """Cancel the job on the first Ctrl-C or SIGTERM, which ends the watch; leave at once on the second.

    A build system that gives up sends SIGTERM. The handler raises nothing the first time: an
    exception in the midst of gRPC would leave calls behind that never end.
    """
    interruption = Interruption(client, job_name)

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        if interruption.was_asked:
            raise KeyboardInterrupt
        interruption.ask()

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield interruption
        interruption.settle()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cancel(client: Client, job_name: str) -> None:
    print("\ncancelling the job; Ctrl-C again leaves at once", file=sys.stderr)
    try:
        client.cancel_job(job_name)
    except TightfitError as error:
        print(f"could not cancel {last_segment(job_name)}: {error}", file=sys.stderr)
        # the watch may wait for a server that does not come back
        signal.raise_signal(signal.SIGINT)
    else:
        print(f"job {last_segment(job_name)} is cancelled", file=sys.stderr)
