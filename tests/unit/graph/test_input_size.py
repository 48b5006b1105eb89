"""Image inputs and strides; what networks become at other sizes is in the tests of the pass."""

from __future__ import annotations

import pytest
from onnx import ModelProto

from fakes.networks import NETWORKS, Builder
from fakes.odd_networks import ODD_NETWORKS
from tightfit_service.graph.input_size import (
    FixedSizeError,
    at_input_size,
    image_input,
    total_stride,
)
from tightfit_service.graph.structure import tensor_shapes


def pooled(*, whole: bool) -> ModelProto:
    b = Builder()
    x = b.conv("conv", b.input("input", (3, 16, 16)), 3, 4, stride=2)
    size = 8 if whole else 4
    x = b.node("pool", "AveragePool", [x], kernel_shape=[size, size], strides=[size, size])
    return b.model({b.head(x, 4): (5,)})


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (NETWORKS["residual"](0), (2, 2)),
        (NETWORKS["padded_shortcut"](0), (4, 4)),
        (NETWORKS["upsampling"](0), (2, 2)),
        (ODD_NETWORKS["blocks_and_pixels"](0), (2, 2)),
        (pooled(whole=True), (2, 2)),
        (pooled(whole=False), (8, 8)),
    ],
)
def test_total_strides(model: ModelProto, expected: tuple[int, int]) -> None:
    assert total_stride(model) == expected


def test_the_image_input_is_found_with_its_axes() -> None:
    found = image_input(NETWORKS["residual"](0))
    assert (found.name, found.axes, found.height, found.width) == ("input", (2, 3), 8, 8)


def test_the_given_model_is_left_alone() -> None:
    model = pooled(whole=True)
    before = model.SerializeToString()
    result = at_input_size(model, 12, 10)
    assert model.SerializeToString() == before
    assert tensor_shapes(result)["conv.relu_out"] == (1, 4, 6, 5)


def test_networks_without_images_have_a_reason() -> None:
    with pytest.raises(FixedSizeError, match="no height and width"):
        image_input(NETWORKS["mlp"](0))
