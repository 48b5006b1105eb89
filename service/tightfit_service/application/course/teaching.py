"""Teachers beside the original: found and checked for a job, and met before its training."""

from __future__ import annotations

from collections.abc import Sequence

from tightfit_service.application.assets.imported_models import ImportedModel, ImportedModels
from tightfit_service.application.course.life import JobLife
from tightfit_service.application.ports import TensorSignature
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.teacher import TEACHER, TeacherTask
from tightfit_service.application.work.teacher_inputs import teacher_inputs
from tightfit_service.domain.errors import InvalidRequestError, NotFoundError, TightfitError
from tightfit_service.domain.job import MAX_TEACHERS, TeacherModel


async def find_teachers(
    names: Sequence[str],
    *,
    project: str,
    model: ImportedModel,
    models: ImportedModels,
) -> tuple[TeacherModel, ...]:
    """Return the models of these ids, which can teach besides the original.

    Raises:
        InvalidRequestError: Too many, the same twice, the model itself, or one that does not fit it.
        NotFoundError: There is no such model.
    """
    if len(names) > MAX_TEACHERS:
        raise InvalidRequestError(
            f"{len(names)} teachers are given",
            field="teachers",
            remedy=f"give {MAX_TEACHERS} at most: each costs passes over the training set",
        )
    found: list[TeacherModel] = []
    for number, name in enumerate(names):
        field = f"teachers[{number}]"
        try:
            teacher = await models.named(project, name)
        except NotFoundError as error:
            raise NotFoundError(error.message, field=field, remedy=error.remedy) from error
        if teacher.digest == model.digest:
            raise InvalidRequestError(
                "the teacher is the model itself",
                field=field,
                remedy="leave it out: the model as it came always teaches",
            )
        if teacher.digest in {other.digest for other in found}:
            raise InvalidRequestError(
                "the same teacher is given twice", field=field, remedy="give each once"
            )
        check_fits(teacher.facts, model.facts, field=field)
        found.append(TeacherModel(name=name, digest=teacher.digest))
    return tuple(found)


def check_fits(teacher: ModelFacts, model: ModelFacts, *, field: str) -> None:
    """Refuse a teacher for other inputs or classes than the model.

    Names of inputs count where there are several; sizes of one in an output's shape do not.

    Raises:
        InvalidRequestError: It does not fit; says in what.
    """
    if teacher.is_quantized:
        raise InvalidRequestError(
            "the teacher is quantized",
            field=field,
            remedy="give the float model that it was made from: its answers are finer",
        )
    if _inputs(teacher) != _inputs(model):
        raise InvalidRequestError(
            f"the teacher takes {_shown(teacher.inputs)}, the model {_shown(model.inputs)}",
            field=field,
            remedy="give teachers for inputs of the same shape and preprocessing",
        )
    if _outputs(teacher) != _outputs(model):
        raise InvalidRequestError(
            f"the teacher answers {_shown(teacher.outputs)}, the model {_shown(model.outputs)}",
            field=field,
            remedy="give teachers for the same classes, in the same order",
        )


class JobTeachers:
    """The teachers of one job's model."""

    def __init__(self, life: JobLife) -> None:
        self._life = life

    async def meet(self) -> None:
        """Ask each teacher the selection set, and say how it does beside the model.

        Raises:
            TightfitError: A teacher cannot be listened to; names it.
        """
        life = self._life
        known = zip(life.spec.teachers, life.context.teacher_graphs, strict=True)
        for number, (teacher, graph) in enumerate(known):
            inputs = {**life.inputs, **teacher_inputs([graph])}
            try:
                outcome = await life.stages.ask(TEACHER, TeacherTask(model=life.facts), inputs)
            except TightfitError as error:
                raise type(error)(
                    f"teacher {teacher.name}: {error.message}",
                    field=f"teachers[{number}]",
                    remedy=error.remedy,
                ) from error
            own, of_model = outcome.accuracy, outcome.model_accuracy
            text = (
                f"teacher {teacher.name} has an accuracy of {own.value:.1%} on the selection set, "
                f"the model {of_model.value:.1%}"
            )
            if own.high < of_model.low:
                advice = "does it want the same preprocessing, and the same order of classes?"
                await life.notes.add("WEAK_TEACHER", f"{text}: {advice}")
            else:
                await life.notes.add("TEACHER", text)

    async def compare(self, recorded: Sequence[str]) -> None:
        """Say where a recipe that is applied was found with other teachers than this job has."""
        given = {teacher.digest for teacher in self._life.spec.teachers}
        missing = sorted(set(recorded) - given)
        if missing:
            listed = ", ".join(digest[:12] for digest in missing)
            await self._life.notes.add(
                "MISSING_TEACHERS",
                f"teachers of the recipe's own model are not among those of this job: {listed}",
            )


def _inputs(facts: ModelFacts) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of a sample by input; a lone input has no name."""
    is_lone = len(facts.inputs) == 1
    return {"" if is_lone else s.name: (s.shape[1:], s.dtype) for s in facts.inputs}


def _outputs(facts: ModelFacts) -> list[tuple[int, ...]]:
    return [tuple(size for size in s.shape[1:] if size != 1) for s in facts.outputs]


def _shown(signatures: Sequence[TensorSignature]) -> str:
    return ", ".join(
        f"{s.name} ({'x'.join('?' if size < 0 else str(size) for size in s.shape[1:])})"
        for s in signatures
    )
