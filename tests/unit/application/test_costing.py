"""Problems for the solver: what ways to compute a node cost in the format that is exported."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.linear_emulator import LinearEmulator
from fakes.profiles import ProfileBuilder
from fakes.search_bench import TARGET
from fakes.telemetry import RecordingTelemetry
from tightfit_service.application.costing import CostModel, ProblemBuilder, option_id
from tightfit_service.application.techniques import PRECISION
from tightfit_service.domain.budget import Budget, Objective, Quantity
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.network import Alternative, NetworkProfile, PruningSpace


def _float_profile() -> NetworkProfile:
    builder = ProfileBuilder()
    builder.conv("input", 8)
    return builder.build().at_precision(weight_bits=32, activation_bits=32)


@pytest.mark.parametrize(("pass_name", "slower"), [("low_rank", 1), (PRECISION, 4)])
def test_ways_are_costed_in_the_exported_format_unless_they_are_about_formats(
    pass_name: str, slower: int
) -> None:
    profile = _float_profile()
    (conv,) = profile.operators
    half = replace(conv, macs=conv.macs // 2, weight_count=conv.weight_count // 2)
    way = Alternative(
        node=conv.node, pass_name=pass_name, label="half", parameters={}, operators=(half,)
    )
    builder = ProblemBuilder(
        costs=CostModel(emulator=LinearEmulator(), target=TARGET, telemetry=RecordingTelemetry()),
        profile=profile,
        space=PruningSpace(groups=()),
        number_format=NumberFormat.INT8,
        alternatives={conv.node: [way, None]},
    )
    problem = builder.build(
        losses={option_id(conv.node): [0.1, 0.0]},
        budget=Budget(constraints=()),
        objective=Objective(),
        max_loss=None,
        margins={},
    )
    whole = problem.costs({option_id(conv.node): 2})[Quantity.LATENCY]
    assert whole == pytest.approx(conv.macs * 1e-6)
    changed = problem.costs({option_id(conv.node): 1})[Quantity.LATENCY]
    assert changed == pytest.approx(slower * (conv.macs // 2) * 1e-6)
