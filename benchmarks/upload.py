"""Throughput of an upload beside a bare gRPC stream, and the server's memory meanwhile.

Sends a 200 MB dataset archive over loopback, in turn to a tightfit server and to a bare gRPC server in
a process of its own that reads the same messages and throws them away. The tightfit figure is the whole
upload as a user waits for it: announced, received, hashed, stored durably, its content checked by a
worker, recorded. Each round uses fresh bytes, so nothing is found there already.

Usage: python benchmarks/upload.py [--megabytes 200] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent import futures
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from tightfit import Client, operations
from tightfit.connection import Patience, open_channel
from tightfit.credentials import Credentials
from tightfit.transfer import CHUNK_BYTES, OutgoingFile
from tightfit.v1 import dataset_pb2, dataset_pb2_grpc

SAMPLE_SHAPE = (3, 64, 64)
MANIFEST = {
    "version": 1,
    "task": "classification",
    "arrays": {"x": "arrays/x.npy", "y": "arrays/y.npy"},
    "splits": {"evaluation": {"input": "x", "label": "y"}},
    "calibration": {"from": "evaluation", "count": 16},
    "layout": "NCHW",
    "preprocess": {"scale": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]},
    "metric": "top1",
}


class Bare:
    """Reads uploads and forgets them."""

    def UploadDataset(  # noqa: N802  # the name of the method in the contract
        self, requests: Iterator[dataset_pb2.UploadDatasetRequest], _: grpc.ServicerContext
    ) -> dataset_pb2.DatasetUpload:
        """Count the bytes."""
        return dataset_pb2.DatasetUpload(committed_bytes=sum(len(r.data) for r in requests))


def serve_bare(pipe: Connection) -> None:
    """Serve until the other end of the pipe speaks."""
    server = grpc.server(
        futures.ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", 8 << 20)]
    )
    handler = grpc.stream_unary_rpc_method_handler(
        Bare().UploadDataset,
        request_deserializer=dataset_pb2.UploadDatasetRequest.FromString,
        response_serializer=dataset_pb2.DatasetUpload.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "tightfit.v1.DatasetService", {"UploadDataset": handler}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pipe.send(port)
    pipe.recv()
    server.stop(None)


def make_archive(path: Path, megabytes: int, seed: int) -> str:
    """Write a dataset of that size with random images; return its digest."""
    generator = np.random.default_rng(seed)
    count = megabytes * 1_000_000 // int(np.prod(SAMPLE_SHAPE))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps(MANIFEST))
        with archive.open("arrays/x.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(
                member, generator.integers(0, 256, (count, *SAMPLE_SHAPE), dtype=np.uint8)
            )
        with archive.open("arrays/y.npy", "w") as member:
            np.lib.format.write_array(member, generator.integers(0, 10, count))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bare_seconds(port: int, path: Path) -> float:
    """Return how long the bytes take to the bare server."""

    def messages() -> Iterator[dataset_pb2.UploadDatasetRequest]:
        with path.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                yield dataset_pb2.UploadDatasetRequest(data=data)

    with open_channel(f"127.0.0.1:{port}", Credentials()) as channel:
        stub = dataset_pb2_grpc.DatasetServiceStub(channel)
        grpc.channel_ready_future(channel).result(timeout=10)
        began = time.perf_counter()
        answer = stub.UploadDataset(messages())
        seconds = time.perf_counter() - began
    if answer.committed_bytes != path.stat().st_size:
        raise SystemExit("the bare server lost bytes")
    return seconds


def upload_seconds(address: str, path: Path, digest: str) -> tuple[float, float]:
    """Return the seconds until all bytes were taken, and until the upload was complete."""
    sent = [0.0]

    def note(done: int, whole: int) -> None:
        if done == whole:
            sent[0] = time.perf_counter()

    with Client(address) as client:
        next(iter(client.list_targets()))  # the connection is up, as it is for the bare stream
        archive = OutgoingFile(
            path=path, size_bytes=path.stat().st_size, digest=digest, display_name="benchmark"
        )
        began = time.perf_counter()
        client._run(  # noqa: SLF001  # packing is left out of what is measured
            operations.upload_dataset(
                archive, project=client.project, patience=Patience(), on_progress=note
            )
        )
        ended = time.perf_counter()
    return sent[0] - began, ended - began


class PeakMemory:
    """Watches the resident memory of a process, in bytes."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.before = self._now()
        self.peak = self.before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _now(self) -> int:
        for line in self._status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise SystemExit("the server is gone")

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, self._now())

    def growth(self) -> int:
        """Stop watching and return by how much memory grew at most."""
        self._stop.set()
        self._thread.join()
        return self.peak - self.before


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    bare = multiprocessing.Process(target=serve_bare, args=(theirs,), daemon=True)
    bare.start()
    port: int = ours.recv()
    with tempfile.TemporaryDirectory() as name:
        rounds = measure(Path(name), arguments.megabytes, arguments.rounds, port)
    ours.send("stop")
    bare.join()
    report(rounds, arguments.megabytes)
    if arguments.json:
        arguments.json.write_text(json.dumps(rounds, indent=1) + "\n")


def measure(folder: Path, megabytes: int, count: int, port: int) -> list[dict[str, float]]:
    """Return the figures of each round."""
    ready = folder / "ready.json"
    server = subprocess.Popen(
        [
            sys.executable, "-m", "tightfit_service", "serve", "--listen=127.0.0.1:0",
            "--metrics-listen=", f"--data-dir={folder / 'data'}", f"--ready-file={ready}",
            "--log-level=warning",
        ]
    )  # fmt: skip
    try:
        while not ready.exists():
            if server.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.05)
        address = json.loads(ready.read_text())["address"]
        rounds = []
        for seed in range(count + 1):
            path = folder / "archive.zip"
            digest = make_archive(path, megabytes if seed else 1, seed)
            bare = bare_seconds(port, path)
            memory = PeakMemory(server.pid)
            sent, whole = upload_seconds(address, path, digest)
            growth = memory.growth()
            if seed:  # the first round warms up worker and interpreter
                rounds.append(
                    {
                        "bare_s": bare,
                        "sent_s": sent,
                        "whole_s": whole,
                        "memory_growth_bytes": growth,
                    }
                )
        return rounds
    finally:
        server.terminate()
        server.wait()


def report(rounds: list[dict[str, Any]], megabytes: int) -> None:
    """Print medians, and the ratio round by round."""

    def median(key: str) -> float:
        return float(statistics.median(r[key] for r in rounds))

    print(f"{megabytes} MB over loopback, {len(rounds)} rounds, medians")
    for key, what in (
        ("bare_s", "bare gRPC stream"),
        ("sent_s", "tightfit, until all bytes were taken"),
        ("whole_s", "tightfit, until stored, checked and recorded"),
    ):
        print(f"  {what:46s} {median(key):6.2f} s  {megabytes / median(key):6.0f} MB/s")
    for key, what in (("sent_s", "transfer"), ("whole_s", "whole upload")):
        ratio = statistics.median(r["bare_s"] / r[key] for r in rounds)
        print(f"  throughput of the {what} against the bare stream: {ratio:.0%}")
    growth = max(r["memory_growth_bytes"] for r in rounds)
    print(f"  the server's memory grew by at most {growth / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
