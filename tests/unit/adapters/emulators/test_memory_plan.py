"""Arena plans of small networks, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.profiles import ProfileBuilder
from tightfit_service.adapters.emulators.kernel_scratch import (
    CMSIS_NN_SCRATCH,
    X_CUBE_AI_SCRATCH,
    ScratchRule,
    scratch_of,
)
from tightfit_service.adapters.emulators.memory_plan import (
    ArenaStyle,
    memory_points,
    x_cube_ai_float_style,
    x_cube_ai_style,
)
from tightfit_service.domain.cost import MemoryPoint
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

PLAIN = ArenaStyle()
TENSOR = 4 * 8 * 8


def builder() -> ProfileBuilder:
    return ProfileBuilder(channels=4, size=(8, 8))


def total(point: MemoryPoint) -> float:
    return point.fixed_bytes + sum(point.tensor_bytes.values())


def with_last(net: ProfileBuilder, **changes: object) -> NetworkProfile:
    """Return the network with its last operator changed."""
    net.operators[-1] = replace(net.operators[-1], **changes)  # type: ignore[arg-type]
    return net.build()


def test_a_shortcut_stays_until_it_is_added() -> None:
    net = builder()
    inner = net.conv(net.conv("input", 4), 4)
    net.add(inner, "input")
    points = memory_points(net.build(), PLAIN)
    assert [total(p) for p in points] == [2 * TENSOR, 3 * TENSOR, 3 * TENSOR]
    assert "input" in points[1].tensor_bytes


def test_outputs_grow_over_dying_inputs_where_the_style_says() -> None:
    net = builder()
    net.add(net.conv("input", 8), net.conv("input", 8))
    style = ArenaStyle(in_place={"conv", "elementwise"}, slack_rows=1.0)
    first, second, add = memory_points(net.build(), style)
    # The input is read again later, so the first convolution cannot overlap it.
    assert total(first) == 3 * TENSOR
    # A row of output is kept between the two; an addition needs none.
    assert total(second) == 4 * TENSOR + 8 * 8
    assert total(add) == 4 * TENSOR


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 3 * TENSOR), (2.0, 2 * TENSOR)])
def test_an_output_much_larger_than_its_input_gets_memory_of_its_own(
    limit: float, expected: float
) -> None:
    net = builder()
    net.conv("input", 8, kernel=1)
    style = ArenaStyle(in_place={"pointwise"}, growth_limit=limit)
    (point,) = memory_points(net.build(), style)
    assert total(point) == expected


def test_strided_convolutions_are_a_kind_of_their_own() -> None:
    net = builder()
    net.conv(net.conv("input", 4), 4, stride=2)
    first, second = memory_points(net.build(), ArenaStyle(in_place={"strided"}))
    assert (total(first), total(second)) == (2 * TENSOR, TENSOR)


def test_inputs_of_convolutions_are_padded_where_the_style_says() -> None:
    net = builder()
    net.conv("input", 4)
    style = ArenaStyle(pads_convolutions=True)
    (point,) = memory_points(net.build(), style)
    assert total(point) == 10 * 10 * 4 + TENSOR
    # What is read again later is copied.
    net.add(net.operators[-1].outputs[0], "input")
    first, _ = memory_points(net.build(), style)
    assert total(first) == TENSOR + 10 * 10 * 4 + TENSOR


def test_reshapes_and_fused_padding_use_no_memory_of_their_own() -> None:
    net = builder()
    padded = net.other("input", kind=OperatorKind.PAD, op_type="Pad")
    flat = net.other(net.conv(padded, 4), kind=OperatorKind.RESHAPE, op_type="Reshape")
    net.conv(flat, 4)
    fused = memory_points(net.build(), PLAIN)
    assert [p.node for p in fused] == ["conv_1", "conv_3"]
    assert [total(p) for p in fused] == [2 * TENSOR, 2 * TENSOR]
    apart = memory_points(net.build(), ArenaStyle(fuses_pad=False))
    assert [p.node for p in apart] == ["pad_0", "conv_1", "conv_3"]


def pooled(*, window: int, stride: int) -> NetworkProfile:
    net = builder()
    net.other(net.conv("input", 4), kind=OperatorKind.POOL, op_type="MaxPool")
    net.tensors[net.operators[-1].outputs[0]] = (1, 4, 4, 4)
    return with_last(net, kernel=(window, window), stride=(stride, stride), out_size=(4, 4))


def test_a_fused_pooling_leaves_a_window_of_rows_of_the_convolution() -> None:
    fusing = ArenaStyle(fuses_pool=True)
    (point,) = memory_points(pooled(window=2, stride=2), fusing)
    assert total(point) == TENSOR + TENSOR / 4 + 2 * 8 * 4
    # Windows that overlap would compute rows twice: these stay apart.
    assert len(memory_points(pooled(window=3, stride=2), fusing)) == 2
    assert len(memory_points(pooled(window=2, stride=2), PLAIN)) == 2


def test_what_is_in_place_under_a_fused_pooling_stays_one_pooled_row_ahead() -> None:
    style = ArenaStyle(in_place={"conv"}, fuses_pool=True, slack_rows=1.0)
    (point,) = memory_points(pooled(window=2, stride=2), style)
    # two rows of the convolution are kept, and a row of four pixels is between input and output
    assert total(point) == TENSOR + 2 * 8 * 4 + 4 * 4


def test_a_pooling_over_the_image_is_fused_where_the_style_says() -> None:
    net = builder()
    net.global_pool(net.conv("input", 4))
    network = net.build()
    (point,) = memory_points(network, ArenaStyle(fuses_global_pool=True))
    # The whole output of the convolution is the window.
    assert total(point) == TENSOR + 4 + TENSOR
    assert len(memory_points(network, ArenaStyle(fuses_pool=True))) == 2


@pytest.mark.parametrize(("release", "layers"), [(0.0, 1), (7.3, 1), (8.1, 2), (9.0, 1), (10.2, 1)])
def test_float_networks_have_their_poolings_inside_but_in_one_release(
    release: float, layers: int
) -> None:
    network = pooled(window=2, stride=2).at_precision(weight_bits=32, activation_bits=32)
    assert len(memory_points(network, x_cube_ai_float_style(release))) == layers


def test_a_convolution_that_something_else_reads_keeps_its_pooling_apart() -> None:
    net = builder()
    inside = net.conv("input", 4)
    net.other(inside, kind=OperatorKind.POOL, op_type="MaxPool")
    net.operators[-1] = replace(net.operators[-1], kernel=(2, 2), stride=(2, 2))
    net.conv(inside, 4)
    assert len(memory_points(net.build(), ArenaStyle(fuses_pool=True))) == 3


def test_scratch_and_bookkeeping() -> None:
    net = builder()
    net.conv("input", 6)
    style = ArenaStyle(
        scratch=ScratchRule(patch_ratio=4.0, conv_channel_bytes=10.0, weight_ratio=2.0),
        operator_bytes=100,
        channel_bytes=8,
        constant_bytes=1000,
    )
    (point,) = memory_points(net.build(), style)
    assert point.fixed_bytes == pytest.approx(1000 + 100 + 8 * 6)
    # Patches are as deep as the input, the rest grows with the output.
    (of_input, of_output) = point.tensor_bytes.values()
    assert of_input == pytest.approx(8 * 8 * 4 + 4 * (3 * 3 * 4))
    assert of_output == pytest.approx(8 * 8 * 6 + 10 * 6 + 2 * (3 * 3 * 4 * 6))


def conv(inputs: int, outputs: int, kernel: tuple[int, int]) -> Operator:
    return Operator(
        node="conv",
        kind=OperatorKind.CONV,
        op_type="Conv",
        inputs=("x",),
        outputs=("y",),
        in_channels=inputs,
        out_channels=outputs,
        in_size=(8, 8),
        out_size=(8, 8),
        kernel=kernel,
        stride=(1, 1),
    )


@pytest.mark.parametrize(
    ("operator", "declared"),
    [
        # Sizes of scratch arrays in public network.c files generated by X-CUBE-AI.
        (conv(3, 8, (3, 3)), 652),
        (conv(8, 64, (3, 3)), 6304),
        (conv(64, 64, (3, 3)), 8320),
        (conv(3, 6, (5, 5)), 1284),
        (conv(6, 16, (4, 4)), 3680),
        (conv(2, 8, (5, 1)), 312),
        (conv(64, 96, (3, 1)), 7232),
        (conv(32, 32, (1, 1)), 448),
    ],
)
def test_scratch_of_x_cube_ai_is_that_of_the_files_it_generates(
    operator: Operator, declared: int
) -> None:
    scratch = scratch_of(operator, X_CUBE_AI_SCRATCH)
    assert scratch.of_input + scratch.of_output + scratch.fixed == declared


def test_depthwise_and_dense_scratch() -> None:
    net = ProfileBuilder(channels=32, size=(8, 8))
    net.dense(net.depthwise("input"), 10)
    depthwise, dense = net.operators
    assert scratch_of(depthwise, X_CUBE_AI_SCRATCH).of_input == 1185 - 1
    assert scratch_of(depthwise, CMSIS_NN_SCRATCH).of_input == 2 * 9 * 32
    assert scratch_of(dense, X_CUBE_AI_SCRATCH).of_input == 2 * 8 * 8 * 32


def test_gaps_are_a_factor_on_tensors_and_scratch() -> None:
    net = builder()
    net.conv("input", 4)
    style = ArenaStyle(
        scratch=ScratchRule(weight_ratio=2.0, weight_limit=100.0),
        fragmentation=1.25,
        constant_bytes=1000,
    )
    (point,) = memory_points(net.build(), style)
    assert point.fixed_bytes == 1000 + 1.25 * 100
    assert sum(point.tensor_bytes.values()) == 1.25 * 2 * TENSOR


def test_float_activations_take_four_bytes() -> None:
    net = builder()
    net.conv("input", 4)
    network = net.build().at_precision(weight_bits=32, activation_bits=32)
    (point,) = memory_points(network, PLAIN)
    assert total(point) == 8 * TENSOR
    # One patch of floats, nothing widened.
    style = ArenaStyle(scratch=X_CUBE_AI_SCRATCH)
    assert total(memory_points(network, style)[0]) == 8 * TENSOR + 4 * 9 * 4


def test_what_is_computed_in_float_is_there_twice_meanwhile() -> None:
    net = builder()
    net.conv(net.conv("input", 4), 4)
    network = with_last(net, op_type="Softmax", kind=OperatorKind.SOFTMAX)
    style = ArenaStyle(in_place={"elementwise"}, widened={"Softmax"})
    before, soft = memory_points(network, style)
    assert total(before) == 2 * TENSOR
    # one tensor of integers in place, and two of floats
    assert total(soft) == (1 + 4 + 4) * TENSOR
    floats = network.at_precision(weight_bits=32, activation_bits=32)
    assert total(memory_points(floats, style)[1]) == 4 * TENSOR


def test_a_network_output_that_is_read_again_stays_to_the_end() -> None:
    net = builder()
    early = net.conv("input", 4)
    net.conv(net.conv(early, 4), 4)
    points = memory_points(net.build(early, net.operators[-1].outputs[0]), PLAIN)
    assert early in points[-1].tensor_bytes


def test_x_cube_ai_keeps_a_human_activity_network_in_what_it_reports() -> None:
    """ign_wl_24 of the STM32 model zoo: a convolution with its pooling, then dense layers."""
    net = ProfileBuilder(channels=1, size=(24, 3))
    net.other(net.conv("input", 24), kind=OperatorKind.POOL, op_type="MaxPool")
    convolution, pool = net.operators
    net.tensors[convolution.outputs[0]] = (1, 24, 9, 3)
    net.tensors[pool.outputs[0]] = (1, 24, 3, 3)
    net.operators = [
        replace(convolution, kernel=(16, 1), out_size=(9, 3)),
        replace(pool, kernel=(3, 1), stride=(3, 3), in_size=(9, 3), out_size=(3, 3)),
    ]
    style = x_cube_ai_style(in_place=(), growth_limit=2.0, pads_convolutions=True)
    (point,) = memory_points(net.build(), style)
    assert total(point) == pytest.approx(1.63 * 1024, abs=6)
