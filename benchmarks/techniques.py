"""What each technique gains and costs by itself, before any training, on two CIFAR-10 networks.

For each network every technique is applied at a few strengths; beside what is left of multiply-accumulates,
weights and int8 latency on the target, which the emulator estimates, stands the top-1 accuracy of the
float32 graph. Techniques that only make a download smaller have the size of the packed int8 file beside it.
Training brings most of a loss back, so the table tells techniques apart by what they start from, not by
what they end at: see `main_job.py` for that, and `training_back.py` for what parts of training are worth.

Usage: python benchmarks/techniques.py --data DIR [--target NAME] [--networks resnet20,resnet8]
           [--techniques low_rank,...] [--json FILE]

In a FILE that is there already, rows of the same networks and techniques are replaced, and others kept.

DIR holds `cifar10/cifar10_train20k_test4k.npz` and `models/*.onnx`. To add a technique, write a function
from `Case` to `Candidate`s and enter it in `TECHNIQUES`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.formats.packed import pack
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.adapters.training.synthetic_dataset import NetworkSynthesizer
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.data.resampling import resize_samples
from tightfit_service.application.ports import (
    Emulator,
    ImportedModel,
    PassContext,
    QuantizationSettings,
)
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Preprocess, SplitName
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.network import (
    DEFAULT_IMPORTANCE,
    Alternative,
    ImportanceCriterion,
    NetworkProfile,
    Operator,
)
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.clustering import ClusteringPass
from tightfit_service.passes.depth_pruning import DepthPruningPass
from tightfit_service.passes.layer_weights import layer_weights
from tightfit_service.passes.low_rank import LowRankPass
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.resolution import ResolutionPass
from tightfit_service.passes.sparsity import SparsityPass, word_block
from tightfit_service.passes.structured_pruning import StructuredPruningPass

NETWORKS = {
    "resnet8": ("models/mlperf_resnet8_cifar10_fp32.onnx", Preprocess()),
    "resnet20": (
        "models/resnet20_cifar10_fp32.onnx",
        Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ),
}
CIFAR = "cifar10/cifar10_train20k_test4k.npz"
CALIBRATION = 256
RANKED = 1_024
"""Training images that importance looks at, as many as in the search: with 256 gradients say much less."""
EVALUATION = 1_000
PRUNED_SHARE = 0.3
RANKED_SHARES = (0.1, 0.2)
"""Shares of each group that are cut to compare criteria: at `PRUNED_SHARE` none leaves much untrained."""
LAYER_ERRORS = (0.01, 0.03, 0.08, 0.16)
"""Relative squared errors that low rank may leave in the output of each layer."""
ZERO_SHARES = (0.5, 0.7)
CLUSTERS = (32, 16, 8)
PER_CHANNEL = QuantizationSettings()
PER_TENSOR = QuantizationSettings(per_channel=False)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network with its data and its target."""

    network: str
    model: ImportedModel
    calibration: Samples
    ranked: Samples
    evaluation: Samples
    target: HardwareSpec
    emulator: Emulator

    @property
    def graph(self) -> bytes:
        """The network as it came."""
        return self.model.graph

    def packed_bytes(self, graph: bytes, settings: QuantizationSettings) -> int:
        """Return the size of the packed file of a network."""
        exporter = OnnxExporter(quantizer=StaticQuantizationPass())
        file = exporter.export(graph, calibration=self.calibration, settings=settings, metadata={})
        return len(pack(file.data, ModelFormat.ONNX))

    def latency_ms(self, profile: NetworkProfile) -> float:
        """Return the estimated latency of a network in int8."""
        int8 = profile.at_precision(weight_bits=8, activation_bits=8)
        return self.emulator.estimate(int8, self.target).latency_ms.value


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network that a technique made; `evaluation` where it wants other samples.

    `packed_as` is how its file is quantized where the size of the packed file tells what was gained.
    """

    what: str
    graph: bytes
    evaluation: Samples | None = None
    packed_as: QuantizationSettings | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; latency in milliseconds, accuracy as a fraction."""

    network: str
    technique: str
    what: str
    macs: int
    weight_count: int
    latency_ms: float
    latency_ratio: float
    """Against the network as it came."""
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    packed_bytes: int | None = None


