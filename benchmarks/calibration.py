"""Calibrates this machine as a device, and holds the result against networks that it has not seen.

A server and a runner start on this machine; `CalibrateHardwareTarget` measures the designed set and
corrects the emulator. The unseen networks are those of the coverage suite, each as it comes and with
half of its prunable channels removed at random, in int8 and float32 by turns: none is of the designed
set, and no code makes both. Each is measured twice, one after the other, so that the scatter of a repeated
measurement is known; the estimates are those that a client of the server gets. What is predicted is
the latency of an undisturbed run: on a machine whose cores are shared with others, medians move by
half from minute to minute. So a measurement is, as in a calibration, several rounds over all networks,
and of each network the lowest 10th percentile of the runs counts. The scatter of single rounds and of
their medians is told, too.

    write     writes all files; may share the machine with other work
    measure   calibrates and measures; wants a quiet machine
    refit     fits anew to what was measured (here, or elsewhere: `observations.py restore`) and scores again,
              after a change of the emulator
    curve     the same, and fits to the first of the designed networks only

With `--keep`, a calibration measures only files that the last one in the same folder did not.

Usage: python benchmarks/calibration.py --work DIR [--stage write,measure] [--runtimes litert,onnxruntime]
           [--networks 400] [--keep] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from running_server import RunningServer  # noqa: E402  # needs the path above
from tightfit import Client  # noqa: E402
from tightfit.errors import AlreadyExistsError  # noqa: E402
from tightfit.v1 import hardware_pb2  # noqa: E402
from tightfit_runner.device import this_device  # noqa: E402
from tightfit_runner.measurement import LocalMachine, Order  # noqa: E402
from tightfit_runner.runtimes import installed  # noqa: E402
from tightfit_service.adapters.emulators.calibrated import ProcessFitter  # noqa: E402
from tightfit_service.adapters.storage.database import open_database  # noqa: E402
from tightfit_service.adapters.storage.sql_calibrations import SqlCalibrationStore  # noqa: E402
from tightfit_service.adapters.storage.sql_targets import SqlTargetStore  # noqa: E402
from tightfit_service.api.codec.calibration import calibration_to_proto  # noqa: E402
from tightfit_service.api.codec.hardware import partial_from_proto  # noqa: E402
from tightfit_service.application.hardware.calibration import (  # noqa: E402
    LEAST_ROUNDS,
    MOST_ROUNDS,
    rounds_agree,
)
from tightfit_service.application.ports import (  # noqa: E402
    Exporter,
    QuantizationSettings,
    TensorSignature,
)
from tightfit_service.application.samples import Samples  # noqa: E402
from tightfit_service.application.work.calibration import DESIGN  # noqa: E402
from tightfit_service.bootstrap import catalogue  # noqa: E402
from tightfit_service.bootstrap.hardware import emulators  # noqa: E402
from tightfit_service.domain.calibration import (  # noqa: E402
    Calibration,
    CalibrationProgress,
    Observation,
)
from tightfit_service.domain.dataset import Layout  # noqa: E402
from tightfit_service.domain.errors import TightfitError  # noqa: E402
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat  # noqa: E402

RUNTIMES = {"litert": ("LiteRT", "tflite"), "onnxruntime": ("ONNX Runtime", "onnx")}
FORMATS = ("int8", "float32")
SECONDS = 0.1
"""Of measuring per network, at least."""
RUNS = 50
"""Per network, at least."""
FIRST_COUNTS = (50, 100, 200, 400, 800)
"""Of the designed networks per number format that a refit tries, where more were measured."""
PROJECT = "default"
KEPT_SHARE = 0.5
"""Of the channels of each prunable group, in the smaller variant of a network."""
SAMPLE_COUNT = 8
TEST_SET_SEED = 11


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """A network of the test set as written for a runtime."""

    name: str
    number_format: str
    graph: str
    file: str


def write_unseen(folder: Path, runtime: str) -> list[Unseen]:
    """Write the test set for a runtime, or find it written; networks that cannot be are told."""
    import torch

    listing = folder / "unseen.pkl"
    if listing.exists():
        found: list[Unseen] = pickle.loads(listing.read_bytes())
        return found
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    exporter = exporter_of(runtime)
    target = catalogue().complete(partial_from_proto(target_of(runtime, name=target_name(runtime))))
    rng = np.random.default_rng(TEST_SET_SEED)
    written: list[Unseen] = []
    for title, graph, signature in unseen_graphs(rng):
        number_format = FORMATS[len(written) % 2]
        samples = random_samples(rng, signature)
        try:
            exported = exporter.export(
                graph,
                calibration=samples,
                settings=QuantizationSettings(
                    number_format=NumberFormat(number_format), method="minmax"
                ),
                metadata={},
                target=target,
            )
        except (TightfitError, ValueError) as error:
            # converters raise bare ValueErrors too, and one network must not cost the run
            print(f"  not written: {title} in {number_format}: {error}", flush=True)
            continue
        stem = folder / f"unseen-{len(written)}"
        stem.with_suffix(".onnx").write_bytes(graph)
        stem.with_suffix(".file").write_bytes(exported.data)
        written.append(
            Unseen(
                name=title,
                number_format=number_format,
                graph=str(stem.with_suffix(".onnx")),
                file=str(stem.with_suffix(".file")),
            )
        )
    listing.write_bytes(pickle.dumps(written))
    return written


def unseen_graphs(rng: np.random.Generator) -> Iterator[tuple[str, bytes, TensorSignature]]:
    """Yield title, graph and input of every network of one input, whole and with fewer channels."""
    from architectures import ARCHITECTURES
    from tightfit_service.adapters.formats.onnx_import import OnnxImporter
    from tightfit_service.passes.structured_pruning import StructuredPruningPass

    importer, pruning = OnnxImporter(), StructuredPruningPass()
    for name, architecture in ARCHITECTURES.items():
        if len(architecture.shapes) != 1:
            continue
        model = importer.import_model(architecture.export())
        keep = {
            group.group_id: sorted(
                rng.choice(
                    group.unit_count, max(1, round(KEPT_SHARE * group.unit_count)), replace=False
                ).tolist()
            )
            for group in pruning.space(model.graph).groups
        }
        yield name, model.graph, model.inputs[0]
        if keep:
            yield f"{name}, half its channels", pruning.apply(model.graph, keep), model.inputs[0]


def exporter_of(runtime: str) -> Exporter:
    """Return what writes files for a runtime."""
    from tightfit_service.adapters.formats.onnx_export import OnnxExporter
    from tightfit_service.adapters.formats.tflite_export import TfliteExporter
    from tightfit_service.passes.quantization import StaticQuantizationPass

    if runtime == "litert":
        return TfliteExporter()
    return OnnxExporter(quantizer=StaticQuantizationPass())


def random_samples(rng: np.random.Generator, signature: TensorSignature) -> Samples:
    """Return inputs that activation ranges are taken from: only the speed of the files matters."""
    stored = rng.normal(size=(SAMPLE_COUNT, *signature.shape[1:])).astype(np.float32)
    return Samples(
        stored=stored,
        labels=None,
        layout=Layout.ANY,
        model_layout=Layout.ANY,
        input_name=signature.name,
    )


def target_name(runtime: str) -> str:
    """Return the name of this machine as a target that is calibrated."""
    return f"this-machine-{runtime}"


def device_name() -> str:
    """Return what this machine computes with, as far as it decides which kernels a runtime takes."""
    device = this_device()
    return f"{device.display_name}: {', '.join(device.isa_features)}"


def target_of(runtime: str, *, name: str) -> hardware_pb2.HardwareSpec:
    """Return this machine as a target of one core."""
    device = this_device()
    label, _ = RUNTIMES[runtime]
    return hardware_pb2.HardwareSpec(
        name=name,
        core=device.core,
        core_count=1,
        clock_mhz=device.clock_mhz or 2_000.0,
        isa_features=device.isa_features,
        runtime=hardware_pb2.Runtime(name=label),
        number_formats=[hardware_pb2.NUMBER_FORMAT_INT8, hardware_pb2.NUMBER_FORMAT_FLOAT32],
        output_format=hardware_pb2.MODEL_FORMAT_TFLITE
        if runtime == "litert"
        else hardware_pb2.MODEL_FORMAT_ONNX,
    )


def add_target(client: Client, runtime: str, name: str) -> None:
    """Make this machine known to a server by a name, unless an earlier run did, whose figures then stay."""
    with contextlib.suppress(AlreadyExistsError):
        client.create_target(target_of(runtime, name=name))


def calibrate(
    server: RunningServer,
    client: Client,
    runtime: str,
    networks: int,
    *,
    is_writing: bool,
    is_keeping: bool,
) -> dict[str, Any]:
    """Run a calibration to its end, or only until all files are written.

    Where it is keeping, only files that the last one did not measure are measured.
    """
    target = target_name(runtime)
    agent = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tightfit_runner",
            f"--server={server.address}",
            "--name=bench",
            f"--target={target}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    start = time.monotonic()
    try:
        for step in client.calibrate_target(
            target, "bench", network_count=networks, keep_measurements=is_keeping
        ):
            if is_writing and step.message.startswith(("keeping", "measuring")):
                return {}
            if step.HasField("report"):
                return {
                    "seconds": time.monotonic() - start,
                    "runtime": step.report.runtime,
                    "skipped": list(step.report.skipped),
                    "left_out": left_out(step.report),
                }
    finally:
        agent.terminate()
        agent.wait()
    raise RuntimeError("the calibration ended without a report")


@dataclass
class Measured:
    """A network in the rounds of one measurement, in ms; no figures where it does not run."""

    undisturbed_ms: list[float] = field(default_factory=list)
    median_ms: list[float] = field(default_factory=list)

    @property
    def least_ms(self) -> float:
        """What counts: the round that nobody disturbed."""
        return min(self.undisturbed_ms)


def measured(networks: Sequence[Unseen], runtime: str) -> list[Measured]:
    """Measure networks in rounds, as a calibration does."""
    machine = LocalMachine(versions={item.name: item.version for item in installed()})
    found = [Measured() for _ in networks]
    for number in range(MOST_ROUNDS):
        for network, own in zip(networks, found, strict=True):
            if number and not own.undisturbed_ms:
                continue
            if number >= LEAST_ROUNDS and rounds_agree(own.undisturbed_ms):
                continue
            order = Order(
                path=Path(network.file),
                format=RUNTIMES[runtime][1],
                runtime=runtime,
                threads=1,
                timeout_seconds=60.0,
                min_runs=RUNS,
                min_seconds=SECONDS,
            )
            try:
                result = machine.measure(order, threading.Event())
            except Exception as error:  # noqa: BLE001  # one network that does not run is a row without figures
                print(f"  not measured: {network.name}: {error}", flush=True)
                continue
            own.undisturbed_ms.append(result.p10_ms)
            own.median_ms.append(result.p50_ms)
    return found


def estimated_before(
    client: Client, networks: Sequence[Unseen], runtime: str
) -> list[dict[str, Any]]:
    """Return the estimates for a target like this machine that nobody has calibrated."""
    name = f"like-this-machine-{runtime}"
    add_target(client, runtime, name)
    return estimated(client, networks, name)


def estimated(client: Client, networks: Sequence[Unseen], target: str) -> list[dict[str, Any]]:
    """Return value, low and high in ms of each network, and which kinds were not measured, as told."""
    rows: list[dict[str, Any]] = []
    for network in networks:
        model = client.upload_model(Path(network.graph))
        answer = client.estimate(model.name, target)
        wanted = hardware_pb2.NumberFormat.Value(f"NUMBER_FORMAT_{network.number_format.upper()}")
        cost = next(item.cost for item in answer.estimates if item.number_format == wanted)
        latency = cost.estimated_latency_ms
        strange = {x.op_type for x in cost.layers if x.provenance == "kind not measured"}
        rows.append(
            {
                "value": latency.value,
                "low": latency.low,
                "high": latency.high,
                "kinds_not_measured": sorted(strange),
            }
        )
    return rows


def scores(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the errors of estimates and of repeated measurements."""
    first = np.array([row["measured_ms"][0] for row in rows])
    second = np.array([row["measured_ms"][1] for row in rows])
    truth = np.sqrt(first * second)
    values = np.array([row["estimate"]["value"] for row in rows])
    before = np.array([row["before"]["value"] for row in rows])
    low = np.array([row["estimate"]["low"] for row in rows])
    high = np.array([row["estimate"]["high"] for row in rows])
    errors, scatter = np.abs(values / second - 1), np.abs(first / second - 1)
    medians = np.array([row["median_ms"] for row in rows])
    scatter_of_medians = np.abs(medians[:, 0] / medians[:, 1] - 1)
    singles = np.array([row["single_ms"] for row in rows])
    scatter_of_singles = np.abs(singles[:, 0] / singles[:, 1] - 1)
    return {
        "networks": len(rows),
        "median": float(np.median(errors)),
        "p90": float(np.percentile(errors, 90)),
        "within_10_percent": float(np.mean(errors <= 0.1)),
        "within_25_percent": float(np.mean(errors <= 0.25)),
        "bias": float(np.median(values / truth - 1)),
        "coverage": float(np.mean((low <= second) & (second <= high))),
        "median_before": float(np.median(np.abs(before / second - 1))),
        "repeated_median": float(np.median(scatter)),
        "repeated_within_10_percent": float(np.mean(scatter <= 0.1)),
        "repeated_singles_within_10_percent": float(np.mean(scatter_of_singles <= 0.1)),
        "repeated_medians_within_10_percent": float(np.mean(scatter_of_medians <= 0.1)),
    }


