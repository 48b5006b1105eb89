"""What of an operator its time depends on: its kind, its shape, and what it begins."""

from __future__ import annotations

import math

import pytest

from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.image_steps import quartered, sliced
from tightfit_service.adapters.emulators.kernel_tiles import Tile
from tightfit_service.adapters.emulators.operator_work import (
    RUN_MACS,
    STEP,
    TILED,
    TOUCH_MACS,
    Work,
    WorkOf,
    family_of,
    kind_name,
    kind_of,
)
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.bootstrap import catalogue
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile
from tightfit_service.graph.profile import OnnxGraphInspector

TARGET = catalogue().complete({"name": "made-up", "core": "cortex-a72", "core_count": 1})
BLOCKED = catalogue().complete(
    {
        "name": "made-up",
        "core": "x86-64",
        "core_count": 1,
        "runtime": {"name": "ONNX Runtime"},
        "isa_features": ["avx2"],
    }
)
"""A target whose runtime computes convolutions on blocks of eight channels."""
LEAST_MS = 0.002
MAC_MS = 1e-6
TILE = Tile(rows=7, columns=16, narrow=16, depth=4)


def profile(builder: GraphBuilder) -> NetworkProfile:
    return OnnxGraphInspector().profile(builder.build())


def works(
    builder: GraphBuilder,
    *,
    target: HardwareSpec = TARGET,
    bits: int = 32,
    least_ms: float = LEAST_MS,
) -> list[Work]:
    work_of = WorkOf(
        base=RooflineEmulator(),
        target=target,
        least_ms=least_ms,
        mac_ms=MAC_MS,
        tiles={bits: dict.fromkeys(TILED, TILE)},
    )
    network = profile(builder).at_precision(weight_bits=bits, activation_bits=bits)
    return work_of.network(network)


@pytest.mark.parametrize("kernel", [3, 5])
def test_small_depthwise_kernels_are_of_one_kind(kernel: int) -> None:
    builder = GraphBuilder((8, 16, 16), seed=0)
    builder.depthwise(builder.top, kernel=kernel)
    (operator,) = profile(builder).operators
    assert kind_of(operator)[0] == "depthwise_conv"


def test_wide_depthwise_kernels_are_of_another() -> None:
    builder = GraphBuilder((8, 16, 16), seed=0)
    builder.depthwise(builder.top, kernel=7)
    (operator,) = profile(builder).operators
    assert kind_of(operator)[0] == "wide_depthwise_conv"


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("both_ways", [False, True])
def test_a_recurrent_layer_begins_anew_with_every_step(kind: str, both_ways: bool) -> None:
    steps, hidden = 12, 20
    builder = GraphBuilder((steps, 7), seed=0)
    builder.recurrent(builder.top, kind, hidden, both_ways=both_ways)
    found = works(builder)
    (step,) = (work for work in found if work.kind[0] == STEP)
    directions = 2 if both_ways else 1
    assert step.base_ms == pytest.approx(directions * steps * LEAST_MS)
    (layer,) = (work for work in found if work.kind[0] == kind)
    _, entering, outputs, pixels, *_ = layer.position
    assert entering == pytest.approx(math.log2(7 + hidden))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    assert outputs == pytest.approx(math.log2(gates * hidden))
    assert pixels == pytest.approx(math.log2(directions * steps))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_recurrent_layer_behind_another_takes_as_many_steps(kind: str) -> None:
    builder = GraphBuilder((12, 7), seed=0)
    builder.recurrent(builder.recurrent(builder.top, kind, 20), kind, 20)
    steps_ms = [work.base_ms for work in works(builder) if work.kind[0] == STEP]
    assert steps_ms == pytest.approx([12 * LEAST_MS] * 2)


def test_beginning_products_of_each_kind_and_moving_data_are_told_apart() -> None:
    builder = GraphBuilder((8, 16, 16), seed=0)
    builder.activation(builder.conv(builder.conv(builder.top, 4), 4, kernel=1), "Tanh")
    begins = {work.kind for work in works(builder) if work.kind[0] == "begin"}
    conv, pointwise = ("begin", "conv", 2, 32, 32), ("begin", "pointwise", 2, 32, 32)
    assert begins == {conv, pointwise, ("begin", "moved", 32)}
    assert family_of(conv) == family_of(pointwise) == ("begin", 32)


