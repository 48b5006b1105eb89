"""The units of work that run in worker processes: import, baseline, sensitivity and trials.

Each handler is a pure function of its payload and input files. Payloads and results are plain JSON
data, so that a result can be cached by the digest of its inputs and survive any process.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.application.ports import (
    DatasetReader,
    Evaluator,
    Exporter,
    GraphInspector,
    ImportedModel,
    ModelImporter,
    OpenDataset,
    ProgressCallback,
    QuantizationSettings,
    RecoverySettings,
    StructuredPruning,
    TensorSignature,
    Trainer,
    WorkHandler,
    WorkUnit,
)
from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.errors import InvalidDatasetError, UnsupportedError
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.network import NetworkProfile, PruningSpace
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.recipe import PassStep, Recipe

IMPORT_MODEL = "import_model"
CHECK_DATASET = "check_dataset"
BASELINE = "baseline"
SENSITIVITY = "sensitivity"
TRIAL = "trial"

WORK_VERSION = 1
"""Raised when a handler's results change meaning, so that old cached results are not taken for new."""

PARITY_SAMPLES = 16
"""Real inputs on which the imported graph is compared with the file as it came."""

SENSITIVITY_SAMPLES = 768
"""Selection samples per measured point of the sensitivity; standard error 1.6 points at 75 %."""


