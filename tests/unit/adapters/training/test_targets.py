"""Which tensors a student is held against its teacher on, and by which loss."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from fakes.networks import Builder, Shape, mlp, plain_cnn
from tightfit_service.adapters.training.targets import DistilledTensor, find_targets


def _found(
    b: Builder, outputs: dict[str, Shape], *, opset: int = 17, is_regression: bool = False
) -> list[tuple[str, str, int | None]]:
    graph = b.model(outputs, opset=opset).SerializeToString()
    return [(t.name, t.loss, t.axis) for t in find_targets(graph, is_regression=is_regression)]


def _image(size: int = 8) -> tuple[Builder, str]:
    b = Builder(0)
    return b, b.input("input", (3, size, size))


def test_scores_in_front_of_a_softmax_are_compared_as_distributions() -> None:
    b, x = _image()
    x = b.head(b.conv("conv", x, 3, 4), 4, classes=5)
    y = b.node("softmax", "Softmax", [x], axis=-1)
    assert _found(b, {y: (5,)}) == [(x, "softmax", 1)]


def test_the_output_that_a_tensor_leads_to_is_named() -> None:
    b, x = _image()
    x = b.head(b.conv("conv", x, 3, 4), 4, classes=5)
    y = b.node("softmax", "Softmax", [x])
    graph = b.model({y: (5,)}).SerializeToString()
    assert find_targets(graph) == (DistilledTensor(name=x, loss="softmax", axis=1, output=y),)


@pytest.mark.parametrize("make", [plain_cnn, mlp])
def test_raw_rows_of_scores_are_classes(make: object) -> None:
    assert callable(make)
    model = make(0)
    (target,) = find_targets(model.SerializeToString())
    assert (target.loss, target.axis) == ("softmax", 1)


def test_raw_rows_are_values_where_the_metric_says_so() -> None:
    b, x = _image()
    y = b.head(b.conv("conv", x, 3, 4), 4, classes=5)
    assert _found(b, {y: (5,)}, is_regression=True) == [(y, "squared_error", None)]


def test_a_single_value_is_no_distribution() -> None:
    b, x = _image()
    y = b.head(b.conv("conv", x, 3, 4), 4, classes=1)
    assert _found(b, {y: (1,)}) == [(y, "squared_error", None)]


def test_logits_in_front_of_a_sigmoid_are_matched_by_value() -> None:
    b, x = _image()
    x = b.head(b.conv("conv", x, 3, 4), 4, classes=7)
    y = b.node("sigmoid", "Sigmoid", [x])
    assert _found(b, {y: (7,)}) == [(x, "squared_error", None)]


def test_an_autoencoder_is_compared_by_its_reconstruction() -> None:
    b = Builder(0)
    x = b.input("input", (6,))
    inner = b.node("relu", "Relu", [b.gemm("down", x, 6, 3)])
    y = b.gemm("up", inner, 3, 6)
    assert _found(b, {y: (6,)}) == [(y, "squared_error", None)]


def test_an_image_autoencoder_behind_a_sigmoid_is_compared_by_its_pixels() -> None:
    b, x = _image()
    y = b.node("sigmoid", "Sigmoid", [b.conv("conv", x, 3, 3, relu=False)])
    assert _found(b, {y: (3, 8, 8)}) == [(y, "squared_error", None)]


def test_a_dense_output_has_a_distribution_per_pixel() -> None:
    b, x = _image()
    y = b.conv("conv", x, 3, 4, relu=False)
    assert _found(b, {y: (4, 8, 8)}) == [(y, "softmax", 1)]


def test_a_dense_output_shown_channels_last_is_found_channels_first() -> None:
    b, x = _image()
    scores = b.conv("conv", x, 3, 4, relu=False)
    y = b.node("last", "Transpose", [scores], perm=[0, 2, 3, 1])
    assert _found(b, {y: (8, 8, 4)}) == [(scores, "softmax", 1)]


def test_a_softmax_over_the_channels_of_a_dense_output_names_its_axis() -> None:
    b, x = _image()
    scores = b.conv("conv", x, 3, 4, relu=False)
    last = b.node("last", "Transpose", [scores], perm=[0, 2, 3, 1])
    y = b.node("softmax", "Softmax", [last], axis=-1)
    assert _found(b, {y: (8, 8, 4)}) == [(last, "softmax", 3)]


def test_what_an_argmax_chooses_from_is_compared() -> None:
    b, x = _image()
    scores = b.conv("conv", x, 3, 4, relu=False)
    labels = b.node("argmax", "ArgMax", [scores], axis=1, keepdims=0)
    y = b.node("cast", "Cast", [labels], to=TensorProto.FLOAT)
    assert _found(b, {y: (8, 8)}) == [(scores, "softmax", 1)]


def test_a_grid_below_the_input_resolution_is_compared_by_value() -> None:
    b, x = _image()
    y = b.conv("conv", x, 3, 9, stride=2, relu=False)
    assert _found(b, {y: (9, 4, 4)}) == [(y, "squared_error", None)]


def test_boxes_and_scores_of_a_detector_are_compared_apart() -> None:
    b, x = _image()
    boxes = b.conv("boxes", x, 3, 4, stride=2, relu=False)
    wide = b.node("wide", "Mul", [boxes, b.constant("stride", [8.0], dtype="float32")])
    scores = b.conv("scores", x, 3, 6, stride=2, relu=False)
    joined = b.node("joined", "Concat", [wide, b.node("sure", "Sigmoid", [scores])], axis=1)
    y = b.node("rows", "Reshape", [joined, b.ints("shape", [0, 10, 16])])
    assert _found(b, {y: (10, 16)}) == [
        (wide, "squared_error", None),
        (scores, "squared_error", None),
    ]


def test_a_concat_of_raw_parts_is_one_tensor() -> None:
    b, x = _image()
    parts = [b.conv(name, x, 3, 2, stride=2, relu=False) for name in ("a", "b")]
    y = b.node("joined", "Concat", parts, axis=1)
    assert _found(b, {y: (4, 4, 4)}) == [(y, "squared_error", None)]


def test_several_outputs_have_a_target_each_and_the_first_one_holds_the_classes() -> None:
    b, x = _image()
    x = b.conv("conv", x, 3, 4)
    classes = b.head(x, 4, classes=5)
    rows = b.node("rows", "Flatten", [x])
    embedding = b.gemm("embed", rows, 4 * 64, 6)
    assert _found(b, {classes: (5,), embedding: (6,)}) == [
        (classes, "softmax", 1),
        (embedding, "squared_error", None),
    ]


def test_two_outputs_of_the_same_scores_count_once() -> None:
    b, x = _image()
    scores = b.head(b.conv("conv", x, 3, 4), 4, classes=5)
    y = b.node("softmax", "Softmax", [scores])
    assert _found(b, {y: (5,), scores: (5,)}) == [(scores, "softmax", 1)]


def test_an_old_softmax_over_one_axis_is_found_and_over_several_is_not_taken_apart() -> None:
    b, x = _image()
    scores = b.conv("conv", x, 3, 4, relu=False)
    y = b.node("softmax", "Softmax", [scores], axis=1)
    assert _found(b, {y: (4, 8, 8)}, opset=11) == [(scores, "squared_error", None)]
    b, x = _image()
    pooled = b.node("pool", "GlobalAveragePool", [b.conv("conv", x, 3, 4, relu=False)])
    y = b.node("softmax", "Softmax", [pooled], axis=1)
    assert _found(b, {y: (4, 1, 1)}, opset=11) == [(pooled, "softmax", 1)]
