"""What runs in worker processes; the heavy libraries are loaded here and nowhere in the server."""

from __future__ import annotations

import os
from pathlib import Path

from tightfit_service.application.ports import (
    DownloadPass,
    GraphPass,
    NetworkPass,
    NodePass,
    WorkHandler,
)
from tightfit_service.application.recipe_steps import GraphSteps
from tightfit_service.application.recipe_work import RecipeWork
from tightfit_service.application.work import WorkHandlers
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.settings import Settings


def run_worker(settings: Settings) -> None:
    """Run units of work until the server closes the channel."""
    from tightfit_service.adapters.execution.worker import serve as serve_units

    serve_units(handler_table(settings))


def pack_file(source: Path, destination: Path) -> tuple[int, int]:
    """Write the packed form of a model file, and return the sizes of both in bytes.

    Raises:
        TightfitError: The file is not what it is called, or too large.
        OSError: A file cannot be read or written.
    """
    from tightfit_service.adapters.formats.packed import pack

    data = source.read_bytes()
    kinds = {".onnx": ModelFormat.ONNX, ".tflite": ModelFormat.TFLITE}
    packed = pack(data, kinds.get(source.suffix.lower(), ModelFormat.EXECUTORCH))
    destination.write_bytes(packed)
    return len(data), len(packed)


def handler_table(settings: Settings) -> dict[str, WorkHandler]:
    """Return everything that a worker can run, by the kind of unit."""
    from tightfit_service.adapters.calibration.designed_networks import DesignedNetworks
    from tightfit_service.adapters.formats.packed import expected_bytes
    from tightfit_service.application.calibration_work import CalibrationWork
    from tightfit_service.application.download_work import DownloadWork
    from tightfit_service.passes.clustering import ClusteringPass
    from tightfit_service.passes.sparsity import SparsityPass

    handlers = build_handlers(settings)
    downloads: list[DownloadPass] = [SparsityPass(), ClusteringPass()]
    download = DownloadWork(
        handlers=handlers,
        passes={item.name: item for item in downloads},
        expected_bytes=expected_bytes,
    )
    calibration = CalibrationWork(
        networks=DesignedNetworks(),
        importer=handlers.importer,
        inspector=handlers.inspector,
        exporters=handlers.recipes.exporters,
    )
    return {**handlers.table(), **calibration.table(), **download.table()}


def build_handlers(settings: Settings) -> WorkHandlers:
    """Compose what runs in a worker; the heavy libraries are loaded here and nowhere in the server."""
    from tightfit_service.adapters.datasets.archive import ArchiveDatasetReader
    from tightfit_service.adapters.emulators.vela import VelaCompiler
    from tightfit_service.adapters.evaluation.contained_evaluator import ContainedEvaluator
    from tightfit_service.adapters.evaluation.executorch_evaluator import ExecutorchEvaluator
    from tightfit_service.adapters.evaluation.litert_evaluator import LitertEvaluator
    from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
    from tightfit_service.adapters.evaluation.openvino_evaluator import OpenvinoEvaluator
    from tightfit_service.adapters.evaluation.tflm_evaluator import TflmEvaluator
    from tightfit_service.adapters.formats.any_import import AnyImporter
    from tightfit_service.adapters.formats.c_array_export import CArrayExporter, tflite_in
    from tightfit_service.adapters.formats.executorch_export import ExecutorchExporter
    from tightfit_service.adapters.formats.onnx_export import OnnxExporter
    from tightfit_service.adapters.formats.onnx_import import OnnxImporter
    from tightfit_service.adapters.formats.openvino_export import (
        OpenvinoExporter,
        network_and_weights,
    )
    from tightfit_service.adapters.formats.packed import pack
    from tightfit_service.adapters.formats.pt2_import import Pt2Importer
    from tightfit_service.adapters.formats.tflite_export import TfliteExporter
    from tightfit_service.adapters.formats.tflite_import import TfliteImporter
    from tightfit_service.adapters.formats.vela_export import VelaFileCompiler, source_in
    from tightfit_service.adapters.training.synthetic_dataset import NetworkSynthesizer
    from tightfit_service.adapters.training.torch_trainer import TorchTrainer
    from tightfit_service.graph.profile import OnnxGraphInspector
    from tightfit_service.passes.clustering import ClusteringPass
    from tightfit_service.passes.depth_pruning import DepthPruningPass
    from tightfit_service.passes.equalization import EqualizationPass
    from tightfit_service.passes.low_rank import LowRankPass
    from tightfit_service.passes.precision import PrecisionPass
    from tightfit_service.passes.precision_sensitivity import precision_sensitivity
    from tightfit_service.passes.quantization import StaticQuantizationPass
    from tightfit_service.passes.resolution import ResolutionPass
    from tightfit_service.passes.sparsity import SparsityPass
    from tightfit_service.passes.structured_pruning import StructuredPruningPass

    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or (os.cpu_count() or 1)
    cache_dir = settings.data_dir / "cache"
    importer = AnyImporter(
        importers={
            ModelFormat.ONNX: OnnxImporter(),
            ModelFormat.TFLITE: TfliteImporter(),
            ModelFormat.PT2: Pt2Importer(),
        }
    )
    node_passes: list[NodePass] = [LowRankPass(), PrecisionPass(), SparsityPass(), ClusteringPass()]
    network_passes: list[NetworkPass] = [ResolutionPass(), DepthPruningPass()]
    quantizer = StaticQuantizationPass()
    onnx = OnnxExporter(quantizer=quantizer)
    litert = LitertEvaluator(threads=threads)
    graph_passes: list[GraphPass] = [*node_passes, *network_passes, EqualizationPass()]
    return WorkHandlers(
        importer=importer,
        recipes=RecipeWork(
            steps=GraphSteps(
                pruning=StructuredPruningPass(), passes={item.name: item for item in graph_passes}
            ),
            inspector=OnnxGraphInspector(),
            trainer=TorchTrainer(threads=threads),
            exporters={
                ModelFormat.ONNX: onnx,
                ModelFormat.TFLITE: TfliteExporter(),
                ModelFormat.C_ARRAY: CArrayExporter(tflite=TfliteExporter()),
                ModelFormat.OPENVINO: OpenvinoExporter(onnx=onnx),
                ModelFormat.EXECUTORCH: ExecutorchExporter(quantizer=quantizer),
            },
            evaluators={
                ModelFormat.ONNX: OnnxRuntimeEvaluator(threads=threads),
                ModelFormat.TFLITE: litert,
                ModelFormat.C_ARRAY: ContainedEvaluator(file_in=tflite_in, evaluator=litert),
                ModelFormat.OPENVINO: OpenvinoEvaluator(split=network_and_weights, threads=threads),
                ModelFormat.EXECUTORCH: ExecutorchEvaluator(),
                ModelFormat.VELA: ContainedEvaluator(file_in=source_in, evaluator=litert),
            },
            pack=pack,
            compilers={ModelFormat.VELA: VelaFileCompiler(vela=VelaCompiler())},
            target_evaluator=TflmEvaluator(
                files={
                    ModelFormat.TFLITE: bytes,
                    ModelFormat.C_ARRAY: tflite_in,
                    ModelFormat.VELA: source_in,
                },
                threads=threads,
            ),
        ),
        node_passes={item.name: item for item in node_passes},
        network_passes={item.name: item for item in network_passes},
        datasets=ArchiveDatasetReader(cache_dir=cache_dir / "arrays"),
        cache_dir=cache_dir,
        synthesizer=NetworkSynthesizer(),
        precision_probe=precision_sensitivity,
    )
