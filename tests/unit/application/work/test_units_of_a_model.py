"""The units of work of one small network, from its import to a trial, run as a worker runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fakes.networks import NETWORKS
from fakes.search_bench import TARGET
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.formats.packed import pack
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import (
    ImportedModel,
    OpenDataset,
    PassContext,
    PrecisionSensitivity,
    QuantizationSettings,
    WorkHandler,
    WorkResult,
)
from tightfit_service.application.recipes.steps import (
    PRUNING_STEP,
    QUANTIZATION_STEP,
    GraphSteps,
)
from tightfit_service.application.samples import Samples
from tightfit_service.application.units.kinds import (
    Nothing,
    OutcomeT,
    TaskT,
    UnitKind,
    payload_of,
)
from tightfit_service.application.work.attribution import (
    ATTRIBUTION,
    AttributionTask,
    AttributionWork,
    measurable_steps,
)
from tightfit_service.application.work.baseline import BASELINE, BaselineTask, BaselineWork
from tightfit_service.application.work.checks import (
    CHECK_DATASET,
    CHECK_RECIPE,
    CheckDatasetTask,
    CheckRecipeTask,
    CheckWork,
)
from tightfit_service.application.work.data import UnitData
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.model_import import IMPORT_MODEL, ImportWork
from tightfit_service.application.work.narrow_file import (
    NARROW_FILE,
    NarrowFileTask,
    NarrowFileWork,
)
from tightfit_service.application.work.node_ways import NodeWays
from tightfit_service.application.work.recipe import RecipeWork, TrialOutcome
from tightfit_service.application.work.sensitivity import (
    MEASURED_ALTERNATIVES,
    SENSITIVITY,
    SensitivityTask,
    SensitivityWork,
    most_important,
)
from tightfit_service.application.work.teacher import TEACHER, TeacherTask, TeacherWork
from tightfit_service.application.work.trial import TRIAL, TrialTask, TrialWork
from tightfit_service.application.work.variants import VARIANTS, VariantsTask, VariantsWork
from tightfit_service.domain.dataset import DatasetManifest, SplitName, SplitSpec
from tightfit_service.domain.errors import (
    InvalidDatasetError,
    InvalidRequestError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.network import (
    ImportanceCriterion,
    PruningSpace,
    Variant,
)
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.graph.structure import tensor_shapes
from tightfit_service.passes.low_rank import LowRankPass
from tightfit_service.passes.precision_sensitivity import precision_sensitivity
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

NETWORK = NETWORKS["plain_cnn"]
MODEL = NETWORK(0).SerializeToString()
COUNTS = {
    SplitName.TRAIN: 64,
    SplitName.CALIBRATION: 8,
    SplitName.SELECTION: 40,
    SplitName.EVALUATION: 48,
}
MANIFEST = DatasetManifest(
    arrays={"*": "x.npz"},
    splits={
        "train": SplitSpec(input="x", label="y"),
        "evaluation": SplitSpec(input="u", label="v"),
    },
)
EVALUATOR = OnnxRuntimeEvaluator()


class _Dataset:
    """Noise, labelled by what the network answers."""

    manifest = MANIFEST

    def __init__(self, missing: Sequence[SplitName]) -> None:
        self._missing = missing

    def samples(self, split: SplitName) -> Samples | None:
        if split in self._missing or split not in COUNTS:
            return None
        shape = tensor_shapes(NETWORK(0))["input"]
        rng = np.random.default_rng(len(split))
        inputs = rng.normal(size=(COUNTS[split], *shape[1:])).astype(np.float32)
        answers = EVALUATOR.outputs(MODEL, inputs).argmax(axis=1).astype(np.int64)
        return Samples(stored=inputs, labels=answers, name=split.value)


@dataclass
class _Reader:
    """Implements `DatasetReader` and `DataSynthesizer`."""

    missing: Sequence[SplitName] = ()
    folders: list[Path] = field(default_factory=list)

    def read_manifest(self, archive: Path) -> DatasetManifest:
        assert archive.exists()
        return MANIFEST

    def open(self, archive: Path, *, model: ImportedModel | None) -> OpenDataset:
        assert archive.exists()
        return _Dataset(self.missing)

    def dataset(self, model: ImportedModel, *, cache_dir: Path, seed: int) -> OpenDataset:
        assert model.graph
        assert seed == 0
        assert cache_dir.is_dir()
        self.folders.append(cache_dir)
        return _Dataset(self.missing)


class _NoGradients(TorchTrainer):
    """Has no gradients of this network."""

    def importance(
        self,
        graph: bytes,
        space: PruningSpace,
        samples: Samples,
        *,
        seed: int,
        criterion: ImportanceCriterion = ImportanceCriterion.FISHER,
    ) -> Mapping[str, Sequence[float]]:
        if criterion is not ImportanceCriterion.MAGNITUDE:
            raise UnsupportedError("Sinh has none", field="model", remedy="rank by weights")
        return super().importance(graph, space, samples, seed=seed, criterion=criterion)


class _Narrowing:
    """A network pass that keeps every group's first unit."""

    name = "narrowing"

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        return ()

    def check(self, graph: bytes, parameters: Mapping[str, Any]) -> None:
        assert "to" in parameters

    def apply(self, graph: bytes, parameters: Mapping[str, Any], context: PassContext) -> bytes:
        pruning = StructuredPruningPass()
        keep = {g.group_id: list(range(parameters["to"])) for g in pruning.space(graph).groups}
        return pruning.apply(graph, keep)

    def variants(
        self, graph: bytes, target: HardwareSpec, *, context: PassContext | None = None
    ) -> Sequence[Variant]:
        return [Variant(pass_name=self.name, label="one unit", parameters={"to": 1})]


