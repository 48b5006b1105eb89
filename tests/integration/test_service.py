"""The whole service in a process of its own: the main job, restarts, cancelling, watching, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import json_format
from onnx import numpy_helper
from prometheus_client.parser import text_string_to_metric_families

from fakes.damaged_models import damaged
from fakes.networks import NETWORKS
from running_server import RunningServer
from tightfit import Client, compression_spec
from tightfit.errors import TightfitError
from tightfit.v1 import budget_pb2, hardware_pb2, job_pb2, metrics_pb2, trial_pb2
from tightfit_service.adapters.evaluation.litert_evaluator import LitertEvaluator
from tightfit_service.adapters.execution.process_tree import members

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
TARGET = "nucleo-h7a3zi-q"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that several tests share: its worker has loaded its libraries by then."""
    running = RunningServer(tmp_path_factory.mktemp("shared") / "data").start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that a test may kill."""
    running = RunningServer(tmp_path / "data").start()
    yield running
    if running.is_running:
        running.kill()


def digits_spec(
    client: Client, *, share: float = 0.5, max_drop: float | None = None
) -> job_pb2.CompressionSpec:
    """Return a job on the digits at a share of the int8 latency, short enough for a test."""
    model = client.upload_model(EXAMPLE / "digits.onnx")
    dataset = client.upload_dataset(EXAMPLE / "dataset.yaml")
    response = client.estimate(model.name, TARGET)
    int8 = response.estimates[-1].cost.estimated_latency_ms.value
    return compression_spec(
        model=model.name,
        dataset=dataset.name,
        target=TARGET,
        budget=budget_pb2.Budget(max_latency_ms=share * int8, max_accuracy_drop=max_drop),
        max_trials=2,
        max_seconds=30,
    )


def trials_of(client: Client, job: str) -> dict[int, trial_pb2.Trial]:
    return {trial.index: trial for trial in client.list_trials(job)}


@pytest.mark.long
def test_a_second_teacher_is_listened_to_and_recorded(
    server: RunningServer, tmp_path: Path
) -> None:
    model = onnx.load(EXAMPLE / "digits.onnx")
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32:
            noise = random.normal(1.0, 0.01, value.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value * noise, tensor.name))
    onnx.save(model, tmp_path / "teacher.onnx")
    onnx.save(NETWORKS["plain_cnn"](0), tmp_path / "stranger.onnx")
    with server.client() as client:
        spec = digits_spec(client)
        spec.importance = job_pb2.IMPORTANCE_CRITERION_TAYLOR
        stranger = client.upload_model(tmp_path / "stranger.onnx")
        spec.teachers.append(stranger.name)
        with pytest.raises(TightfitError, match="the teacher takes") as caught:
            client.create_job(spec)
        assert caught.value.field == "teachers[0]"
        teacher = client.upload_model(tmp_path / "teacher.onnx")
        spec.teachers[0] = teacher.name
        job = client.wait(client.create_job(spec).name)
        assert job.state == job_pb2.CompressionJob.STATE_SUCCEEDED, job.error
        assert list(job.spec.teachers) == [teacher.name]
        (said,) = (note.message for note in job.result.notes if note.code == "TEACHER")
        recipe = client.get_trial(job.result.best_trial).recipe
    assert f"{teacher.name.rsplit('/', 1)[-1]} has an accuracy of" in said
    (training,) = (step for step in recipe.steps if step.pass_name == "recovery")
    parameters = json_format.MessageToDict(training.parameters)
    assert parameters["teachers"] == [teacher.digest]


@pytest.mark.long
def test_half_the_latency_ends_in_a_file_that_is_as_accurate_as_it_says(
    server: RunningServer, tmp_path: Path
) -> None:
    succeeded_before = succeeded_jobs(server)
    with server.client() as client:
        spec = digits_spec(client)
        job = client.wait(client.create_job(spec).name)
        assert job.state == job_pb2.CompressionJob.STATE_SUCCEEDED, job.error
        best = client.get_trial(job.result.best_trial)
        assert best.metrics.cost.estimated_latency_ms.high <= spec.budget.max_latency_ms
        file = tmp_path / "model.tflite"
        client.download_artifact(best.artifacts["model"], file)
    arrays = np.load(EXAMPLE / "digits.npz")
    inputs = arrays["test_x"].astype(np.float32) * np.float32(0.0625)
    outputs = LitertEvaluator(threads=1).outputs(file.read_bytes(), inputs)
    accuracy = float(np.mean(outputs.argmax(axis=1) == arrays["test_y"]))
    assert accuracy == pytest.approx(best.metrics.accuracy)
    assert succeeded_jobs(server) == succeeded_before + 1


def succeeded_jobs(server: RunningServer) -> float:
    """Return how many jobs a server says have succeeded on it so far."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "tightfit_jobs_finished_total" and sample.labels["outcome"] == "succeeded"
    )


