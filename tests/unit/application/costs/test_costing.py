"""Problems for the solver: what ways to compute a node cost in the format that is exported."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.linear_emulator import LinearEmulator
from fakes.profiles import ProfileBuilder
from fakes.search_bench import TARGET
from fakes.telemetry import RecordingTelemetry
from tightfit_service.application.costs.costing import CostModel, ProblemBuilder, option_id
from tightfit_service.application.recipes.techniques import PRECISION
from tightfit_service.domain.budget import Budget, Objective, Quantity
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
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


class SlowInIntegers(LinearEmulator):
    """As if int8 were computed by widening it to float32."""

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        cost = super().estimate(network, target, file_bytes=file_bytes)
        is_float = network.operators[0].activation_bits == 32
        return cost if is_float else replace(cost, latency_ms=cost.latency_ms.scaled(5.0))


@pytest.mark.parametrize(
    ("offered", "emulator", "preferred"),
    [
        ((NumberFormat.INT8, NumberFormat.FLOAT32), LinearEmulator(), NumberFormat.INT8),
        ((NumberFormat.INT8, NumberFormat.FLOAT32), SlowInIntegers(), NumberFormat.FLOAT32),
        ((NumberFormat.INT8,), SlowInIntegers(), NumberFormat.INT8),
        ((NumberFormat.FLOAT32,), LinearEmulator(), NumberFormat.FLOAT32),
    ],
)
def test_a_network_is_shipped_in_int8_where_that_is_as_fast_or_all_that_there_is(
    offered: tuple[NumberFormat, ...], emulator: LinearEmulator, preferred: NumberFormat
) -> None:
    telemetry = RecordingTelemetry()
    target = replace(TARGET, number_formats=offered)
    profile = _float_profile()
    found = CostModel(emulator=emulator, target=target, telemetry=telemetry).in_formats(profile)
    assert found.preferred is preferred
    assert (found.shipped is found.as_int8) == (preferred is NumberFormat.INT8)
    assert (found.as_int8 is None) == (NumberFormat.INT8 not in offered)
    assert len(telemetry.emulator_calls) == 1 + (found.as_int8 is not None)
