"""Both clients against a server that breaks off: nothing is lost, nothing is repeated."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # no types

import tightfit
from fakes import results
from fakes.tightfit_server import FakeTightfit, rich_status
from tightfit import AsyncClient, Client, Patience, compression_spec
from tightfit.names import job_name
from tightfit.v1 import hardware_pb2, job_pb2

QUICK = Patience(first_seconds=0.001, most_seconds=0.002, total_seconds=0.02)


class AnyClient(Protocol):
    """Either client, called in the blocking way."""

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    def items(self, method: str, *args: Any, **kwargs: Any) -> list[Any]: ...


class Blocking:
    """The blocking client."""

    def __init__(self, server: str) -> None:
        self.client = Client(server, patience=QUICK)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.client, method)(*args, **kwargs)

    def items(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        return list(getattr(self.client, method)(*args, **kwargs))

    def close(self) -> None:
        self.client.close()


class OnALoop:
    """The asyncio client, each call on an event loop of its own."""

    def __init__(self, server: str) -> None:
        self.server = server

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(self.server, patience=QUICK) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(run())

    def items(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        async def run() -> list[Any]:
            async with AsyncClient(self.server, patience=QUICK) as client:
                found: AsyncIterator[Any] = getattr(client, method)(*args, **kwargs)
                return [item async for item in found]

        return asyncio.run(run())

    def close(self) -> None:
        pass


@pytest.fixture(params=[Blocking, OnALoop], ids=["blocking", "asyncio"])
def client(request: pytest.FixtureRequest, fake: FakeTightfit) -> Iterator[AnyClient]:
    made = request.param(fake.address)
    yield made
    made.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(5 * (1 << 20) + 17))
    return path


def test_a_model_arrives_whole(client: AnyClient, fake: FakeTightfit, model: Path) -> None:
    progress: list[tuple[int, int]] = []
    uploaded = client.call(
        "upload_model", model, on_progress=lambda done, size: progress.append((done, size))
    )
    assert fake.state.assets[uploaded.digest] == model.read_bytes()
    size = model.stat().st_size
    assert progress[-1] == (size, size)


def test_bytes_that_are_there_are_not_sent_again(
    client: AnyClient, fake: FakeTightfit, model: Path
) -> None:
    first = client.call("upload_model", model)
    again = client.call("upload_model", model)
    assert again.name == first.name
    assert fake.state.offsets == [0]


def test_a_broken_upload_goes_on_where_it_broke(
    client: AnyClient, fake: FakeTightfit, model: Path
) -> None:
    fake.state.break_uploads_after = [2 << 20, 1]
    uploaded = client.call("upload_model", model)
    assert fake.state.assets[uploaded.digest] == model.read_bytes()
    assert fake.state.offsets[0] == 0
    assert fake.state.offsets == sorted(set(fake.state.offsets))
    assert len(fake.state.offsets) == 3


def test_an_upload_without_progress_ends_with_the_error(
    client: AnyClient, fake: FakeTightfit, model: Path
) -> None:
    unavailable = rich_status(grpc.StatusCode.UNAVAILABLE, "draining")
    fake.state.failures["UploadModel"] = [unavailable] * 200
    with pytest.raises(tightfit.UnavailableError, match="draining"):
        client.call("upload_model", model)


def test_another_sender_of_the_same_bytes_does_no_harm(
    client: AnyClient, fake: FakeTightfit, model: Path
) -> None:
    data = model.read_bytes()
    digest = sha256(data).hexdigest()
    name = f"projects/default/uploads/model-{digest[:40]}"
    fake.state.uploads[name] = bytearray(data[:1000])
    client.call("upload_model", model)
    assert fake.state.offsets == [1000]
    assert fake.state.assets[digest] == data


def test_a_dataset_is_packed_and_sent_once(
    client: AnyClient, fake: FakeTightfit, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 1, 2, 2)), y=np.zeros(3, int))
    description = tmp_path / "dataset.yaml"
    description.write_text("arrays: d.npz\nsplits: {evaluation: {input: x, label: y}}\n")
    first = client.call("upload_dataset", description)
    assert client.call("upload_dataset", description).name == first.name
    assert fake.state.offsets == [0]
    assert fake.state.assets[first.digest][:2] == b"PK"


@pytest.mark.parametrize(("content", "message"), [(None, "cannot read"), (b"", "is empty")])
def test_a_model_that_cannot_be_read_is_named(
    client: AnyClient, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "missing.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(tightfit.InvalidInputError, match=message) as caught:
        client.call("upload_model", path)
    assert caught.value.field == str(path)


def test_a_watch_that_drops_misses_nothing_and_repeats_nothing(
    client: AnyClient, fake: FakeTightfit
) -> None:
    fake.state.load(results.succeeded())
    fake.state.break_watches_after = [2, 0, 5]
    fake.state.repeat_events = True
    seen = client.items("watch_job", results.JOB)
    assert [event.sequence for event in seen] == list(range(1, len(fake.state.events) + 1))
    assert fake.state.watched_after[:2] == [0, 2]


def test_a_watch_can_begin_later(client: AnyClient, fake: FakeTightfit) -> None:
    fake.state.load(results.succeeded())
    seen = client.items("watch_job", "j-7f3a", after_sequence=9)
    assert [event.sequence for event in seen] == list(range(10, len(fake.state.events) + 1))


def test_a_watch_gives_up_when_the_server_stays_away(client: AnyClient, fake: FakeTightfit) -> None:
    fake.state.load(results.succeeded())
    fake.state.break_watches_after = [0] * 200
    with pytest.raises(tightfit.UnavailableError):
        client.items("watch_job", results.JOB)


def test_wait_returns_the_final_job(client: AnyClient, fake: FakeTightfit) -> None:
    fake.state.load(results.infeasible())
    seen: list[job_pb2.JobEvent] = []
    job = client.call("wait", results.JOB, on_event=seen.append)
    assert job.state == job_pb2.CompressionJob.STATE_INFEASIBLE
    assert len(seen) == len(fake.state.events)


def test_lists_cross_pages(client: AnyClient, fake: FakeTightfit) -> None:
    fake.state.load(results.succeeded())
    assert [trial.index for trial in client.items("list_trials", results.JOB)] == list(range(10))
    fake.state.targets = [hardware_pb2.HardwareSpec(name=f"t{index}") for index in range(5)]
    names = [target.spec.name for target in client.items("list_targets")]
    assert names == ["t0", "t1", "t2", "t3", "t4"]


def test_a_target_is_created_found_and_deleted(client: AnyClient, fake: FakeTightfit) -> None:
    spec = hardware_pb2.HardwareSpec(name="ours", core="cortex-m7")
    checked = client.call("create_target", spec, validate_only=True)
    assert checked.name == "projects/default/hardwareTargets/ours"
    assert fake.state.targets == []
    client.call("create_target", spec)
    assert client.call("get_target", "ours").spec == spec
    client.call("delete_target", "ours")
    assert fake.state.deleted == ["projects/default/hardwareTargets/ours"]


def test_uploads_are_listed_found_and_deleted(client: AnyClient, fake: FakeTightfit) -> None:
    fake.state.load(results.succeeded())
    held: dict[str, list[Any]] = {"model": fake.state.models, "dataset": fake.state.datasets}
    for noun, kept in held.items():
        (first,) = list(kept)
        kept.append(type(first)(name=f"projects/default/{noun}s/another"))
        assert [item.name for item in client.items(f"list_{noun}s")] == [
            first.name,
            f"projects/default/{noun}s/another",
        ]
        assert client.call(f"get_{noun}", first.name.rpartition("/")[2]) == first
        client.call(f"delete_{noun}", "another")
        assert kept == [first]
        with pytest.raises(tightfit.NotFoundError):
            client.call(f"get_{noun}", "another")
        with pytest.raises(tightfit.InvalidInputError, match=f"no {noun}"):
            client.call(f"get_{noun}", "a/b")


def test_jobs_are_listed_by_state(client: AnyClient, fake: FakeTightfit) -> None:
    fake.state.load(results.succeeded())
    assert len(client.items("list_jobs")) == 1
    states = [job_pb2.CompressionJob.STATE_FAILED]
    assert client.items("list_jobs", states=states) == []


def test_a_job_carries_what_was_asked_for(client: AnyClient, fake: FakeTightfit) -> None:
    spec = compression_spec(
        model="projects/default/models/m",
        target="nucleo",
        budget=tightfit.Budget(max_latency_ms=20, max_accuracy_drop=0.0),
        objective="energy",
        max_seconds=90.5,
        output_format="onnx",
        seed=3,
    )
    client.call("create_job", spec)
    client.call("create_job", spec)
    first, second = fake.state.created
    assert first.parent == "projects/default"
    assert first.job.spec == spec
    assert spec.hardware_target == "hardwareTargets/nucleo"
    assert spec.budget.HasField("max_accuracy_drop")
    assert not spec.search_limits.HasField("max_trials")
    assert spec.search_limits.max_time.ToMilliseconds() == 90_500
    assert first.request_id
    assert first.request_id != second.request_id


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        # of a server that stops, for calls that it has not begun
        grpc.StatusCode.CANCELLED,
    ],
)
def test_creating_is_repeated_under_the_same_id_when_the_server_is_away(
    client: AnyClient, fake: FakeTightfit, code: grpc.StatusCode
) -> None:
    fake.state.failures["CreateJob"] = [rich_status(code, "going away")]
    client.call("create_job", compression_spec(model="m", target="t"))
    assert len(fake.state.created) == 2
    assert len({request.request_id for request in fake.state.created}) == 1


def test_an_unknown_objective_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(tightfit.InvalidInputError, match="'latncy' is not offered"):
        compression_spec(model="m", target="t", objective="latncy")


def test_errors_carry_reason_field_and_remedy(client: AnyClient, fake: FakeTightfit) -> None:
    info = error_details_pb2.ErrorInfo(
        reason="INVALID_BUDGET",
        domain="tightfit.dev",
        metadata={"remedy": "give more", "field": "budget.max_latency_ms", "request_id": "r-1"},
    )
    fake.state.failures["CreateJob"] = [
        rich_status(grpc.StatusCode.INVALID_ARGUMENT, "max_latency_ms is 0", info)
    ]
    with pytest.raises(tightfit.InvalidInputError) as caught:
        client.call("create_job", compression_spec(model="m", target="t"))
    error = caught.value
    assert error.message == "max_latency_ms is 0"
    assert error.reason == "INVALID_BUDGET"
    assert error.field == "budget.max_latency_ms"
    assert error.remedy == "give more"
    assert error.request_id == "r-1"


def test_standard_details_do_where_the_server_is_not_ours(
    client: AnyClient, fake: FakeTightfit
) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="spec.seed", description="bad")
    fake.state.failures["CreateJob"] = [
        rich_status(
            grpc.StatusCode.INVALID_ARGUMENT,
            "bad seed",
            error_details_pb2.BadRequest(field_violations=[violation]),
            error_details_pb2.Help(links=[error_details_pb2.Help.Link(description="use 0")]),
            error_details_pb2.RequestInfo(request_id="r-2"),
        )
    ]
    with pytest.raises(tightfit.InvalidInputError) as caught:
        client.call("create_job", compression_spec(model="m", target="t"))
    assert (caught.value.field, caught.value.remedy) == ("spec.seed", "use 0")
    assert caught.value.request_id == "r-2"


CODES = [
    (grpc.StatusCode.NOT_FOUND, tightfit.NotFoundError),
    (grpc.StatusCode.ALREADY_EXISTS, tightfit.AlreadyExistsError),
    (grpc.StatusCode.FAILED_PRECONDITION, tightfit.PreconditionError),
    (grpc.StatusCode.UNIMPLEMENTED, tightfit.UnsupportedError),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, tightfit.ResourceExhaustedError),
    (grpc.StatusCode.UNAUTHENTICATED, tightfit.AccessError),
    (grpc.StatusCode.DATA_LOSS, tightfit.IntegrityError),
    (grpc.StatusCode.CANCELLED, tightfit.CancelledError),
    (grpc.StatusCode.INTERNAL, tightfit.ServerError),
]


@pytest.mark.parametrize(("code", "kind"), CODES, ids=[code.name for code, _ in CODES])
def test_each_code_has_its_error(
    client: AnyClient, fake: FakeTightfit, code: grpc.StatusCode, kind: type[Exception]
) -> None:
    fake.state.failures["DeleteJob"] = [rich_status(code, "so it is")]
    with pytest.raises(kind, match="so it is"):
        client.call("delete_job", "j")


def test_a_server_that_is_not_there_is_named(fake: FakeTightfit, client: AnyClient) -> None:
    fake.stop()
    with pytest.raises(tightfit.UnavailableError, match=fake.address) as caught:
        client.call("delete_job", "j")
    assert "tightfit serve" in caught.value.remedy


DATA = bytes(range(256)) * 40
DIGEST = sha256(DATA).hexdigest()


def at_limit(seconds: float) -> grpc.Status:
    """Return what the server says to a project that asks too much at a time."""
    delay = Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    return rich_status(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the limit requests_per_second is reached",
        error_details_pb2.ErrorInfo(reason="LIMIT_EXCEEDED", domain="tightfit.dev"),
        error_details_pb2.RetryInfo(retry_delay=delay),
    )


def test_every_kind_of_call_waits_as_long_as_the_limit_asks_for(
    client: AnyClient, fake: FakeTightfit, model: Path, tmp_path: Path
) -> None:
    fake.state.load(results.succeeded())
    fake.state.artifacts[DIGEST] = DATA
    methods = ["DeleteJob", "StartModelUpload", "UploadModel", "WatchJob", "ReadArtifact"]
    for method in methods:
        fake.state.failures[method] = [at_limit(0.01)]
    began = time.monotonic()
    client.call("delete_job", "j")
    assert len(client.items("watch_job", results.JOB)) == len(fake.state.events)
    uploaded = client.call("upload_model", model)
    client.call("download_artifact", DIGEST, tmp_path / "file")
    assert time.monotonic() - began >= 0.01 * len(methods)
    assert not any(fake.state.failures.values())
    assert fake.state.deleted == [job_name("j", project="default")]
    assert fake.state.assets[uploaded.digest] == model.read_bytes()
    assert (tmp_path / "file").read_bytes() == DATA


def test_patience_with_a_limit_ends(client: AnyClient, fake: FakeTightfit) -> None:
    fake.state.failures["DeleteJob"] = [at_limit(0.01)] * 50
    with pytest.raises(tightfit.LimitExceededError, match="requests_per_second") as caught:
        client.call("delete_job", "j")
    assert caught.value.retry_seconds == pytest.approx(0.01)
    assert 40 < len(fake.state.failures["DeleteJob"]) < 49
    assert not fake.state.deleted


def test_a_limit_that_asks_for_more_patience_than_there_is_ends_the_call(
    client: AnyClient, fake: FakeTightfit
) -> None:
    fake.state.failures["DeleteJob"] = [at_limit(1_000.0)] * 2
    with pytest.raises(tightfit.LimitExceededError) as caught:
        client.call("delete_job", "j")
    assert caught.value.retry_seconds == 1_000.0
    assert len(fake.state.failures["DeleteJob"]) == 1


def test_a_quota_is_not_asked_again(client: AnyClient, fake: FakeTightfit) -> None:
    quota = rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "the quota of stored bytes is used up")
    fake.state.failures["DeleteJob"] = [quota] * 2
    with pytest.raises(tightfit.ResourceExhaustedError, match="quota") as caught:
        client.call("delete_job", "j")
    assert not isinstance(caught.value, tightfit.LimitExceededError)
    assert len(fake.state.failures["DeleteJob"]) == 1


def test_a_download_goes_on_where_it_broke(
    client: AnyClient, fake: FakeTightfit, tmp_path: Path
) -> None:
    fake.state.artifacts[DIGEST] = DATA
    fake.state.break_reads_after = [3000, 0, 2500]
    client.call("download_artifact", DIGEST, tmp_path / "model.tflite")
    assert (tmp_path / "model.tflite").read_bytes() == DATA
    assert fake.state.read_offsets == [0, 3000, 3000, 5500]
    assert list(tmp_path.iterdir()) == [tmp_path / "model.tflite"]


def test_what_an_earlier_process_left_is_used(
    client: AnyClient, fake: FakeTightfit, tmp_path: Path
) -> None:
    fake.state.artifacts[DIGEST] = DATA
    (tmp_path / "m.part").write_bytes(DATA[:4000])
    client.call("download_artifact", f"projects/default/artifacts/{DIGEST}", tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == DATA
    assert fake.state.read_offsets == [4000]


@pytest.mark.parametrize("left", [b"other bytes", DATA + b"more"], ids=["wrong", "too long"])
def test_leftovers_of_something_else_are_dropped(
    client: AnyClient, fake: FakeTightfit, tmp_path: Path, left: bytes
) -> None:
    fake.state.artifacts[DIGEST] = DATA
    (tmp_path / "m.part").write_bytes(left)
    client.call("download_artifact", DIGEST, tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == DATA


def test_damaged_bytes_never_take_the_file_s_place(
    client: AnyClient, fake: FakeTightfit, tmp_path: Path
) -> None:
    fake.state.artifacts[DIGEST] = DATA[:-1] + b"\x00"
    with pytest.raises(tightfit.IntegrityError):
        client.call("download_artifact", DIGEST, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_named(client: AnyClient, tmp_path: Path) -> None:
    with pytest.raises(tightfit.InvalidInputError, match="cannot write"):
        client.call("download_artifact", DIGEST, tmp_path / "none" / "m")


@pytest.mark.parametrize("artifact", ["", "x", "projects/p/artifacts/zz"])
def test_what_is_no_digest_is_refused(client: AnyClient, tmp_path: Path, artifact: str) -> None:
    with pytest.raises(tightfit.InvalidInputError, match="no artifact"):
        client.call("download_artifact", artifact, tmp_path / "m")


def test_estimates_take_a_name_or_a_description(client: AnyClient) -> None:
    by_name = client.call("estimate", "projects/default/models/m", "nucleo")
    assert by_name.target.name == "nucleo"
    spec = hardware_pb2.HardwareSpec(name="mine", core="cortex-m7")
    assert client.call("estimate", "projects/default/models/m", spec).target == spec


async def test_giving_up_an_asyncio_watch_ends_the_stream(fake: FakeTightfit) -> None:
    fake.state.load(results.succeeded())
    fake.state.hold_watch = threading.Event()
    async with AsyncClient(fake.address, patience=QUICK) as client:

        async def follow() -> None:
            async for _ in client.watch_job(results.JOB):
                pass

        task = asyncio.create_task(follow())
        await asyncio.to_thread(fake.state.watch_began.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.cancel_job(results.JOB)).name == results.JOB


def test_both_clients_have_the_same_shape() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)


def test_public_names_are_there() -> None:
    assert all(hasattr(tightfit, name) for name in tightfit.__all__)
    assert sorted(tightfit.__all__) == tightfit.__all__
