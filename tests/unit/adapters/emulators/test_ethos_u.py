"""Ethos-U's arena as Vela plans it: bricks of channels, joins in place, weights fetched ahead where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tightfit_service.adapters.emulators.ethos_u import ETHOS_U_EMULATOR, LEAST_SHARE, MOST_SHARE
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

CATALOGUE = YamlTargetCatalogue()
TARGET = CATALOGUE.get("cortex-m55-ethos-u55-128")
SIDE = 16
PIXELS = SIDE * SIDE


def operator(
    node: str,
    inputs: Sequence[str],
    channels: tuple[int, int],
    *,
    kind: OperatorKind = OperatorKind.CONV,
    bits: int = 8,
) -> Operator:
    """3x3 convolutions of 16 x 16 pixels, or another kind without weights; `node` names the output."""
    into, out = channels
    weights = 9 * into * out if kind is OperatorKind.CONV else 0
    return Operator(
        node=node,
        kind=kind,
        op_type=kind.value,
        inputs=tuple(inputs),
        outputs=(node,),
        macs=PIXELS * weights,
        in_channels=into,
        out_channels=out,
        in_size=(SIDE, SIDE),
        out_size=(SIDE, SIDE),
        kernel=(3, 3),
        stride=(1, 1),
        weight_count=weights,
        weight_bits=bits,
        activation_bits=bits,
    )


def network(*operators: Operator, source: int = 3) -> NetworkProfile:
    """Operators from the tensor `in` to the output of the last one."""
    widths = {"in": source} | {item.node: item.out_channels for item in operators}
    return NetworkProfile(
        operators=operators,
        tensors={name: (1, channels, SIDE, SIDE) for name, channels in widths.items()},
        inputs=("in",),
        outputs=(operators[-1].node,),
    )


@pytest.mark.parametrize(
    ("kernel", "ratios"),
    [
        # Cycles of 3x3 and 1x1 convolutions that Vela 5.2 estimates, over those of 32 channels.
        ((3, 3), {16: 0.72, 24: 1.38, 40: 2.0, 48: 1.98, 56: 1.93, 64: 1.92}),
        ((1, 1), {48: 2.0, 56: 2.0, 64: 2.0}),
    ],
)
def test_sums_over_input_channels_are_rounded_up_as_vela_does(
    kernel: tuple[int, int], ratios: dict[int, float]
) -> None:
    conv = replace(operator("a", ["in"], (32, 64)), kernel=kernel)

    def effective(channels: int) -> float:
        narrow = conv.resized(channels, 64)
        return channels * ETHOS_U_EMULATOR.input_rounding(narrow, TARGET)

    for channels, ratio in ratios.items():
        assert effective(channels) / effective(32) == pytest.approx(ratio, rel=0.08)
    dense = replace(conv, kind=OperatorKind.DENSE, kernel=())
    assert ETHOS_U_EMULATOR.input_rounding(dense.resized(40, 64), TARGET) == 64 / 40


def feature_maps(profile: NetworkProfile, target: HardwareSpec = TARGET) -> dict[str, float]:
    """Channels of 16 x 16 bytes in use, per operator."""
    return {
        point.node: (point.fixed_bytes + sum(point.tensor_bytes.values())) / PIXELS
        for point in ETHOS_U_EMULATOR.memory_points(profile, target)
    }


def test_channels_are_stored_in_bricks_of_sixteen_but_for_inputs_and_outputs() -> None:
    chain = network(
        operator("a", ["in"], (3, 20)), operator("b", ["a"], (20, 8)), operator("c", ["b"], (8, 10))
    )
    assert feature_maps(chain) == {"a": 3 + 32, "b": 32 + 16, "c": 16 + 10}


def test_a_brick_of_each_tensor_does_not_shrink_with_its_channels() -> None:
    chain = network(
        operator("a", ["in"], (3, 48)),
        operator("b", ["a"], (48, 16)),
        operator("c", ["b"], (16, 10)),
    )
    _, point, last = ETHOS_U_EMULATOR.memory_points(chain, TARGET)
    assert point.fixed_bytes == 2 * 16 * PIXELS
    assert point.tensor_bytes == {"a": 32 * PIXELS, "b": 0}
    assert last.tensor_bytes["c"] == 10 * PIXELS


def test_sixteen_bits_take_twice_as_much() -> None:
    chain = network(operator("a", ["in"], (3, 20), bits=16), operator("b", ["a"], (20, 8), bits=16))
    chain = chain.at_precision(weight_bits=8, activation_bits=16)
    assert feature_maps(chain) == {"a": 2 * (3 + 32), "b": 2 * (32 + 8)}


def test_what_the_core_reads_or_writes_is_not_in_bricks() -> None:
    chain = network(
        operator("a", ["in"], (3, 20)),
        operator("b", ["a"], (20, 20), kind=OperatorKind.RECURRENT),
        operator("c", ["b"], (20, 8)),
    )
    assert feature_maps(chain) == {"a": 3 + 20, "b": 20 + 20, "c": 20 + 8}


def test_element_by_element_operators_write_over_what_they_read() -> None:
    chain = network(
        operator("a", ["in"], (3, 16)),
        operator("b", ["a"], (16, 16)),
        operator("c", ["a", "b"], (16, 16), kind=OperatorKind.ELEMENTWISE),
        operator("d", ["c"], (16, 8)),
    )
    assert feature_maps(chain) == {"a": 3 + 16, "b": 32, "c": 32, "d": 16 + 8}


def test_parts_are_written_where_the_whole_is() -> None:
    joined = network(
        operator("s", ["in"], (3, 16)),
        operator("a", ["s"], (16, 16)),
        operator("b", ["s"], (16, 32)),
        operator("j", ["a", "b"], (48, 48), kind=OperatorKind.CONCAT),
        operator("d", ["j"], (48, 8)),
    )
    assert feature_maps(joined) == {"s": 3 + 16, "a": 16 + 48, "b": 16 + 48, "d": 48 + 8}
    # Parts that begin within a brick leave the whole in lines: 8 + 32 channels, not 48.
    uneven = network(
        operator("s", ["in"], (3, 16)),
        operator("a", ["s"], (16, 8)),
        operator("b", ["s"], (16, 32)),
        operator("j", ["a", "b"], (40, 40), kind=OperatorKind.CONCAT),
        operator("d", ["j"], (40, 8)),
    )
    assert feature_maps(uneven)["d"] == 40 + 8
    # What something else reads as well has to be copied.
    read_twice = network(
        operator("a", ["in"], (3, 16)),
        operator("b", ["a"], (16, 16)),
        operator("j", ["a", "b"], (32, 32), kind=OperatorKind.CONCAT),
        operator("d", ["j"], (32, 8)),
    )
    assert feature_maps(read_twice)["j"] == 16 + 16 + 32


DEEP = network(
    operator("a", ["in"], (3, 16)),
    operator("b", ["a"], (16, 64)),
    operator("c", ["b"], (64, 64)),
    operator("d", ["c"], (64, 16)),
)
MAPS = 2 * 64 * PIXELS
WEIGHTS = {"b": 9 * 16 * 64, "c": 9 * 64 * 64, "d": 9 * 64 * 16}


def with_ram(ram_bytes: int) -> HardwareSpec:
    return replace(TARGET, memory=replace(TARGET.memory, ram_bytes=ram_bytes))


def test_weights_fetched_ahead_lie_beside_the_feature_maps() -> None:
    ram = ETHOS_U_EMULATOR.estimate(DEEP, TARGET).peak_ram_bytes
    assert max(feature_maps(DEEP).values()) * PIXELS == MAPS
    assert ram.low == pytest.approx(LEAST_SHARE * MAPS)
    assert MAPS + WEIGHTS["c"] <= ram.value <= MAPS + WEIGHTS["c"] + WEIGHTS["d"]
    assert ram.high == pytest.approx(MOST_SHARE * (MAPS + WEIGHTS["c"] + WEIGHTS["d"]))


def test_weights_are_fetched_as_far_as_the_ram_goes() -> None:
    room = MAPS + 1_000
    ram = ETHOS_U_EMULATOR.estimate(DEEP, with_ram(room)).peak_ram_bytes
    assert ram.value == room
    assert ram.high == pytest.approx(MOST_SHARE * room)
    short = ETHOS_U_EMULATOR.estimate(DEEP, with_ram(MAPS - 1)).peak_ram_bytes
    assert short.value == MAPS
    # Vela then computes stripes, of which it may need far less.
    assert short.low < 0.5 * MAPS
    assert short.high == pytest.approx(MOST_SHARE * MAPS)


def test_slow_flash_leaves_no_time_to_fetch_ahead() -> None:
    slow = replace(TARGET, memory=replace(TARGET.memory, flash_bandwidth_mb_s=1.0))
    by_slow = ETHOS_U_EMULATOR.estimate(DEEP, slow).peak_ram_bytes
    by_fast = ETHOS_U_EMULATOR.estimate(DEEP, TARGET).peak_ram_bytes
    assert by_slow.value < by_fast.value
    assert (by_slow.low, by_slow.high) == (by_fast.low, by_fast.high)


def test_floats_run_on_the_core_and_nothing_is_fetched() -> None:
    as_float = DEEP.at_precision(weight_bits=32, activation_bits=32)
    ram = ETHOS_U_EMULATOR.estimate(as_float, TARGET).peak_ram_bytes
    assert ram.value == 4 * MAPS


def test_linux_boards_keep_the_estimate_of_a_process() -> None:
    board = CATALOGUE.get("imx93-evk")
    ram = ETHOS_U_EMULATOR.estimate(DEEP, board).peak_ram_bytes
    assert ram.high / ram.value == pytest.approx(1.6)
