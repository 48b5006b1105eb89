"""What every `JobStore` remembers of units of work that killed their workers."""

from __future__ import annotations

from fakes.stores import RecordStore
from tightfit_service.application.ports import UnitDeaths

WHILE = 600.0
LONG_AGO = -60.0
"""A span that ends before now: whatever happened, happened before it."""


def test_deaths_are_counted_with_the_last_evidence(store: RecordStore) -> None:
    assert store.unit_deaths("default", "key", within_seconds=WHILE) == UnitDeaths()
    for count, evidence in enumerate(("SIGSEGV", "SIGKILL"), 1):
        counted = store.add_unit_death("default", "key", evidence, within_seconds=WHILE)
        assert counted == UnitDeaths(count=count, evidence=evidence)
        assert store.unit_deaths("default", "key", within_seconds=WHILE) == counted


def test_deaths_belong_to_one_unit_of_one_project(store: RecordStore) -> None:
    store.add_unit_death("default", "key", "SIGSEGV", within_seconds=WHILE)
    assert store.unit_deaths("other", "key", within_seconds=WHILE) == UnitDeaths()
    assert store.unit_deaths("default", "other", within_seconds=WHILE) == UnitDeaths()


def test_deaths_are_forgotten_after_a_while(store: RecordStore) -> None:
    store.add_unit_death("default", "key", "SIGSEGV", within_seconds=WHILE)
    assert store.unit_deaths("default", "key", within_seconds=LONG_AGO) == UnitDeaths()
    assert store.add_unit_death("default", "key", "again", within_seconds=LONG_AGO).count == 1
