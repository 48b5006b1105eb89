"""The unit of work that writes a network with fewer channels as a file, for what such a file costs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightfit_service.application.ports import WorkHandler
from tightfit_service.application.units.kinds import UnitContext, UnitKind
from tightfit_service.application.work.data import UnitData
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.recipe import RecipeTask, RecipeWork
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile
from tightfit_service.domain.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class NarrowFileTask:
    """A recipe that trains nothing, whose file is to be costed and then thrown away.

    Attributes:
        target: What the file is for.
    """

    model: ModelFacts
    recipe: Recipe
    target: HardwareSpec


@dataclass(frozen=True, kw_only=True)
class NarrowFileOutcome:
    """The network that was written; its file is the output `model`."""

    profile: NetworkProfile


NARROW_FILE = UnitKind("narrow_file", NarrowFileTask, NarrowFileOutcome)


@dataclass(frozen=True, kw_only=True)
class NarrowFileWork:
    """Writes narrow files; composed in the worker process."""

    data: UnitData
    recipes: RecipeWork

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handler by the kind of unit it runs."""
        return {NARROW_FILE.name: NARROW_FILE.handler(self.run)}

    def run(self, task: NarrowFileTask, context: UnitContext) -> NarrowFileOutcome:
        """Apply the recipe to the input `graph` and write its file, the output `model`.

        A further input is `dataset`, unless there is none. Nothing is evaluated.

        Raises:
            TightfitError: A step that does not fit, an export that failed.
        """
        context.on_progress(0.0, "writing a narrower network, to see how costs grow with width")
        profile = self.recipes.write(
            RecipeTask(
                graph=context.read("graph"),
                recipe=task.recipe,
                dataset=self.data.open(task.model, context),
                target=task.target,
                evaluate=False,
                # nothing is trained, so nobody teaches
                teacher_cache=context.output_dir,
            ),
            context,
        )
        return NarrowFileOutcome(profile=profile)
