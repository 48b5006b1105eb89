"""A deployment of real processes that faults are done to: replicas, PostgreSQL, S3 gateway, Ray nodes.

Only what workers compute is made up (`scripted_worker.py`). Afterwards `check` compares what callers see,
what the database says, what the store holds and what workers wrote into their ledger.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from minio import Minio

from fakes.ports import free_port
from fakes.postgres_server import PostgresServer, running_postgres
from fakes.s3_gateway import S3Gateway, find_s3_gateway
from running_server import RunningServer
from tightfit import Client, compression_spec
from tightfit.v1 import budget_pb2, dataset_pb2, job_pb2, model_pb2

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
SERVICE = str(Path(__file__).with_name("scripted_service.py"))
TARGET = "nucleo-h7a3zi-q"
BUCKET = "tightfit-faults"
DATABASE = "faults"
PROJECT = "default"
NAMES = ("a", "b")
DAY = 86_400.0
CALLERS = 4
MODEL_BYTES = 100_000
State = job_pb2.CompressionJob.State
FINAL = (State.STATE_SUCCEEDED, State.STATE_INFEASIBLE, State.STATE_FAILED, State.STATE_CANCELLED)
ORDERLY = (State.STATE_SUCCEEDED, State.STATE_INFEASIBLE)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the jobs of a run are."""

    jobs: int = 20
    trials: int = 6
    unit_seconds: float = 1.0
    workers: int = 4
    """Of each replica."""
    lease_seconds: float = 3.0


@dataclass(kw_only=True)
class Outcome:
    """What was found after a run; lists are empty and problems 0 where all is well."""

    jobs: int = 0
    states: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    trials_finished: int = 0
    trials_begun: int = 0
    trials_begun_after_they_were_finished: list[str] = field(default_factory=list)
    trials_computed_twice: int = 0
    """Whose worker came to the end, but whose replica died before it had stored the result."""
    trials_lost_midway: int = 0
    jobs_with_gaps_in_events: int = 0
    artifacts_referenced: int = 0
    artifacts_missing: list[str] = field(default_factory=list)
    artifacts_corrupt: list[str] = field(default_factory=list)
    artifacts_orphaned: int = 0
    orphans_announced_by_dry_run: int = 0
    orphans_after_collection: int = 0
    remains_after_collection: int = 0
    referenced_lost_in_collection: int = 0

    def problems(self) -> list[str]:
        """Return what is not as it must be."""
        names = (
            "errors",
            "trials_begun_after_they_were_finished",
            "jobs_with_gaps_in_events",
            "artifacts_missing",
            "artifacts_corrupt",
            "orphans_after_collection",
            "remains_after_collection",
            "referenced_lost_in_collection",
        )
        found = [f"{name}: {getattr(self, name)}" for name in names if getattr(self, name)]
        if self.orphans_announced_by_dry_run != self.artifacts_orphaned:
            found.append(
                f"the dry run announced {self.orphans_announced_by_dry_run} orphans, "
                f"there were {self.artifacts_orphaned}"
            )
        return found

    def as_json(self) -> dict[str, object]:
        return asdict(self)


