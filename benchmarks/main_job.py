"""The main job on two CIFAR-10 networks: half the int8 latency, beside two yardsticks.

For each network `tightfit compress` gets `--max-latency` at half of the quantized-only model's estimate.
Beside its result stand two yardsticks of the same machine and run:

int8 only        what a user would otherwise ship; it misses the latency limit
uniform pruning  every prunable group keeps the same share of its channels, the largest share that meets
                 the limit, ranked by the same importance and trained back for the same time

Usage: python benchmarks/main_job.py --data DIR [--target NAME] [--networks resnet20,resnet8]
           [--max-time 14m] [--json FILE]

DIR holds `cifar10/cifar10_train20k_test4k.npz` and `models/*.onnx`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.local_units import LocalUnits

from tightfit.dataset_archive import packed
from tightfit.dataset_file import read_dataset_file
from tightfit_service import bootstrap
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.application.costs.costing import CostModel, select_emulator
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import QuantizationSettings, RecoverySettings
from tightfit_service.application.units.kinds import Nothing
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.model_import import IMPORT_MODEL
from tightfit_service.application.work.sensitivity import (
    SENSITIVITY,
    SensitivityOutcome,
    SensitivityTask,
    most_important,
)
from tightfit_service.application.work.trial import TRIAL, TrialTask
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.network import DEFAULT_IMPORTANCE
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.structured_pruning import StructuredPruningPass

NETWORKS = {
    "resnet8": (
        "models/mlperf_resnet8_cifar10_fp32.onnx",
        "{scale: 1.0, mean: [0, 0, 0], std: [1, 1, 1]}",
    ),
    "resnet20": (
        "models/resnet20_cifar10_fp32.onnx",
        "{scale: 0.00392156862745098, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}",
    ),
}

MANIFEST = """\
task: classification
arrays: cifar10_train20k_test4k.npz
splits:
  train:      {{input: train_x, label: train_y}}
  evaluation: {{input: test_x, label: test_y}}
layout: NCHW
preprocess: {preprocess}
metric: top1
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; latency in milliseconds, accuracy as a fraction."""

    network: str
    what: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    latency_ms: float
    latency_high_ms: float
    macs: int
    file_bytes: int
    seconds: float


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", default="nucleo-h7a3zi-q")
    parser.add_argument("--networks", default="resnet20,resnet8")
    parser.add_argument("--max-time", default="14m")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for network in arguments.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found = run_network(
                network, arguments.data, Path(folder), arguments.target, arguments.max_time
            )
            for row in found:  # each is stored when it is there: the next may take many minutes
                rows.append(row)
                if arguments.json:
                    text = json.dumps([asdict(known) for known in rows], indent=1)
                    arguments.json.write_text(text + "\n")
        show(rows)


def run_network(
    network: str, data: Path, folder: Path, target: str, max_time: str
) -> Iterator[Row]:
    """Yield the rows of one network, each once it was measured."""
    file, preprocess = NETWORKS[network]
    model = data / file
    shutil.copy(data / "cifar10/cifar10_train20k_test4k.npz", folder)
    manifest = folder / "dataset.yaml"
    manifest.write_text(MANIFEST.format(preprocess=preprocess))
    estimates = command("estimate", model, "--target", target, folder=folder)["estimates"]
    limit = estimates["int8"]["estimated_latency_ms"]["value"] / 2
    began = time.monotonic()
    result = command(
        "compress",
        model,
        f"--data={manifest}",
        f"--target={target}",
        f"--max-latency={limit}ms",
        f"--max-time={max_time}",
        f"--output={folder / 'out'}",
        folder=folder,
    )
    seconds = time.monotonic() - began
    print(f"{network}: limit {limit:.3f} ms, {len(result['trials'])} trials", file=sys.stderr)
    for trial in result["trials"]:
        print(
            f"  trial {trial['index']} {trial['role']}: selection {trial['selection_accuracy']}, "
            f"evaluation {trial['accuracy']}, {trial['estimated_latency_ms']}",
            file=sys.stderr,
        )
    yield row_of(network, "as it came (float32)", result["baseline"], 0.0)
    yield row_of(network, "int8 only", result["baseline_int8"], 0.0)
    if result["best"] is None:
        print(f"{network}: {result['state']}: {result['infeasibility']}", file=sys.stderr)
        return
    yield row_of(network, "tightfit", result["best"], seconds)
    trained = result["best"]["stage_seconds"].get("recover", 0.0)
    yield uniform(network, model, manifest, folder, target, limit, trained)


def command(verb: str, *arguments: object, folder: Path) -> Any:
    """Run the command line against a server of its own and return what it prints."""
    line = [
        sys.executable,
        "-m",
        "tightfit",
        verb,
        *map(str, arguments),
        "--local",
        f"--data-dir={folder / 'server'}",
        "--json",
    ]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(line)} ended with {done.returncode}")
    return json.loads(done.stdout)


def row_of(network: str, what: str, metrics: Mapping[str, Any], seconds: float) -> Row:
    """Return the line of a model in a result file."""
    return Row(
        network=network,
        what=what,
        accuracy=metrics["accuracy"],
        accuracy_low=metrics["accuracy_low"],
        accuracy_high=metrics["accuracy_high"],
        latency_ms=metrics["estimated_latency_ms"]["value"],
        latency_high_ms=metrics["estimated_latency_ms"]["high"],
        macs=metrics["macs"],
        file_bytes=metrics["file_bytes"],
        seconds=seconds,
    )


def uniform(
    network: str,
    model: Path,
    manifest: Path,
    folder: Path,
    target: str,
    limit: float,
    trained: float,
) -> Row:
    """Prune every group by one share, train back as long as tightfit's winner was, evaluate."""
    with packed(read_dataset_file(manifest)) as archive:
        return _uniform(network, model, archive.path, folder, target, limit, trained)


