"""Teachers and the criterion of importance in jobs, as they travel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.records import make_job, make_spec
from tightfit.v1 import job_pb2
from tightfit_service.api.codec.job import job_to_proto, request_from_proto
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.job import TeacherModel
from tightfit_service.domain.network import ImportanceCriterion


def _spec(*teachers: str, importance: int = 0) -> job_pb2.CompressionSpec:
    made = job_pb2.CompressionSpec(
        model="projects/p/models/m", hardware_target="hardwareTargets/board", teachers=teachers
    )
    made.importance = importance  # type: ignore[assignment]  # also numbers that no version knows
    return made


def test_teachers_are_read_in_order() -> None:
    wanted = request_from_proto(_spec("projects/p/models/b", "projects/p/models/a"), project_id="p")
    assert wanted.teachers == ("b", "a")
    assert request_from_proto(_spec(), project_id="p").teachers == ()


@pytest.mark.parametrize("name", ["", "b", "projects/other/models/b", "projects/p/datasets/b"])
def test_a_teacher_that_is_no_model_of_the_project_is_named(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request_from_proto(_spec("projects/p/models/a", name), project_id="p")
    assert caught.value.field == "teachers[1]"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("number", "importance"),
    [
        (0, None),
        (job_pb2.IMPORTANCE_CRITERION_TAYLOR, ImportanceCriterion.TAYLOR),
        (job_pb2.IMPORTANCE_CRITERION_FISHER, ImportanceCriterion.FISHER),
        (job_pb2.IMPORTANCE_CRITERION_MAGNITUDE, ImportanceCriterion.MAGNITUDE),
    ],
)
def test_the_criterion_is_read(number: int, importance: ImportanceCriterion | None) -> None:
    wanted = request_from_proto(_spec(importance=number), project_id="p")
    assert wanted.importance is importance


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request_from_proto(_spec(importance=99), project_id="p")
    assert caught.value.field == "importance"
    assert "IMPORTANCE_CRITERION_FISHER" in caught.value.remedy


def test_a_job_tells_its_teachers_and_its_criterion() -> None:
    teachers = tuple(TeacherModel(name=name, digest="1" * 64) for name in ("b", "a"))
    spec = replace(make_spec(), teachers=teachers, importance=ImportanceCriterion.TAYLOR)
    told = job_to_proto(make_job(spec=spec)).spec
    assert list(told.teachers) == ["projects/default/models/b", "projects/default/models/a"]
    assert told.importance == job_pb2.IMPORTANCE_CRITERION_TAYLOR
    assert job_to_proto(make_job()).spec.importance == 0
