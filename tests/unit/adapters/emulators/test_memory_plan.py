"""Arena plans of small networks, worked out by hand."""

from __future__ import annotations

import pytest

from fakes.profiles import ProfileBuilder
from tightfit_service.adapters.emulators.memory_plan import ArenaStyle, memory_points
from tightfit_service.domain.network import OperatorKind

PLAIN = ArenaStyle(patch_ratio=0.0)
TENSOR = 4 * 8 * 8


def builder() -> ProfileBuilder:
    return ProfileBuilder(channels=4, size=(8, 8))


def test_a_shortcut_stays_until_it_is_added() -> None:
    net = builder()
    inner = net.conv(net.conv("input", 4), 4)
    net.add(inner, "input")
    points = memory_points(net.build(), PLAIN)
    assert [sum(p.tensor_bytes.values()) for p in points] == [2 * TENSOR, 3 * TENSOR, 3 * TENSOR]
    assert "input" in points[1].tensor_bytes


def test_outputs_grow_over_dying_inputs_as_far_as_the_style_says() -> None:
    net = builder()
    net.add(net.conv("input", 8), net.conv("input", 8))
    style = ArenaStyle(kept_share={"conv": 0.25, "elementwise": 0.0}, patch_ratio=0.0)
    first, second, add = memory_points(net.build(), style)
    # The input is read again later, so the first convolution cannot overlap it.
    assert sum(first.tensor_bytes.values()) == 3 * TENSOR
    assert sum(second.tensor_bytes.values()) == 4 * TENSOR + 0.25 * TENSOR
    assert sum(add.tensor_bytes.values()) == 4 * TENSOR


def test_reshapes_and_fused_padding_use_no_memory_of_their_own() -> None:
    net = builder()
    padded = net.other("input", kind=OperatorKind.PAD, op_type="Pad")
    flat = net.other(net.conv(padded, 4), kind=OperatorKind.RESHAPE, op_type="Reshape")
    net.conv(flat, 4)
    fused = memory_points(net.build(), PLAIN)
    assert [p.node for p in fused] == ["conv_1", "conv_3"]
    assert [sum(p.tensor_bytes.values()) for p in fused] == [2 * TENSOR, 2 * TENSOR]
    apart = memory_points(net.build(), ArenaStyle(patch_ratio=0.0, fuses_pad=False))
    assert [p.node for p in apart] == ["pad_0", "conv_1", "conv_3"]


def test_scratch_and_bookkeeping() -> None:
    net = builder()
    net.conv("input", 6)
    style = ArenaStyle(
        patch_ratio=4.0, row_ratio=1.0, operator_bytes=100, channel_bytes=8, constant_bytes=1000
    )
    (point,) = memory_points(net.build(), style)
    assert point.fixed_bytes == pytest.approx(1000 + 100 + 8 * 6)
    # Patches and input rows are as deep as the input, output rows as the output.
    (of_input, of_output) = point.tensor_bytes.values()
    assert of_input == pytest.approx(8 * 8 * 4 + 4 * (3 * 3 * 4) + 8 * 4)
    assert of_output == pytest.approx(8 * 8 * 6 + 8 * 6)


def test_float_activations_take_four_bytes() -> None:
    net = builder()
    net.conv("input", 4)
    network = net.build().at_precision(weight_bits=32, activation_bits=32)
    (point,) = memory_points(network, PLAIN)
    assert sum(point.tensor_bytes.values()) == 8 * TENSOR


def test_a_network_output_that_is_read_again_stays_to_the_end() -> None:
    net = builder()
    early = net.conv("input", 4)
    net.conv(net.conv(early, 4), 4)
    points = memory_points(net.build(early, net.operators[-1].outputs[0]), PLAIN)
    assert early in points[-1].tensor_bytes