def unchanged(case: Case) -> Iterator[Candidate]:
    yield Candidate(what="as it came", graph=case.graph, packed_as=PER_CHANNEL)


def structured_pruning(case: Case) -> Iterator[Candidate]:
    """Every group loses the same share of its units, the least important ones."""
    yield Candidate(what=f"{PRUNED_SHARE:.0%} of each group", graph=pruned(case))


def importance(case: Case) -> Iterator[Candidate]:
    """Every group loses the same share of its units, the least important ones by each criterion."""
    for share in RANKED_SHARES:
        for criterion in ImportanceCriterion:
            what = f"{share:.0%} of each group by {criterion}"
            yield Candidate(what=what, graph=pruned(case, share, criterion))


def depth_pruning(case: Case) -> Iterator[Candidate]:
    technique = DepthPruningPass()
    context = PassContext(calibration=case.calibration)
    for seen, variants in (
        ("by weights", technique.variants(case.graph, case.target)),
        ("by data", technique.variants(case.graph, case.target, context=context)),
    ):
        for variant in variants[:1]:
            yield Candidate(
                what=f"{variant.label} ({seen})",
                graph=technique.apply(case.graph, variant.parameters, context),
            )


def low_rank(case: Case) -> Iterator[Candidate]:
    """Each layer becomes the fastest chain within an error of its output, where that is faster."""
    for seen, calibration in (("weights", None), ("data", case.calibration)):
        context = PassContext(calibration=calibration)
        for error in LAYER_ERRORS:
            graph, count = factorized(case, case.graph, error, context)
            yield Candidate(what=f"{count} layers within {error:.0%} by {seen}", graph=graph)
    context = PassContext(calibration=case.calibration)
    graph, count = factorized(case, pruned(case), LAYER_ERRORS[1], context)
    what = f"{count} layers within {LAYER_ERRORS[1]:.0%} by data, {PRUNED_SHARE:.0%} pruned before"
    yield Candidate(what=what, graph=graph)


def resolution(case: Case) -> Iterator[Candidate]:
    technique = ResolutionPass()
    for variant in technique.variants(case.graph, case.target):
        yield Candidate(
            what=variant.label,
            graph=technique.apply(case.graph, variant.parameters, PassContext()),
        )
        size = {key: variant.parameters[key] for key in ("height", "width")}
        yield Candidate(
            what=f"inputs of {size['height']}x{size['width']}",
            graph=technique.apply(case.graph, size, PassContext()),
            evaluation=resize_samples(case.evaluation, **size),
        )


def sparsity(case: Case) -> Iterator[Candidate]:
    """Every layer loses the same share of its weights: in words of the target, 2 of 4, and one by one."""
    technique, names = SparsityPass(), list(layer_weights(load_model(case.graph)))
    block = list(word_block(case.target, NumberFormat.INT8))
    patterns: list[tuple[str, Mapping[str, Any]]] = [("2 of 4", {"pattern": "n:m", "n": 2, "m": 4})]
    for share in ZERO_SHARES:
        patterns += [
            (f"{share:.0%} in words", {"pattern": "block", "block": block, "ratio": share}),
            (f"{share:.0%} one by one", {"pattern": "unstructured", "ratio": share}),
        ]
    for what, choice in patterns:
        nodes = dict.fromkeys(names, choice)
        graph = technique.apply(
            case.graph, {"nodes": nodes}, PassContext(calibration=case.calibration)
        )
        yield Candidate(what=what, graph=graph, packed_as=PER_CHANNEL)


