"""The data of a unit of work: its dataset opened or made up, its splits, and accuracies on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tightfit_service.application.data.fidelity import AnsweredDataset
from tightfit_service.application.data.resampling import resize_samples
from tightfit_service.application.ports import (
    DatasetReader,
    DataSynthesizer,
    Evaluator,
    OpenDataset,
)
from tightfit_service.application.recipes.steps import RESOLUTION_STEP
from tightfit_service.application.samples import Samples
from tightfit_service.application.units.kinds import UnitContext
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.errors import InvalidDatasetError
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.recipe import PassStep

SYNTHESIS_SEED = 0
"""Stand-in data is one for all units of a model, whatever the job's seed."""

SENSITIVITY_SAMPLES = 768
"""Selection samples per measured point of the sensitivity; standard error 1.6 points at 75 %."""


@dataclass(frozen=True, kw_only=True)
class UnitData:
    """Opens the datasets of units.

    Attributes:
        evaluator: Runs the working graph, whose answers are the labels where fidelity is measured.
        cache_dir: Keeps what is made up, by model.
    """

    datasets: DatasetReader
    synthesizer: DataSynthesizer
    evaluator: Evaluator
    cache_dir: Path

    def open(self, facts: ModelFacts, context: UnitContext) -> OpenDataset:
        """Return the input `dataset`, or one made up from the model, the input `graph`, without it."""
        graph = context.read("graph")
        model = facts.as_imported(graph)
        if "dataset" in context.inputs:
            dataset = self.datasets.open(context.inputs["dataset"], model=model)
            if not dataset.manifest.metric.is_fidelity:
                return dataset
            return AnsweredDataset(
                dataset=dataset,
                original=graph,
                names=[signature.name for signature in model.inputs],
                evaluator=self.evaluator,
            )
        digest = hashlib.sha256(graph).hexdigest()
        folder = self.cache_dir / "synthetic" / digest[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return self.synthesizer.dataset(model, cache_dir=folder, seed=SYNTHESIS_SEED)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits of a dataset at the input size that a recipe works with."""

    dataset: OpenDataset
    size: tuple[int, int] | None = None
    """Height and width of images, None as they are."""

    @classmethod
    def of(cls, dataset: OpenDataset, steps: Sequence[PassStep]) -> Splits:
        """Return the splits as the network wants them after the given steps."""
        for step in steps:
            if step.pass_name == RESOLUTION_STEP and not step.parameters.get("inside"):
                size = (int(step.parameters["height"]), int(step.parameters["width"]))
                return cls(dataset=dataset, size=size)
        return cls(dataset=dataset)

    def get(self, split: SplitName) -> Samples | None:
        """Return a split, or None where the dataset has none."""
        samples = self.dataset.samples(split)
        if samples is None or self.size is None:
            return samples
        return resize_samples(samples, *self.size)

    def need(self, split: SplitName) -> Samples:
        """Return a split.

        Raises:
            InvalidDatasetError: The dataset has none.
        """
        samples = self.get(split)
        if samples is None:
            raise InvalidDatasetError(
                f"the dataset has no {split} split",
                field=f"dataset.splits.{split}",
                remedy="name its arrays in the manifest",
            )
        return samples

    def selection_sample(self) -> Samples:
        """Return the few selection samples that many changes of one network are compared on.

        Raises:
            InvalidDatasetError: There is no selection split.
        """
        return few(self.need(SplitName.SELECTION), SENSITIVITY_SAMPLES)


def few(samples: Samples, count: int) -> Samples:
    """Return the first samples, `count` at most."""
    return samples.take(range(min(count, len(samples))))


def accuracy_of(evaluator: Evaluator, data: bytes, samples: Samples | None) -> Accuracy | None:
    """Return the accuracy of a file, or None where there is nothing to hold it against."""
    if samples is None or samples.labels is None:
        return None
    return evaluator.evaluate(data, samples)
