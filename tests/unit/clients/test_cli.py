"""The command line: exit codes, what goes to stdout and stderr, and the files of `-o`."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # no types

from fakes import results
from fakes.tightfit_server import FakeTightfit, rich_status
from tightfit.cli import main
from tightfit.v1 import hardware_pb2, job_pb2
from tightfit_service.adapters.formats.packed import pack
from tightfit_service.domain.hardware import ModelFormat

Run = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.onnx").write_bytes(b"a model")
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 1, 2, 2)), y=np.zeros(3, int))
    (tmp_path / "dataset.yaml").write_text(
        "arrays: d.npz\nsplits: {evaluation: {input: x, label: y}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def run(fake: FakeTightfit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TIGHTFIT_SERVER", fake.address)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tightfit", *arguments])
        return main(arguments)

    return run


def load(fake: FakeTightfit, result: results.Result) -> None:
    fake.state.load(result)
    fake.state.targets = [fake.state.job.spec.hardware_spec]


COMPRESS = ("compress", "net.onnx", "--target", "nucleo-h7a3zi-q", "--data", "dataset.yaml")


def test_a_model_that_fits_ends_with_0_and_leaves_its_files(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.succeeded())
    budget = ("--max-latency", "18ms", "--max-ram", "128KiB", "--max-accuracy-drop", "0.015")
    assert run(*COMPRESS, *budget, "--max-time", "10m", "--seed", "7", "-o", "out") == 0
    out = folder / "out"
    assert {path.name for path in out.iterdir()} == {
        "model.tflite",
        "recipe.json",
        "result.json",
        "report.html",
    }
    assert (out / "model.tflite").read_bytes() == b"model 8"
    result = json.loads((out / "result.json").read_text())
    assert result["state"] == "SUCCEEDED"
    assert result["model"]["file"] == "net.onnx"
    assert json.loads((out / "recipe.json").read_text()) == result["best"]["recipe"]
    printed = capsys.readouterr()
    assert "Fits nucleo-h7a3zi-q" in printed.out
    assert "✓ 15.9 ms" in printed.out
    assert "written to out" in printed.out
    assert "best so far #8" in printed.err
    (request,) = fake.state.created
    spec = request.job.spec
    assert spec.budget.max_latency_ms == 18
    assert spec.budget.max_ram_bytes == 131_072
    assert spec.budget.max_accuracy_drop == 0.015
    assert spec.search_limits.max_time.ToSeconds() == 600
    assert spec.seed == 7
    assert spec.dataset.startswith("projects/default/datasets/")


def test_a_packed_file_is_asked_for_limited_fetched_and_restored(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = results.succeeded()
    model = b"weights " * 100
    packed = pack(model, ModelFormat.EXECUTORCH)
    for item in (result["best"], *result["trials"]):
        item["artifacts"]["packed"] = sha256(packed).hexdigest()
        item["download_bytes"] = len(packed)
    result["budget"]["max_download_bytes"], result["packed"] = 40 << 10, True
    load(fake, result)
    fake.state.artifacts[sha256(packed).hexdigest()] = packed
    assert run(*COMPRESS, "--max-download", "40KiB", "--packed", "-o", "out") == 0
    spec = fake.state.created[0].job.spec
    assert (spec.budget.max_download_bytes, spec.packed) == (40 << 10, True)
    assert "Download" in capsys.readouterr().out
    written = json.loads((folder / "out" / "result.json").read_text())
    assert written["best"]["download_bytes"] == len(packed)
    assert written["packed"] is True
    assert run("unpack", "out/model.packed", "-o", "restored.pte") == 0
    assert (folder / "restored.pte").read_bytes() == model
    load(fake, results.succeeded())
    assert run(*COMPRESS, "-o", "out") == 0
    assert not (folder / "out" / "model.packed").exists(), "it is of another job"


def test_json_is_all_that_stdout_gets(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.succeeded())
    assert run(*COMPRESS, "--json") == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["best"]["estimated_latency_ms"]["value"] == 15.9
    assert "best so far" in printed.err


def test_an_infeasible_job_ends_with_3_and_says_what_would_do(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.infeasible())
    (folder / "out").mkdir()
    (folder / "out" / "model.tflite").write_bytes(b"of an earlier run")
    assert run(*COMPRESS, "--max-latency", "0.36ms", "--max-ram=128KiB", "-o", "out") == 3
    out = capsys.readouterr().out
    assert "Binding: latency, accuracy" in out
    assert "Closest trials: #6, #4" in out
    assert (
        "tightfit compress net.onnx --target nucleo-h7a3zi-q --data dataset.yaml "
        "--max-ram=128KiB -o out --max-latency 40.6ms\n"
    ) in out
    assert "no known model meets the other limits" in out
    assert (folder / "out" / "closest.tflite").read_bytes() == b"model 6"
    assert not (folder / "out" / "model.tflite").exists()


@pytest.mark.parametrize(("fits", "where"), [(True, ""), (False, "closest/")])
def test_a_model_of_several_files_is_unpacked(
    run: Run, fake: FakeTightfit, folder: Path, fits: bool, where: str
) -> None:
    result = results.succeeded() if fits else results.infeasible()
    for trial in result["trials"]:
        trial["recipe"]["output_format"] = "c_array"
    load(fake, result)
    source = io.BytesIO()
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("model.h", "header")
        archive.writestr("model.c", "source")
    for digest in fake.state.artifacts:
        fake.state.artifacts[digest] = source.getvalue()
    repeated = sha256(source.getvalue()).hexdigest()
    fake.state.artifacts[repeated] = source.getvalue()
    for trial in fake.state.trials:
        for key in trial.artifacts:
            trial.artifacts[key] = f"projects/default/artifacts/{repeated}"
    assert run(*COMPRESS, "--max-latency", "18ms", "-o", "out") == (0 if fits else 3)
    assert (folder / f"out/{where}model.h").read_text() == "header"
    assert (folder / f"out/{where}model.c").read_text() == "source"
    assert not list((folder / "out").glob(".*"))


@pytest.mark.parametrize(("state", "code"), [("FAILED", 4), ("CANCELLED", 4)])
def test_a_job_that_failed_ends_with_4(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    result = results.succeeded() | {"state": state, "best": None}
    result["job"] |= {"error": "training diverged", "error_reason": "TRAINING_DIVERGED"}
    load(fake, result)
    assert run(*COMPRESS) == code
    printed = capsys.readouterr().out
    assert ("training diverged" if state == "FAILED" else "was cancelled") in printed


def test_a_server_that_is_away_ends_with_5(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.stop()
    assert run(*COMPRESS) == 5
    assert fake.address in capsys.readouterr().err


BAD_USAGE = [
    (("--max-latency", "18"), "--max-latency", "has no unit"),
    (("--max-ram", "-1KiB"), "--max-ram", "not a positive number"),
    (("--max-size", "0KiB"), "--max-size", "not a positive number"),
    (("--max-download", "40"), "--max-download", "has no unit"),
    (("--max-energy", "5 bananas"), "--max-energy", "unknown unit"),
    (("--max-time", "soon"), "--max-time", "number with a unit"),
    (("--min-accuracy", "95"), "--min-accuracy", "0.95 means 95"),
    (("--max-accuracy-drop", "-0.1"), "--max-accuracy-drop", "percentage point"),
    (("--min-accuracy", "0.9", "--max-accuracy-drop", "0.1"), "--max-accuracy-drop", "contradict"),
    (("--objective", "latncy"), "--objective", "did you mean 'latency'"),
    (("--format", "tflit"), "--format", "did you mean 'tflite'"),
    (("--max-trials", "0"), "--max-trials", "equal to 1"),
    (("-o", "net.onnx"), "-o", "cannot write"),
    (("--data", "none.yaml"), "none.yaml", "there is no file"),
    (("--target", "none.yaml"), "none.yaml", "there is no file"),
]


@pytest.mark.parametrize(
    ("arguments", "field", "message"), BAD_USAGE, ids=[" ".join(case[0]) for case in BAD_USAGE]
)
def test_bad_options_end_with_2_before_anything_is_sent(
    run: Run,
    fake: FakeTightfit,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    field: str,
    message: str,
) -> None:
    assert run(*COMPRESS, *arguments) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert field in printed
    assert message in printed
    assert fake.state.uploads == {}


def test_a_missing_model_ends_with_2(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", "none.onnx", "--target", "t") == 2
    assert "there is no file none.onnx" in capsys.readouterr().err


def test_an_unknown_target_is_known_before_the_upload(run: Run, fake: FakeTightfit) -> None:
    load(fake, results.succeeded())
    assert run("compress", "net.onnx", "--target", "nucleus") == 2
    assert fake.state.uploads == {}


def test_a_target_can_be_a_file(run: Run, fake: FakeTightfit, folder: Path) -> None:
    load(fake, results.succeeded())
    (folder / "mine.yaml").write_text(
        "core: cortex-m7\nclock_mhz: 216\nmemory: {ram_bytes: 262144}\n"
        "number_formats: [int8]\noutput_format: onnx\n"
    )
    assert run("compress", "net.onnx", "--target", "mine.yaml") == 0
    spec = fake.state.created[0].job.spec.hardware_spec
    assert (spec.name, spec.core, spec.memory.ram_bytes) == ("mine", "cortex-m7", 262_144)
    assert not spec.memory.HasField("flash_bytes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("core: cortex-m7\nclok_mhz: 3\n", "did you mean 'clock_mhz'"),
        ("core: cortex-m7\nmemory: {ram: 3}\n", "ram_bytes"),
        ("core: cortex-m7\nmemory: 3\n", "holds no keys"),
        ("core: cortex-m7\nclock_mhz: fast\n", "cannot be used"),
        ("core: cortex-m7\nnumber_formats: [int9]\n", "cannot be used"),
        ("clock_mhz: 3\n", "names no core"),
    ],
)
def test_a_bad_target_file_ends_with_2(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (folder / "mine.yaml").write_text(text)
    assert run("compress", "net.onnx", "--target", "mine.yaml") == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_ctrl_c_cancels_the_job_and_ends_with_130(fake: FakeTightfit, folder: Path) -> None:
    load(fake, results.succeeded())
    fake.state.hold_watch = threading.Event()
    with subprocess.Popen(
        [sys.executable, "-m", "tightfit", *COMPRESS, "--server", fake.address],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        while not fake.state.watch_began.wait(0.1):
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, (out, err)
    assert fake.state.cancelled == [results.JOB]
    assert "is cancelled" in err


@pytest.mark.parametrize(("reachable", "code"), [(True, 0), (False, 3)])
def test_check_says_whether_the_budget_is_in_reach(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str], reachable: bool, code: int
) -> None:
    load(fake, results.succeeded())
    response = fake.state.check_response
    response.target.CopyFrom(fake.state.job.spec.hardware_spec)
    response.baseline.CopyFrom(fake.state.job.result.baseline)
    response.notes.extend(fake.state.job.result.notes)
    response.reachable = reachable
    arguments = ("check", "net.onnx", "--target", "nucleo-h7a3zi-q", "--max-latency", "18ms")
    assert run(*arguments) == code
    printed = capsys.readouterr().out
    assert "✗ 58.0 ms" in printed
    assert "classifier: its 10 channels are the model's output" in printed
    assert "accuracy as it came: 91.53" in printed
    assert ("can be reached" if reachable else "Out of reach") in printed
    assert run(*arguments, "--json") == code
    assert json.loads(capsys.readouterr().out)["reachable"] is reachable


def test_teachers_are_checked_with_the_model(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.succeeded())
    fake.state.check_response.target.CopyFrom(fake.state.job.spec.hardware_spec)
    fake.state.check_response.reachable = True
    (folder / "big.onnx").write_bytes(b"a teacher")
    arguments = ("check", "net.onnx", "--target", "nucleo-h7a3zi-q", "--teacher")
    assert run(*arguments, "big.onnx") == 0
    (teacher,) = fake.state.checked[-1].spec.teachers
    assert teacher.startswith("projects/default/models/")
    assert b"a teacher" in fake.state.assets.values()
    capsys.readouterr()
    assert run(*arguments, "nobody.onnx") == 2
    assert "there is no file nobody.onnx" in capsys.readouterr().err


def test_estimate_prints_costs_with_intervals(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("estimate", "net.onnx", "--target", "nucleo", "--per-layer") == 0
    printed = capsys.readouterr().out
    assert "10.0 ms" in printed
    assert "9.00 to 12.0 ms" in printed
    assert "conv1" in printed
    assert run("estimate", "net.onnx", "--target", "nucleo", "--json") == 0
    estimates = json.loads(capsys.readouterr().out)["estimates"]
    assert estimates["int8"]["estimated_latency_ms"] == {"value": 10, "low": 9, "high": 12}


TABLE = """model,layer,op,in_h,in_w,in_c,out_h,out_w,out_c,macs
one,0,FULLY_CONNECTED,1,1,8,1,1,4,32
two,0,FULLY_CONNECTED,1,1,8,1,1,2,16
"""


def test_estimate_takes_a_table_a_runtime_and_a_usage(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "layers.csv").write_text(TABLE)
    command = ("estimate", "--layers", "layers.csv", "--target", "nucleo", "--network", "two")
    assert run(*command, "--runtime", "X-CUBE-AI@10.0", "--fps", "2", "--battery-mah=220") == 0
    printed = capsys.readouterr().out
    assert "busy 0.02 of the time (0.018 to 0.024)" in printed
    assert "battery 33 h" in printed
    (request,) = fake.state.estimated
    assert not request.model
    assert request.layer_table.splitlines() == [TABLE.splitlines()[0], TABLE.splitlines()[2]]
    assert (request.runtime.name, request.runtime.version) == ("X-CUBE-AI", "10.0")
    assert request.usage.battery_v == 3.0
    assert run(*command, "--json", "--fps", "2") == 0
    duty = json.loads(capsys.readouterr().out)["estimates"]["int8"]["duty_cycle"]
    assert duty["duty"] == pytest.approx({"value": 0.02, "low": 0.018, "high": 0.024})


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((), "--layers"),
        (("net.onnx", "--layers", "layers.csv"), "--layers"),
        (("--layers", "none.csv"), "--layers"),
        (("--layers", "layers.csv", "--network", "three"), "--network"),
        (("net.onnx", "--runtime", "@3"), "--runtime"),
        (("net.onnx", "--battery-mah", "220"), "--fps"),
    ],
)
def test_estimate_names_the_option_at_fault(
    run: Run,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    field: str,
) -> None:
    (folder / "layers.csv").write_text(TABLE)
    assert run("estimate", *arguments, "--target", "nucleo") == 2
    assert field in capsys.readouterr().err


def test_targets_are_listed_and_shown_in_the_form_that_is_read(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.succeeded())
    assert run("targets", "list") == 0
    assert "nucleo-h7a3zi-q" in capsys.readouterr().out
    assert run("targets", "show", "nucleo-h7a3zi-q") == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["memory"]["ram_bytes"] == 1_048_576
    (folder / "copy.yaml").write_text(shown)
    assert run("compress", "net.onnx", "--target", "copy.yaml") == 0
    expected = fake.state.targets[0]
    del expected.assumed_fields[:]
    assert fake.state.created[0].job.spec.hardware_spec == expected
    assert run("targets", "show", "none") == 2


def test_targets_are_filtered_by_core_accelerator_and_owner(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    npu = hardware_pb2.Accelerator(kind="ethos-u55", name="Ethos-U55-128")
    fake.state.targets = [
        hardware_pb2.HardwareSpec(name="plain", core="cortex-m4"),
        hardware_pb2.HardwareSpec(name="fast", core="cortex-m55", accelerator=npu),
        hardware_pb2.HardwareSpec(name="big", core="cortex-m55"),
    ]

    def names(*arguments: str) -> list[str]:
        assert run("targets", "list", "--json", *arguments) == 0
        return [item["name"] for item in json.loads(capsys.readouterr().out)]

    assert names() == ["plain", "fast", "big"]
    assert names("--core", "M55") == ["fast", "big"]
    assert names("--accelerator", "u55-128") == ["fast"]
    assert names("--own") == []
    assert run("targets", "list") == 0
    printed = capsys.readouterr().out
    assert "Ethos-U55-128" in printed
    assert "mcu" in printed


def test_a_target_is_validated_added_and_deleted(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.yaml").write_text("core: cortex-m7\nclock_mhz: 216\n")
    assert run("targets", "validate", "mine.yaml") == 0
    assert "mine.yaml is valid" in capsys.readouterr().out
    assert fake.state.targets == []
    assert run("targets", "add", "mine.yaml") == 0
    assert "--target mine" in capsys.readouterr().out
    assert [spec.name for spec in fake.state.targets] == ["mine"]
    assert run("targets", "delete", "mine") == 0
    assert fake.state.deleted == ["projects/default/hardwareTargets/mine"]


def test_what_the_service_refuses_is_named_with_its_line(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.yaml").write_text("core: cortex-m7\nmemory:\n  ram_bytes: 0\n")
    refusal = rich_status(
        grpc.StatusCode.INVALID_ARGUMENT,
        "memory.ram_bytes is 0, which no device has",
        error_details_pb2.ErrorInfo(
            reason="INVALID_TARGET",
            metadata={
                "field": "target.memory.ram_bytes",
                "remedy": "give the figure from the data sheet",
            },
        ),
    )
    fake.state.failures["CreateHardwareTarget"] = [refusal] * 2
    assert run("targets", "validate", "mine.yaml") == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "mine.yaml:3: memory.ram_bytes" in printed
    assert "try: give the figure" in printed
    assert run("targets", "validate", "mine.yaml", "--json") == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["valid"] is False
    assert answer["error"]["field"] == "mine.yaml:3: memory.ram_bytes"
    assert fake.state.targets == []


def test_jobs_can_be_listed_shown_watched_cancelled_and_deleted(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.infeasible())
    assert run("jobs", "list") == 0
    listed = capsys.readouterr().out
    assert "j-7f3a" in listed
    assert "infeasible" in listed
    assert run("jobs", "list", "--state", "succeeded", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run("jobs", "list", "--state", "don") == 2
    assert run("jobs", "show", "j-7f3a", "-o", "shown") == 0
    assert (folder / "shown" / "report.html").exists()
    assert run("jobs", "watch", "j-7f3a") == 3
    assert run("jobs", "cancel", "j-7f3a") == 0
    assert fake.state.cancelled == [results.JOB]
    assert run("jobs", "delete", "j-7f3a") == 0
    assert fake.state.deleted == [results.JOB]
    assert run("jobs", "show", "nothing") == 2


def test_a_job_whose_record_cannot_be_read_is_listed_with_the_reason(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.state.job = job_pb2.CompressionJob(
        name=results.JOB,
        state=job_pb2.CompressionJob.STATE_RUNNING,
        error=job_pb2.JobError(reason="UNREADABLE_RECORD", message="it is damaged (delete it)"),
    )
    assert run("jobs", "list") == 0
    first, row, last = capsys.readouterr().out.splitlines()
    assert first.startswith("JOB")
    assert row.split() == ["j-7f3a", "running"]
    assert last == "j-7f3a: it is damaged (delete it)"
    assert run("jobs", "list", "--json") == 0
    (brief,) = json.loads(capsys.readouterr().out)
    assert brief["job"]["error_reason"] == "UNREADABLE_RECORD"


def test_every_limit_of_a_job_is_listed(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    result = results.succeeded()
    result["budget"]["max_download_bytes"] = 40 << 10
    load(fake, result)
    assert run("jobs", "list") == 0
    listed = "latency ≤ 18.0 ms, peak RAM ≤ 128 KiB, download ≤ 40.0 KiB, drop ≤ 0.015"
    assert listed in capsys.readouterr().out


def test_a_job_that_runs_is_shown_without_waiting_for_it(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.succeeded() | {"best": None})
    fake.state.job.state = job_pb2.CompressionJob.STATE_RUNNING
    fake.state.hold_watch = threading.Event()
    assert run("jobs", "show", "j-7f3a") == 0
    assert "The job is running" in capsys.readouterr().out


def test_figures_that_cannot_be_looked_up_do_not_end_the_watch(
    run: Run, fake: FakeTightfit
) -> None:
    load(fake, results.succeeded())
    fake.state.trials.pop(3)
    assert run(*COMPRESS) == 0


def test_a_result_whose_model_is_gone_is_an_error(run: Run, fake: FakeTightfit) -> None:
    load(fake, results.succeeded())
    del fake.state.artifacts[sha256(b"model 8").hexdigest()]
    assert run(*COMPRESS, "-o", "out") == 2


def test_a_full_server_ends_with_5(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.succeeded())
    fake.state.failures["CreateJob"] = [
        rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "disk full")
    ]
    assert run(*COMPRESS) == 5
    assert "disk full" in capsys.readouterr().err


def test_no_arguments_show_the_help(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert "compress" in capsys.readouterr().out


def test_the_version_is_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("tightfit ")


def test_a_recipe_is_applied_to_its_own_target_and_format(
    run: Run, fake: FakeTightfit, folder: Path
) -> None:
    load(fake, results.succeeded())
    assert run(*COMPRESS, "-o", "out") == 0
    (folder / "newer.onnx").write_bytes(b"newer weights")
    again = ("apply", "out/recipe.json", "newer.onnx", "--data", "dataset.yaml")
    taught = ("--teacher", "net.onnx")
    assert run(*again, *taught, "--max-latency", "18ms", "-o", "again") == 0
    request: Any = fake.state.created[-1]
    assert [step.pass_name for step in request.recipe.steps]
    assert request.spec.hardware_target == "hardwareTargets/nucleo-h7a3zi-q"
    assert request.spec.budget.max_latency_ms == 18
    assert request.spec.seed == request.recipe.seed
    assert len(request.spec.teachers) == 1
    assert (folder / "again" / "model.tflite").is_file()


def test_recipes_are_shown_and_compared(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.succeeded())
    assert run(*COMPRESS, "-o", "out") == 0
    capsys.readouterr()
    assert run("recipe", "show", "out/recipe.json") == 0
    assert "quantization" in capsys.readouterr().out
    assert run("recipe", "diff", "out/recipe.json", "out/recipe.json") == 0
    assert "the same" in capsys.readouterr().out
    changed = json.loads((folder / "out" / "recipe.json").read_text()) | {"seed": 99}
    (folder / "other.json").write_text(json.dumps(changed))
    assert run("recipe", "diff", "out/recipe.json", "other.json", "--json") == 1
    (difference,) = json.loads(capsys.readouterr().out)
    assert (difference["path"], difference["other"]) == ("seed", "99")


def test_what_each_layer_gets_is_shown_and_compared(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.succeeded())
    assert run(*COMPRESS, "-o", "out") == 0
    recipe = json.loads((folder / "out" / "recipe.json").read_text())
    for name, clusters in (("one", 6), ("other", 12)):
        nodes = {"conv1": {"clusters": 32}, "conv2": {"clusters": clusters}}
        recipe["steps"] = [{"pass_name": "clustering", "parameters": {"nodes": nodes}}]
        (folder / f"{name}.json").write_text(json.dumps(recipe))
    capsys.readouterr()
    assert run("recipe", "show", "one.json") == 0
    assert "conv1: clusters 32; conv2: clusters 6" in " ".join(capsys.readouterr().out.split())
    assert run("recipe", "diff", "one.json", "other.json", "--json") == 1
    (difference,) = json.loads(capsys.readouterr().out)
    assert difference["path"] == "steps.clustering.nodes.conv2.clusters"
    assert (difference["one"], difference["other"]) == ("6", "12")


def test_techniques_are_passed_on_and_unknown_ones_refused(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.succeeded())
    assert run(*COMPRESS, "--technique", "low_rank", "--technique", "resolution") == 0
    assert list(fake.state.created[-1].job.spec.techniques) == ["low_rank", "resolution"]
    capsys.readouterr()
    assert run(*COMPRESS, "--technique", "low_rnk") == 2
    assert "did you mean 'low_rank'" in capsys.readouterr().err


def test_teachers_are_uploaded_like_the_model(
    run: Run, fake: FakeTightfit, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.succeeded())
    teachers = [f"teacher{number}.onnx" for number in range(2)]
    for name in teachers:
        (folder / name).write_bytes(name.encode())
    options = [word for name in teachers for word in ("--teacher", name)]
    assert run(*COMPRESS, *options) == 0
    given = list(fake.state.created[-1].job.spec.teachers)
    assert {name.encode() for name in teachers} <= set(fake.state.assets.values())
    assert len(set(given)) == 2
    assert all(name.startswith("projects/default/models/") for name in given)
    capsys.readouterr()
    assert run(*COMPRESS, "--teacher", "nobody.onnx") == 2
    assert "there is no file nobody.onnx" in capsys.readouterr().err


def test_what_channels_are_chosen_by_is_passed_on(
    run: Run, fake: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    load(fake, results.succeeded())
    assert run(*COMPRESS, "--importance", "taylor") == 0
    assert fake.state.created[-1].job.spec.importance == job_pb2.IMPORTANCE_CRITERION_TAYLOR
    assert run(*COMPRESS) == 0
    assert fake.state.created[-1].job.spec.importance == 0
    capsys.readouterr()
    assert run(*COMPRESS, "--importance", "tailor") == 2
    assert "did you mean 'taylor'" in capsys.readouterr().err


def test_what_is_not_packed_is_not_unpacked(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("unpack", "net.onnx", "-o", "restored.onnx") == 2
    assert not (folder / "restored.onnx").exists()
    assert "try:" in capsys.readouterr().err


def test_verification_is_asked_for_and_what_was_measured_is_in_the_result(
    run: Run, fake: FakeTightfit, folder: Path
) -> None:
    load(fake, results.succeeded())
    best = fake.state.trials[-1].metrics.measured
    best.measured_latency_ms_p50 = 15.0
    best.measured_latency_ms_p90 = 16.0
    best.runner = "bench"
    assert run(*COMPRESS, "--verify", "required", "-o", "out") == 0

    spec = fake.state.created[0].job.spec
    assert spec.verification == job_pb2.VERIFICATION_REQUIRED
    trials = json.loads((folder / "out" / "result.json").read_text())["trials"]
    assert trials[-1]["measured"]["measured_latency_ms_p90"] == 16.0
    assert trials[-1]["measured"]["measured_energy_mj"] is None
    assert trials[0]["measured"] is None
    assert run(*COMPRESS, "--verify", "perhaps") == 2