def clustering(case: Case) -> Iterator[Candidate]:
    """Weights of a layer share so many values; the file has one scale per tensor, which keeps them equal."""
    technique, names = ClusteringPass(), list(layer_weights(load_model(case.graph)))
    for clusters in CLUSTERS:
        nodes = {name: {"clusters": clusters} for name in names}
        graph = technique.apply(case.graph, {"nodes": nodes}, PassContext())
        yield Candidate(what=f"{clusters} values per layer", graph=graph, packed_as=PER_TENSOR)


def data_free(case: Case) -> Iterator[Candidate]:
    """Pruning and low rank as above, by inputs that are made up from the network alone."""
    with tempfile.TemporaryDirectory() as folder:
        made_up = NetworkSynthesizer().dataset(case.model, cache_dir=Path(folder), seed=0)
        ranked, calibration = (
            made_up.samples(split) for split in (SplitName.TRAIN, SplitName.CALIBRATION)
        )
    assert ranked is not None
    assert calibration is not None
    for share in RANKED_SHARES:
        graph = pruned(replace(case, ranked=ranked), share)
        yield Candidate(what=f"{share:.0%} of each group by {DEFAULT_IMPORTANCE}", graph=graph)
    for error in LAYER_ERRORS[1:]:
        context = PassContext(calibration=calibration)
        graph, count = factorized(case, case.graph, error, context)
        yield Candidate(what=f"{count} low-rank layers within {error:.0%}", graph=graph)


Technique = Callable[[Case], Iterator[Candidate]]
TECHNIQUES: Mapping[str, Technique] = {
    "structured_pruning": structured_pruning,
    "importance": importance,
    "depth_pruning": depth_pruning,
    "low_rank": low_rank,
    "resolution": resolution,
    "sparsity": sparsity,
    "clustering": clustering,
    "data_free": data_free,
}


def pruned(
    case: Case,
    share: float = PRUNED_SHARE,
    criterion: ImportanceCriterion = DEFAULT_IMPORTANCE,
) -> bytes:
    """Return the network without the share of each group that a criterion ranks last."""
    technique = StructuredPruningPass()
    space = technique.space(case.graph)
    scores = TorchTrainer().importance(case.graph, space, case.ranked, seed=0, criterion=criterion)
    keep = {}
    for group in space.groups:
        count = max(1, round(group.unit_count * (1 - share)))
        order = np.argsort(-np.asarray(scores[group.group_id]), kind="stable")
        keep[group.group_id] = sorted(order[:count].tolist())
    return technique.apply(case.graph, keep)


def factorized(case: Case, graph: bytes, error: float, context: PassContext) -> tuple[bytes, int]:
    """Return the network with all layers factorized for which that is faster, and their number."""
    technique = LowRankPass()
    profile = OnnxGraphInspector().profile(graph)
    nodes = {}
    for node, offers in technique.alternatives(
        graph, profile, case.target, context=context
    ).items():
        timed = [
            (case.latency_ms(with_alternative(profile, offer)), index)
            for index, offer in enumerate(offers)
            if offer.error <= error
        ]
        if timed and min(timed)[0] < case.latency_ms(profile):
            nodes[node] = offers[min(timed)[1]].parameters
    return technique.apply(graph, {"nodes": nodes}, context), len(nodes)


def with_alternative(profile: NetworkProfile, offer: Alternative) -> NetworkProfile:
    """Return the profile with one node computed another way."""
    operators: list[Operator] = []
    for operator in profile.operators:
        operators.extend(offer.operators if operator.node == offer.node else (operator,))
    tensors = dict(profile.tensors)
    for operator in offer.operators[:-1]:
        tensors[operator.outputs[0]] = (1, operator.out_channels, *operator.out_size)
    return replace(profile, operators=tuple(operators), tensors=tensors)


