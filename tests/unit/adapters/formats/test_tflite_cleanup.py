"""Tests of the clean-up: every rewrite leaves outputs as they are and fewer operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from fakes.tflite_files import TfliteBuilder
from tightfit_service.adapters.evaluation.litert_evaluator import LitertRunner
from tightfit_service.adapters.formats.tflite_cleanup import clean_up, same_padding
from tightfit_service.adapters.formats.tflite_file import TfliteFile

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(4, 3, 3, 3))


def padded_in_the_other_layout(builder: TfliteBuilder, source: int) -> int:
    moved = builder.transpose(source, TO_NCHW)
    padded = builder.pad(moved, [(0, 0), (0, 0), (0, 1), (0, 1)])
    return builder.conv(builder.transpose(padded, TO_NHWC), KERNEL, stride=2)


def shared_with_a_shortcut(builder: TfliteBuilder, source: int) -> int:
    moved = builder.transpose(source, TO_NCHW)
    padded = builder.pad(moved, [(0, 0), (0, 0), (0, 1), (0, 1)])
    main = builder.conv(builder.transpose(padded, TO_NHWC), KERNEL, stride=2)
    short = builder.conv(builder.transpose(moved, TO_NHWC), KERNEL[:, :1, :1], stride=2)
    return builder.operator(
        "ADD", [main, short], builder.tensor([1, 4, 4, 4]), schema.AddOptionsT()
    )


def other_padding(builder: TfliteBuilder, source: int) -> int:
    return builder.conv(builder.pad(source, [(0, 0), (1, 1), (1, 1), (0, 0)]), KERNEL, stride=2)


def same_stride_one(builder: TfliteBuilder, source: int) -> int:
    return builder.conv(builder.pad(source, [(0, 0), (1, 1), (1, 1), (0, 0)]), KERNEL)


def flattened(builder: TfliteBuilder, source: int) -> int:
    moved = builder.reshape(builder.transpose(source, TO_NCHW), [1, 192])
    return builder.dense(moved, RNG.normal(size=(5, 192)))


def averaged(builder: TfliteBuilder, source: int) -> int:
    return builder.mean(builder.transpose(source, TO_NCHW), [2, 3])


def averaged_across_order(builder: TfliteBuilder, source: int) -> int:
    return builder.mean(builder.transpose(source, TO_NCHW), [0])


def sliced(builder: TfliteBuilder, source: int) -> int:
    rows = builder.slice(source, (0, 1, 0, 0), (1, 8, 8, 3), (1, 2, 1, 1))
    return builder.slice(rows, (0, 1, 2, 0), (1, 4, 8, 3), (1, 2, 3, 1))


def merged_transposes(builder: TfliteBuilder, source: int) -> int:
    return builder.transpose(builder.transpose(source, (0, 2, 1, 3)), TO_NCHW)


def pooled(builder: TfliteBuilder, source: int, *, filling: float = -np.inf) -> int:
    pads = builder.constant([(0, 0), (0, 1), (0, 1), (0, 0)], dtype="int32")
    inputs = [source, pads, builder.constant(filling)]
    padded = builder.operator("PADV2", inputs, builder.tensor([1, 9, 9, 3]), schema.PadV2OptionsT())
    options = schema.Pool2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH = options.strideW = 2
    options.filterHeight = options.filterWidth = 3
    return builder.operator("MAX_POOL_2D", [padded], builder.tensor([1, 4, 4, 3]), options)


def pooled_with_zeros(builder: TfliteBuilder, source: int) -> int:
    return pooled(builder, source, filling=0.0)


def rectified(builder: TfliteBuilder, source: int, kind: str = "RELU") -> int:
    shape = builder.graph.tensors[source].shape
    return builder.mean(builder.operator(kind, [source], builder.tensor(shape)), [1, 2])


def rectified_behind_movement(builder: TfliteBuilder, source: int) -> int:
    moved = builder.reshape(builder.conv(source, KERNEL), [1, 12, 12])
    return rectified(builder, builder.reshape(moved, [1, 4, 4, 9]), "RELU6")


def joined(builder: TfliteBuilder, source: int, *, is_rectified: bool) -> int:
    one, other = builder.conv(source, KERNEL), builder.conv(source, -KERNEL)
    if is_rectified:
        other = builder.operator("RELU", [other], builder.tensor([1, 6, 6, 4]))
    options = schema.ConcatenationOptionsT()
    options.axis = 3
    return builder.operator("CONCATENATION", [one, other], builder.tensor([1, 6, 6, 8]), options)


def rectified_behind_branches(builder: TfliteBuilder, source: int) -> int:
    return rectified(builder, joined(builder, source, is_rectified=False))


def rectified_twice(builder: TfliteBuilder, source: int) -> int:
    # RELU6 of what a RELU is fused into
    return rectified(builder, joined(builder, source, is_rectified=True), "RELU6")


def rectified_and_read_by_others(builder: TfliteBuilder, source: int) -> int:
    computed = builder.conv(source, KERNEL)
    positive = builder.operator("RELU", [computed], builder.tensor([1, 6, 6, 4]))
    inputs = [positive, computed]
    added = builder.operator("ADD", inputs, builder.tensor([1, 6, 6, 4]), schema.AddOptionsT())
    return builder.mean(added, [1, 2])


def rectified_input(builder: TfliteBuilder, source: int) -> int:
    return rectified(builder, source)


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (pooled, ["MAX_POOL_2D"]),
        (pooled_with_zeros, ["MAX_POOL_2D", "PADV2"]),
        (rectified_behind_movement, ["CONV_2D", "MEAN", "RESHAPE", "RESHAPE"]),
        (rectified_behind_branches, ["CONCATENATION", "CONV_2D", "CONV_2D", "MEAN"]),
        (rectified_twice, ["CONCATENATION", "CONV_2D", "CONV_2D", "MEAN", "RELU6"]),
        (rectified_and_read_by_others, ["ADD", "CONV_2D", "MEAN", "RELU"]),
        (rectified_input, ["MEAN", "RELU"]),
        (padded_in_the_other_layout, ["CONV_2D"]),
        (shared_with_a_shortcut, ["ADD", "CONV_2D", "CONV_2D"]),
        (other_padding, ["CONV_2D", "PAD"]),
        (same_stride_one, ["CONV_2D"]),
        (flattened, ["FULLY_CONNECTED", "RESHAPE"]),
        (averaged, ["MEAN"]),
        (averaged_across_order, ["MEAN", "TRANSPOSE"]),
        (sliced, ["STRIDED_SLICE"]),
        (merged_transposes, ["TRANSPOSE"]),
    ],
)
def test_outputs_stay_and_operators_go(
    network: Callable[[TfliteBuilder, int], int], left: list[str]
) -> None:
    builder = TfliteBuilder()
    source = builder.tensor([1, 8, 8, 3])
    data = builder.build([source], [network(builder, source)])
    file = TfliteFile(data)
    clean_up(file)
    assert sorted(file.operator_name(item) for item in file.graph.operators) == left
    inputs = RNG.normal(size=(3, 3, 8, 8)).astype(np.float32)
    before, after = (LitertRunner(d, threads=1).run(inputs)[0] for d in (data, file.to_bytes()))
    assert before.shape == after.shape
    assert np.allclose(before, after, atol=1e-5)


def test_a_layout_change_that_is_the_output_stays() -> None:
    builder = TfliteBuilder()
    source = builder.tensor([1, 8, 8, 3])
    ends = builder.transpose(builder.transpose(source, TO_NCHW), TO_NHWC)
    file = TfliteFile(builder.build([source], [ends]))
    clean_up(file)
    assert file.graph.operators
    assert file.shape(file.graph.outputs[0]) == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "expected"),
    [(32, 3, 1, 1, (1, 1)), (32, 3, 2, 1, (0, 1)), (33, 3, 2, 1, (1, 1)), (8, 1, 2, 1, (0, 0)),
     (16, 3, 1, 2, (2, 2)), (7, 5, 3, 1, (2, 2))],
)  # fmt: skip
def test_same_padding(
    size: int, kernel: int, stride: int, dilation: int, expected: tuple[int, int]
) -> None:
    assert same_padding(size, kernel, stride, dilation) == expected
