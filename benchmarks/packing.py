"""Measures how small models become for download: Deep Compression's three stages, and int8 files packed.

python benchmarks/packing.py --data DIR [--threads N] [--only lenet|files]

DIR holds fashion-mnist/*.gz (IDX), cifar10/*.npz and models/*. A LeNet-300-100 is trained on
Fashion-MNIST, made sparse step by step, clustered (each time with training that keeps zeros and shared
values) and packed. Which strengths are taken is decided on 5000 images held out of the training
images; the test images are used for the figures only, on the file that the client has unpacked.
Stored in benchmarks/results/packing.json.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import lzma
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tightfit.packed_file import unpack
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.formats.packed import pack
from tightfit_service.adapters.formats.tflite_import import TfliteImporter
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.ports import (
    PassContext,
    QuantizationSettings,
    RecoverySettings,
    Teachers,
    TrainingData,
)
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout, Preprocess
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.passes.clustering import ClusteringPass
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.sparsity import SparsityPass

RESULT = Path(__file__).parent / "results" / "packing.json"
SELECTION_COUNT = 5000
SIZES = (784, 300, 100, 10)
LAYERS = ("fc1", "fc2", "fc3")
DENSITY_FACTORS = (1.0, 2.0, 5.0)
"""The smaller a layer, the more of its weights stay, as in the paper's table 2."""
DENSITIES = (0.3, 0.15, 0.1, 0.07, 0.05, 0.035)
"""Share of the first layer's weights that stay; each step starts from the one before."""
SPARSE_RATE = 0.1
SPARSE_EPOCHS = 4.0
CLUSTERS = (16, 8)
CLUSTERED_EPOCHS = 3.0
ALLOWED_LOSS = 0.003
"""On held-out images; the aim on test images is 0.005."""
IMAGENET = Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The three sets of a run."""

    train: Samples
    selection: Samples
    test: Samples


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Return the array of a gzipped IDX file."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=rank, offset=4).astype(int)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_fashion(folder: Path) -> Splits:
    """Return Fashion-MNIST as rows of 784 pixels."""
    arrays = {
        (split, kind): read_idx(folder / f"{split}-{kind}-ubyte.gz")
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    }
    order = np.random.default_rng(0).permutation(len(arrays["train", "labels-idx1"]))

    def samples(split: str, chosen: npt.NDArray[np.int64] | slice) -> Samples:
        images = arrays[split, "images-idx3"].reshape(-1, SIZES[0])
        return Samples(
            stored=images[chosen],
            labels=arrays[split, "labels-idx1"][chosen].astype(np.int64),
            preprocess=Preprocess(scale=1 / 255),
            layout=Layout.ANY,
            model_layout=Layout.ANY,
        )

    return Splits(
        train=samples("train", order[SELECTION_COUNT:]),
        selection=samples("train", order[:SELECTION_COUNT]),
        test=samples("t10k", slice(None)),
    )


def train_lenet(train: Samples, *, epochs: int = 12, batch_size: int = 128) -> nn.Sequential:
    """Train the network from scratch with AdamW and a cosine schedule."""
    torch.manual_seed(0)
    pairs = itertools.pairwise(SIZES)
    layers = [part for pair in pairs for part in (nn.Linear(*pair), nn.ReLU())][:-1]
    network = nn.Sequential(*layers)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = epochs * (len(train) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    inputs = torch.from_numpy(train.inputs(slice(None)))
    assert train.labels is not None
    labels = torch.from_numpy(train.labels)
    for _ in range(epochs):
        order = torch.randperm(len(inputs))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            batch = order[start : start + batch_size]
            loss = nn.functional.cross_entropy(network(inputs[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            schedule.step()
    return network


def as_graph(network: nn.Sequential) -> bytes:
    """Return the network as an ONNX graph of three Gemm nodes, fc1 to fc3."""
    nodes, tensors, source = [], [], "image"
    dense = [part for part in network if isinstance(part, nn.Linear)]
    for name, layer in zip(LAYERS, dense, strict=True):
        tensors += [
            numpy_helper.from_array(value.detach().numpy(), f"{name}.{kind}")
            for kind, value in (("weight", layer.weight), ("bias", layer.bias))
        ]
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        last = name == LAYERS[-1]
        made = "scores" if last else f"{name}.sum"
        nodes.append(helper.make_node("Gemm", inputs, [made], name=name, transB=1))
        source = f"{name}.out"
        if not last:
            nodes.append(helper.make_node("Relu", [made], [source], name=f"{name}.relu"))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("image", SIZES[0]), ("scores", SIZES[-1]))
    ]
    graph = helper.make_graph(nodes, "lenet-300-100", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all stages need."""

    splits: Splits
    original: bytes
    trainer: TorchTrainer
    evaluator: OnnxRuntimeEvaluator
    cache: Path

    def accuracy(self, graph: bytes) -> float:
        """Return the accuracy on held-out images."""
        return self.evaluator.evaluate(graph, self.splits.selection).value

    def recovered(self, graph: bytes, *, epochs: float, rate: float | None) -> bytes:
        """Train back with zeros and shared values kept.

        Sparse weights share no value but zero. They are trained so too because no BatchNorm is
        then inserted, which dense layers without one do not gain from.
        """
        return self.trainer.recover(
            graph,
            teachers=Teachers(original=self.original),
            data=TrainingData(train=self.splits.train, selection=self.splits.selection),
            settings=RecoverySettings(
                epochs=epochs,
                learning_rate=rate,
                augmentation="none",
                distillation_weight=0.7,
                keep_zeros=True,
                share_values=True,
            ),
            cache_dir=self.cache,
            on_progress=lambda _share, _message: None,
        ).graph


