"""The units of work that run in worker processes: import, baseline, sensitivity and trials.

Each handler is a pure function of its payload and input files. Payloads and results are plain JSON
data, so that a result can be cached by the digest of its inputs and survive any process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tightfit_service.application.fidelity import AnsweredDataset
from tightfit_service.application.file_metadata import input_metadata
from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.application.ports import (
    DatasetReader,
    DataSynthesizer,
    Evaluator,
    GraphInspector,
    ImportedModel,
    ModelImporter,
    NetworkPass,
    NodePass,
    OpenDataset,
    PassContext,
    PrecisionProbe,
    ProgressCallback,
    QuantizationSettings,
    TensorSignature,
    WorkHandler,
    WorkUnit,
)
from tightfit_service.application.recipe_steps import GraphSteps
from tightfit_service.application.recipe_work import RecipeWork, Splits, TrainedGraph, accuracy_of
from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.application.teacher_inputs import teacher_graphs
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.errors import InvalidDatasetError, UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.network import (
    Alternative,
    ImportanceCriterion,
    NetworkProfile,
    PruningSpace,
    Variant,
)
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.recipe import PassStep, Recipe

IMPORT_MODEL = "import_model"
CHECK_DATASET = "check_dataset"
BASELINE = "baseline"
SENSITIVITY = "sensitivity"
VARIANTS = "variants"
CHECK_RECIPE = "check_recipe"
TEACHER = "teacher"
TRIAL = "trial"

WORK_VERSION = 3
"""Raised when a handler's results change meaning, so that old cached results are not taken for new."""

PARITY_SAMPLES = 16
"""Real inputs on which the imported graph is compared with the file as it came."""

SYNTHESIS_SEED = 0
"""Stand-in data is one for all units of a model, whatever the job's seed."""