@pytest.mark.long
def test_a_killed_server_goes_on_after_a_restart_and_repeats_no_finished_trial(
    own_server: RunningServer,
) -> None:
    with own_server.client() as client:
        name = client.create_job(digits_spec(client)).name
        finished: dict[int, trial_pb2.Trial] = {}
        while not finished:
            time.sleep(0.1)
            finished = {
                index: trial
                for index, trial in trials_of(client, name).items()
                if trial.state == trial_pb2.Trial.STATE_COMPLETED
            }
            assert client.get_job(name).state in (
                job_pb2.CompressionJob.STATE_QUEUED,
                job_pb2.CompressionJob.STATE_RUNNING,
            )
        assert client.get_job(name).state == job_pb2.CompressionJob.STATE_RUNNING
        workers = workers_of(own_server)
        own_server.kill()
    deadline = time.monotonic() + 10
    while any(_is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlived their server"
        time.sleep(0.05)
    own_server.start()
    with own_server.client() as client:
        job = client.wait(name)
        assert job.state == job_pb2.CompressionJob.STATE_SUCCEEDED, job.error
        events = list(client.watch_job(name))
        after = trials_of(client, name)
    for index, trial in finished.items():
        started = [e for e in events if e.message == f"trial {index} started"]
        assert len(started) == 1
        assert after[index] == trial
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def workers_of(server: RunningServer) -> set[int]:
    """Return the processes that run units of work; what guards them stays."""
    found = {
        pid
        for pid in members(server.pid)
        if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }
    assert found
    return found


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.slow
def test_cancelling_frees_the_worker_and_a_watch_that_resumes_misses_nothing(
    own_server: RunningServer,
) -> None:
    with own_server.client() as client:
        name = client.create_job(digits_spec(client)).name
        seen, is_in_trial = [], False
        for event in client.watch_job(name):
            seen.append(event)
            is_in_trial = is_in_trial or event.message == "trial 0 started"
            # The first trial exports, which takes seconds: a worker is busy with it now.
            if is_in_trial and event.kind == job_pb2.JobEvent.KIND_PROGRESS:
                break
        worker = workers_of(own_server)
        began = time.monotonic()
        job = client.cancel_job(name)
        assert time.monotonic() - began < 2.0
        assert job.state == job_pb2.CompressionJob.STATE_CANCELLED
        deadline = time.monotonic() + 2.0
        while any(_is_alive(pid) for pid in worker):
            assert time.monotonic() < deadline, "the worker was not freed"
            time.sleep(0.02)
        rest = list(client.watch_job(name, after_sequence=seen[-1].sequence))
        whole = list(client.watch_job(name))
        assert [*seen, *rest] == whole
        assert whole[-1].state == job_pb2.CompressionJob.STATE_CANCELLED
        # The freed place takes work again.
        again = client.create_job(digits_spec(client, share=2.0)).name
        assert any(event.message == "trial 0 started" for event in client.watch_job(again))
        client.cancel_job(again)
        client.delete_job(name)
        assert [j.name for j in client.list_jobs()] == [again]
    assert own_server.stop() == 0


@pytest.mark.long
def test_an_impossible_budget_is_explained(server: RunningServer) -> None:
    with server.client() as client:
        job = client.wait(client.create_job(digits_spec(client, share=0.01, max_drop=0.0)).name)
        assert job.state == job_pb2.CompressionJob.STATE_INFEASIBLE
        why = job.result.infeasibility
        assert metrics_pb2.QUANTITY_LATENCY in why.binding
        assert why.closest_trials
        assert {r.quantity for r in why.relaxations} >= {metrics_pb2.QUANTITY_LATENCY}
        assert why.explanation


def bad_files() -> Iterator[tuple[str, bytes]]:
    good = (EXAMPLE / "digits.onnx").read_bytes()
    yield "text", b"this is not a model at all" * 10
    yield "truncated", good[: len(good) // 2]
    yield "zeros", bytes(1000)


@pytest.mark.slow
def test_bad_input_names_field_and_remedy_and_leaves_the_server_up(
    server: RunningServer, tmp_path: Path
) -> None:
    with server.client() as client:
        for name, data in bad_files():
            file = tmp_path / f"{name}.onnx"
            file.write_bytes(data)
            with pytest.raises(TightfitError) as caught:
                client.upload_model(file)
            assert caught.value.reason == "INVALID_MODEL", name
            assert caught.value.field, name
            assert caught.value.remedy, name
        np.savez(
            tmp_path / "d.npz",
            x=np.zeros((4, 3, 8, 8), np.float32),
            y=np.zeros(4, np.int64),
        )
        (tmp_path / "dataset.yaml").write_text(
            "task: classification\narrays: d.npz\nlayout: NCHW\nmetric: top1\n"
            "splits: {evaluation: {input: x, label: y}}\n"
        )
        model = client.upload_model(EXAMPLE / "digits.onnx")
        dataset = client.upload_dataset(tmp_path / "dataset.yaml")
        for target, expected in ((TARGET, "INVALID_DATASET"), ("nucleo-h7a3zi", "NOT_FOUND")):
            spec = compression_spec(model=model.name, dataset=dataset.name, target=target)
            with pytest.raises(TightfitError) as caught:
                client.create_job(spec)
            assert caught.value.reason == expected
            assert caught.value.remedy
        assert TARGET in str(caught.value)
        request = digits_spec(client, share=2.0)
        jobs = [client.create_job(request, request_id="once").name for _ in range(2)]
        assert jobs[0] == jobs[1]
        assert client.create_job(request, validate_only=True).name not in jobs
        client.cancel_job(jobs[0])
    assert server.is_running


@pytest.mark.long
def test_damaged_models_never_end_the_server(server: RunningServer, tmp_path: Path) -> None:
    """Run `python tests/faults/hostile_inputs.py` for thousands of them."""
    models = [NETWORKS[name](0) for name in ("mlp", "split_branches", "squeeze_excite")]
    taken, refused = 0, []
    with server.client() as client:
        for seed in range(200):
            file = tmp_path / "damaged.onnx"
            # A file of no bytes never leaves the client: one byte more or less is damage enough.
            file.write_bytes(damaged(models[seed % len(models)], seed) or b"\0")
            try:
                client.upload_model(file)
                taken += 1
            except TightfitError as error:
                refused.append(error)
    assert server.is_running
    assert taken > 25
    assert len(refused) > 25
    for refusal in refused:
        assert refusal.reason in ("INVALID_MODEL", "WORK_FAILED"), refusal
        assert refusal.remedy, refusal


def test_a_described_target_is_named_by_estimates_until_it_is_deleted(
    server: RunningServer,
) -> None:
    spec = hardware_pb2.HardwareSpec(
        name="our-board",
        core="cortex-m55",
        clock_mhz=400,
        accelerator=hardware_pb2.Accelerator(kind="ethos-u55", operators=["conv"]),
    )
    with Client(server.address) as client:
        model = client.upload_model(EXAMPLE / "digits.onnx").name
        created = client.create_target(spec)
        assert created.name == "projects/default/hardwareTargets/our-board"
        assert created.spec.accelerator.clock_mhz > 0
        assert "accelerator.clock_mhz" in created.spec.assumed_fields
        response = client.estimate(model, "our-board")
        assert response.target == created.spec
        checked = client.check(compression_spec(model=model, target="our-board"))
        assert "RUNS_ON_CORES" in {note.code for note in checked.notes}
        assert "our-board" in {target.spec.name for target in client.list_targets()}
        client.delete_target("our-board")
        with pytest.raises(TightfitError, match="no hardware target"):
            client.estimate(model, "our-board")


def _doctor(server: RunningServer) -> tuple[int, dict[str, dict[str, str]]]:
    done = subprocess.run(
        [sys.executable, "-m", "tightfit", "doctor", "--json", f"--server={server.address}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, {item["subject"]: item for item in json.loads(done.stdout)}


def test_a_server_is_examined_while_it_is_well_and_when_its_store_is_gone(
    server: RunningServer,
) -> None:
    code, found = _doctor(server)
    assert code == 0, found
    assert {item["outcome"] for item in found.values()} <= {"ok", "warn"}
    assert {"connection", "clock", "versions", "database", "artifacts", "workers"} <= set(found)
    assert found["signing key"]["side"] == "server"
    assert found["database"]["message"].startswith("SQLite 3")

    store, gone = server.data_dir / "artifacts", server.data_dir / "gone"
    store.rename(gone)
    code, found = _doctor(server)
    gone.rename(store)
    assert code == 1
    assert found["artifacts"]["outcome"] == "fail"
    assert found["artifacts"]["remedy"]
    assert found["database"]["outcome"] == "ok"