def exported(graph: bytes) -> bytes:
    """Return the float ONNX file for a graph."""
    return (
        OnnxExporter(quantizer=StaticQuantizationPass())
        .export(
            graph,
            calibration=None,
            settings=QuantizationSettings(number_format=NumberFormat.FLOAT32),
            metadata={},
        )
        .data
    )


def sparsity_steps(bench: Bench) -> list[tuple[float, bytes]]:
    """Return graphs of falling density of the first layer, each trained from the one before."""
    graph, steps = bench.original, []
    context = PassContext(calibration=bench.splits.train)
    for density in DENSITIES:
        nodes = {
            name: {"pattern": "unstructured", "ratio": max(0.0, 1 - density * factor)}
            for name, factor in zip(LAYERS, DENSITY_FACTORS, strict=True)
        }
        graph = SparsityPass().apply(graph, {"nodes": nodes}, context)
        graph = bench.recovered(graph, epochs=SPARSE_EPOCHS, rate=SPARSE_RATE)
        steps.append((density, graph))
        print(f"density {density:.3f}: {bench.accuracy(graph):.4f} held out", flush=True)
    return steps


def smallest(bench: Bench, steps: Sequence[tuple[float, bytes]]) -> dict[str, Any]:
    """Return the smallest file that keeps held-out accuracy, with the graphs of its stages.

    The sparser, the sooner tried; where no clustering of a step holds, the next denser one is tried.
    """
    least = bench.accuracy(bench.original) - ALLOWED_LOSS
    best: dict[str, Any] | None = None
    for density, sparse in reversed(steps):
        if bench.accuracy(sparse) < least:
            continue
        for clusters in CLUSTERS:
            nodes = {name: {"clusters": clusters} for name in LAYERS}
            graph = ClusteringPass().apply(sparse, {"nodes": nodes}, PassContext())
            graph = bench.recovered(graph, epochs=CLUSTERED_EPOCHS, rate=None)
            size = len(pack(exported(graph), ModelFormat.ONNX))
            accuracy = bench.accuracy(graph)
            print(
                f"density {density:.3f}, {clusters} clusters: {accuracy:.4f}, {size} B", flush=True
            )
            if accuracy < least:
                break
            if best is None or size < best["packed_bytes"]:
                best = {
                    "density": density,
                    "clusters": clusters,
                    "packed_bytes": size,
                    "sparse": sparse,
                    "clustered": graph,
                }
        if best is not None:
            return best
    raise RuntimeError("no strength kept the accuracy on held-out images")


def stage(bench: Bench, name: str, data: bytes, original_bytes: int) -> dict[str, Any]:
    """Return the figures of a file, evaluated as it comes out of its packed form."""
    packed = pack(data, ModelFormat.ONNX)
    restored = unpack(packed)
    accuracy = bench.evaluator.evaluate(restored, bench.splits.test)
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load_model_from_string(restored).graph.initializer
        if len(tensor.dims) > 1
    ]
    return {
        "stage": name,
        "file_bytes": len(data),
        **compressed_sizes(data),
        "packed_bytes": len(packed),
        "times_smaller": round(original_bytes / len(packed), 2),
        "weights": sum(value.size for value in weights),
        "weights_not_zero": sum(int(np.count_nonzero(value)) for value in weights),
        "different_values": [len(np.unique(value)) for value in weights],
        "test_accuracy": accuracy.value,
        "test_accuracy_low": accuracy.low,
        "test_accuracy_high": accuracy.high,
    }


