"""Accuracy of exported ONNX files by number format, calibration method and what prepares weights for it.

Three networks are quantized after training, without any training back. Calibration and evaluation samples
are disjoint; of the MobileNet and the DS-CNN there are evaluation samples only, of which the first 100
calibrate and the others evaluate.

For each file stand its top-1 accuracy with the 95 % interval of its sample, the error of its outputs as a
share of their variance (on 64 calibration samples), and its size. A second table names, per network, the
three layers whose int4 weights leave the lowest ratio of signal to quantization noise (SQNR): accuracy with
that layer alone in int4, and with all layers but that one.

Usage: python benchmarks/quantization.py --data DIR [--networks resnet8,...] [--json FILE]

DIR holds `cifar10/cifar10_train20k_test4k.npz`, `kws/kws01_mfcc_600.npz`, `vww/vww01_96_400.zip` and
`models/*.onnx`, `models/*.tflite`.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.formats.tflite_import import TfliteImporter
from tightfit_service.application.data.activation_ranges import METHODS
from tightfit_service.application.ports import PassContext, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout, Preprocess
from tightfit_service.domain.errors import ParityError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.passes.equalization import EqualizationPass
from tightfit_service.passes.precision_sensitivity import precision_sensitivity
from tightfit_service.passes.quantization import StaticQuantizationPass

CIFAR = "cifar10/cifar10_train20k_test4k.npz"
CALIBRATION = 256
EVALUATION = 1_000
LAYER_SAMPLES = 200
WEAKEST = 3
HELD_OUT = 100
"""Evaluation samples that calibrate where there are no others."""

EXPORTER = OnnxExporter(quantizer=StaticQuantizationPass())
EVALUATOR = OnnxRuntimeEvaluator()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; accuracies as fractions, `noise_ratio` as a share of the variance."""

    network: str
    what: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    sample_count: int
    noise_ratio: float
    file_bytes: int
    refused: str = ""
    """Why there is no file, where the exporter refused it; all figures are 0 then."""


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer's int4 weights, by themselves and left out; accuracies as fractions."""

    network: str
    node: str
    sqnr_db: float
    accuracy_alone: float
    accuracy_without: float
    float_accuracy: float
    quantized_accuracy: float
    sample_count: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to quantize."""

    what: str
    settings: QuantizationSettings
    is_equalized: bool = False


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model in working form with its data."""

    name: str
    graph: bytes
    calibration: Samples
    evaluation: Samples


def cases() -> list[Case]:
    """Return what is compared, mildest first."""
    plain = [
        Case(what=str(item), settings=QuantizationSettings(number_format=item))
        for item in (
            NumberFormat.FLOAT32,
            NumberFormat.FLOAT16,
            NumberFormat.BFLOAT16,
            NumberFormat.INT16X8,
        )
    ]
    methods = [
        Case(what=f"int8 per channel, {name}", settings=QuantizationSettings(method=name))
        for name in METHODS
    ]
    prepared = [
        Case(
            what=", ".join(
                (
                    f"{number_format} per {'channel' if per_channel else 'tensor'}",
                    *(["equalized"] if equalized else []),
                    *(["biases corrected"] if corrected else []),
                )
            ),
            settings=QuantizationSettings(
                number_format=number_format, per_channel=per_channel, bias_correction=corrected
            ),
            is_equalized=equalized,
        )
        for number_format, per_channel in (
            (NumberFormat.INT8, True),
            (NumberFormat.INT8, False),
            (NumberFormat.INT4, True),
            (NumberFormat.INT4, False),
        )
        for equalized in (False, True)
        for corrected in (False, True)
        # Per-channel int8 as it is has its own lines, one per method.
        if equalized or corrected or (number_format, per_channel) != (NumberFormat.INT8, True)
    ]
    return [*plain, *methods, *prepared]


def resnet8(data: Path) -> Network:
    arrays = np.load(data / CIFAR)
    file = data / "models/mlperf_resnet8_cifar10_fp32.onnx"
    return Network(
        name="resnet8",
        graph=OnnxImporter().import_model(file.read_bytes()).graph,
        calibration=Samples(stored=arrays["train_x"][:CALIBRATION], labels=None),
        evaluation=Samples(
            stored=arrays["test_x"][:EVALUATION],
            labels=arrays["test_y"][:EVALUATION].astype(np.int64),
        ),
    )


def mobilenetv1(data: Path) -> Network:
    images, labels = [], []
    with zipfile.ZipFile(data / "vww/vww01_96_400.zip") as archive:
        for item in sorted(archive.namelist()):
            if item.endswith(".jpg"):
                images.append(np.asarray(Image.open(io.BytesIO(archive.read(item))).convert("RGB")))
                labels.append(int(item.startswith("person/")))
    order = np.random.default_rng(0).permutation(len(images))
    return held_out(
        "mobilenetv1_vww",
        data / "models/mlperf_mobilenetv1_vww_fp32.tflite",
        np.stack(images)[order],
        np.asarray(labels)[order],
        Preprocess(scale=1 / 255),
    )


