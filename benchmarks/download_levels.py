"""What a choice of zeros and clusters by layer is worth against the same for all layers, before any training.

For each network and each share of its packed int8 file, the best that the search would try with the same
strengths in all layers and with strengths by layer: predicted size, and top-1 accuracy of the int8
file on test images that the choice has not seen. Training brings most of a loss back.

Usage: python -m benchmarks.download_levels --data DIR [--networks resnet20] [--threads N] [--json FILE]

DIR holds `cifar10/cifar10_train20k_test4k.npz` and `models/*.onnx`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from benchmarks.techniques import CIFAR, NETWORKS

from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.formats.packed import expected_bytes, layer_sizes, pack
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.application.ports import (
    DownloadPass,
    OpenDataset,
    QuantizationSettings,
    Trainer,
)
from tightfit_service.application.recipes.steps import GraphSteps
from tightfit_service.application.samples import Samples
from tightfit_service.application.work.data import Splits
from tightfit_service.application.work.download import DownloadOption, LevelGrid
from tightfit_service.application.work.download_files import UNCHANGED, ChangedFiles, WeightChanges
from tightfit_service.application.work.download_layers import NOT_MEASURED
from tightfit_service.application.work.download_study import study_layers
from tightfit_service.application.work.recipe import RecipeWork
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.clustering import ClusteringPass
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.sparsity import SparsityPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

TARGET = "nucleo-h7a3zi-q"
SHARES = (0.7, 0.5, 0.35)
"""Of the packed int8 file, that is to be reached."""
SELECTION = 768
EVALUATION = 2_000


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    """Training images as calibration and selection, test images as evaluation."""

    splits: dict[SplitName, Samples]

    def samples(self, split: SplitName) -> Samples | None:
        return self.splits.get(split)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One choice; `by_layer` tells of which kind."""

    network: str
    share: float
    by_layer: bool
    label: str
    packed_bytes: int
    whole_bytes: int
    accuracy: float
    whole_accuracy: float
    study_seconds: float


def files_of(network: str, data: Path, *, threads: int) -> tuple[ChangedFiles, Samples]:
    """Return the files of a network, and test images."""
    path, preprocess = NETWORKS[network]
    graph = OnnxImporter().import_model((data / path).read_bytes()).graph
    arrays = np.load(data / CIFAR)

    def images(name: str, begin: int, end: int) -> Samples:
        return Samples(
            stored=arrays[f"{name}_x"][begin:end],
            labels=arrays[f"{name}_y"][begin:end].astype(np.int64),
            preprocess=preprocess,
        )

    passes: dict[str, DownloadPass] = {"sparsity": SparsityPass(), "clustering": ClusteringPass()}
    recipes = RecipeWork(
        steps=GraphSteps(pruning=StructuredPruningPass(), passes=passes),
        inspector=OnnxGraphInspector(),
        trainer=cast("Trainer", None),  # nothing is trained
        exporters={ModelFormat.ONNX: OnnxExporter(quantizer=StaticQuantizationPass())},
        evaluators={ModelFormat.ONNX: OnnxRuntimeEvaluator(threads=threads)},
        pack=pack,
    )
    dataset = _Dataset(
        splits={
            SplitName.CALIBRATION: images("train", 0, 256),
            SplitName.SELECTION: images("train", 1000, 1000 + SELECTION),
        }
    )
    files = ChangedFiles(
        recipes=recipes,
        passes=passes,
        expected_bytes=expected_bytes,
        start=graph,
        splits=Splits(dataset=cast("OpenDataset", dataset)),
        settings=QuantizationSettings(),
        seed=0,
        packed_bytes=0,
    )
    files.packed_bytes = len(pack(files.file(UNCHANGED).data, ModelFormat.ONNX))
    return files, images("test", 0, EVALUATION)


def rows_of(network: str, data: Path, *, threads: int) -> list[Row]:
    """Return the best of both kinds at each share."""
    files, test = files_of(network, data, threads=threads)
    target = YamlTargetCatalogue().get(TARGET)
    strengths = {
        name: item.strengths(files.start, target, files.settings.number_format)
        for name, item in files.passes.items()
    }
    began = time.perf_counter()
    study = study_layers(
        files, strengths, layer_sizes, has_time=lambda: True, on_layer=lambda _text: None
    )
    seconds = time.perf_counter() - began
    evaluator = files.recipes.evaluators[ModelFormat.ONNX]

    def accuracy(changes: WeightChanges) -> float:
        return evaluator.evaluate(files.file(changes).data, test).value

    whole = accuracy(UNCHANGED)
    found = []
    for share in SHARES:
        aim = int(share * files.packed_bytes)
        for by_layer, layers in ((False, NOT_MEASURED), (True, study)):
            grid = LevelGrid(
                files=files, strengths=strengths, study=layers, on_progress=lambda *_: None
            )
            option: DownloadOption = grid.offer(aim).options[0]
            changes = WeightChanges(sparsity=option.sparsity, clustering=option.clustering)
            row = Row(
                network=network,
                share=share,
                by_layer=by_layer,
                label=option.label,
                packed_bytes=len(pack(files.file(changes).data, ModelFormat.ONNX)),
                whole_bytes=files.packed_bytes,
                accuracy=accuracy(changes),
                whole_accuracy=whole,
                study_seconds=round(seconds, 1),
            )
            print(
                f"{network} {share:.0%} {'by layer' if by_layer else 'same for all':12} "
                f"{row.packed_bytes:7} of {row.whole_bytes} B, top-1 {row.accuracy:.2%} "
                f"(whole {whole:.2%}): {row.label}",
                flush=True,
            )
            found.append(row)
    return found


def main() -> None:
    """Print the rows, and store them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", default="resnet20")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = [
        asdict(row)
        for network in arguments.networks.split(",")
        for row in rows_of(network, arguments.data, threads=arguments.threads)
    ]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
