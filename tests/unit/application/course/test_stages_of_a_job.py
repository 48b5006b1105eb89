"""The stages that a job tells of are those that the contract names and that clients show."""

from __future__ import annotations

import re

import pytest

from documentation import ROOT
from fakes.search_bench import WHOLE_LATENCY_MS, Bench, latency
from tightfit.cli.display import STAGES
from tightfit_service.domain.job import JobEventKind


def test_the_command_line_shows_the_stages_of_the_contract() -> None:
    proto = (ROOT / "protos" / "tightfit" / "v1" / "job.proto").read_text()
    named = re.search(r"// One of (`.*`); may be empty\.\n  string stage", proto)
    assert named is not None
    assert tuple(re.findall(r"`(\w+)`", named[1])) == STAGES


def test_the_report_has_a_colour_for_each_stage() -> None:
    style = (ROOT / "clients/python/tightfit/report/report.css").read_text()
    assert set(re.findall(r"\.stage-(\w+) \{ background", style)) == set(STAGES)


@pytest.mark.parametrize("share", [0.5, 0.001])
async def test_a_search_tells_of_no_other_stage(share: float) -> None:
    bench = Bench(latency(WHOLE_LATENCY_MS * share))
    await bench.run()
    events = bench.store.list_events("j", after=0, limit=10_000)
    told = {event.stage for event in events if event.kind is JobEventKind.STAGE}
    assert {"preflight", "baseline", "trial"} <= told <= set(STAGES)