def unit_digest(unit: WorkUnit) -> str:
    """Return the identity of a unit of work: the sha-256 of its kind, payload and input digests."""
    identity = {
        "version": WORK_VERSION,
        "kind": unit.kind,
        "payload": unit.payload,
        "inputs": dict(unit.inputs),
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of an imported model, apart from its graph."""

    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    opset: int
    node_count: int
    parameter_count: int
    macs: int
    is_quantized: bool
    warnings: tuple[str, ...]
    profile: NetworkProfile
    space: PruningSpace

    def as_imported(self, graph: bytes) -> ImportedModel:
        """Return the importer's value again, with the graph."""
        return ImportedModel(
            graph=graph,
            inputs=self.inputs,
            outputs=self.outputs,
            opset=self.opset,
            node_count=self.node_count,
            parameter_count=self.parameter_count,
            macs=self.macs,
            is_quantized=self.is_quantized,
            warnings=self.warnings,
        )


@dataclass(frozen=True, kw_only=True)
class BaselineOutcome:
    """Accuracy of the model as it came, in onnxruntime, and the proof of its import."""

    accuracy: Accuracy | None
    selection_accuracy: Accuracy | None
    parity: float
    file_bytes: int
    train_count: int
    evaluation_count: int


@dataclass(frozen=True, kw_only=True)
class MeasuredPoint:
    """Accuracy with one group alone cut to `kept` units, without any training."""

    group_id: str
    kept: int
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class SensitivityOutcome:
    """Importance of every unit, and a few measured points to correct them by."""

    importance: Mapping[str, tuple[float, ...]]
    points: tuple[MeasuredPoint, ...]
    reference_accuracy: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """What one trial produced; its files are the outputs `model` and `graph`."""

    profile: NetworkProfile
    file_bytes: int
    accuracy: Accuracy | None
    selection_accuracy: Accuracy | None
    float_selection_accuracy: Accuracy | None
    parity: Mapping[str, float]
    stage_seconds: Mapping[str, float]
    history: tuple[Mapping[str, float], ...] = ()
    epochs: float = 0.0
    steps: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WorkHandlers:
    """The handlers with the ports they work through; composed in the worker process."""

    importer: ModelImporter
    inspector: GraphInspector
    pruning: StructuredPruning
    trainer: Trainer
    exporters: Mapping[ModelFormat, Exporter]
    evaluators: Mapping[ModelFormat, Evaluator]
    datasets: DatasetReader
    cache_dir: Path

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handlers by the kind of unit they run."""
        return {
            IMPORT_MODEL: self.import_model,
            CHECK_DATASET: self.check_dataset,
            BASELINE: self.baseline,
            SENSITIVITY: self.sensitivity,
            TRIAL: self.trial,
        }

    def import_model(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Bring an uploaded model into working form and list what can be pruned.

        Inputs: `model`. Outputs: `graph`. Payload of the result: `ModelFacts`.
        """
        del payload
        data = inputs["model"].read_bytes()
        on_progress(0.1, "importing the model")
        imported = self.importer.import_model(data)
        self.importer.check_parity(data, imported.graph, _random_inputs(imported, count=2))
        on_progress(0.6, "reading the graph")
        space = (
            PruningSpace(groups=()) if imported.is_quantized else self.pruning.space(imported.graph)
        )
        facts = ModelFacts(
            inputs=imported.inputs,
            outputs=imported.outputs,
            opset=imported.opset,
            node_count=imported.node_count,
            parameter_count=imported.parameter_count,
            macs=imported.macs,
            is_quantized=imported.is_quantized,
            warnings=imported.warnings,
            profile=self.inspector.profile(imported.graph),
            space=space,
        )
        graph_path = output_dir / "graph.onnx"
        graph_path.write_bytes(imported.graph)
        return to_plain(facts), {"graph": graph_path}

    def check_dataset(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Read a dataset's manifest, and open it against a model where one is given.

        Inputs: `dataset`, and `graph` with its facts in the payload under `model` or neither.
        Payload of the result: the `DatasetManifest`.
        """
        del output_dir
        archive = inputs["dataset"]
        on_progress(0.1, "checking the dataset")
        manifest = self.datasets.read_manifest(archive)
        model = None
        if "graph" in inputs:
            model = _facts(payload).as_imported(inputs["graph"].read_bytes())
        dataset = self.datasets.open(archive, model=model)
        if model is not None and dataset.samples(SplitName.EVALUATION) is None:
            raise InvalidDatasetError(
                "the dataset has no evaluation split",
                field="dataset.splits.evaluation",
                remedy="name the arrays that accuracy is to be reported on",
            )
        return to_plain(manifest), {}

    def baseline(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Prove the import on real inputs and measure the accuracy of the model as it came.

        Inputs: `model`, `graph`, `dataset`. Payload of the result: `BaselineOutcome`.
        """
        del output_dir
        graph = inputs["graph"].read_bytes()
        dataset = self._open(payload, inputs, graph)
        evaluation = _needed(dataset, SplitName.EVALUATION)
        on_progress(0.05, "comparing with the original file on real inputs")
        count = min(PARITY_SAMPLES, len(evaluation))
        original = inputs["model"].read_bytes()
        parity = self.importer.check_parity(original, graph, [evaluation.inputs(slice(0, count))])
        on_progress(0.2, "accuracy of the model as it came")
        onnx = self.evaluators[ModelFormat.ONNX]
        train = dataset.samples(SplitName.TRAIN)
        selection = dataset.samples(SplitName.SELECTION)
        outcome = BaselineOutcome(
            accuracy=_accuracy(onnx, graph, evaluation),
            selection_accuracy=_accuracy(onnx, graph, selection),
            parity=parity,
            file_bytes=len(original),
            train_count=0 if train is None else len(train),
            evaluation_count=len(evaluation),
        )
        return to_plain(outcome), {}

    def sensitivity(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Score every prunable unit, then measure what cutting each group alone costs.

        Inputs: `graph`, `dataset`. Payload: `model`, `seed`, `shares` (shares of a group to cut for
        the measured points). Payload of the result: `SensitivityOutcome`.
        """
        del output_dir
        graph = inputs["graph"].read_bytes()
        facts = _facts(payload)
        dataset = self._open(payload, inputs, graph)
        selection = _needed(dataset, SplitName.SELECTION)
        scored_on = dataset.samples(SplitName.TRAIN) or selection
        notes: tuple[str, ...] = ()
        on_progress(0.0, "importance of every channel")
        try:
            importance = self.trainer.importance(
                graph, facts.space, scored_on, seed=int(payload["seed"])
            )
        except UnsupportedError as error:
            importance = {group.group_id: [1.0] * group.unit_count for group in facts.space.groups}
            notes = (f"no gradients, so channels are ranked by measurement only: {error.message}",)
        sample = selection.take(range(min(SENSITIVITY_SAMPLES, len(selection))))
        onnx = self.evaluators[ModelFormat.ONNX]
        points: list[MeasuredPoint] = []
        wanted = [
            (group, kept)
            for group in facts.space.groups
            for share in payload["shares"]
            if 0 < (kept := max(1, round(group.unit_count * (1 - share)))) < group.unit_count
        ]
        for done, (group, kept) in enumerate(wanted):
            on_progress(0.3 + 0.7 * done / len(wanted), f"cost of cutting {group.group_id}")
            keep = {group.group_id: most_important(importance[group.group_id], kept)}
            cut = self.pruning.apply(graph, keep)
            accuracy = onnx.evaluate(cut, sample).value
            points.append(MeasuredPoint(group_id=group.group_id, kept=kept, accuracy=accuracy))
        outcome = SensitivityOutcome(
            importance={key: tuple(float(v) for v in vs) for key, vs in importance.items()},
            points=tuple(points),
            reference_accuracy=onnx.evaluate(graph, sample).value,
            notes=notes,
        )
        return to_plain(outcome), {}

    def trial(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Apply a recipe: prune, train back, export, evaluate the exported file.

        Inputs: `graph`, `dataset`. Payload: `model`, `recipe`, `teacher_key` (names the cache of the
        teacher's outputs), `evaluate` (whether the evaluation set may be looked at). Outputs: `model`
        (the exported file), `graph` (float ONNX).
        Payload of the result: `TrialOutcome`.
        """
        graph = inputs["graph"].read_bytes()
        recipe = from_plain(Recipe, payload["recipe"])
        dataset = self._open(payload, inputs, graph)
        stages = _Stages()
        notes: list[str] = []

        # 1. Prune.
        working = graph
        prune = recipe.step("structured_pruning")
        if prune is not None and prune.parameters["keep"]:
            with stages.timed("prune"):
                working = self.pruning.apply(graph, prune.parameters["keep"])

        # 2. Train back towards the original.
        epochs, steps = 0.0, 0
        history: tuple[Mapping[str, float], ...] = ()
        recovery = recipe.step("recovery")
        train = dataset.samples(SplitName.TRAIN)
        if recovery is not None and train is not None:
            with stages.timed("recover"):
                try:
                    result = self.trainer.recover(
                        working,
                        teacher=graph,
                        train=train,
                        selection=_needed(dataset, SplitName.SELECTION),
                        settings=from_plain(RecoverySettings, recovery.parameters),
                        cache_dir=self._teacher_cache(payload),
                        on_progress=lambda share, text: on_progress(0.75 * share, text),
                    )
                except UnsupportedError as error:
                    notes.append(f"not trained: {error.message}")
                else:
                    working, history = result.graph, result.history
                    epochs, steps = result.epochs, result.steps
                    notes.extend(result.notes)
        elif recovery is not None:
            notes.append("not trained: the dataset has no training split")

        # 3. Export, reload, compare.
        on_progress(0.75, "exporting")
        exporter = self.exporters[ModelFormat(recipe.output_format)]
        quantization = _quantization(recipe.step("quantization"))
        with stages.timed("export"):
            exported = exporter.export(
                working,
                calibration=dataset.samples(SplitName.CALIBRATION),
                settings=quantization,
                metadata=_file_metadata(recipe),
            )
        notes.extend(exported.notes)

        # 4. Evaluate the exported file in its own runtime.
        on_progress(0.85, "evaluating the exported file")
        evaluator = self.evaluators[exported.format]
        selection = dataset.samples(SplitName.SELECTION)
        with stages.timed("evaluate"):
            selection_accuracy = _accuracy(evaluator, exported.data, selection)
            accuracy = (
                _accuracy(evaluator, exported.data, dataset.samples(SplitName.EVALUATION))
                if payload["evaluate"]
                else None
            )
        outcome = TrialOutcome(
            profile=self.inspector.profile(working),
            file_bytes=len(exported.data),
            accuracy=accuracy,
            selection_accuracy=selection_accuracy,
            float_selection_accuracy=_accuracy(
                self.evaluators[ModelFormat.ONNX], working, selection
            ),
            parity=dict(exported.parity),
            stage_seconds=stages.seconds,
            history=history,
            epochs=epochs,
            steps=steps,
            notes=tuple(notes),
        )
        model_path = output_dir / f"model.{recipe.output_format}"
        model_path.write_bytes(exported.data)
        graph_path = output_dir / "graph.onnx"
        graph_path.write_bytes(working)
        return to_plain(outcome), {"model": model_path, "graph": graph_path}

    def _open(
        self, payload: Mapping[str, Any], inputs: Mapping[str, Path], graph: bytes
    ) -> OpenDataset:
        return self.datasets.open(inputs["dataset"], model=_facts(payload).as_imported(graph))

    def _teacher_cache(self, payload: Mapping[str, Any]) -> Path:
        path = self.cache_dir / "teachers" / str(payload["teacher_key"])
        path.mkdir(parents=True, exist_ok=True)
        return path


def most_important(scores: Sequence[float], count: int) -> list[int]:
    """Return the indices of the `count` highest scores, ascending; ties go to the lower index."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    return sorted(int(index) for index in order[:count])


@dataclass
class _Stages:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _facts(payload: Mapping[str, Any]) -> ModelFacts:
    return from_plain(ModelFacts, payload["model"])


def _quantization(step: PassStep | None) -> QuantizationSettings:
    return (
        QuantizationSettings()
        if step is None
        else from_plain(QuantizationSettings, step.parameters)
    )


def _needed(dataset: OpenDataset, split: SplitName) -> Samples:
    samples = dataset.samples(split)
    if samples is None:
        raise InvalidDatasetError(
            f"the dataset has no {split} split",
            field=f"dataset.splits.{split}",
            remedy="name its arrays in the manifest",
        )
    return samples


def _accuracy(evaluator: Evaluator, data: bytes, samples: Samples | None) -> Accuracy | None:
    if samples is None or samples.labels is None:
        return None
    return evaluator.evaluate(data, samples)


def _random_inputs(model: ImportedModel, *, count: int) -> list[FloatArray]:
    """Return seeded standard normal arrays for every input of the model, `count` samples each."""
    generator = np.random.default_rng(0)
    return [
        generator.standard_normal(
            [count if size == -1 else size for size in signature.shape]
        ).astype(np.float32)
        for signature in model.inputs
    ]


def _file_metadata(recipe: Recipe) -> Mapping[str, str]:
    return {
        "tightfit.source_digest": recipe.source_digest,
        "tightfit.target": recipe.target,
        "tightfit.recipe_version": str(recipe.version),
        "tightfit.seed": str(recipe.seed),
    }
