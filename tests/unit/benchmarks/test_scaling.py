"""Efficiency is told of even numbers of trials, and is 1 where two workers take half as long as one."""

from __future__ import annotations

import pytest
from benchmarks.reliability_page import scaling
from benchmarks.scaling import Spent, make_parser, rates_of


def test_an_odd_number_of_trials_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    # of five equal trials two workers do the last alone: they look 17 % slower than they are
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--trials", "5"])
    assert "5 trials are no even number" in capsys.readouterr().err
    assert make_parser().parse_args(["--trials", "4"]).trials == 4


def test_two_workers_that_take_half_as_long_as_one_are_all_that_can_be() -> None:
    alone, together = rates_of("local", 8, {1: Spent(40.0, 0.4), 2: Spent(20.0, 0.6)})
    assert (alone.efficiency, together.efficiency) == (1.0, 1.0)
    assert (alone.trials_per_hour, together.trials_per_hour) == (720.0, 1440.0)
    assert (alone.service_cpu_ms_per_trial, together.service_cpu_ms_per_trial) == (50.0, 75.0)


def test_the_page_tells_what_the_service_computes_itself() -> None:
    row = {"executor": "local", "workers": 2, "trials": 8, "trials_per_hour": 1_440.0}
    text = scaling({"rates": [{**row, "efficiency": 0.98, "service_cpu_ms_per_trial": 75.2}]})
    assert "| local | 2 | 8 | 1440 | 0.98 | 75 ms |" in text