def refitted(
    runtime: str, work: Path, earlier: dict[str, Any], first_counts: Sequence[int]
) -> dict[str, Any]:
    """Fit anew to the measurements of an earlier run, and return its findings with the new estimates.

    Fits to the first of the designed networks only show what each of them is worth.
    """
    known = {(row["network"], row["number_format"]): row for row in earlier["rows"]}
    unseen = [
        item
        for item in write_unseen(work / runtime, runtime)
        if (item.name, item.number_format) in known
    ]

    def rows() -> list[dict[str, Any]]:
        before, after = estimates_of(runtime, work, unseen)
        return [
            {
                **known[item.name, item.number_format],
                "estimate": estimate,
                "before": old,
                "has_known_operators": not estimate["kinds_not_measured"],
            }
            for item, estimate, old in zip(unseen, after, before, strict=True)
        ]

    with stored_calibration(target_name(runtime), work) as (target, calibration, store):
        by_count = []
        for count in first_counts:
            some = first_observations(calibration, count)
            if len(some) < len(calibration.observations):
                store(fitted(target, replace(calibration, observations=some)))
                by_count.append({"networks_per_format": count, **scores(rows())})
        whole = fitted(target, calibration)
        store(whole)
    step = CalibrationProgress(fraction=1.0, message="calibrated", calibration=whole)
    report = calibration_to_proto(step, hardware_pb2.CalibrateHardwareTargetRequest()).report
    return {
        "device": earlier["device"],
        "design": earlier["design"],
        "calibration": {**earlier["calibration"], "left_out": left_out(report)},
        "tiles": tiles_of(runtime, work),
        **all_scores(rows()),
        "by_networks_per_format": by_count,
    }


