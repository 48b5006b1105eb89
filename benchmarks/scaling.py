"""Measures trials per hour with one worker and with two, in local processes and on a Ray cluster.

python benchmarks/scaling.py [--trials N] [--epochs E] [--executors local ray] [--json FILE]

A trial is a real one: the digits model of `examples/digits` pruned by a quarter, trained back, quantized,
exported and evaluated, each with another seed; all measurements are of the same trials, in the same order. A
worker computes with one thread, so a machine needs two idle cores. The Ray cluster is two nodes of this machine,
one core each, which the script starts and ends. Efficiency is the rate with two workers over twice the rate with
one; the number of trials must be even, for with an odd one a worker stands idle at the end. What the service's
own process computes meanwhile takes from the cores that workers have, and is measured per trial. What the
machine's cores give together is measured besides, by plain processes that train a small network each: no
executor can be better.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fakes.ray_cluster import RayCluster
from fakes.telemetry import RecordingTelemetry
from tightfit.dataset_archive import packed
from tightfit.dataset_file import read_dataset_file
from tightfit_service.adapters.execution.executors import ExecutorOptions, make_executor
from tightfit_service.adapters.execution.limits import Confinement
from tightfit_service.adapters.storage.folder_artifacts import FolderArtifactStores
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import (
    Executor,
    QuantizationSettings,
    RecoverySettings,
    WorkUnit,
)
from tightfit_service.application.units.kinds import Nothing
from tightfit_service.application.work.model_import import IMPORT_MODEL
from tightfit_service.application.work.trial import TRIAL, TrialTask
from tightfit_service.domain.recipe import PassStep, Recipe

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "scaling"
TARGET = "nucleo-h7a3zi-q"
KEPT = 0.75
SECOND_NODE = "127.0.0.3"
EXECUTORS = ("local", "ray")
PLAIN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one executor did with one number of workers."""

    executor: str
    workers: int
    trials: int
    seconds: float
    trials_per_hour: float
    efficiency: float
    """Against one worker of the same executor; 1 is perfect."""
    service_cpu_ms_per_trial: float | None = None
    """Processor time of the process that owns the executor; None where there is none."""


@dataclass(frozen=True)
class Spent:
    """What trials took, and what the process that had them run took itself."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)


def main() -> None:
    """Measure, print, and store."""
    arguments = make_parser().parse_args()
    rows: list[Rate] = []
    for kind in arguments.executors:
        with tempfile.TemporaryDirectory(prefix="scaling-") as folder, _cluster(kind) as cluster:
            spent = {1: Spent(), 2: Spent()}
            # in turns, back and forth: a rented machine is faster at some times than at others
            for turn, workers in enumerate((1, 2, 2, 1)):
                work = _measured(
                    kind,
                    workers,
                    cluster,
                    Path(folder) / str(turn),
                    trials=arguments.trials,
                    epochs=arguments.epochs,
                )
                spent[workers] += asyncio.run(work)
        for row in rates_of(kind, 2 * arguments.trials, spent):
            rows.append(row)
            print(row, flush=True)
    rows += _machine()
    if arguments.json is not None:
        found = {"cores": os.cpu_count(), "rates": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def rates_of(kind: str, trials: int, spent: Mapping[int, Spent]) -> Iterator[Rate]:
    """Yield what an executor did in so many trials, by its number of workers."""
    for workers, took in spent.items():
        yield Rate(
            executor=kind,
            workers=workers,
            trials=trials,
            seconds=round(took.seconds, 2),
            trials_per_hour=round(trials / took.seconds * 3_600, 1),
            efficiency=round(spent[1].seconds / (workers * took.seconds), 3),
            service_cpu_ms_per_trial=round(took.cpu_seconds / trials * 1_000, 1),
        )


def _machine() -> list[Rate]:
    """Return what one plain process and two train in the same time."""
    rows: list[Rate] = []
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_steps, [1.0, 1.0]))
        steps_of = {1: 0, 2: 0}
        for workers in (1, 2, 2, 1):
            steps_of[workers] += sum(pool.map(_steps, [PLAIN_SECONDS] * workers))
        for workers, steps in steps_of.items():
            rows.append(
                Rate(
                    executor="plain processes",
                    workers=workers,
                    trials=steps,
                    seconds=2 * PLAIN_SECONDS,
                    trials_per_hour=round(steps / (2 * PLAIN_SECONDS) * 3_600, 1),
                    efficiency=round(steps / (workers * steps_of[1]), 3),
                )
            )
            print(rows[-1], flush=True)
    return rows


def _steps(seconds: float) -> int:
    """Train a small network for so long with one thread and return the number of steps."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 64, 10),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    images, labels = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        optimizer.step()
        count += 1
    return count


