"""The error tree."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from tightfit_service.domain import errors
from tightfit_service.domain.errors import InvalidModelError, TightfitError


def all_errors(kind: type[TightfitError] = TightfitError) -> Iterator[type[TightfitError]]:
    if kind.__module__ == errors.__name__:  # not those that other tests make up
        yield kind
    for child in kind.__subclasses__():
        yield from all_errors(child)


@pytest.mark.parametrize("kind", list(all_errors()))
def test_errors_cross_process_borders_whole(kind: type[TightfitError]) -> None:
    error = kind("what is wrong", field="model", remedy="what to do")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.message, again.field, again.remedy) == ("what is wrong", "model", "what to do")


def test_reasons_are_stable_and_distinct() -> None:
    reasons = [kind.reason for kind in all_errors()]
    assert len(reasons) == len(set(reasons))
    assert all(reason == reason.upper() for reason in reasons)


def test_the_tree_drawn_at_the_top_of_the_file_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for kind in all_errors():
        assert kind.__name__ in errors.__doc__


def test_an_error_reads_as_one_sentence() -> None:
    error = InvalidModelError("the file is truncated", field="model", remedy="send it again")
    assert str(error) == "the file is truncated [model] (send it again)"
    assert str(InvalidModelError("short")) == "short"
