"""What all stages of one life of a job work with, from its start or restart to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightfit_service.application.costs.costing import FormatEstimates, with_target_limits
from tightfit_service.application.course.time_budget import TimeBudget
from tightfit_service.application.recipes.making import RecipeMaker
from tightfit_service.application.scheduling.journal import JobJournal
from tightfit_service.application.scheduling.notes import JobNotes
from tightfit_service.application.scheduling.stages import Stages
from tightfit_service.application.trials.book import RunContext, TrialBook
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.domain.budget import Budget
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.job import JobSpec


@dataclass(frozen=True, kw_only=True)
class JobLife:
    """One life of one job.

    Attributes:
        budget: What the job asks for, and what its target cannot exceed.
        estimates: Of the model as it came, before anything of it is measured or compiled.
        time: What is left for the search.
        stages: Run units of work, and tell where the job stands.
        book: The trials.
        recipes: Writes the recipes of trials.
        notes: What a user should know of the result.
    """

    journal: JobJournal
    context: RunContext
    budget: Budget
    estimates: FormatEstimates
    time: TimeBudget
    stages: Stages
    book: TrialBook
    recipes: RecipeMaker
    notes: JobNotes

    @classmethod
    def begin(cls, journal: JobJournal, context: RunContext) -> JobLife:
        """Return a life that goes on where the journal's job was interrupted, if it was."""
        spec = journal.job.spec
        budget = with_target_limits(spec.budget, spec.target)
        estimates = context.cost_model.in_formats(context.facts.profile)
        stages = Stages(journal, context.units)
        return cls(
            journal=journal,
            context=context,
            budget=budget,
            estimates=estimates,
            time=TimeBudget(spec, context.clock, spent_seconds=journal.job.spent_seconds),
            stages=stages,
            book=TrialBook(journal, context, stages, budget),
            recipes=RecipeMaker(
                spec=spec,
                number_format=estimates.preferred,
                tool_versions=context.tool_versions,
                architecture=context.facts.architecture,
            ),
            notes=JobNotes(journal),
        )

    @property
    def spec(self) -> JobSpec:
        """What the job asks for."""
        return self.journal.job.spec

    @property
    def number_format(self) -> NumberFormat:
        """The format that the target computes the network in, where nothing else is chosen."""
        return self.estimates.preferred

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model as it came."""
        return self.context.facts

    @property
    def inputs(self) -> Mapping[str, str]:
        """The inputs that all units of the job have: the working graph, and the dataset if there is one."""
        return {"graph": self.context.graph_digest, **self.book.dataset_inputs()}
