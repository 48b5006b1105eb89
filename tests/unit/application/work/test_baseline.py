"""The model as it came is judged by its working graph, quantized files by their own runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tightfit_service.application.ports import ImportedModel, OpenDataset, TensorSignature
from tightfit_service.application.samples import FloatArray, ModelInputs, Samples
from tightfit_service.application.units.kinds import UnitContext
from tightfit_service.application.work.baseline import BaselineTask, BaselineWork
from tightfit_service.application.work.data import UnitData
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.domain.dataset import DatasetManifest, SplitName, SplitSpec
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.network import NetworkProfile, PruningSpace
from tightfit_service.domain.quantities import Accuracy, wilson_accuracy

SAMPLES = Samples(stored=np.zeros((40, 2), dtype=np.float32), labels=np.zeros(40, dtype=np.int64))


class Judge:
    """Gives every file the same share of right answers, and keeps the files."""

    def __init__(self, right: float) -> None:
        self.right = right
        self.judged: list[bytes] = []

    def outputs(self, data: bytes, inputs: ModelInputs) -> FloatArray:
        raise AssertionError("nobody asks")

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        self.judged.append(data)
        return wilson_accuracy(self.right * len(samples), len(samples))


class Data:
    """One set of samples for everything; also what reads and makes it."""

    manifest = DatasetManifest(
        arrays={"*": "x.npz"}, splits={"evaluation": SplitSpec(input="x", label="y")}
    )

    def samples(self, split: SplitName) -> Samples | None:
        return SAMPLES if split in {SplitName.EVALUATION, SplitName.SELECTION} else None

    def read_manifest(self, archive: Path) -> DatasetManifest:
        return self.manifest

    def open(self, archive: Path, *, model: ImportedModel | None) -> OpenDataset:
        return self

    def dataset(self, model: ImportedModel, *, cache_dir: Path, seed: int) -> OpenDataset:
        return self


class Importer:
    """Finds that every graph computes what its file does."""

    def import_model(self, data: bytes) -> ImportedModel:
        raise AssertionError("nobody asks")

    def check_parity(self, original: bytes, graph: bytes, inputs: Sequence[FloatArray]) -> float:
        assert (original, graph) == (b"file", b"graph")
        return 0.0


def facts(*, is_quantized: bool, source_format: ModelFormat) -> ModelFacts:
    return ModelFacts(
        inputs=(TensorSignature(name="x", shape=(-1, 2), dtype="float32"),),
        outputs=(),
        opset=17,
        node_count=0,
        parameter_count=0,
        macs=0,
        is_quantized=is_quantized,
        warnings=(),
        profile=NetworkProfile(operators=(), tensors={}, inputs=(), outputs=()),
        space=PruningSpace(groups=()),
        source_format=source_format,
    )


def judged(folder: Path, model: ModelFacts) -> tuple[float, Mapping[str, Sequence[bytes]]]:
    """Return the accuracy on the evaluation set, and what each of two judges was given."""
    own, graphs, data = Judge(0.25), Judge(0.75), Data()
    work = BaselineWork(
        data=UnitData(datasets=data, synthesizer=data, evaluator=graphs, cache_dir=folder),
        importer=Importer(),
        evaluator=graphs,
        of_quantized={ModelFormat.TFLITE: own},
    )
    inputs = {"model": b"file", "graph": b"graph", "dataset": b"data"}
    for name, content in inputs.items():
        (folder / name).write_bytes(content)
    context = UnitContext(
        inputs={name: folder / name for name in inputs},
        output_dir=folder,
        on_progress=lambda _share, _text: None,
    )
    found = work.run(BaselineTask(model=model), context)
    assert found.accuracy is not None
    return found.accuracy.value, {"own": own.judged, "graphs": graphs.judged}


def test_a_float_model_is_judged_by_its_working_graph(tmp_path: Path) -> None:
    model = facts(is_quantized=False, source_format=ModelFormat.TFLITE)
    assert judged(tmp_path, model) == (0.75, {"own": [], "graphs": [b"graph"] * 2})


def test_a_quantized_file_is_judged_as_it_came(tmp_path: Path) -> None:
    model = facts(is_quantized=True, source_format=ModelFormat.TFLITE)
    assert judged(tmp_path, model) == (0.25, {"own": [b"file"] * 2, "graphs": []})


def test_a_working_graph_that_rounds_as_its_file_does_is_judged(tmp_path: Path) -> None:
    model = facts(is_quantized=True, source_format=ModelFormat.ONNX)
    assert judged(tmp_path, model) == (0.75, {"own": [], "graphs": [b"graph"] * 2})