def _no_probe(*_: object, **__: object) -> PrecisionSensitivity:
    raise AssertionError("no number format was asked about")


@dataclass
class Site:
    """Handlers of one worker over the network and its dataset."""

    folder: Path
    reader: _Reader = field(default_factory=_Reader)
    trainer: TorchTrainer = field(default_factory=lambda: TorchTrainer(threads=1))

    def handlers(self) -> Mapping[str, WorkHandler]:
        inspector, importer, narrowing = OnnxGraphInspector(), OnnxImporter(), _Narrowing()
        low_rank = LowRankPass()
        steps = GraphSteps(
            pruning=StructuredPruningPass(),
            passes={low_rank.name: low_rank, narrowing.name: narrowing},
        )
        data = UnitData(
            datasets=self.reader,
            synthesizer=self.reader,
            evaluator=EVALUATOR,
            cache_dir=self.folder / "cache",
        )
        ways = NodeWays(inspector=inspector, passes={low_rank.name: low_rank})
        recipes = RecipeWork(
            steps=steps,
            inspector=inspector,
            trainer=self.trainer,
            exporters={ModelFormat.ONNX: OnnxExporter(quantizer=StaticQuantizationPass())},
            evaluators={ModelFormat.ONNX: EVALUATOR},
            pack=pack,
        )
        works = (
            ImportWork(importer=importer, inspector=inspector, pruning=steps.pruning),
            CheckWork(datasets=self.reader, steps=steps),
            BaselineWork(data=data, importer=importer, evaluator=EVALUATOR),
            SensitivityWork(
                data=data,
                steps=steps,
                trainer=self.trainer,
                evaluator=EVALUATOR,
                ways=ways,
                precision_probe=_no_probe,
            ),
            VariantsWork(
                data=data,
                steps=steps,
                inspector=inspector,
                evaluator=EVALUATOR,
                ways=ways,
                passes={narrowing.name: narrowing},
            ),
            AttributionWork(
                data=data,
                steps=steps,
                evaluator=EVALUATOR,
                precision_probe=precision_sensitivity,
            ),
            TeacherWork(data=data, trainer=self.trainer, evaluator=EVALUATOR),
            TrialWork(data=data, recipes=recipes, cache_dir=self.folder / "cache"),
            NarrowFileWork(data=data, recipes=recipes),
        )
        return {kind: handler for work in works for kind, handler in work.table().items()}

    def run(
        self, kind: UnitKind[TaskT, OutcomeT], task: TaskT, **inputs: bytes
    ) -> tuple[OutcomeT, Mapping[str, bytes]]:
        """Return the outcome and the contents of the files that were made."""
        paths: dict[str, Path] = {}
        for name, content in inputs.items():
            paths[name] = self.folder / f"input-{name}"
            paths[name].write_bytes(content)
        payload, files = self.handlers()[kind.name](
            payload_of(task), paths, self.folder, lambda _share, _text: None
        )
        outcome = kind.outcome(WorkResult(payload=payload))
        return outcome, {name: path.read_bytes() for name, path in files.items()}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(folder=tmp_path)