def compressed_sizes(data: bytes) -> dict[str, int]:
    """Return what general compressors make of a file."""
    return {
        "gzip_bytes": len(gzip.compress(data, 9, mtime=0)),
        "xz_bytes": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }


def lenet(data: Path, threads: int) -> dict[str, Any]:
    """Run the three stages and return their figures."""
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    splits = read_fashion(data / "fashion-mnist")
    original = as_graph(train_lenet(splits.train))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            splits=splits,
            original=original,
            trainer=TorchTrainer(threads=threads),
            evaluator=OnnxRuntimeEvaluator(),
            cache=Path(folder),
        )
        print(f"trained: {bench.accuracy(original):.4f} held out", flush=True)
        best = smallest(bench, sparsity_steps(bench))
    file = exported(original)
    stages = [
        stage(bench, "trained", file, len(file)),
        stage(bench, "sparse", exported(best["sparse"]), len(file)),
        stage(bench, "sparse and clustered", exported(best["clustered"]), len(file)),
    ]
    return {
        "network": "LeNet-300-100 on Fashion-MNIST",
        "density_of_first_layer": best["density"],
        "clusters": best["clusters"],
        "stages": stages,
        "times_smaller": stages[-1]["times_smaller"],
        "points_lost": round(100 * (stages[0]["test_accuracy"] - stages[-1]["test_accuracy"]), 2),
        "seconds": round(time.perf_counter() - begun),
    }


def files(data: Path) -> list[dict[str, Any]]:
    """Return sizes of published int8 files, and of networks exported here."""
    rows = [
        file_row(path.name, path.read_bytes(), ModelFormat.TFLITE)
        for path in sorted((data / "models").glob("*int8.tflite"))
    ]
    with np.load(next((data / "cifar10").glob("*.npz"))) as arrays:
        images = arrays["train_x"][:256]
    networks: Mapping[str, Samples] = {
        "mlperf_resnet8_cifar10_fp32.onnx": Samples(stored=images, labels=None),
        "resnet20_cifar10_fp32.onnx": Samples(stored=images, labels=None, preprocess=IMAGENET),
        "mlperf_mobilenetv1_vww_fp32.tflite": noise((96, 96, 3)),
    }
    exporter = OnnxExporter(quantizer=StaticQuantizationPass())
    for name, samples in networks.items():
        importer = TfliteImporter() if name.endswith(".tflite") else OnnxImporter()
        graph = importer.import_model((data / "models" / name).read_bytes()).graph
        for number_format in (NumberFormat.FLOAT32, NumberFormat.INT8):
            settings = QuantizationSettings(number_format=number_format)
            model = exporter.export(graph, calibration=samples, settings=settings, metadata={})
            title = f"{name.partition('_fp32')[0]}, {number_format} ONNX"
            rows.append(file_row(title, model.data, ModelFormat.ONNX))
    return rows


def noise(shape: tuple[int, ...]) -> Samples:
    """Return noise to calibrate with; ranges of activations have no part in a file's size."""
    stored = np.random.default_rng(0).random((64, *shape), dtype=np.float32)
    return Samples(stored=stored, labels=None, layout=Layout.ANY, model_layout=Layout.ANY)


def file_row(name: str, data: bytes, model_format: ModelFormat) -> dict[str, Any]:
    """Return the sizes of a file, and the processor time that unpacking takes."""
    packed = pack(data, model_format)
    begun = time.process_time()
    unpack(packed)
    return {
        "file": name,
        "file_bytes": len(data),
        **compressed_sizes(data),
        "packed_bytes": len(packed),
        "unpack_cpu_seconds": round(time.process_time() - begun, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["lenet", "files"])
    arguments = parser.parse_args()
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if arguments.only != "lenet":
        result["files"] = files(arguments.data)
    if arguments.only != "files":
        result["lenet"] = lenet(arguments.data, arguments.threads)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