MEASURED_ALTERNATIVES = 12
"""Alternatives of a technique that are measured; the others are predicted from these by their errors."""

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
    source_format: ModelFormat = ModelFormat.ONNX
    architecture: tuple[str, ...] = ()

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
            source_format=self.source_format,
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
class MeasuredAlternative:
    """Another way to compute a node, and the accuracy with it alone, without any training.

    `accuracy` is None where it was not measured; the alternative's own error then stands for it.
    """

    alternative: Alternative
    accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class SensitivityOutcome:
    """Importance of every unit, and a few measured points to correct them by."""

    importance: Mapping[str, tuple[float, ...]]
    points: tuple[MeasuredPoint, ...]
    reference_accuracy: float
    alternatives: tuple[MeasuredAlternative, ...] = ()
    precision_costs: Mapping[str, float] = field(default_factory=dict)
    """Accuracy that the ordinary number format costs, by node, where it was measured."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TeacherOutcome:
    """How a further teacher and the model as it came do on the selection set."""

    accuracy: Accuracy
    model_accuracy: Accuracy


@dataclass(frozen=True, kw_only=True)
class VariantOutcome:
    """Another form of the whole network: what is left to do in it, and what can be pruned there.

    Attributes:
        alternatives: Ways to compute its nodes, with accuracies where they were measured in the network
            as it came.
        accuracy: Of the form as it is, without any training.
    """

    variant: Variant
    profile: NetworkProfile
    space: PruningSpace
    accuracy: float
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WorkHandlers:
    """The handlers with the ports they work through; composed in the worker process."""

    importer: ModelImporter
    recipes: RecipeWork
    node_passes: Mapping[str, NodePass]
    network_passes: Mapping[str, NetworkPass]
    datasets: DatasetReader
    synthesizer: DataSynthesizer
    precision_probe: PrecisionProbe
    cache_dir: Path

    @property
    def inspector(self) -> GraphInspector:
        """Reads facts off graphs."""
        return self.recipes.inspector

    @property
    def evaluators(self) -> Mapping[ModelFormat, Evaluator]:
        """Run files in their own runtime."""
        return self.recipes.evaluators

    @property
    def steps(self) -> GraphSteps:
        """The passes."""
        return self.recipes.steps

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handlers by the kind of unit they run."""
        return {
            IMPORT_MODEL: self.import_model,
            CHECK_DATASET: self.check_dataset,
            BASELINE: self.baseline,
            SENSITIVITY: self.sensitivity,
            VARIANTS: self.variants,
            CHECK_RECIPE: self.check_recipe,
            TEACHER: self.teacher,
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
            PruningSpace(groups=())
            if imported.is_quantized
            else self.steps.pruning.space(imported.graph)
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
            source_format=imported.source_format,
            architecture=self.inspector.architecture(imported.graph),
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
        dataset = self.open_dataset(payload, inputs, graph)
        evaluation = Splits(dataset=dataset).need(SplitName.EVALUATION)
        on_progress(0.05, "comparing with the original file on real inputs")
        count = min(PARITY_SAMPLES, len(evaluation))
        original = inputs["model"].read_bytes()
        names = [signature.name for signature in _facts(payload).inputs]
        feeds = evaluation.feeds(slice(0, count), names)
        parity = self.importer.check_parity(original, graph, list(feeds.values()))
        on_progress(0.2, "accuracy of the model as it came")
        onnx = self.evaluators[ModelFormat.ONNX]
        train = dataset.samples(SplitName.TRAIN)
        selection = dataset.samples(SplitName.SELECTION)
        outcome = BaselineOutcome(
            accuracy=accuracy_of(onnx, graph, evaluation),
            selection_accuracy=accuracy_of(onnx, graph, selection),
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

        Inputs: `graph`, and `dataset` unless there is none. Payload: `model`, `seed`, `shares` (shares
        of a group to cut for the measured points), `space` (what can be pruned), `techniques` (node
        passes to consider), `target`, `importance` (what units are scored by), and `number_format` where
        it is to be measured what that costs layer by layer, else None.
        Payload of the result: `SensitivityOutcome`.
        """
        del output_dir
        graph = inputs["graph"].read_bytes()
        splits = Splits(dataset=self.open_dataset(payload, inputs, graph))
        space = from_plain(PruningSpace, payload["space"])
        selection = splits.need(SplitName.SELECTION)
        scored_on = splits.get(SplitName.TRAIN) or selection
        on_progress(0.0, "importance of every channel")
        importance, notes = self._importance(graph, space, scored_on, payload)
        sample = selection.take(range(min(SENSITIVITY_SAMPLES, len(selection))))
        onnx = self.evaluators[ModelFormat.ONNX]
        points: list[MeasuredPoint] = []
        wanted = [
            (group, kept)
            for group in space.groups
            for share in payload["shares"]
            if 0 < (kept := max(1, round(group.unit_count * (1 - share)))) < group.unit_count
        ]
        for done, (group, kept) in enumerate(wanted):
            on_progress(0.3 + 0.4 * done / len(wanted), f"cost of cutting {group.group_id}")
            keep = {group.group_id: most_important(importance[group.group_id], kept)}
            cut = self.steps.pruning.apply(graph, keep)
            accuracy = onnx.evaluate(cut, sample).value
            points.append(MeasuredPoint(group_id=group.group_id, kept=kept, accuracy=accuracy))
        on_progress(0.7, "other ways to compute each layer")
        context = PassContext(calibration=splits.get(SplitName.CALIBRATION))
        alternatives = self._alternatives(graph, payload, context, sample)
        precision_costs: Mapping[str, float] = {}
        if payload["number_format"] is not None and context.calibration is not None:
            precision_costs = self._precision_costs(
                graph,
                context.calibration,
                sample,
                NumberFormat(payload["number_format"]),
                on_progress,
            )
        outcome = SensitivityOutcome(
            importance={key: tuple(float(v) for v in vs) for key, vs in importance.items()},
            points=tuple(points),
            reference_accuracy=onnx.evaluate(graph, sample).value,
            alternatives=alternatives,
            precision_costs=precision_costs,
            notes=notes,
        )
        return to_plain(outcome), {}

    def _importance(
        self, graph: bytes, space: PruningSpace, samples: Samples, payload: Mapping[str, Any]
    ) -> tuple[Mapping[str, Sequence[float]], tuple[str, ...]]:
        """Return the scores of every unit; those of its weights where there are no gradients."""
        trainer, seed = self.recipes.trainer, int(payload["seed"])
        criterion = ImportanceCriterion(payload["importance"])
        try:
            return trainer.importance(graph, space, samples, seed=seed, criterion=criterion), ()
        except UnsupportedError as error:
            note = f"no gradients, so channels are ranked by their weights: {error.message}"
        criterion = ImportanceCriterion.MAGNITUDE
        return trainer.importance(graph, space, samples, seed=seed, criterion=criterion), (note,)

    def _alternatives(
        self, graph: bytes, payload: Mapping[str, Any], context: PassContext, sample: Samples
    ) -> tuple[MeasuredAlternative, ...]:
        """Return what node passes offer, some of it measured alone where the graph itself changes."""
        target = from_plain(HardwareSpec, payload["target"])
        onnx = self.evaluators[ModelFormat.ONNX]
        found: list[MeasuredAlternative] = []
        for name in payload["techniques"]:
            offered = self._offered(graph, [name], target, context)
            measured = _spread([choices[-1] for choices in offered.values() if choices])
            for alternative in (a for choices in offered.values() for a in choices):
                accuracy = None
                if alternative in measured:
                    nodes = {alternative.node: alternative.parameters}
                    step = PassStep(pass_name=name, parameters={"nodes": nodes})
                    changed = self.steps.apply(graph, step, context)
                    if changed != graph:
                        accuracy = onnx.evaluate(changed, sample).value
                found.append(MeasuredAlternative(alternative=alternative, accuracy=accuracy))
        return tuple(found)

    def _offered(
        self, graph: bytes, techniques: Sequence[str], target: HardwareSpec, context: PassContext
    ) -> Mapping[str, Sequence[Alternative]]:
        """Return what node passes offer, by node."""
        profile = self.inspector.profile(graph)
        found: dict[str, list[Alternative]] = {}
        for name in techniques:
            if name in self.node_passes:
                offers = self.node_passes[name].alternatives(
                    graph, profile, target, context=context
                )
                for node, choices in offers.items():
                    found.setdefault(node, []).extend(choices)
        return found

    def _precision_costs(
        self,
        graph: bytes,
        calibration: Samples,
        sample: Samples,
        number_format: NumberFormat,
        on_progress: ProgressCallback,
    ) -> Mapping[str, float]:
        """Return the accuracy that the number format costs by layer: alone, and among the others."""
        onnx = self.evaluators[ModelFormat.ONNX]
        measured = self.precision_probe(
            graph,
            calibration=calibration,
            score=lambda data: onnx.evaluate(data, sample).value,
            settings=QuantizationSettings(number_format=number_format),
            on_progress=lambda share, text: on_progress(0.8 + 0.2 * share, text),
        )
        return {
            layer.node: max(0.0, (measured.drop_alone(layer) + measured.gain_in_float(layer)) / 2)
            for layer in measured.layers
        }

    def variants(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Build the other forms that a network can take as a whole.

        Inputs: `graph`, and `dataset` unless there is none. Payload: `model`, `techniques` (network
        passes to consider), `node_techniques` (node passes that may be used in them), `target`.
        Payload of the result: `variants`, a list of `VariantOutcome`, mildest first per technique.
        """
        del output_dir
        graph = inputs["graph"].read_bytes()
        dataset = self.open_dataset(payload, inputs, graph)
        context = PassContext(calibration=dataset.samples(SplitName.CALIBRATION))
        onnx = self.evaluators[ModelFormat.ONNX]
        target = from_plain(HardwareSpec, payload["target"])
        outcomes: list[VariantOutcome] = []
        for name in payload["techniques"]:
            if name not in self.network_passes:
                continue
            for variant in self.network_passes[name].variants(graph, target, context=context):
                on_progress(0.5, f"{name}: {variant.label}")
                step = PassStep(pass_name=name, parameters=variant.parameters)
                changed = self.steps.apply(graph, step, context)
                splits = Splits.of(dataset, [step])
                selection = splits.need(SplitName.SELECTION)
                sample = selection.take(range(min(SENSITIVITY_SAMPLES, len(selection))))
                offered = self._offered(
                    changed,
                    payload["node_techniques"],
                    target,
                    PassContext(calibration=splits.get(SplitName.CALIBRATION)),
                )
                outcomes.append(
                    VariantOutcome(
                        variant=variant,
                        profile=self.inspector.profile(changed),
                        space=self.steps.pruning.space(changed),
                        accuracy=onnx.evaluate(changed, sample).value,
                        alternatives=tuple(a for choices in offered.values() for a in choices),
                    )
                )
        return {"variants": [to_plain(outcome) for outcome in outcomes]}, {}

    def check_recipe(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Check that a recipe's passes are known and its parameters fit the model.

        Inputs: `graph`. Payload: `recipe`. The result is empty.
        """
        del output_dir, on_progress
        self.steps.check(inputs["graph"].read_bytes(), from_plain(Recipe, payload["recipe"]))
        return {}, {}

    def teacher(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Hold a teacher besides the original against it, on samples that both answer.

        Inputs: `graph`, `teacher0`, and `dataset` unless there is none. Payload: `model`. Payload of the
        result: `TeacherOutcome`.
        """
        del output_dir
        graph = inputs["graph"].read_bytes()
        (teacher,) = teacher_graphs(inputs)
        selection = Splits(dataset=self.open_dataset(payload, inputs, graph)).need(
            SplitName.SELECTION
        )
        self.recipes.trainer.check_teacher(teacher, original=graph, samples=selection)
        on_progress(0.2, "how well the teacher does")
        sample = selection.take(range(min(SENSITIVITY_SAMPLES, len(selection))))
        onnx = self.evaluators[ModelFormat.ONNX]
        outcome = TeacherOutcome(
            accuracy=onnx.evaluate(teacher, sample), model_accuracy=onnx.evaluate(graph, sample)
        )
        return to_plain(outcome), {}

    def trial(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Apply a recipe: passes, training, export, evaluation of the exported file.

        Inputs: `graph`, working graphs of further teachers (see `teacher_inputs`), and `dataset` unless
        there is none. Payload: `model`, `recipe`, `target` (what the file is for), `teacher_key` (names
        the cache of the teachers' outputs), `evaluate` (whether the evaluation set may be looked at).
        With `start`, the float graph of an earlier trial, the recipe goes on from there: `finished_steps`
        says how many of its steps that has behind it. `packed` asks for a packed file.
        Outputs: `model` (the exported file), `graph` (float ONNX), `packed` where it is asked for.
        Payload of the result: `TrialOutcome`.
        """
        graph = inputs["graph"].read_bytes()
        recipe = from_plain(Recipe, payload["recipe"])
        dataset = self.open_dataset(payload, inputs, graph)
        # what made-up data looks like says nothing about real inputs
        samples = dataset.samples(SplitName.CALIBRATION) if "dataset" in inputs else None
        metadata = input_metadata(samples, dataset.manifest.class_names)
        start = None
        if "start" in inputs:
            start = TrainedGraph(
                graph=inputs["start"].read_bytes(), steps=int(payload["finished_steps"])
            )
        outcome, files = self.recipes.run(
            graph,
            recipe,
            dataset,
            target=from_plain(HardwareSpec, payload["target"]),
            evaluate=bool(payload["evaluate"]),
            packed=bool(payload.get("packed")),
            start=start,
            teachers=teacher_graphs(inputs),
            teacher_cache=self._teacher_cache(payload),
            output_dir=output_dir,
            metadata=metadata,
            on_progress=on_progress,
        )
        return to_plain(outcome), files

    def open_dataset(
        self, payload: Mapping[str, Any], inputs: Mapping[str, Path], graph: bytes
    ) -> OpenDataset:
        """Return the dataset of a unit, made up from the model `graph` where it has none."""
        model = _facts(payload).as_imported(graph)
        if "dataset" in inputs:
            dataset = self.datasets.open(inputs["dataset"], model=model)
            if not dataset.manifest.metric.is_fidelity:
                return dataset
            return AnsweredDataset(
                dataset=dataset,
                original=graph,
                names=[signature.name for signature in model.inputs],
                evaluator=self.evaluators[ModelFormat.ONNX],
            )
        digest = hashlib.sha256(graph).hexdigest()
        folder = self.cache_dir / "synthetic" / digest[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return self.synthesizer.dataset(model, cache_dir=folder, seed=SYNTHESIS_SEED)

    def _teacher_cache(self, payload: Mapping[str, Any]) -> Path:
        path = self.cache_dir / "teachers" / str(payload["teacher_key"])
        path.mkdir(parents=True, exist_ok=True)
        return path


def most_important(scores: Sequence[float], count: int) -> list[int]:
    """Return the indices of the `count` highest scores, ascending; ties go to the lower index."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    return sorted(int(index) for index in order[:count])


def _spread(alternatives: Sequence[Alternative]) -> Sequence[Alternative]:
    """Return a few alternatives, from the one with the least error to the one with the greatest."""
    ordered = sorted(alternatives, key=lambda alternative: alternative.error)
    if len(ordered) <= MEASURED_ALTERNATIVES:
        return ordered
    places = np.linspace(0, len(ordered) - 1, MEASURED_ALTERNATIVES).round().astype(int)
    return [ordered[place] for place in places]


def _facts(payload: Mapping[str, Any]) -> ModelFacts:
    return from_plain(ModelFacts, payload["model"])


def _random_inputs(model: ImportedModel, *, count: int) -> list[FloatArray]:
    """Return seeded standard normal arrays for every input of the model, `count` samples each."""
    generator = np.random.default_rng(0)
    return [
        generator.standard_normal(
            [count if size == -1 else size for size in signature.shape]
        ).astype(np.float32)
        for signature in model.inputs
    ]