@pytest.fixture
def facts(site: Site) -> ModelFacts:
    return site.run(IMPORT_MODEL, Nothing(), model=MODEL)[0]


def recipe(*steps: PassStep) -> Recipe:
    settings = to_plain(QuantizationSettings(number_format=NumberFormat.FLOAT32))
    export = PassStep(pass_name=QUANTIZATION_STEP, parameters=settings)
    return Recipe(
        source_digest="1" * 64,
        seed=0,
        target="board",
        output_format="onnx",
        steps=(*steps, export),
    )


def sensitivity(facts: ModelFacts, **changes: Any) -> SensitivityTask:
    task = SensitivityTask(
        model=facts,
        target=TARGET,
        seed=0,
        space=facts.space,
        importance=ImportanceCriterion.FISHER,
        shares=(0.5,),
        techniques=(),
        number_format=None,
    )
    return replace(task, **changes)


def test_an_imported_model_is_its_graph_and_what_can_be_read_off_it(site: Site) -> None:
    facts, files = site.run(IMPORT_MODEL, Nothing(), model=MODEL)
    assert facts.profile == OnnxGraphInspector().profile(files["graph"])
    assert facts.space == StructuredPruningPass().space(files["graph"])
    assert facts.space.groups
    assert facts.as_imported(files["graph"]) == OnnxImporter().import_model(MODEL)


def test_a_dataset_is_checked_alone_and_against_a_model(site: Site, facts: ModelFacts) -> None:
    assert site.run(CHECK_DATASET, CheckDatasetTask(), dataset=b"d")[0] == MANIFEST
    task = CheckDatasetTask(model=facts)
    assert site.run(CHECK_DATASET, task, dataset=b"d", graph=MODEL)[0] == MANIFEST
    site.reader.missing = (SplitName.EVALUATION,)
    assert site.run(CHECK_DATASET, CheckDatasetTask(), dataset=b"d")[0] == MANIFEST
    with pytest.raises(InvalidDatasetError) as caught:
        site.run(CHECK_DATASET, task, dataset=b"d", graph=MODEL)
    assert caught.value.field == "dataset.splits.evaluation"
    assert caught.value.remedy


def test_a_recipe_is_checked_against_the_passes_there_are(site: Site) -> None:
    task = CheckRecipeTask(recipe=recipe())
    assert site.run(CHECK_RECIPE, task, graph=MODEL) == (Nothing(), {})
    unknown = recipe(PassStep(pass_name="magic", parameters={}))
    with pytest.raises(InvalidRequestError, match="magic"):
        site.run(CHECK_RECIPE, CheckRecipeTask(recipe=unknown), graph=MODEL)


def test_the_baseline_is_measured_on_both_sets(site: Site, facts: ModelFacts) -> None:
    task = BaselineTask(model=facts)
    found, _ = site.run(BASELINE, task, model=MODEL, graph=MODEL, dataset=b"d")
    assert found.accuracy is not None
    assert (found.accuracy.value, found.accuracy.sample_count) == (1.0, 48)
    assert found.selection_accuracy is not None
    assert (found.selection_accuracy.value, found.selection_accuracy.sample_count) == (1.0, 40)
    assert found.parity < 1e-4
    assert (found.train_count, found.evaluation_count) == (64, 48)
    assert found.file_bytes == len(MODEL)


def test_stand_in_data_is_kept_by_model(site: Site, facts: ModelFacts) -> None:
    other = NETWORK(1).SerializeToString()
    for model in (MODEL, MODEL, other):
        site.run(BASELINE, BaselineTask(model=facts), model=model, graph=model)
    first, again, third = site.reader.folders
    assert first == again != third


