"""Measures a server under many clients: call times, open watches, memory and file descriptors.

    python benchmarks/load.py [--clients 200] [--watches 1000] [--seconds 40] [--rounds 4] [--json FILE]

The server is a process of its own on loopback with a database of its own (PostgreSQL where it is
installed, or else SQLite), filled with queued jobs. The clients are coroutines of two further processes,
each with a connection of its own. First they wait between their calls, five seconds at the mean and at random,
as programs do that poll their jobs; then they call again as soon as they are answered, so that times are
those of a saturated server. Limits of calls per second are off, as they would refuse what is to be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import grpc

from fakes.postgres_server import reason_missing, running_postgres
from running_server import RunningServer
from tightfit import Client, compression_spec
from tightfit.v1 import budget_pb2, compression_pb2, compression_pb2_grpc, job_pb2

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "digits"
SERVICE = Path(__file__).resolve().parents[1] / "tests" / "faults" / "scripted_service.py"
PROJECT = "projects/default"
HOUR = 3_600
JOBS = 200
"""Queued jobs that are got and listed."""
PAGE = 20
CALLERS = 2
STREAMS_PER_CONNECTION = 100
CALLS = ("GetJob", "ListJobs", "CreateJob")
WEIGHTS = (6, 3, 1)
PAUSE_SECONDS = 5.0
"""Mean wait of a client that polls, between an answer and its next call."""


async def call_for(
    address: str,
    clients: int,
    seconds: float,
    jobs: Sequence[str],
    spec: bytes,
    seed: int,
    pause_seconds: float,
) -> dict[str, list[float]]:
    """Have clients call for so long; return the seconds of each call, by method.

    `pause_seconds` is what a client waits at the mean between an answer and its next call.
    """
    times: dict[str, list[float]] = defaultdict(list)
    end = time.monotonic() + seconds
    wanted = job_pb2.CompressionSpec.FromString(spec)
    chance = random.Random(seed)

    async def client() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            stub = compression_pb2_grpc.CompressionServiceStub(channel)
            while True:
                if pause_seconds:
                    # exponential waits: no client knows of the others
                    await asyncio.sleep(chance.expovariate(1 / pause_seconds))
                if time.monotonic() >= end:
                    return
                name = chance.choices(CALLS, WEIGHTS)[0]
                began = time.perf_counter()
                await _call(stub, name, chance.choice(jobs), wanted)
                times[name].append(time.perf_counter() - began)

    await asyncio.gather(*(client() for _ in range(clients)))
    return times


async def _call(stub: Any, name: str, job: str, wanted: job_pb2.CompressionSpec) -> None:
    if name == "GetJob":
        await stub.GetJob(compression_pb2.GetJobRequest(name=job))
    elif name == "ListJobs":
        await stub.ListJobs(compression_pb2.ListJobsRequest(parent=PROJECT, page_size=PAGE))
    else:
        await stub.CreateJob(
            compression_pb2.CreateJobRequest(
                parent=PROJECT, job=job_pb2.CompressionJob(spec=wanted)
            )
        )


def in_process(*arguments: Any) -> dict[str, list[float]]:
    """Run `call_for` in a process of its own."""
    return dict(asyncio.run(call_for(*arguments)))


def measure_calls(
    address: str,
    *,
    clients: int,
    seconds: float,
    jobs: Sequence[str],
    spec: bytes,
    pool: Any,
    pause_seconds: float = 0.0,
) -> dict[str, dict[str, float]]:
    """Return what calls take with so many clients at once; methods that none of them called are left out."""
    parts = [
        pool.submit(in_process, address, share, seconds, jobs, spec, number, pause_seconds)
        for number, share in enumerate(shares(clients))
    ]
    times: dict[str, list[float]] = defaultdict(list)
    for part in parts:
        for name, found in part.result().items():
            times[name] += found
    return {name: spread(times[name], seconds) for name in CALLS if times[name]}


def shares(clients: int) -> list[int]:
    """Return how many of the clients each process plays."""
    return [len(range(number, clients, CALLERS)) for number in range(CALLERS)]


def spread(times: Sequence[float], seconds: float) -> dict[str, float]:
    """Return percentiles in milliseconds, and the rate, of one call or more."""
    return {
        "count": len(times),
        "per_second": round(len(times) / seconds, 1),
        "p50_ms": percentile_ms(times, 50),
        "p99_ms": percentile_ms(times, 99),
    }


def percentile_ms(times: Sequence[float], percent: int) -> float:
    """Return a percentile of seconds in milliseconds; of a single time that time."""
    if len(times) == 1:
        return round(times[0] * 1e3, 1)
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return round(cuts[percent - 1] * 1e3, 1)


async def watch(address: str, *, watches: int, job: str) -> dict[str, Any]:
    """Open watches of the job that runs, and cancel it; return how soon all of them saw it."""
    seen: list[float] = []
    opened = 0
    all_open = asyncio.Event()

    async def one(stub: Any) -> None:
        nonlocal opened
        call = stub.WatchJob(compression_pb2.WatchJobRequest(name=job))
        first = True
        async for event in call:
            if first:
                first = False
                opened += 1
                if opened == watches:
                    all_open.set()
            if event.state == job_pb2.CompressionJob.STATE_CANCELLED:
                seen.append(time.monotonic())

    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(-(-watches // STREAMS_PER_CONNECTION))
    ]
    stubs = [compression_pb2_grpc.CompressionServiceStub(channel) for channel in channels]
    began = time.monotonic()
    tasks = [asyncio.create_task(one(stubs[number % len(stubs)])) for number in range(watches)]
    async with asyncio.timeout(60):
        await all_open.wait()
    open_seconds = time.monotonic() - began
    calls = []
    for _ in range(200):
        begin = time.perf_counter()
        await stubs[0].GetJob(compression_pb2.GetJobRequest(name=job))
        calls.append(time.perf_counter() - begin)
    cancelled = time.monotonic()
    await stubs[0].CancelJob(compression_pb2.CancelJobRequest(name=job))
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks)
    for channel in channels:
        await channel.close()
    return {
        "watches": watches,
        "open_seconds": round(open_seconds, 2),
        "get_job_meanwhile_p50_ms": percentile_ms(calls, 50),
        "get_job_meanwhile_p99_ms": percentile_ms(calls, 99),
        "saw_the_end": len(seen),
        "last_saw_it_after_seconds": round(max(seen) - cancelled, 2),
    }


def usage(pid: int) -> dict[str, float]:
    """Return what a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return {
        "resident_mebibytes": round(pages * os.sysconf("SC_PAGESIZE") / (1 << 20), 1),
        "file_descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }


def settled(pid: int) -> dict[str, float]:
    """Return what a process holds once its connections are closed."""
    found = usage(pid)
    for _ in range(20):
        time.sleep(0.25)
        now = usage(pid)
        if now["file_descriptors"] >= found["file_descriptors"]:
            return now
        found = now
    return found


def wanted_spec(client: Client) -> job_pb2.CompressionSpec:
    """Upload the digits example and return what is asked of it."""
    return compression_spec(
        model=client.upload_model(EXAMPLE / "digits.onnx").name,
        dataset=client.upload_dataset(EXAMPLE / "dataset.yaml").name,
        target="nucleo-h7a3zi-q",
        budget=budget_pb2.Budget(max_latency_ms=1.0),
        max_trials=1,
    )


def settings(database: str) -> dict[str, str]:
    """Return what the server is told: jobs stay in the queue, and nobody is refused."""
    return {
        "TIGHTFIT_DATABASE_URL": database,
        "TIGHTFIT_LIMIT_REQUESTS_PER_SECOND": "0",
        "TIGHTFIT_LIMIT_CONCURRENT_CALLS": "0",
        "TIGHTFIT_WORKER_COUNT": "1",
    }


def run(folder: Path, *, clients: int, watches: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Measure, and return what was found."""
    load_before = [round(one, 1) for one in os.getloadavg()]
    with ExitStack() as stack:
        database = ""
        if not reason_missing():
            database = stack.enter_context(running_postgres(survives="power cut")).database()
        server = RunningServer(
            folder / "data",
            # its workers come to no end, so that jobs stay in the queue
            program=(str(SERVICE), str(folder / "ledger"), str(HOUR), "0"),
            environment=settings(database),
        ).start()
        stack.callback(server.stop)
        with server.client() as client:
            spec = wanted_spec(client)
            jobs = [client.create_job(spec).name for _ in range(JOBS)]
        pool = stack.enter_context(
            ProcessPoolExecutor(CALLERS, mp_context=multiprocessing.get_context("spawn"))
        )
        measure = partial(
            measure_calls,
            server.address,
            clients=clients,
            jobs=jobs,
            spec=spec.SerializeToString(),
            pool=pool,
        )
        # caches and pools of connections fill, and the processes of the clients start
        measure(seconds=min(3.0, seconds))
        held = [settled(server.pid)]
        polling = measure(seconds=seconds, pause_seconds=PAUSE_SECONDS)
        print("polling:", polling, flush=True)
        calls, watched = [], []
        for _ in range(rounds):
            calls.append(measure(seconds=seconds / rounds))
            with server.client() as client:
                job = running_job(client)
            watched.append(asyncio.run(watch(server.address, watches=watches, job=job)))
            held.append(settled(server.pid))
            print(calls[-1], watched[-1], held[-1], sep="\n", flush=True)
    return {
        "cores": os.cpu_count(),
        "database": "PostgreSQL" if database else "SQLite",
        "clients": clients,
        "queued_jobs_at_the_start": JOBS,
        "page": PAGE,
        "pause_seconds": PAUSE_SECONDS,
        "polling": polling,
        "calls": calls,
        "watches": watched,
        "held": held,
        "load_average_before": load_before,
    }


def running_job(client: Client) -> str:
    """Return the job that runs; it comes to no end, so that all others stay in the queue."""
    while True:
        for job in client.list_jobs(states=[job_pb2.CompressionJob.STATE_RUNNING]):
            return job.name
        time.sleep(0.1)


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description="Measure a server under many clients.")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--watches", type=int, default=1_000)
    parser.add_argument(
        "--seconds",
        type=float,
        default=40.0,
        help="of calls, once with pauses and once over all rounds without",
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tightfit-load-") as folder:
        found = run(
            Path(folder),
            clients=arguments.clients,
            watches=arguments.watches,
            seconds=arguments.seconds,
            rounds=arguments.rounds,
        )
    print(json.dumps(found["held"], indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