def dscnn(data: Path) -> Network:
    arrays = np.load(data / "kws/kws01_mfcc_600.npz")
    return held_out(
        "dscnn_kws",
        data / "models/mlperf_dscnn_kws_fp32.tflite",
        arrays["x"],
        arrays["y"],
        Preprocess(scale=float(arrays["scale"])),
    )


def held_out(
    name: str, file: Path, inputs: np.ndarray, labels: np.ndarray, preprocess: Preprocess
) -> Network:
    """Return a network whose evaluation samples are all there are."""

    def part(chosen: slice) -> Samples:
        return Samples(
            stored=inputs[chosen],
            labels=labels[chosen].astype(np.int64),
            preprocess=preprocess,
            layout=Layout.NHWC,
            model_layout=Layout.NHWC,
        )

    return Network(
        name=name,
        graph=TfliteImporter().import_model(file.read_bytes()).graph,
        calibration=part(slice(0, HELD_OUT)),
        evaluation=part(slice(HELD_OUT, None)),
    )


NETWORKS: dict[str, Callable[[Path], Network]] = {
    "resnet8": resnet8,
    "mobilenetv1_vww": mobilenetv1,
    "dscnn_kws": dscnn,
}


def measured(network: Network, case: Case, equalized: bytes) -> Row:
    """Export a network as one case says, and evaluate the file."""
    try:
        exported = EXPORTER.export(
            equalized if case.is_equalized else network.graph,
            calibration=network.calibration,
            settings=case.settings,
            metadata={},
        )
    except ParityError as error:
        return Row(
            network=network.name, what=case.what, accuracy=0.0, accuracy_low=0.0,
            accuracy_high=0.0, sample_count=0, noise_ratio=0.0, file_bytes=0,
            refused=error.message,
        )  # fmt: skip
    accuracy = EVALUATOR.evaluate(exported.data, network.evaluation)
    return Row(
        network=network.name,
        what=case.what,
        accuracy=accuracy.value,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        sample_count=accuracy.sample_count,
        noise_ratio=exported.parity["noise_ratio"],
        file_bytes=len(exported.data),
    )


def weakest_layers(network: Network, count: int) -> list[LayerRow]:
    """Return the layers whose int4 weights leave the lowest signal-to-noise ratio."""
    sample = network.evaluation.take(range(min(LAYER_SAMPLES, len(network.evaluation))))
    found = precision_sensitivity(
        network.graph,
        calibration=network.calibration.take(range(HELD_OUT)),
        score=lambda graph: EVALUATOR.evaluate(graph, sample).value,
        settings=QuantizationSettings(number_format=NumberFormat.INT4),
    )
    worst = sorted(found.layers, key=lambda layer: layer.sqnr_db)[:count]
    return [
        LayerRow(
            network=network.name,
            node=layer.node,
            sqnr_db=layer.sqnr_db,
            accuracy_alone=layer.accuracy_alone,
            accuracy_without=layer.accuracy_without,
            float_accuracy=found.float_accuracy,
            quantized_accuracy=found.quantized_accuracy,
            sample_count=len(sample),
        )
        for layer in worst
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    began = time.monotonic()
    rows: list[Row] = []
    layers: list[LayerRow] = []
    for name in arguments.networks.split(","):
        network = NETWORKS[name](arguments.data)
        context = PassContext(calibration=network.calibration)
        equalized = EqualizationPass().apply(network.graph, {}, context)
        rows.extend(measured(network, case, equalized) for case in cases())
        layers.extend(weakest_layers(network, WEAKEST))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    show(rows, layers)
    if arguments.json:
        found = {"files": [asdict(r) for r in rows], "layers": [asdict(r) for r in layers]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def show(rows: list[Row], layers: list[LayerRow]) -> None:
    """Print both tables in Markdown."""
    print("| network | numbers | top-1 | 95 % interval | error | file |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        if r.refused:
            print(f"| {r.network} | {r.what} | refused: {r.refused} | | | |")
            continue
        print(
            f"| {r.network} | {r.what} | {r.accuracy:.2%} | {r.accuracy_low:.2%} to "
            f"{r.accuracy_high:.2%} | {r.noise_ratio:.2g} | {r.file_bytes / 1024:.1f} KiB |"
        )
    print()
    print("| network | int4 layer | SQNR | alone | all but this | float | all |")
    print("|---|---|---|---|---|---|---|")
    for layer in layers:
        print(
            f"| {layer.network} | {layer.node} | {layer.sqnr_db:.1f} dB | "
            f"{layer.accuracy_alone:.2%} | {layer.accuracy_without:.2%} | "
            f"{layer.float_accuracy:.2%} | {layer.quantized_accuracy:.2%} |"
        )


if __name__ == "__main__":
    main()
