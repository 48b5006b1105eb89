"""Hostile inputs of every kind are refused with a clear error, and the server stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.hostile_inputs import KINDS, Findings, run


def refused_shares(found: Findings) -> dict[str, float]:
    return {kind: 1 - answers["OK"] / answers.total() for kind, answers in found.outcomes.items()}


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_hundreds_of_hostile_inputs_are_refused(tmp_path: Path) -> None:
    """Run `python tests/faults/hostile_inputs.py` for 2,000 of them."""
    found = run(tmp_path, count=250, seed=0)
    assert found.failures == []
    assert set(found.outcomes) == set(KINDS)
    assert {kind: share for kind, share in refused_shares(found).items() if share < 0.2} == {}
