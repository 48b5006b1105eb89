"""Every architecture passes through import, pruning, training and export; gaps are named."""

from __future__ import annotations

import pytest

from architectures import ARCHITECTURES, FAST
from architectures.checks import STEPS, check
from architectures.gaps import KNOWN_GAPS

_SLOW = [name for name in ARCHITECTURES if name not in FAST]


def _assert_as_known(name: str) -> None:
    report = check(ARCHITECTURES[name])
    failed = {
        step: report.outcomes[step].reason for step in STEPS if not report.outcomes[step].works
    }
    known = {step for architecture, step in KNOWN_GAPS if architecture == name}
    unknown = {step: reason for step, reason in failed.items() if step not in known}
    assert not unknown
    assert known <= failed.keys(), "these steps work now: take them off the list of known gaps"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_way_through_the_service(name: str) -> None:
    _assert_as_known(name)


@pytest.mark.long
@pytest.mark.parametrize("name", _SLOW)
def test_way_of_every_other_architecture(name: str) -> None:
    _assert_as_known(name)


def test_known_gaps_name_architectures_and_steps() -> None:
    for name, step in KNOWN_GAPS:
        assert name in ARCHITECTURES
        assert name not in FAST
        assert step in STEPS