class Deployment:
    """Replicas `a` and `b` on one database and one store, and the jobs that were given to them."""

    def __init__(
        self,
        folder: Path,
        *,
        work: Work,
        postgres: PostgresServer,
        gateway: S3Gateway,
        seed: int = 0,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.work, self.postgres, self.gateway = folder, work, postgres, gateway
        self.chance = random.Random(seed)
        self.jobs: list[str] = []
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self._artifacts = folder / "shared"
        self._prefix = f"{os.urandom(4).hex()}/"
        self._specs: list[job_pb2.CompressionSpec] = []
        postgres.execute(f'CREATE DATABASE "{DATABASE}"')
        self.environment = {
            "TIGHTFIT_DATABASE_URL": postgres.url(DATABASE),
            "TIGHTFIT_LEASE_SECONDS": str(work.lease_seconds),
            "TIGHTFIT_CONCURRENT_JOBS": str(max(2, work.jobs // len(NAMES))),
            "TIGHTFIT_WORKER_COUNT": str(work.workers),
            "TIGHTFIT_WORKER_THREADS": "1",
            # one secret of all replicas, as a deployment has it
            "TIGHTFIT_PROVENANCE_KEY_FILE": str(_signing_key(folder / "signing-key.pem")),
            "TIGHTFIT_DRAIN_SECONDS": "10",
            **self._store_settings(),
            **(settings or {}),
        }
        self.replicas = {name: self.replica(name) for name in NAMES}

    def replica(
        self, name: str, *options: str, environment: dict[str, str] | None = None
    ) -> RunningServer:
        """Return a replica with a folder and a port of its own, which it has again after a restart."""
        return RunningServer(
            self.folder / name,
            f"--listen=127.0.0.1:{free_port()}",
            *options,
            program=self.program(),
            environment={
                **self.environment,
                "TIGHTFIT_REPLICA_NAME": name,
                **(environment or {}),
            },
        )

    def program(self, *, shift_seconds: float = 0.0) -> tuple[str, ...]:
        """Return what Python runs as the service."""
        return (SERVICE, str(self.ledger), str(self.work.unit_seconds), str(shift_seconds))

    def start(self) -> Deployment:
        for server in self.replicas.values():
            server.start()
        return self

    def stop(self) -> None:
        for server in self.replicas.values():
            if server.is_running:
                server.stop()

    def client(self, name: str = "") -> Client:
        """Return a client of one replica, or of one that the seed draws."""
        return self.replicas[name or self.chance.choice(NAMES)].client()

    def prepare(self, count: int) -> None:
        """Upload models for so many jobs: each has one of its own, so that no job is answered from another's."""
        with self.client() as client:
            dataset = client.upload_dataset(EXAMPLE / "dataset.yaml")
        with ThreadPoolExecutor(CALLERS) as pool:
            contents = [self.chance.randbytes(MODEL_BYTES) for _ in range(count)]
            for model in pool.map(self.upload_model, contents):
                self._specs.append(spec(model, dataset, trials=self.work.trials))

    def upload_model(self, content: bytes) -> model_pb2.Model:
        path = self.folder / f"model-{hashlib.sha256(content).hexdigest()}.onnx"
        path.write_bytes(content)
        try:
            with self.client() as client:
                return client.upload_model(path)
        finally:
            path.unlink()

    def submit(self, count: int) -> None:
        """Queue jobs, each at a replica that the seed draws."""
        if count > len(self._specs):
            self.prepare(count - len(self._specs))

        def create(wanted: job_pb2.CompressionSpec) -> str:
            with self.client() as client:
                return client.create_job(wanted).name

        with ThreadPoolExecutor(CALLERS) as pool:
            self.jobs += pool.map(create, [self._specs.pop() for _ in range(count)])

    def unfinished(self) -> int:
        """Return how many jobs are not final, as the database says."""
        return int(self.sql("SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')"))

    def wait(self, seconds: float) -> None:
        """Wait until all jobs are final.

        Raises:
            AssertionError: They are not after so many seconds.
        """
        end = time.monotonic() + seconds
        while left := self.unfinished():
            assert time.monotonic() < end, f"{left} jobs did not end: {self.logs()}"
            time.sleep(0.2)

    def sql(self, query: str) -> str:
        return self.postgres.execute(query, name=DATABASE)

    def logs(self) -> str:
        return "\n".join(server.log()[-2_000:] for server in self.replicas.values())

    def command(self, *arguments: str, shift_seconds: float = 0.0) -> str:
        """Run a command of the service, with a clock that is so much ahead, and return what it says."""
        done = subprocess.run(
            [sys.executable, *self.program(shift_seconds=shift_seconds), *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3_000:]
        return done.stdout

    def check(self, *, collect: bool = True) -> Outcome:
        """Look at everything that the jobs left behind; with `collect` let the orphans be collected."""
        found = Outcome(jobs=len(self.jobs))
        self._check_jobs(found)
        self._check_trials(found)
        if collect:
            self._leave_orphan()
        referenced = self._referenced()
        held = self._held()
        found.artifacts_referenced = len(referenced)
        found.artifacts_missing = sorted(referenced - held.keys())
        found.artifacts_corrupt = sorted(name for name, digest in held.items() if name != digest)
        found.artifacts_orphaned = len(held.keys() - referenced)
        if collect:
            self._collect(found, referenced)
        return found

    def _check_jobs(self, found: Outcome) -> None:
        with self.client() as client:
            for name in self.jobs:
                job = client.get_job(name)
                state = State.Name(job.state).removeprefix("STATE_")
                found.states[state] = found.states.get(state, 0) + 1
                if job.state not in ORDERLY:
                    found.errors.append(f"{name} {state}: {job.error.message or job.error}")
                sequences = [event.sequence for event in client.watch_job(name)]
                if sequences != list(range(1, len(sequences) + 1)):
                    found.jobs_with_gaps_in_events += 1

    def _check_trials(self, found: Outcome) -> None:
        finished = self._finished_trials()
        begun: Counter[str] = Counter()
        ended: Counter[str] = Counter()
        for line in self.ledger.read_text().splitlines():
            what, kind, digest, at, _ = line.split()
            if kind != "trial":
                continue
            if what == "end":
                ended[digest] += 1
                continue
            begun[digest] += 1
            if digest in finished and float(at) > finished[digest]:
                found.trials_begun_after_they_were_finished.append(digest)
        found.trials_finished = len(finished)
        found.trials_begun = begun.total()
        found.trials_computed_twice = sum(count - 1 for count in ended.values())
        found.trials_lost_midway = begun.total() - ended.total()

    def _finished_trials(self) -> dict[str, float]:
        """Return when trials were told to be finished, by the digest of their inputs.

        Jobs may share a trial. One that looked for its result before another had it may still wait for a
        worker then, and compute it once more: what counts is when the last of them had told it first.
        """
        rows = self.sql(
            "SELECT t.input_digest, t.job_id, e.document FROM trials t"
            " JOIN job_events e ON e.job_id = t.job_id"
            " WHERE lower(t.document->>'state') = 'completed' AND e.document->>'stage' = 'trial'"
            " AND (e.document->>'trial_index')::int = t.trial_index"
            " AND e.document->>'message' LIKE 'trial %: %'"
        )
        first: dict[tuple[str, str], float] = {}
        for row in rows.splitlines():
            digest, job, text = row.split("|", 2)
            moment = datetime.fromisoformat(json.loads(text)["time"]).timestamp()
            first[digest, job] = min(moment, first.get((digest, job), moment))
        times: dict[str, float] = {}
        for (digest, _), moment in first.items():
            times[digest] = max(moment, times.get(digest, moment))
        return times

    def _leave_orphan(self) -> None:
        """Store an artifact as a replica leaves it that dies before it has recorded what it stored."""
        content = os.urandom(10_000)
        digest = hashlib.sha256(content).hexdigest()
        if self.gateway.url:
            key = f"{self._prefix}{PROJECT}/{digest[:2]}/{digest}"
            self._s3().put_object(BUCKET, key, io.BytesIO(content), len(content))
            return
        folder = self._artifacts / "artifacts" / PROJECT / digest[:2] / digest[2:4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / digest).write_bytes(content)

    def _collect(self, found: Outcome, referenced: set[str]) -> None:
        for path in self._remains():
            # the folder knows by the time of a file that its writer is gone
            os.utime(path, (time.time() - 2 * DAY,) * 2)
        announced = self.command("gc", "--dry-run", shift_seconds=2 * DAY)
        found.orphans_announced_by_dry_run = _count(announced, r"set aside: (\d+)")
        self.command("gc", shift_seconds=2 * DAY)
        self.command("gc", shift_seconds=4 * DAY)
        held = self._held()
        found.orphans_after_collection = len(held.keys() - referenced)
        found.referenced_lost_in_collection = len(referenced - held.keys())
        found.remains_after_collection = self._leftovers()

    def _referenced(self) -> set[str]:
        rows = self.sql(
            "SELECT digest FROM trial_artifacts UNION SELECT digest FROM work_outputs"
            " UNION SELECT digest FROM assets"
        )
        return set(rows.split())

    def _held(self) -> dict[str, str]:
        """Return the artifacts in the store, by name, each with the digest of the bytes that it has."""
        held = {}
        if self.gateway.url:
            store = self._s3()
            for item in store.list_objects(BUCKET, prefix=self._prefix + PROJECT, recursive=True):
                answer = store.get_object(BUCKET, item.object_name)
                held[item.object_name.rpartition("/")[2]] = hashlib.sha256(
                    answer.read()
                ).hexdigest()
                answer.close()
            return held
        for path in (self._artifacts / "artifacts" / PROJECT).glob("??/??/*"):
            held[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return held

    def _leftovers(self) -> int:
        if self.gateway.url:
            store = self._s3()
            return sum(
                sum(1 for _ in store.list_objects(BUCKET, prefix=self._prefix + at, recursive=True))
                for at in (".uploads/", ".aside/")
            )
        return sum(1 for _ in self._remains())

    def _remains(self) -> Iterator[Path]:
        """Yield what writers to the folder left unfinished, and what is set aside there."""
        for at in ("uploads", f"artifacts/{PROJECT}/incoming", f"artifacts/{PROJECT}/aside"):
            yield from (path for path in (self._artifacts / at).rglob("*") if path.is_file())

    def _s3(self) -> Minio:
        return Minio(
            urllib.parse.urlsplit(self.gateway.url).netloc,
            access_key=self.gateway.access_key,
            secret_key=self.gateway.secret_key,
            secure=False,
        )

    def _store_settings(self) -> dict[str, str]:
        if not self.gateway.url:
            return {"TIGHTFIT_ARTIFACT_DIR": str(self._artifacts)}
        return {
            "TIGHTFIT_ARTIFACT_STORE": "s3",
            "TIGHTFIT_S3_URL": self.gateway.url,
            "TIGHTFIT_S3_BUCKET": BUCKET,
            "TIGHTFIT_S3_PREFIX": self._prefix,
            "TIGHTFIT_S3_ACCESS_KEY": self.gateway.access_key,
            "TIGHTFIT_S3_SECRET_KEY": self.gateway.secret_key,
        }


def spec(
    model: model_pb2.Model, dataset: dataset_pb2.Dataset, *, trials: int
) -> job_pb2.CompressionSpec:
    """Return what is asked of a model: a search, for as it is it misses the budget."""
    return compression_spec(
        model=model.name,
        dataset=dataset.name,
        target=TARGET,
        budget=budget_pb2.Budget(max_latency_ms=0.8),
        max_trials=trials,
        max_seconds=900,
        techniques=["structured_pruning"],
    )


@contextmanager
def deployment(
    folder: Path,
    *,
    work: Work,
    seed: int = 0,
    needs_s3: bool = True,
    settings: dict[str, str] | None = None,
) -> Iterator[Deployment]:
    """Yield a deployment that runs, and end it; without an S3 gateway artifacts lie in a shared folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        postgres = stack.enter_context(running_postgres(survives="kill"))
        gateway = S3Gateway(reason_missing="not asked for")
        if needs_s3:
            gateway = stack.enter_context(find_s3_gateway(folder / "s3"))
        made = Deployment(
            folder, work=work, postgres=postgres, gateway=gateway, seed=seed, settings=settings
        )
        stack.callback(made.stop)
        yield made.start()


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a function in a thread, which is told to end by an event; what it raises is raised here."""
    end = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work(end)
        except BaseException as error:  # noqa: BLE001  # raised again below
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(60)
    if raised:
        raise raised[0]


def children(pid: int) -> list[int]:
    """Return the processes below a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *children(child)]
    return found


def is_worker(pid: int) -> bool:
    """Whether a process is a worker, not the launcher that confines it."""
    with contextlib.suppress(OSError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return len(arguments) > 1 and arguments[1].endswith(b"scripted_worker.py")
    return False


def until(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {seconds:.0f} s"
        time.sleep(0.1)


def merge(path: Path, name: str, result: object) -> None:
    """Store a result beside the others of the file."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known[name] = result
    path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def _count(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    assert match, text
    return int(match[1])


def _signing_key(path: Path) -> Path:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return path


def missing(*reasons: str) -> str:
    """Return the first reason that is one."""
    return next((reason for reason in reasons if reason), "")


def sequence(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)
