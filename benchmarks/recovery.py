"""Measures what recovery brings back: accuracy before pruning, after it, fitted, and after training.

python benchmarks/recovery.py --data DIR [--network resnet8|resnet20] [--macs SHARE ...] [--epochs N]
    [--seconds S] [--train-samples N] [--feature-weight W] [--json]

DIR holds cifar10/*.npz (train_x, train_y, test_x, test_y as uint8 NCHW) and models/*.onnx. Units go by
importance per multiply-accumulate until the wanted share of the work is left; selection samples are held
out of the training images, the test images are used for the figures only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.ports import (
    RecoverySettings,
    Teachers,
    TrainingData,
)
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Preprocess
from tightfit_service.domain.network import PruningSpace
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.structured_pruning import StructuredPruningPass

SELECTION_COUNT = 2000
IMAGENET = Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NETWORKS: Mapping[str, tuple[str, Preprocess]] = {
    "resnet8": ("mlperf_resnet8_cifar10_fp32.onnx", Preprocess()),
    "resnet20": ("resnet20_cifar10_fp32.onnx", IMAGENET),
}


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The three sets of a run."""

    train: Samples
    selection: Samples
    test: Samples


def read_splits(data: Path, preprocess: Preprocess, train_count: int | None) -> Splits:
    """Return CIFAR-10 as samples, the selection set held out of the training images."""
    with np.load(next((data / "cifar10").glob("*.npz"))) as arrays:
        train_x, train_y = arrays["train_x"], arrays["train_y"].astype(np.int64)
        test_x, test_y = arrays["test_x"], arrays["test_y"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(train_x))
    held, rest = order[:SELECTION_COUNT], order[SELECTION_COUNT:][:train_count]
    return Splits(
        train=Samples(stored=train_x[rest], labels=train_y[rest], preprocess=preprocess),
        selection=Samples(stored=train_x[held], labels=train_y[held], preprocess=preprocess),
        test=Samples(stored=test_x, labels=test_y, preprocess=preprocess),
    )


def prune_to(
    graph: bytes,
    space: PruningSpace,
    importance: Mapping[str, Sequence[float]],
    share: float,
) -> bytes:
    """Return the graph without its least important units per work saved, at most `share` of its work.

    At least a quarter of each group stays.
    """
    passes, inspector = StructuredPruningPass(), OnnxGraphInspector()
    whole = inspector.profile(graph).macs
    worth = {}
    for group in space.groups:
        fewer = passes.apply(graph, {group.group_id: range(1, group.unit_count)})
        saved = max(whole - inspector.profile(fewer).macs, 1)
        worth[group.group_id] = np.asarray(importance[group.group_id]) / saved
    low, high = 0.0, float(max(values.max() for values in worth.values()))
    best = graph
    for _ in range(14):
        threshold = (low * high) ** 0.5 if low else high / 1e4
        keep = {}
        for group_id, values in worth.items():
            least = max(1, len(values) // 4)
            strongest = np.argsort(-values)[: max(least, int((values > threshold).sum()))]
            keep[group_id] = sorted(strongest.tolist())
        candidate = passes.apply(graph, keep)
        if inspector.profile(candidate).macs <= share * whole:
            best, high = candidate, threshold
        else:
            low = threshold
    return best


def measure(name: str, share: float, arguments: argparse.Namespace) -> dict[str, object]:
    """Prune, recover and return the figures."""
    file, preprocess = NETWORKS[name]
    splits = read_splits(arguments.data, preprocess, arguments.train_samples)
    graph = OnnxImporter().import_model((arguments.data / "models" / file).read_bytes()).graph
    trainer = TorchTrainer(threads=arguments.threads)
    evaluator = OnnxRuntimeEvaluator()
    space = StructuredPruningPass().space(graph)
    started = time.perf_counter()
    importance = trainer.importance(graph, space, splits.train, seed=0)
    importance_seconds = time.perf_counter() - started
    pruned = prune_to(graph, space, importance, share)
    figures: dict[str, object] = {
        "network": name,
        "macs_ratio": round(
            OnnxGraphInspector().profile(pruned).macs / OnnxGraphInspector().profile(graph).macs, 3
        ),
        "accuracy_original": evaluator.evaluate(graph, splits.test).value,
        "accuracy_pruned": evaluator.evaluate(pruned, splits.test).value,
        "importance_seconds": round(importance_seconds, 1),
    }
    for label, epochs in (("fitted", 0.0), ("recovered", arguments.epochs)):
        settings = RecoverySettings(
            epochs=epochs,
            max_seconds=arguments.seconds,
            feature_weight=arguments.feature_weight,
        )
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            result = trainer.recover(
                pruned,
                teachers=Teachers(original=graph),
                data=TrainingData(train=splits.train, selection=splits.selection),
                settings=settings,
                cache_dir=arguments.cache or Path(folder),
                on_progress=lambda _share, _message: None,
            )
        figures[f"accuracy_{label}"] = evaluator.evaluate(result.graph, splits.test).value
        figures[f"{label}_seconds"] = round(time.perf_counter() - started, 1)
        figures[f"{label}_epochs"] = round(result.epochs, 2)
        figures["notes"] = list(result.notes)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", choices=sorted(NETWORKS), action="append")
    parser.add_argument("--macs", type=float, action="append", help="share of the work that stays")
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--seconds", type=float, default=None, help="limit per recovery")
    parser.add_argument("--train-samples", type=int, default=None)
    parser.add_argument("--feature-weight", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cache", type=Path, default=None, help="keeps the teacher's answers")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.network or ["resnet8"]:
        for share in arguments.macs or [0.57]:
            figures = measure(name, share, arguments)
            if arguments.json:
                print(json.dumps(figures))
            else:
                print("\n".join(f"{key:>20}: {value}" for key, value in figures.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
