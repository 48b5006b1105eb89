"""What is shown while a job runs: live lines on a terminal, one line per event elsewhere."""

import io
from typing import Any

import grpc
import pytest
from rich.console import Console

from fakes import results
from fakes.tightfit_server import FakeTightfit, rich_status
from tightfit import Client, Patience, UnavailableError
from tightfit.cli import watching
from tightfit.cli.display import Course, LiveDisplay, PlainDisplay, Showing, best_text
from tightfit.v1 import job_pb2


def course_of(result: results.Result) -> Course:
    course = Course("net.onnx for a board", clock=lambda: 0.0)
    course.result = result
    return course


def stage(name: str, *, fraction: float) -> job_pb2.JobEvent:
    return job_pb2.JobEvent(
        kind=job_pb2.JobEvent.KIND_STAGE, stage=name, message=f"now {name}", fraction=fraction
    )


def trial(index: int, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = results.succeeded()["trials"][index]
    return found | more


def test_live_lines_show_stage_progress_limits_and_the_best_so_far() -> None:
    result = results.succeeded()
    result["budget"]["max_download_bytes"] = 40 << 10
    course = course_of(result)
    course.take(stage("trial", fraction=0.4))
    course.finished_trials.add("t")
    assert course.offer(trial(2, download_bytes=20 << 10))
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=120)
    with Showing(LiveDisplay(course, console)):
        pass
    lines = file.getvalue()
    for told in ("net.onnx for a board", "● trial", "○ finish", "40 %", "1 trial\n", "now trial"):
        assert told in lines
    (limit,) = {line for line in lines.splitlines() if line.startswith("limit")}
    assert limit.split("   ")[-1].strip() == "≤ 40.0 KiB"
    assert "≥ 90.03 %" in limit
    (best,) = {line for line in lines.splitlines() if line.startswith("best so far")}
    assert "89.40 %" in best
    assert best.rstrip().endswith("20.0 KiB")


def test_a_job_that_nothing_is_told_of_yet_is_in_the_queue() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=120)
    course = Course("net.onnx for a board", clock=lambda: 0.0)
    with Showing(LiveDisplay(course, console)):
        pass
    assert "in the queue" in file.getvalue()
    course.take(stage("preflight", fraction=0.0))
    assert course.message == "now preflight"


def test_progress_never_goes_back() -> None:
    course = course_of({})
    for fraction in (0.1, 0.5, 0.3):
        course.take(stage("trial", fraction=fraction))
    assert course.fraction == 0.5


def test_a_trial_that_fits_comes_before_one_that_does_not() -> None:
    course = course_of({})
    missed = trial(5)
    assert missed["violations"]
    assert not course.offer(trial(1)), "what was only quantized is no find"
    assert course.offer(missed)
    assert course.offer(trial(3))
    assert not course.offer(missed)
    assert course.best == trial(3)


def test_the_finalist_comes_before_what_was_only_screened() -> None:
    course = course_of({})
    assert course.offer(trial(2, selection_accuracy=1.0))
    assert best_text(course).startswith("#2: 100.00 % on the selection set, 16.1 ms latency, ")
    assert course.offer(trial(8))
    assert best_text(course).startswith("#8: 90.48 %, 15.9 ms latency, ")
    assert best_text(course).endswith(" flash; fits")


def test_plain_lines_leave_progress_out_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    progress = job_pb2.JobEvent(kind=job_pb2.JobEvent.KIND_PROGRESS, message="epoch 3")
    for is_verbose in (False, True):
        with Showing(PlainDisplay(course_of({}), verbose=is_verbose)) as display:
            display.event(stage("solve", fraction=0.2))
            display.event(progress)
        said = capsys.readouterr().err
        assert "[  0.0s] solve       now solve\n" in said
        assert ("epoch 3" in said) == is_verbose


def test_a_server_that_stays_away_leaves_the_way_back_to_the_job(fake: FakeTightfit) -> None:
    fake.state.load(results.succeeded())
    fake.state.failures["WatchJob"] = [rich_status(grpc.StatusCode.UNAVAILABLE, "going away")]
    with Client(fake.address, patience=Patience(total_seconds=0)) as client:
        job = client.get_job(results.JOB)
        with pytest.raises(UnavailableError) as caught:
            watching.follow(
                client,
                job,
                title="net.onnx",
                model_file="net.onnx",
                folder=None,
                is_json=False,
                verbose=False,
            )
    assert "`tightfit jobs watch j-7f3a`" in caught.value.remedy
    assert fake.state.cancelled == []
