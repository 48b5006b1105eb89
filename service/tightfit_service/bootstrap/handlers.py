"""Everything that a worker can run, composed. Importing this loads the heavy libraries: only workers do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from tightfit_service.adapters.calibration.designed_networks import DesignedNetworks
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
from tightfit_service.adapters.formats.packed import expected_bytes, layer_sizes, pack
from tightfit_service.adapters.formats.pt2_import import Pt2Importer
from tightfit_service.adapters.formats.tflite_export import TfliteExporter
from tightfit_service.adapters.formats.tflite_import import TfliteImporter, checked_file
from tightfit_service.adapters.formats.vela_export import VelaFileCompiler, source_in
from tightfit_service.adapters.training.synthetic_dataset import NetworkSynthesizer
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.ports import (
    DownloadPass,
    GraphPass,
    NetworkPass,
    NodePass,
    WorkHandler,
)
from tightfit_service.application.recipes.steps import GraphSteps
from tightfit_service.application.work.attribution import AttributionWork
from tightfit_service.application.work.baseline import BaselineWork
from tightfit_service.application.work.calibration import CalibrationWork
from tightfit_service.application.work.checks import CheckWork
from tightfit_service.application.work.data import UnitData
from tightfit_service.application.work.download import DownloadWork
from tightfit_service.application.work.file_cost import FileCostWork
from tightfit_service.application.work.model_import import ImportWork
from tightfit_service.application.work.narrow_file import NarrowFileWork
from tightfit_service.application.work.node_ways import NodeWays
from tightfit_service.application.work.recipe import RecipeWork
from tightfit_service.application.work.sensitivity import SensitivityWork
from tightfit_service.application.work.teacher import TeacherWork
from tightfit_service.application.work.trial import TrialWork
from tightfit_service.application.work.variants import VariantsWork
from tightfit_service.domain.hardware import ModelFormat
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
from tightfit_service.settings import Settings

NODE_PASSES: Sequence[NodePass] = (LowRankPass(), PrecisionPass(), SparsityPass(), ClusteringPass())
NETWORK_PASSES: Sequence[NetworkPass] = (ResolutionPass(), DepthPruningPass())
DOWNLOAD_PASSES: Sequence[DownloadPass] = (SparsityPass(), ClusteringPass())

TFLITE_IN: Mapping[ModelFormat, Callable[[bytes], bytes]] = {
    ModelFormat.TFLITE: bytes,
    ModelFormat.C_ARRAY: tflite_in,
    ModelFormat.VELA: source_in,
}
"""Returns the TensorFlow Lite file in a file of each format that holds one."""

SomePass = TypeVar("SomePass", bound=GraphPass)


class Work(Protocol):
    """What runs some kinds of units."""

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handlers by the kind of unit they run."""
        ...


def compose_handlers(settings: Settings) -> dict[str, WorkHandler]:
    """Return everything that a worker can run, by the kind of unit."""
    cache_dir = settings.data_dir / "cache"
    steps = GraphSteps(
        pruning=StructuredPruningPass(),
        passes=_by_name([*NODE_PASSES, *NETWORK_PASSES, EqualizationPass()]),
    )
    recipes = _recipe_work(steps)
    inspector, trainer = recipes.inspector, recipes.trainer
    evaluator = recipes.evaluators[ModelFormat.ONNX]
    importer = _importer()
    datasets = ArchiveDatasetReader(cache_dir=cache_dir / "arrays")
    data = UnitData(
        datasets=datasets,
        synthesizer=NetworkSynthesizer(),
        evaluator=evaluator,
        cache_dir=cache_dir,
    )
    ways = NodeWays(inspector=inspector, passes=_by_name(NODE_PASSES))
    vela = VelaCompiler()
    works: list[Work] = [
        ImportWork(importer=importer, inspector=inspector, pruning=steps.pruning),
        CheckWork(datasets=datasets, steps=steps),
        BaselineWork(
            data=data,
            importer=importer,
            evaluator=evaluator,
            of_quantized={
                ModelFormat.TFLITE: ContainedEvaluator(
                    file_in=checked_file, evaluator=recipes.evaluators[ModelFormat.TFLITE]
                )
            },
        ),
        SensitivityWork(
            data=data,
            steps=steps,
            trainer=trainer,
            evaluator=evaluator,
            ways=ways,
            precision_probe=precision_sensitivity,
        ),
        VariantsWork(
            data=data,
            steps=steps,
            inspector=inspector,
            evaluator=evaluator,
            ways=ways,
            passes=_by_name(NETWORK_PASSES),
        ),
        AttributionWork(
            data=data,
            steps=steps,
            evaluator=evaluator,
            precision_probe=precision_sensitivity,
        ),
        TeacherWork(data=data, trainer=trainer, evaluator=evaluator),
        TrialWork(data=data, recipes=recipes, cache_dir=cache_dir),
        DownloadWork(
            data=data,
            recipes=recipes,
            passes=_by_name(DOWNLOAD_PASSES),
            expected_bytes=expected_bytes,
            layer_sizes=layer_sizes,
        ),
        CalibrationWork(
            networks=DesignedNetworks(),
            importer=importer,
            inspector=inspector,
            exporters=recipes.exporters,
        ),
        FileCostWork(compilers={vela.name: vela}, files=TFLITE_IN),
        NarrowFileWork(data=data, recipes=recipes),
    ]
    return {kind: handler for work in works for kind, handler in work.table().items()}


def _importer() -> AnyImporter:
    """Compose what reads models."""
    return AnyImporter(
        importers={
            ModelFormat.ONNX: OnnxImporter(),
            ModelFormat.TFLITE: TfliteImporter(),
            ModelFormat.PT2: Pt2Importer(),
        }
    )


def _recipe_work(steps: GraphSteps) -> RecipeWork:
    """Compose what applies recipes: training, formats, runtimes."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or (os.cpu_count() or 1)
    quantizer = StaticQuantizationPass()
    onnx = OnnxExporter(quantizer=quantizer)
    litert = LitertEvaluator(threads=threads)
    return RecipeWork(
        steps=steps,
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
            files=TFLITE_IN,
            threads=threads,
        ),
    )


def _by_name(passes: Sequence[SomePass]) -> Mapping[str, SomePass]:
    return {item.name: item for item in passes}