def test_every_unit_is_scored_and_every_group_cut_alone(site: Site, facts: ModelFacts) -> None:
    found, _ = site.run(SENSITIVITY, sensitivity(facts), graph=MODEL, dataset=b"d")
    units = {group.group_id: group.unit_count for group in facts.space.groups}
    assert {group: len(scores) for group, scores in found.importance.items()} == units
    assert {p.group_id: p.kept for p in found.points} == {g: n // 2 for g, n in units.items()}
    assert found.reference_accuracy == 1.0
    # the labels are the network's own answers, of which random weights change some
    assert min(point.accuracy for point in found.points) < 1.0
    assert (found.alternatives, found.precision_costs, found.notes) == ((), {}, ())


def test_some_of_the_other_ways_are_measured_alone(site: Site, facts: ModelFacts) -> None:
    task = sensitivity(facts, shares=(), techniques=("low_rank", "unknown here"))
    found, _ = site.run(SENSITIVITY, task, graph=MODEL, dataset=b"d")
    assert found.alternatives
    assert {way.alternative.pass_name for way in found.alternatives} == {"low_rank"}
    measured = [way for way in found.alternatives if way.accuracy is not None]
    assert 0 < len(measured) <= MEASURED_ALTERNATIVES
    assert found.points == ()


def test_without_gradients_units_are_ranked_by_their_weights(
    tmp_path: Path, facts: ModelFacts
) -> None:
    site = Site(folder=tmp_path, trainer=_NoGradients(threads=1))
    task = sensitivity(facts, shares=())
    found, _ = site.run(SENSITIVITY, task, graph=MODEL, dataset=b"d")
    asked = replace(task, importance=ImportanceCriterion.MAGNITUDE)
    assert found.importance == site.run(SENSITIVITY, asked, graph=MODEL, dataset=b"d")[0].importance
    assert ["Sinh has none" in note for note in found.notes] == [True]


def test_the_most_important_units_come_in_their_order() -> None:
    assert most_important([0.1, 3.0, 2.0, 3.0], 2) == [1, 3]
    assert most_important([1.0, 1.0, 1.0], 2) == [0, 1]


def test_other_forms_are_measured_as_they_are(site: Site, facts: ModelFacts) -> None:
    task = VariantsTask(
        model=facts,
        target=TARGET,
        techniques=("narrowing", "unknown here"),
        node_techniques=("low_rank",),
    )
    (found,) = site.run(VARIANTS, task, graph=MODEL, dataset=b"d")[0].variants
    assert found.variant.label == "one unit"
    assert found.profile.macs < facts.profile.macs
    assert found.accuracy < 1.0
    assert not found.space.groups, "there is nothing left to cut"


def test_single_changes_of_a_trial_are_measured_alone(site: Site, facts: ModelFacts) -> None:
    first, *_ = facts.space.groups
    scored, _ = site.run(SENSITIVITY, sensitivity(facts), graph=MODEL, dataset=b"d")
    keep = {
        p.group_id: most_important(scored.importance[p.group_id], p.kept) for p in scored.points
    }
    node = first.producers[0]
    found = recipe(
        PassStep(pass_name=PRUNING_STEP, parameters={"keep": keep}),
        PassStep(pass_name="low_rank", parameters={"nodes": {node: {"method": "svd", "rank": 1}}}),
        PassStep(pass_name="recovery", parameters={}),
    )
    steps = measurable_steps(found)
    assert [step.pass_name for step in steps] == [PRUNING_STEP, "low_rank"]
    task = AttributionTask(model=facts, seed=0, steps=steps)
    lost, _ = site.run(ATTRIBUTION, task, graph=MODEL, dataset=b"d")
    # the same cuts on the same samples as when they were measured before the search
    assert lost.groups == {p.group_id: 1.0 - p.accuracy for p in scored.points}
    assert lost.nodes.keys() == {node}
    assert lost.formats == {}


def test_number_formats_are_measured_in_the_compressed_network(
    site: Site, facts: ModelFacts
) -> None:
    task = AttributionTask(
        model=facts,
        seed=0,
        steps=(),
        quantization=QuantizationSettings(number_format=NumberFormat.INT4, per_channel=False),
    )
    same, _ = site.run(ATTRIBUTION, task, graph=MODEL, dataset=b"d", compressed=MODEL)
    other = NETWORK(1).SerializeToString()
    strange, _ = site.run(ATTRIBUTION, task, graph=MODEL, dataset=b"d", compressed=other)
    assert same.formats.keys() == strange.formats.keys() != set()
    assert (same.groups, same.nodes) == ({}, {})
    assert max(same.formats.values()) > 0
    assert strange.formats != same.formats


def test_a_teacher_is_held_against_the_model(site: Site, facts: ModelFacts) -> None:
    task, other = TeacherTask(model=facts), NETWORK(1).SerializeToString()
    found, _ = site.run(TEACHER, task, graph=MODEL, teacher0=other, dataset=b"d")
    assert found.model_accuracy.value == 1.0
    assert found.accuracy.value < 1.0


def trial(site: Site, task: TrialTask, **inputs: bytes) -> tuple[TrialOutcome, Mapping[str, bytes]]:
    return site.run(TRIAL, task, graph=MODEL, dataset=b"d", **inputs)


def test_a_trial_gives_a_file_and_looks_at_the_evaluation_set_where_it_may(
    site: Site, facts: ModelFacts
) -> None:
    task = TrialTask(model=facts, recipe=recipe(), target=TARGET, evaluate=False, teacher_key="key")
    screened, files = trial(site, task)
    assert files.keys() == {"model", "graph"}
    assert files["graph"] == MODEL
    assert (screened.accuracy, screened.download_bytes) == (None, None)
    judged, files = trial(site, replace(task, evaluate=True, packed=True))
    assert judged.accuracy is not None
    assert judged.accuracy.sample_count == 48
    assert judged.selection_accuracy == screened.selection_accuracy
    assert judged.download_bytes == len(files["packed"])
    assert judged.file_bytes == len(files["model"])


def test_a_trial_goes_on_from_the_graph_of_an_earlier_one(site: Site, facts: ModelFacts) -> None:
    group = facts.space.groups[0]
    cut = PassStep(pass_name=PRUNING_STEP, parameters={"keep": {group.group_id: [0]}})
    narrow = PassStep(pass_name="narrowing", parameters={"to": 1})
    task = TrialTask(
        model=facts, recipe=recipe(cut), target=TARGET, evaluate=False, teacher_key="key"
    )
    first, files = trial(site, task)
    goes_on = replace(task, recipe=recipe(cut, narrow), finished_steps=1)
    later, _ = trial(site, goes_on, start=files["graph"])
    whole, _ = trial(site, replace(task, recipe=recipe(narrow)))
    assert whole.profile.macs == later.profile.macs < first.profile.macs


def test_a_narrow_file_is_that_of_the_trial_and_nothing_is_evaluated(
    site: Site, facts: ModelFacts
) -> None:
    group = facts.space.groups[0]
    cut = recipe(PassStep(pass_name=PRUNING_STEP, parameters={"keep": {group.group_id: [0, 1]}}))
    narrow, files = site.run(
        NARROW_FILE,
        NarrowFileTask(model=facts, recipe=cut, target=TARGET),
        graph=MODEL,
        dataset=b"d",
    )
    task = TrialTask(model=facts, recipe=cut, target=TARGET, evaluate=False, teacher_key="key")
    tried, tried_files = trial(site, task)
    assert files.keys() == {"model"}
    written, expected = (
        onnx.load_from_string(data) for data in (files["model"], tried_files["model"])
    )
    assert written.graph == expected.graph
    assert narrow.profile == tried.profile
    assert narrow.profile.macs < facts.profile.macs
    # without a dataset it is calibrated on inputs made up from the model
    alone, _ = site.run(
        NARROW_FILE, NarrowFileTask(model=facts, recipe=cut, target=TARGET), graph=MODEL
    )
    assert alone.profile == narrow.profile
