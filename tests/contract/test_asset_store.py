"""What every `AssetStore` does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.records import digest_of, make_asset, make_job, make_spec
from fakes.stores import RecordStore
from tightfit_service.application.ports import Page
from tightfit_service.domain.errors import AlreadyExistsError, NotFoundError, PreconditionError
from tightfit_service.domain.job import JobState, TeacherModel


def test_an_asset_comes_back_as_it_was_stored(store: RecordStore) -> None:
    record = make_asset()
    assert store.add_asset(record) == record
    assert store.get_asset("default", "model", "asset") == record


def test_an_asset_added_again_is_the_first_one(store: RecordStore) -> None:
    record = store.add_asset(make_asset())
    assert store.add_asset(make_asset(display_name="Another name")) == record


def test_an_id_cannot_be_taken_by_other_bytes(store: RecordStore) -> None:
    store.add_asset(make_asset())
    with pytest.raises(AlreadyExistsError):
        store.add_asset(make_asset(digest=digest_of("other")))


def test_projects_and_kinds_are_apart(store: RecordStore) -> None:
    store.add_asset(make_asset())
    for project, kind in (("other", "model"), ("default", "dataset")):
        with pytest.raises(NotFoundError):
            store.get_asset(project, kind, "asset")
        with pytest.raises(NotFoundError):
            store.delete_asset(project, kind, "asset")
        assert not store.list_assets(project, kind, Page(size=9))
        store.add_asset(make_asset(project=project, kind=kind, digest=digest_of("other")))


def test_assets_are_listed_by_id_page_by_page(store: RecordStore) -> None:
    for name in ("c", "a", "d", "b"):
        store.add_asset(make_asset(name))
    first = store.list_assets("default", "model", Page(size=3))
    rest = store.list_assets("default", "model", Page(size=3, after=first[-1].asset_id))
    assert [record.asset_id for record in (*first, *rest)] == ["a", "b", "c", "d"]


def test_a_deleted_asset_is_returned_and_gone(store: RecordStore) -> None:
    record = store.add_asset(make_asset())
    assert store.is_digest_used("default", record.digest)
    assert store.delete_asset("default", "model", "asset") == record
    assert not store.is_digest_used("default", record.digest)
    with pytest.raises(NotFoundError):
        store.delete_asset("default", "model", "asset")


def test_each_project_uses_its_own_bytes(store: RecordStore) -> None:
    record = store.add_asset(make_asset())
    store.add_asset(make_asset(project="other"))
    store.delete_asset("default", "model", "asset")
    assert not store.is_digest_used("default", record.digest)
    assert store.is_digest_used("other", record.digest)


@pytest.mark.parametrize(("kind", "content"), [("model", "model"), ("dataset", "dataset")])
def test_an_asset_stays_while_an_unfinished_job_uses_it(
    store: RecordStore, kind: str, content: str
) -> None:
    store.add_asset(make_asset(kind=kind, digest=digest_of(content)))
    store.add_asset(make_asset("unused", kind=kind, digest=digest_of("unused")))
    job = store.create_job(make_job())
    store.delete_asset("default", kind, "unused")
    with pytest.raises(PreconditionError):
        store.delete_asset("default", kind, "asset")
    store.update_job(replace(job, state=JobState.CANCELLED))
    assert store.delete_asset("default", kind, "asset").asset_id == "asset"


def test_the_inputs_of_an_unfinished_job_are_in_use(store: RecordStore) -> None:
    job = store.create_job(make_job())
    assert store.is_digest_used("default", digest_of("model"))
    assert store.is_digest_used("default", digest_of("dataset"))
    assert not store.is_digest_used("default", digest_of("nothing"))
    store.update_job(replace(job, state=JobState.CANCELLED))
    assert not store.is_digest_used("default", digest_of("model"))


TEACHER = TeacherModel(name="teacher", digest=digest_of("teacher"))


def test_a_teacher_stays_while_an_unfinished_job_learns_from_it(store: RecordStore) -> None:
    for name in ("teacher", "model"):
        store.add_asset(make_asset(name, digest=digest_of(name)))
    store.add_asset(make_asset("data", kind="dataset", digest=digest_of("teacher")))
    job = store.create_job(make_job(spec=make_spec(teachers=(TEACHER,))))
    store.create_job(make_job("other"))
    for name in ("teacher", "model"):
        with pytest.raises(PreconditionError):
            store.delete_asset("default", "model", name)
    assert store.delete_asset("default", "dataset", "data")  # nobody works on these data
    store.update_job(replace(job, state=JobState.CANCELLED))
    assert store.delete_asset("default", "model", "teacher").asset_id == "teacher"
    with pytest.raises(PreconditionError):
        store.delete_asset("default", "model", "model")


def test_the_teachers_of_an_unfinished_job_are_in_use(store: RecordStore) -> None:
    job = store.create_job(make_job(spec=make_spec(teachers=(TEACHER,))))
    assert store.get_job("default", "job").spec.teachers == (TEACHER,)
    assert store.is_digest_used("default", digest_of("teacher"))
    assert not store.is_digest_used("elsewhere", digest_of("teacher"))
    store.update_job(replace(job, state=JobState.CANCELLED))
    assert not store.is_digest_used("default", digest_of("teacher"))
    store.delete_job("default", "job")


def test_a_job_without_dataset_uses_no_dataset(store: RecordStore) -> None:
    store.create_job(make_job(spec=make_spec(dataset_digest=None, dataset_name="")))
    store.add_asset(make_asset(kind="dataset", digest=digest_of("dataset")))
    assert store.delete_asset("default", "dataset", "asset")
