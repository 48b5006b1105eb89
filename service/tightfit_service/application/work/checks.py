"""The units of work that check what a user brings before a job is made of it: datasets and recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightfit_service.application.ports import DatasetReader, WorkHandler
from tightfit_service.application.recipes.steps import GraphSteps
from tightfit_service.application.units.kinds import Nothing, UnitContext, UnitKind
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.domain.dataset import DatasetManifest, SplitName
from tightfit_service.domain.errors import InvalidDatasetError
from tightfit_service.domain.recipe import Recipe

CHECK_TIMEOUT_SECONDS = 600.0
"""Somebody waits for what a check says."""


@dataclass(frozen=True, kw_only=True)
class CheckDatasetTask:
    """A dataset by itself, or against a model."""

    model: ModelFacts | None = None


@dataclass(frozen=True, kw_only=True)
class CheckRecipeTask:
    """A recipe against a model."""

    recipe: Recipe


CHECK_DATASET = UnitKind("check_dataset", CheckDatasetTask, DatasetManifest)
CHECK_RECIPE = UnitKind("check_recipe", CheckRecipeTask, Nothing)


@dataclass(frozen=True, kw_only=True)
class CheckWork:
    """Checks datasets and recipes; composed in the worker process."""

    datasets: DatasetReader
    steps: GraphSteps

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handlers by the kind of unit they run."""
        return {
            CHECK_DATASET.name: CHECK_DATASET.handler(self.check_dataset),
            CHECK_RECIPE.name: CHECK_RECIPE.handler(self.check_recipe),
        }

    def check_dataset(self, task: CheckDatasetTask, context: UnitContext) -> DatasetManifest:
        """Read the manifest of the input `dataset`, and open it for the input `graph` where one is given.

        Raises:
            InvalidDatasetError: It cannot be read, or does not fit the model.
        """
        archive = context.inputs["dataset"]
        context.on_progress(0.1, "checking the dataset")
        manifest = self.datasets.read_manifest(archive)
        model = None if task.model is None else task.model.as_imported(context.read("graph"))
        dataset = self.datasets.open(archive, model=model)
        if model is not None and dataset.samples(SplitName.EVALUATION) is None:
            raise InvalidDatasetError(
                "the dataset has no evaluation split",
                field="dataset.splits.evaluation",
                remedy="name the arrays that accuracy is to be reported on",
            )
        return manifest

    def check_recipe(self, task: CheckRecipeTask, context: UnitContext) -> Nothing:
        """Check that a recipe's passes are known and its parameters fit the input `graph`.

        Raises:
            InvalidRequestError: An unknown pass, or a parameter out of range.
        """
        self.steps.check(context.read("graph"), task.recipe)
        return Nothing()