def rows_of(case: Case, techniques: Mapping[str, Technique]) -> Iterator[Row]:
    """Yield the lines of one network."""
    whole = case.latency_ms(OnnxGraphInspector().profile(case.graph))
    for name, technique in {"": unchanged, **techniques}.items():
        for candidate in technique(case):
            profile = OnnxGraphInspector().profile(candidate.graph)
            latency = case.latency_ms(profile)
            accuracy = OnnxRuntimeEvaluator().evaluate(
                candidate.graph, candidate.evaluation or case.evaluation
            )
            yield Row(
                network=case.network,
                technique=name,
                what=candidate.what,
                macs=profile.macs,
                weight_count=profile.weight_count,
                latency_ms=latency,
                latency_ratio=latency / whole,
                accuracy=accuracy.value,
                accuracy_low=accuracy.low,
                accuracy_high=accuracy.high,
                packed_bytes=None
                if candidate.packed_as is None
                else case.packed_bytes(candidate.graph, candidate.packed_as),
            )


def merged(known: Sequence[Mapping[str, Any]], measured: Sequence[Row]) -> list[Mapping[str, Any]]:
    """Return rows in the order of the tables, those that were measured now instead of earlier ones."""
    replaced = {(row.network, row.technique) for row in measured}
    kept = [row for row in known if (row["network"], row["technique"]) not in replaced]
    networks, names = list(NETWORKS)[::-1], ["", *TECHNIQUES]
    return sorted(
        [*kept, *map(asdict, measured)],
        key=lambda row: (networks.index(row["network"]), names.index(row["technique"])),
    )


def case_of(network: str, data: Path, target: HardwareSpec) -> Case:
    """Return a network with samples of CIFAR-10; calibration images are training images."""
    file, preprocess = NETWORKS[network]
    arrays = np.load(data / CIFAR)
    emulators: tuple[Emulator, ...] = (McuEmulator(), RooflineEmulator())
    return Case(
        network=network,
        model=OnnxImporter().import_model((data / file).read_bytes()),
        calibration=Samples(
            stored=arrays["train_x"][:CALIBRATION],
            labels=arrays["train_y"][:CALIBRATION].astype(np.int64),
            preprocess=preprocess,
        ),
        ranked=Samples(
            stored=arrays["train_x"][:RANKED],
            labels=arrays["train_y"][:RANKED].astype(np.int64),
            preprocess=preprocess,
        ),
        evaluation=Samples(
            stored=arrays["test_x"][:EVALUATION],
            labels=arrays["test_y"][:EVALUATION].astype(np.int64),
            preprocess=preprocess,
        ),
        target=target,
        emulator=next(item for item in emulators if item.supports(target)),
    )


def show(row: Row) -> None:
    """Print one line of the table in Markdown."""
    print(
        f"| {row.network} | {row.technique} | {row.what} | {row.macs / 1e6:.2f} M | "
        f"{row.weight_count / 1e3:.1f} k | {row.latency_ms:.1f} ms ({row.latency_ratio:.0%}) | "
        f"{row.accuracy:.1%} ({row.accuracy_low:.1%} to {row.accuracy_high:.1%}) | "
        f"{'' if row.packed_bytes is None else f'{row.packed_bytes / 1000:.1f} kB'} |",
        flush=True,
    )


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", default="nucleo-h7a3zi-q")
    parser.add_argument("--networks", default="resnet20,resnet8")
    parser.add_argument("--techniques", default=",".join(TECHNIQUES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    target = YamlTargetCatalogue().get(arguments.target)
    techniques = {name: TECHNIQUES[name] for name in arguments.techniques.split(",")}
    print("| network | technique | what | MACs | weights | int8 latency | float32 top-1 | packed |")
    print("|---|---|---|---|---|---|---|---|")
    rows: list[Row] = []
    for network in arguments.networks.split(","):
        for row in rows_of(case_of(network, arguments.data, target), techniques):
            show(row)
            rows.append(row)
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
        arguments.json.write_text(json.dumps(merged(known, rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
