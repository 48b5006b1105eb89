"""What every `JobStore` remembers of units of work that killed their workers."""

from __future__ import annotations

from fakes.stores import RecordStore
from tightfit_service.application.ports import UnitDeaths, UnitRecord, WorkResult

WHILE = 600.0
LONG_AGO = -60.0
"""A span that ends before now: whatever happened, happened before it."""


def test_deaths_are_counted_with_the_last_evidence(store: RecordStore) -> None:
    assert store.unit_record("default", "key", within_seconds=WHILE) == UnitRecord()
    for count, evidence in enumerate(("SIGSEGV", "SIGKILL"), 1):
        counted = store.add_unit_death("default", "key", evidence, within_seconds=WHILE)
        assert counted == UnitDeaths(count=count, evidence=evidence)
        assert store.unit_record("default", "key", within_seconds=WHILE).deaths == counted


def test_deaths_belong_to_one_unit_of_one_project(store: RecordStore) -> None:
    store.add_unit_death("default", "key", "SIGSEGV", within_seconds=WHILE)
    assert store.unit_record("other", "key", within_seconds=WHILE) == UnitRecord()
    assert store.unit_record("default", "other", within_seconds=WHILE) == UnitRecord()


def test_deaths_are_forgotten_after_a_while(store: RecordStore) -> None:
    store.add_unit_death("default", "key", "SIGSEGV", within_seconds=WHILE)
    assert store.unit_record("default", "key", within_seconds=LONG_AGO) == UnitRecord()
    assert store.add_unit_death("default", "key", "again", within_seconds=LONG_AGO).count == 1


def test_a_result_and_deaths_of_a_unit_are_told_together(store: RecordStore) -> None:
    result = WorkResult(payload={"x": 1})
    store.store_result("default", "key", result)
    assert store.unit_record("default", "key", within_seconds=WHILE) == UnitRecord(result=result)
    deaths = store.add_unit_death("default", "key", "SIGSEGV", within_seconds=WHILE)
    both = UnitRecord(result=result, deaths=deaths)
    assert store.unit_record("default", "key", within_seconds=WHILE) == both
    assert store.unit_record("other", "key", within_seconds=WHILE) == UnitRecord()
