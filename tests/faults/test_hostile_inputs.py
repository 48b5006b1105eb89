"""Hostile inputs of every kind are refused with a clear error, and the server stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.hostile_inputs import KINDS, Findings, run


def check(found: Findings, *, least_refused: float) -> None:
    assert found.failures == []
    for kind in KINDS:
        answers = found.outcomes[kind]
        refused = answers.total() - answers["OK"]
        assert refused >= least_refused * answers.total(), (kind, answers)


@pytest.mark.slow
def test_a_sample_of_hostile_inputs_is_refused(tmp_path: Path) -> None:
    check(run(tmp_path, count=99, seed=1), least_refused=0.1)


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_hundreds_of_hostile_inputs_are_refused(tmp_path: Path) -> None:
    """Run `python tests/faults/hostile_inputs.py` for 2,000 of them."""
    check(run(tmp_path, count=500, seed=0), least_refused=0.2)
