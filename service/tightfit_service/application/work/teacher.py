"""The unit of work that holds a teacher besides the original against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightfit_service.application.ports import Evaluator, Trainer, WorkHandler
from tightfit_service.application.units.kinds import UnitContext, UnitKind
from tightfit_service.application.work.data import Splits, UnitData
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.teacher_inputs import teacher_graphs
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.quantities import Accuracy


@dataclass(frozen=True, kw_only=True)
class TeacherTask:
    """The model that is to be taught."""

    model: ModelFacts


@dataclass(frozen=True, kw_only=True)
class TeacherOutcome:
    """How a further teacher and the model as it came do on the selection set."""

    accuracy: Accuracy
    model_accuracy: Accuracy


TEACHER = UnitKind("teacher", TeacherTask, TeacherOutcome)


@dataclass(frozen=True, kw_only=True)
class TeacherWork:
    """Asks teachers; composed in the worker process.

    Attributes:
        evaluator: Of working graphs.
    """

    data: UnitData
    trainer: Trainer
    evaluator: Evaluator

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handler by the kind of unit it runs."""
        return {TEACHER.name: TEACHER.handler(self.run)}

    def run(self, task: TeacherTask, context: UnitContext) -> TeacherOutcome:
        """Measure the inputs `graph` and `teacher0` on samples that both answer.

        The input `dataset` may be missing.

        Raises:
            InvalidRequestError: The teacher takes other inputs, or answers something else.
        """
        graph = context.read("graph")
        (teacher,) = teacher_graphs(context.inputs)
        splits = Splits(dataset=self.data.open(task.model, context))
        selection = splits.need(SplitName.SELECTION)
        self.trainer.check_teacher(teacher, original=graph, samples=selection)
        context.on_progress(0.2, "how well the teacher does")
        sample = splits.selection_sample()
        return TeacherOutcome(
            accuracy=self.evaluator.evaluate(teacher, sample),
            model_accuracy=self.evaluator.evaluate(graph, sample),
        )