async def _measured(
    kind: str, workers: int, cluster: RayCluster | None, folder: Path, *, trials: int, epochs: float
) -> Spent:
    """Return what the trials take with warm workers."""
    stores = FolderArtifactStores(root=folder / "artifacts")
    executor = make_executor(
        ExecutorOptions(
            data_dir=folder,
            worker_count=workers,
            threads=1,
            confinement=Confinement(),
            kind=kind,
            ray_address=cluster.address if cluster is not None else "",
            ray_token_file=cluster.token_file if cluster is not None else "",
            ray_node_dir=str(folder / "nodes"),
        ),
        artifacts=stores,
        telemetry=RecordingTelemetry(),
    )
    await executor.start()
    try:
        units = await _units(executor, stores, trials=trials + workers, epochs=epochs)
        # each worker loads its libraries and the data before the clock runs
        await asyncio.gather(*(_run(executor, unit) for unit in units[trials:]))
        begin, begin_cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(_run(executor, unit) for unit in units[:trials]))
        return Spent(time.perf_counter() - begin, time.process_time() - begin_cpu)
    finally:
        await executor.stop()


async def _units(
    executor: Executor, stores: FolderArtifactStores, *, trials: int, epochs: float
) -> list[WorkUnit]:
    """Return trials of the digits model that differ in their seeds."""
    digits = ROOT / "examples" / "digits"
    with packed(read_dataset_file(digits / "dataset.yaml")) as archive:
        dataset = _stored(stores, archive.path)
    imported = await executor.run(
        IMPORT_MODEL.unit(
            Nothing(),
            project=PROJECT,
            inputs={"model": _stored(stores, digits / "digits.onnx")},
            label="digits",
        ),
        on_progress=lambda *_: None,
    )
    facts = IMPORT_MODEL.outcome(imported)
    keep = {
        group.group_id: list(range(max(1, round(KEPT * group.unit_count))))
        for group in facts.space.groups
    }
    target = YamlTargetCatalogue().get(TARGET)
    return [
        TRIAL.unit(
            TrialTask(
                model=facts,
                recipe=_recipe(seed, keep, epochs),
                target=target,
                evaluate=True,
                teacher_key="scaling",
            ),
            project=PROJECT,
            inputs={"graph": imported.outputs["graph"], "dataset": dataset},
            label=f"trial {seed}",
        )
        for seed in range(trials)
    ]


def _recipe(seed: int, keep: Mapping[str, Sequence[int]], epochs: float) -> Recipe:
    steps = (
        PassStep(pass_name="structured_pruning", parameters={"keep": dict(keep)}),
        PassStep(
            pass_name="recovery",
            parameters=to_plain(RecoverySettings(epochs=epochs, max_seconds=3_600.0)),
        ),
        PassStep(pass_name="quantization", parameters=to_plain(QuantizationSettings())),
    )
    return Recipe(
        source_digest="0" * 64,
        seed=seed,
        target=TARGET,
        output_format="tflite",
        steps=steps,
    )


async def _run(executor: Executor, unit: WorkUnit) -> Any:
    return await executor.run(unit, on_progress=lambda *_: None)


def _stored(stores: FolderArtifactStores, path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    stores.of(PROJECT).put(path, digest)
    return digest


@contextmanager
def _cluster(kind: str) -> Iterator[RayCluster | None]:
    if kind != "ray":
        yield None
        return
    cluster = RayCluster.start(cpus=1)
    try:
        cluster.add_node(SECOND_NODE)
        yield cluster
    finally:
        cluster.stop()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--trials", type=_even, default=8, help="trials per measurement; there are two of each"
    )
    parser.add_argument("--epochs", type=float, default=10.0, help="epochs of training per trial")
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=EXECUTORS)
    parser.add_argument("--json", type=Path, help="file to store the figures in")
    return parser


def _even(text: str) -> int:
    """Return an even number of at least two.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    number = int(text)
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError(
            f"{number} trials are no even number: with two workers one would be idle during the last"
        )
    return number


if __name__ == "__main__":
    main()
