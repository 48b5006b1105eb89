"""Padding as nodes becomes padding of convolutions where that computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from fakes.networks import Builder, random_inputs
from tightfit_service.adapters.formats.onnx_execution import run_feeds
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.graph.model_file import copy_model, load_model
from tightfit_service.graph.pad_folding import fold_pads
from tightfit_service.graph.structure import attribute

AROUND = (0, 0, 1, 0, 0, 0, 2, 1)


def network(
    amounts: Sequence[int] = AROUND,
    *,
    value: float | None = None,
    mode: str = "constant",
    readers: int = 1,
    **settings: Any,
) -> ModelProto:
    """A Pad before convolutions with `settings`, and the mean of what they make."""
    b = Builder()
    inputs = [b.input("input", (3, 6, 6)), b.ints("amounts", amounts)]
    if value is not None:
        inputs.append(b.constant("value", value, dtype=np.float32))
    padded = b.node("pad", "Pad", inputs, mode=mode)
    channels = 3 + amounts[1] + amounts[5]
    weights = [b.weight(f"w{number}", (4, channels, 3, 3), fan_in=27) for number in range(readers)]
    found = [b.node(f"conv.{w}", "Conv", [padded, w], **settings) for w in weights]
    x = found[0] if readers == 1 else b.node("join", "Add", found)
    return b.model({b.head(x, 4): (5,)})


def folded(model: ModelProto) -> ModelProto:
    """Fold pads, and check that outputs stay."""
    found = copy_model(model)
    fold_pads(found)
    feeds = random_inputs(model)
    before, after = (run_feeds(item.SerializeToString(), feeds)[0] for item in (model, found))
    assert after == pytest.approx(before, abs=1e-6)
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 0, 2, 1]),
        ({"value": 0.0}, [1, 0, 2, 1]),
        ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, [2, 1, 3, 2]),
        ({"auto_pad": "VALID"}, [1, 0, 2, 1]),
        ({"dilations": [2, 2]}, [1, 0, 2, 1]),
    ],
)
def test_zeros_around_an_image_become_the_convolutions(
    settings: dict[str, Any], expected: list[int]
) -> None:
    found = folded(network(**settings))
    assert "Pad" not in {node.op_type for node in found.graph.node}
    (conv,) = (node for node in found.graph.node if node.op_type == "Conv")
    assert attribute(conv, "pads") == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"value": 1.0},
        {"mode": "edge"},
        {"readers": 2},
        {"amounts": (0, 1, 1, 0, 0, 0, 2, 1)},
        {"amounts": (0, 0, -1, 0, 0, 0, 2, 1)},
    ],
)
def test_other_padding_stays(settings: dict[str, Any]) -> None:
    found = folded(network(**settings))
    assert [node.name for node in found.graph.node if node.op_type == "Pad"] == ["pad"]


def test_a_convolution_that_pads_by_its_output_keeps_the_node() -> None:
    found = folded(network(auto_pad="SAME_UPPER"))
    assert [node.name for node in found.graph.node if node.op_type == "Pad"] == ["pad"]


def test_imported_networks_have_no_padding_before_convolutions() -> None:
    imported = OnnxImporter().import_model(network().SerializeToString())
    assert "Pad" not in {node.op_type for node in load_model(imported.graph).graph.node}