def _uniform(
    network: str,
    model: Path,
    archive: Path,
    folder: Path,
    target: str,
    limit: float,
    trained: float,
) -> Row:
    units = LocalUnits(folder / "uniform")
    facts, files = units.run(IMPORT_MODEL, Nothing(), {"model": model}, folder / "imported")
    inputs = {"graph": files["graph"], "dataset": archive}
    hardware = bootstrap.catalogue().get(target)
    scored, _ = units.run(
        SENSITIVITY,
        SensitivityTask(
            model=facts,
            target=hardware,
            seed=0,
            space=facts.space,
            importance=DEFAULT_IMPORTANCE,
            shares=(),
            techniques=(),
            number_format=None,
        ),
        inputs,
        folder / "scored",
    )
    costs = CostModel(
        emulator=select_emulator(bootstrap.emulators(), hardware),
        target=hardware,
        telemetry=PrometheusTelemetry(),
    )
    keep = _largest_share(facts, files["graph"].read_bytes(), scored, costs, limit)
    recipe = Recipe(
        source_digest="0" * 64,
        seed=0,
        target=target,
        output_format=str(hardware.output_format),
        steps=(
            PassStep(pass_name="structured_pruning", parameters={"keep": keep}),
            PassStep(
                pass_name="recovery",
                parameters=to_plain(RecoverySettings(epochs=30.0, max_seconds=trained)),
            ),
            PassStep(pass_name="quantization", parameters=to_plain(QuantizationSettings())),
        ),
    )
    began = time.monotonic()
    outcome, _ = units.run(
        TRIAL,
        TrialTask(
            model=facts, recipe=recipe, target=hardware, evaluate=True, teacher_key="uniform"
        ),
        inputs,
        folder / "trial",
    )
    cost = costs.estimate(outcome.profile, NumberFormat.INT8, file_bytes=outcome.file_bytes)
    assert outcome.accuracy is not None
    return Row(
        network=network,
        what="uniform pruning, same training time",
        accuracy=outcome.accuracy.value,
        accuracy_low=outcome.accuracy.low,
        accuracy_high=outcome.accuracy.high,
        latency_ms=cost.latency_ms.value,
        latency_high_ms=cost.latency_ms.high,
        macs=cost.macs,
        file_bytes=outcome.file_bytes,
        seconds=time.monotonic() - began,
    )


def _largest_share(
    facts: ModelFacts,
    graph: bytes,
    scored: SensitivityOutcome,
    costs: CostModel,
    limit: float,
) -> dict[str, list[int]]:
    for percent in range(99, 4, -1):
        keep = {
            group.group_id: most_important(
                scored.importance[group.group_id], max(1, round(group.unit_count * percent / 100))
            )
            for group in facts.space.groups
        }
        profile = OnnxGraphInspector().profile(StructuredPruningPass().apply(graph, keep))
        if costs.estimate(profile, NumberFormat.INT8).latency_ms.high <= limit:
            return keep
    raise SystemExit("no uniform share meets the limit")


def show(rows: list[Row]) -> None:
    """Print the table in Markdown."""
    print("| network | model | top-1 | 95 % interval | latency ms (at most) | MACs | file | job |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        job = f"{r.seconds:.0f} s" if r.seconds else ""
        print(
            f"| {r.network} | {r.what} | {r.accuracy:.2%} | {r.accuracy_low:.2%} to "
            f"{r.accuracy_high:.2%} | {r.latency_ms:.2f} ({r.latency_high_ms:.2f}) | "
            f"{r.macs / 1e6:.2f} M | {r.file_bytes / 1024:.1f} KiB | {job} |"
        )


if __name__ == "__main__":
    main()
