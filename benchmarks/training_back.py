"""What training back gains by each of its parts: knowledge of rounding, the original as a teacher.

MLPerf Tiny's ResNet-8 on CIFAR-10, twice:

- Weights of 4 bits, where rounding after training hurts: rounded as they are, with corrected biases,
  rounded after training that knows nothing of it, and after as long a training in the arithmetic of the
  exported file. Accuracy is that of the exported ONNX file.
- Half of the multiply-accumulates pruned away: as pruned, and trained by labels alone, by the original's
  answers as well, and by its inner features too. Accuracy is that of the float graph.

All trainings of a part see the same images for the same number of epochs. The selection set is held out of
the training images; the test images are used for the figures only.

Trainings are as long as their epochs, so accuracies do not depend on the speed of the machine.

Usage: python benchmarks/training_back.py --data DIR [--epochs N] [--train-samples N] [--json FILE]

DIR holds `cifar10/cifar10_train20k_test4k.npz` and `models/mlperf_resnet8_cifar10_fp32.onnx`.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.recovery import NETWORKS, Splits, prune_to, read_splits

from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.ports import (
    QuantizationSettings,
    RecoveryResult,
    RecoverySettings,
    Teachers,
    TrainingData,
)
from tightfit_service.domain.errors import ParityError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

NETWORK = "resnet8"
CALIBRATION = 256
MACS_LEFT = 0.5
EVALUATOR = OnnxRuntimeEvaluator()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; accuracies as fractions.

    `refused` says why there is no file, where the exporter refused it; all figures are 0 then.
    """

    network: str
    what: str
    training: str
    epochs: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    refused: str = ""


@dataclass(kw_only=True)
class Bench:
    """The network, its data, and how long it is trained."""

    graph: bytes
    splits: Splits
    settings: RecoverySettings
    trainer: TorchTrainer
    folder: Path

    def trained(
        self, graph: bytes, settings: RecoverySettings, quantization: QuantizationSettings | None
    ) -> RecoveryResult:
        """Train a network towards the one as it came."""
        return self.trainer.recover(
            graph,
            teachers=Teachers(original=self.graph),
            data=TrainingData(train=self.splits.train, selection=self.splits.selection),
            settings=settings,
            cache_dir=self.folder,
            on_progress=lambda _share, _message: None,
            quantization=quantization,
        )

    @functools.cached_property
    def in_float(self) -> RecoveryResult:
        """The network trained further, without knowledge of rounding."""
        return self.trained(self.graph, self.settings, None)

    def row(self, what: str, training: str, data: bytes, *, epochs: float) -> Row:
        """Return the accuracy of a graph or of a file on the test images."""
        found = EVALUATOR.evaluate(data, self.splits.test)
        return Row(
            network=NETWORK,
            what=what,
            training=training,
            epochs=epochs,
            accuracy=found.value,
            accuracy_low=found.low,
            accuracy_high=found.high,
        )


def rounding(bench: Bench, *, per_channel: bool) -> Iterator[Row]:
    """Round weights to 4 bits without training, after training, and after training that knows it."""
    settings = QuantizationSettings(number_format=NumberFormat.INT4, per_channel=per_channel)
    what = f"int4 weights per {'channel' if per_channel else 'tensor'}"
    exporter = OnnxExporter(quantizer=StaticQuantizationPass())
    aware = replace(bench.settings, quantization_aware=True)
    for training, corrected, train in (
        ("no", False, lambda: None),
        ("no, biases corrected", True, lambda: None),
        ("in float, biases corrected", True, lambda: bench.in_float),
        ("in the file's arithmetic", False, lambda: bench.trained(bench.graph, aware, settings)),
    ):
        chosen = replace(settings, bias_correction=corrected)
        trained = train()
        try:
            file = exporter.export(
                bench.graph if trained is None else trained.graph,
                calibration=bench.splits.train.take(range(CALIBRATION)),
                settings=chosen,
                metadata={},
                ranges=trained.ranges if trained is not None and trained.ranges else None,
            )
        except ParityError as error:
            yield Row(
                network=NETWORK, what=what, training=training, epochs=0.0, accuracy=0.0,
                accuracy_low=0.0, accuracy_high=0.0, refused=error.message,
            )  # fmt: skip
            continue
        epochs = 0.0 if trained is None else trained.epochs
        yield bench.row(what, training, file.data, epochs=epochs)


def teaching(bench: Bench) -> Iterator[Row]:
    """Prune half of the work away and train it back by labels, by answers, and by features."""
    space = StructuredPruningPass().space(bench.graph)
    importance = bench.trainer.importance(bench.graph, space, bench.splits.train, seed=0)
    pruned = prune_to(bench.graph, space, importance, MACS_LEFT)
    what = f"pruned to {MACS_LEFT:.0%} of its MACs"
    yield bench.row(what, "no", pruned, epochs=0.0)
    for training, recovery in (
        ("by labels", replace(bench.settings, distillation_weight=0.0)),
        ("by labels and the original's answers", bench.settings),
        ("by labels, its answers and its features", replace(bench.settings, feature_weight=1.0)),
    ):
        found = bench.trained(pruned, recovery, None)
        yield bench.row(what, training, found.graph, epochs=found.epochs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--train-samples", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    file, preprocess = NETWORKS[NETWORK]
    splits = read_splits(arguments.data, preprocess, arguments.train_samples)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            graph=OnnxImporter()
            .import_model((arguments.data / "models" / file).read_bytes())
            .graph,
            splits=splits,
            settings=RecoverySettings(epochs=arguments.epochs),
            trainer=TorchTrainer(threads=arguments.threads),
            folder=Path(folder),
        )
        rows.append(bench.row("float32, as it came", "no", bench.graph, epochs=0.0))
        for part in (
            rounding(bench, per_channel=True),
            rounding(bench, per_channel=False),
            teaching(bench),
        ):
            for row in part:
                rows.append(row)
                figures = row.refused or f"{row.accuracy:.2%}"
                print(f"{row.what}, trained {row.training}: {figures}", flush=True)
                if arguments.json:
                    # at once: a training takes minutes, and the next one may be interrupted
                    arguments.json.write_text(
                        json.dumps([asdict(item) for item in rows], indent=1) + "\n"
                    )


if __name__ == "__main__":
    main()