def test_a_sum_that_a_convolution_may_take_over_is_a_kind_of_its_own() -> None:
    builder = GraphBuilder((8, 16, 16), seed=0)
    source = builder.activation(builder.conv(builder.top, 8), "Relu")
    builder.activation(builder.add(builder.conv(source, 8), source), "Relu")
    builder.add(builder.activation(builder.top, "Tanh"), source)
    kinds = [work.kind[0] for work in works(builder) if str(work.kind[0]).startswith("Add")]
    assert kinds == ["Add and activation behind a convolution", "Add"]


@pytest.mark.parametrize("spelling", ["Silu", "SpelledGelu"])
def test_what_operators_take_together_beyond_their_beginning_grows_with_the_image(
    spelling: str,
) -> None:
    least = GraphBuilder((1, 1, 1), seed=0)
    least.activation(least.top, "Tanh")
    (operator,) = profile(least).operators
    least_ms = RooflineEmulator().operator_cost(operator, TARGET).latency_ms
    taken = []
    for side in (16, 64):
        builder = GraphBuilder((8, side, side), seed=0)
        builder.activation(builder.top, spelling)
        found = [work for work in works(builder, least_ms=least_ms) if not is_besides(work)]
        assert len(found) == 1
        taken.append(found[0].base_ms)
    small, large = taken
    assert large / small == pytest.approx(16, rel=0.05)


def test_slices_of_every_other_pixel_are_a_kind_of_their_own() -> None:
    builder = GraphBuilder((4, 16, 16), seed=0)
    quartered(builder, sliced(builder, builder.top))
    slices = [op for op in profile(builder).operators if op.op_type == "Slice"]
    assert [(kind_of(op)[0], op.stride) for op in slices] == [
        *[("Slice", ())] * 2,
        *[("Slice with steps", (2, 2))] * 4,
    ]


def product(
    builder: GraphBuilder, *, target: HardwareSpec = TARGET, bits: int = 32
) -> tuple[float, dict[str, float]]:
    """Return what the one product of a network is guessed to take, in products and in values touched."""
    (found,) = (work for work in works(builder, target=target, bits=bits) if work.besides_ms)
    touched = {name: ms / MAC_MS for name, ms in found.besides_ms}
    return found.base_ms / MAC_MS, touched


def test_a_convolution_computes_whole_tiles() -> None:
    builder = GraphBuilder((3, 10, 10), seed=0)
    builder.conv(builder.top, 18, kernel=3)
    macs, touched = product(builder)
    depth = 9 * 4
    assert macs == pytest.approx(105 * 32 * depth)
    assert touched == pytest.approx(
        {
            "macs": 100 * 18 * 27,
            "weights": TOUCH_MACS * 32 * depth,
            "inputs": TOUCH_MACS * 100 * depth,
            "outputs": TOUCH_MACS * 100 * 18,
            "taps": TOUCH_MACS * 100 * 9,
            "ends": TOUCH_MACS * 100 * 2,
        }
    )


def test_a_product_of_one_tap_fetches_none_by_itself() -> None:
    builder = GraphBuilder((3, 10, 10), seed=0)
    builder.conv(builder.top, 16, kernel=1)
    _, touched = product(builder)
    assert (touched["taps"], touched["ends"]) == (0.0, 0.0)


def test_a_depthwise_convolution_computes_vectors_of_channels() -> None:
    builder = GraphBuilder((20, 10, 10), seed=0)
    builder.depthwise(builder.top, kernel=3)
    macs, touched = product(builder)
    assert macs == pytest.approx(105 * 32 * 9)
    assert touched == pytest.approx(
        {"outputs": TOUCH_MACS * 105 * 32, "taps": TOUCH_MACS * 100 * 9}
    )


