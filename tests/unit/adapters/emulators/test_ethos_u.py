"""Ethos-U as Vela has it: cycles of operators; an arena of bricks, joins in place, weights fetched ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tightfit_service.adapters.emulators.ethos_u import ETHOS_U_EMULATOR, LEAST_SHARE, MOST_SHARE
from tightfit_service.adapters.emulators.ethos_u_cycles import UNITS, busy_cycles, by_kernel
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
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


def cycles(item: Operator, target: HardwareSpec = TARGET) -> float:
    assert target.accelerator is not None
    assert target.accelerator.clock_mhz is not None
    cost = ETHOS_U_EMULATOR.operator_cost(item, target)
    return cost.latency_ms * target.accelerator.clock_mhz * 1e3


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
    unit = UNITS[128]
    weights_apart = {c: busy_cycles(conv.resized(c, 64), unit, 0.0) for c in (32, *ratios)}
    if kernel == (1, 1):
        # where outputs take longer than their products, both are told apart by the kind of sum alone
        assert not by_kernel(conv.resized(48, 64))
    else:
        for channels, ratio in ratios.items():
            assert weights_apart[channels] / weights_apart[32] == pytest.approx(ratio, rel=0.1)


def layer(
    channels: tuple[int, int],
    kernel: tuple[int, ...],
    out_size: tuple[int, ...],
    *,
    kind: OperatorKind = OperatorKind.CONV,
    stride: int = 1,
    op_type: str = "Conv",
) -> Operator:
    """A layer of one of MLPerf Tiny's networks in int8."""
    into, out = channels
    groups = out if kind is OperatorKind.DEPTHWISE_CONV else 1
    has_weights = kind in (OperatorKind.CONV, OperatorKind.DEPTHWISE_CONV, OperatorKind.DENSE)
    weights = into // groups * out * math.prod(kernel) if has_weights else 0
    return Operator(
        node="layer",
        kind=kind,
        op_type=op_type,
        inputs=("in",),
        outputs=("layer",),
        macs=weights * math.prod(out_size),
        in_channels=into,
        out_channels=out,
        in_size=tuple(stride * size for size in out_size),
        out_size=out_size,
        kernel=kernel,
        groups=groups,
        weight_count=weights,
        weight_bits=8,
        activation_bits=8,
    )


DEPTHWISE, ELEMENTWISE = OperatorKind.DEPTHWISE_CONV, OperatorKind.ELEMENTWISE


@pytest.mark.parametrize(
    ("item", "of_128", "of_256"),
    [
        # Vela 5.2.0's NPU cycles for layers of ResNet-8 and DS-CNN, with 128 and 256 products per cycle
        (layer((3, 16), (3, 3), (32, 32)), 14_096, 8_179),
        (layer((16, 16), (3, 3), (32, 32)), 25_497, 13_579),
        (layer((16, 32), (3, 3), (16, 16), stride=2), 13_272, 7_536),
        (layer((32, 32), (3, 3), (16, 16)), 19_498, 10_480),
        (layer((16, 32), (1, 1), (16, 16), stride=2), 4_352, 2_752),
        (layer((32, 64), (1, 1), (8, 8), stride=2), 2_528, 2_016),
        (layer((16, 16), (), (32, 32), kind=ELEMENTWISE, op_type="Add"), 24_576, 12_288),
        (layer((1, 40), (10, 4), (25, 5), stride=2), 16_506, None),
        (layer((64, 64), (3, 3), (25, 5), kind=DEPTHWISE), 7_974, None),
        (layer((40, 64), (1, 1), (25, 5)), 5_764, None),
        (layer((64, 24), (1, 1), (25, 5)), 2_561, None),
        (layer((64, 64), (8, 8), (1, 1), kind=OperatorKind.POOL, stride=8), 2_892, 2_888),
        (layer((10, 10), (), (), kind=OperatorKind.SOFTMAX), 950, 950),
    ],
)
def test_cycles_are_those_that_vela_counts(
    item: Operator, of_128: float, of_256: float | None
) -> None:
    assert cycles(item) == pytest.approx(of_128, rel=0.25)
    if of_256:
        larger = CATALOGUE.get("cortex-m55-ethos-u55-256")
        assert cycles(item, larger) == pytest.approx(of_256, rel=0.25)


def test_weights_come_from_flash_no_faster_than_it_is() -> None:
    dense = layer((512, 512), (), (), kind=OperatorKind.DENSE)
    # 500 MB/s at 500 MHz are a byte per cycle
    assert cycles(dense) == pytest.approx(512 * 512)


def test_sixteen_bits_take_twice_as_long() -> None:
    for item in (
        layer((32, 32), (3, 3), (16, 16)),
        layer((64, 64), (3, 3), (25, 5), kind=DEPTHWISE),
    ):
        wide = replace(item, activation_bits=16)
        assert cycles(wide) == pytest.approx(2 * cycles(item), rel=0.15)


def test_groups_are_computed_one_by_one() -> None:
    whole = layer((64, 64), (3, 3), (16, 16))
    parted = replace(whole, groups=4, macs=whole.macs // 4, weight_count=whole.weight_count // 4)
    narrow = layer((16, 16), (3, 3), (16, 16))
    assert cycles(parted) == pytest.approx(4 * cycles(narrow), rel=0.1)


def test_kernels_beyond_eight_by_eight_are_computed_in_parts() -> None:
    unit = UNITS[128]
    one = busy_cycles(layer((32, 32), (8, 8), (16, 16)), unit, 0.0)
    four = busy_cycles(layer((32, 32), (16, 16), (16, 16)), unit, 0.0)
    assert four == pytest.approx(4 * one, rel=0.05)


def test_rows_and_points_are_images_of_height_one() -> None:
    row = layer((32, 32), (3,), (64,))
    as_image = layer((32, 32), (1, 3), (1, 64))
    assert cycles(row) == cycles(as_image) > cycles(layer((32, 32), (), ()))


def test_another_number_of_products_is_a_roofline() -> None:
    assert TARGET.accelerator is not None
    odd = replace(TARGET.accelerator, macs_per_cycle={NumberFormat.INT8: 100.0})
    item = layer((32, 32), (3, 3), (16, 16))
    assert cycles(item, replace(TARGET, accelerator=odd)) == pytest.approx(item.macs / 100 / 0.6)


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