def estimates_of(
    runtime: str, work: Path, unseen: Sequence[Unseen]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what a client is told of networks without a calibration, and with the one that is stored."""
    server = RunningServer(work / "server").start()
    try:
        with server.client() as client:
            return (
                estimated_before(client, unseen, runtime),
                estimated(client, unseen, target_name(runtime)),
            )
    finally:
        server.stop()


@contextlib.contextmanager
def stored_calibration(
    name: str, work: Path
) -> Iterator[tuple[HardwareSpec, Calibration, Callable[[Calibration], None]]]:
    """Give a target of a server's database, its calibration, and what stores another.

    What was measured is stored again where the work breaks off.
    """
    with database(work) as engine:
        store = SqlCalibrationStore(engine=engine)
        target = SqlTargetStore(engine=engine).get_target(PROJECT, name).spec
        calibration = store.find_calibration(PROJECT, name, target.runtime.name)
        if calibration is None:
            raise SystemExit(f"{name} was not calibrated in {work}: run the stage measure first")
        try:
            yield target, calibration, store.save_calibration
        except BaseException:
            store.save_calibration(calibration)
            raise


def restore_calibration(runtime: str, calibration: Calibration, work: Path) -> None:
    """Put a calibration of this machine into the server of a work folder, which may be new."""
    server = RunningServer(work / "server").start()
    try:
        with server.client() as client:
            add_target(client, runtime, target_name(runtime))
    finally:
        server.stop()
    with database(work) as engine:
        SqlCalibrationStore(engine=engine).save_calibration(calibration)


@contextlib.contextmanager
def database(work: Path) -> Iterator[Engine]:
    """Give the database of the server of a work folder, which must have run once."""
    engine = open_database(f"sqlite:///{work / 'server' / 'state.db'}")
    try:
        yield engine
    finally:
        engine.dispose()


def fitted(target: HardwareSpec, calibration: Calibration) -> Calibration:
    """Return a calibration fitted anew to its measurements."""
    base = next(item for item in emulators() if item.supports(target))
    found = ProcessFitter().examine(base, target, calibration.observations)
    return replace(calibration, quality=found.quality, learned=found.learned)


def tiles_of(runtime: str, work: Path) -> dict[str, dict[str, list[int]]]:
    """Return rows, columns, columns of the narrow kernel and depth of the tiles found, by bits and kind."""
    with stored_calibration(target_name(runtime), work) as (target, calibration, _):
        base = next(item for item in emulators() if item.supports(target))
        known = ProcessFitter().fit(base, target, calibration.observations, calibration.learned)
    return {
        str(bits): {name: list(astuple(tile)) for name, tile in tiles.items()}
        for bits, tiles in known.tiles.items()
    }


def first_observations(calibration: Calibration, count: int) -> tuple[Observation, ...]:
    """Return what was measured of so many networks of each number format, the first of the designed set."""
    taken: Counter[NumberFormat] = Counter()
    found = []
    for item in calibration.observations:
        taken[item.number_format] += 1
        if taken[item.number_format] <= count:
            found.append(item)
    return tuple(found)


def left_out(report: hardware_pb2.CalibrationReport) -> dict[str, Any]:
    """Return what a calibration says of left-out networks of the designed set, by number format."""
    return {
        hardware_pb2.NumberFormat.Name(item.number_format).removeprefix("NUMBER_FORMAT_").lower(): {
            "networks": item.network_count,
            "median": item.median_error_ratio,
            "p90": item.p90_error_ratio,
            "within_10_percent": item.within_10_percent_ratio,
            "median_before": item.median_error_before_ratio,
            "coverage": item.coverage_ratio,
        }
        for item in report.quality
    }


def run(
    runtime: str, work: Path, stages: Sequence[str], networks: int, *, is_keeping: bool
) -> dict[str, Any]:
    """Run the stages for one runtime and return what was found."""
    target = target_name(runtime)
    unseen = write_unseen(work / runtime, runtime)
    print(f"{runtime}: {len(unseen)} unseen networks", flush=True)
    server = RunningServer(work / "server").start()
    try:
        with server.client() as client:
            # one of an earlier stage stays, though the machine may tell another clock now
            add_target(client, runtime, target)
            if "write" in stages:
                calibrate(server, client, runtime, networks, is_writing=True, is_keeping=is_keeping)
            if "measure" not in stages:
                return {}
            before = estimated_before(client, unseen, runtime)
            calibration = calibrate(
                server, client, runtime, networks, is_writing=False, is_keeping=is_keeping
            )
            after = estimated(client, unseen, target)
    finally:
        server.stop()
    passes = [measured(unseen, runtime) for _ in range(2)]
    rows = [
        {
            "network": network.name,
            "has_known_operators": not estimate["kinds_not_measured"],
            "number_format": network.number_format,
            "measured_ms": [first.least_ms, second.least_ms],
            "single_ms": [first.undisturbed_ms[0], second.undisturbed_ms[0]],
            "median_ms": [first.median_ms[0], second.median_ms[0]],
            "rounds": [len(first.undisturbed_ms), len(second.undisturbed_ms)],
            "estimate": estimate,
            "before": old,
        }
        for network, estimate, old, first, second in zip(
            unseen, after, before, *passes, strict=True
        )
        if first.undisturbed_ms and second.undisturbed_ms
    ]
    return {
        "device": device_name(),
        "design": DESIGN,
        "calibration": calibration,
        "tiles": tiles_of(runtime, work),
        **all_scores(rows),
    }


def all_scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return scores of all networks, and of those whose kinds of operators were all measured; and rows."""
    return {
        "scores": scores(rows),
        "scores_of_known_operators": scores([row for row in rows if row["has_known_operators"]]),
        "rows": rows,
    }


def main() -> None:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stage", default="write,measure")
    parser.add_argument("--runtimes", default="litert,onnxruntime")
    parser.add_argument("--networks", type=int, default=400)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    work, stages = arguments.work.resolve(), arguments.stage.split(",")
    # runtimes that are not asked for keep what an earlier run found
    if arguments.json and arguments.json.exists():
        results.update(json.loads(arguments.json.read_text()))
    for runtime in arguments.runtimes.split(","):
        if {"refit", "curve"} & set(stages):
            counts = FIRST_COUNTS if "curve" in stages else ()
            found = refitted(runtime, work, results[runtime], counts)
        else:
            found = run(runtime, work, stages, arguments.networks, is_keeping=arguments.keep)
        if not found:
            continue
        results[runtime] = found
        score = found["scores"]
        print(
            f"{runtime}: {score['networks']} unseen networks: {score['within_10_percent']:.0%} within "
            f"10 %, median {score['median']:.1%}, p90 {score['p90']:.1%}, {score['coverage']:.0%} in "
            f"the 90 % interval; before {score['median_before']:.0%}; a repeated measurement: "
            f"{score['repeated_within_10_percent']:.0%} within 10 %, median "
            f"{score['repeated_median']:.1%} (its medians: "
            f"{score['repeated_medians_within_10_percent']:.0%} within 10 %)",
            flush=True,
        )
    if arguments.json and {"measure", "refit", "curve"} & set(stages):
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