def test_moved_data_are_told_apart_by_their_pixels() -> None:
    positions = []
    for shape in ((64, 4, 4), (4, 16, 16)):
        builder = GraphBuilder(shape, seed=0)
        builder.activation(builder.top, "Tanh")
        (found,) = (work for work in works(builder) if work.kind[0] == "Tanh")
        positions.append(found.position)
    (elements, _, _, few, *_), (same, _, _, many, *_) = positions
    assert elements == same
    assert (few, many) == (4.0, 8.0)


def test_moved_data_consist_of_runs_of_neighbouring_values() -> None:
    builder = GraphBuilder((5, 8, 8), seed=0)
    builder.pool(builder.top)
    runs = [dict(work.besides_ms) for work in works(builder) if work.kind[0] == "MaxPool"]
    assert runs == [
        {
            "pixels": pytest.approx(RUN_MACS * MAC_MS * 64),
            "lines": pytest.approx(RUN_MACS * MAC_MS * 40),
        }
    ]
    builder = GraphBuilder((5, 8, 8), seed=0)
    builder.activation(builder.top, "Tanh")
    assert [work.besides_ms for work in works(builder) if work.kind[0] == "Tanh"] == [()]


def test_lines_are_those_that_an_operator_works_along() -> None:
    builder = GraphBuilder((6, 4, 5), seed=0)
    builder.softmax(builder.top)
    (found,) = (work for work in works(builder) if work.kind[0] == "Softmax")
    assert found.kind[1] == "over last"
    assert dict(found.besides_ms)["lines"] == pytest.approx(RUN_MACS * MAC_MS * 6 * 4)


def test_ways_of_one_operator_are_kinds_of_their_own() -> None:
    kinds = []
    for axis in (1, 3):
        builder = GraphBuilder((6, 4, 5), seed=0)
        builder.node("Softmax", [builder.top], (6, 4, 5), axis=axis)
        kinds += [kind for kind in (work.kind for work in works(builder)) if kind[0] == "Softmax"]
    assert kinds == [("Softmax", "over channels", 32, 32), ("Softmax", "over last", 32, 32)]
    assert kind_name(kinds[0]) == "Softmax over channels (32 bits)"


@pytest.mark.parametrize(("target", "form"), [(TARGET, ["in order"]), (BLOCKED, [])])
def test_a_change_of_shape_that_moves_nothing_is_a_kind_where_channels_come_last(
    target: HardwareSpec, form: list[str]
) -> None:
    kinds = []
    for channels in (1, 6):
        builder = GraphBuilder((channels, 4, 5), seed=0)
        builder.reshape(builder.top, (channels * 20,))
        kinds += [w.kind for w in works(builder, target=target) if w.kind[0] == "reshape"]
    assert kinds == [("reshape", *form, 32, 32), ("reshape", 32, 32)]


def test_every_matrix_of_a_product_fills_tiles_of_its_own() -> None:
    found = []
    for count in (1, 8):
        builder = GraphBuilder((count, 9, 9), seed=0)
        builder.node("MatMul", [builder.top, builder.top], (count, 9, 9))
        own = next(work for work in works(builder) if work.kind[0] == "matmul")
        found.append(own)
    one, eight = found
    assert one.base_ms == pytest.approx(MAC_MS * TILE.whole_rows(9) * 16 * 12)
    assert eight.base_ms == pytest.approx(8 * one.base_ms)
    # what is alike of them is told as such
    assert one.position[1:] == eight.position[1:]


def test_blocks_of_channels_are_filled_up_on_both_sides() -> None:
    builder = GraphBuilder((12, 10, 10), seed=0)
    builder.conv(builder.top, 20, kernel=3)
    macs, _ = product(builder, target=BLOCKED)
    assert macs == pytest.approx(105 * (3 * 8) * (9 * 2 * 8))


def test_what_a_runtime_adds_and_leaves_out_is_work_or_none() -> None:
    builder = GraphBuilder((3, 10, 10), seed=0)
    builder.activation(builder.conv(builder.top, 8), "LeakyRelu")
    operators = [work.kind[:2] for work in works(builder, target=BLOCKED) if not is_besides(work)]
    assert operators == [("conv", "into blocks"), ("ReorderOutput", 32)]


def is_besides(work: Work) -> bool:
    return work.kind[0] in ("begin", "call", "input", "output")
