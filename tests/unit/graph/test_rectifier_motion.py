"""Rectifiers behind movement are computed with what computes their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from fakes.networks import Builder, random_inputs
from tightfit_service.adapters.formats.onnx_execution import run_feeds
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.graph.model_file import copy_model, load_model
from tightfit_service.graph.rectifier_motion import move_rectifiers
from tightfit_service.graph.structure import producers


def moved(model: ModelProto) -> ModelProto:
    """Move rectifiers, and check that outputs stay."""
    found = copy_model(model)
    move_rectifiers(found)
    feeds = random_inputs(model)
    before, after = (run_feeds(item.SerializeToString(), feeds) for item in (model, found))
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one, other)
    return found


def behind(model: ModelProto) -> dict[str, str]:
    """Return the kinds of nodes that rectifiers read, by the rectifiers' names."""
    makers = producers(model.graph)
    return {
        node.name: makers[node.input[0]].op_type
        for node in model.graph.node
        if node.op_type in {"Relu", "Clip"}
    }


def joined(*, last: str = "Conv", watched: bool = False, twice: bool = False) -> ModelProto:
    """Two branches, one of them turned and turned back, joined before their rectifier."""
    b = Builder()
    x = b.input("input", (3, 6, 6))
    first = b.conv("first", x, 3, 4, relu=False)
    other = b.conv("second", x, 3, 4, relu=False) if last == "Conv" else b.node("second", last, [x])
    turned = b.node("turned", "Transpose", [other], perm=[0, 1, 3, 2])
    back = b.node("back", "Transpose", [turned], perm=[0, 1, 3, 2])
    join = b.node("join", "Concat", [first, first if twice else back], axis=1)
    x = b.node("relu", "Relu", [join])
    channels = 8 if last == "Conv" or twice else 7
    outputs = {b.head(x, channels): (5,), **({join: (channels, 6, 6)} if watched else {})}
    return b.model(outputs if not twice else {**outputs, back: (4, 6, 6)})


def test_a_rectifier_behind_branches_is_computed_in_each() -> None:
    found = moved(joined())
    assert behind(found) == {"first/relu": "Conv", "second/relu": "Conv"}


@pytest.mark.parametrize(
    "model",
    [joined(last="Tanh"), joined(watched=True), joined(twice=True)],
    ids=["computed by no product or sum", "read otherwise", "joined with itself"],
)
def test_others_stay_where_they_are(model: ModelProto) -> None:
    assert behind(moved(model)) == {"relu": "Concat"}


@pytest.mark.parametrize(
    ("op_type", "inputs", "settings", "shape"),
    [
        ("Reshape", ("sizes",), {}, (2, 2, 36)),
        ("Slice", ("starts", "ends", "axes"), {}, (4, 4, 6)),
        ("MaxPool", (), {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}, (4, 7, 7)),
        ("DepthToSpace", (), {"blocksize": 2}, (1, 12, 12)),
    ],
)
@pytest.mark.parametrize("rectifier", ["Relu", "Clip"])
def test_what_moves_numbers_is_done_to_rectified_ones(
    op_type: str,
    inputs: tuple[str, ...],
    settings: dict[str, Any],
    shape: tuple[int, ...],
    rectifier: str,
) -> None:
    b = Builder()
    values = {"sizes": [0, 2, 2, 36], "starts": [1], "ends": [5], "axes": [2]}
    x = b.conv("conv", b.input("input", (3, 6, 6)), 3, 4, relu=False)
    constants = [b.ints(name, values[name]) for name in inputs]
    x = b.node("move", op_type, [x, *constants], **settings)
    bounds = [b.constant(f"bound{v}", v, dtype=np.float32) for v in (-0.5, 0.5)]
    b.node("last", rectifier, [x, *(bounds if rectifier == "Clip" else [])])
    found = moved(b.model({"last_out": shape}))
    assert behind(found) == {"conv/last": "Conv"}
    # what follows the graph by names finds its output where it was
    assert [value.name for value in found.graph.output] == ["last_out"]


def test_bounds_that_are_computed_stay_behind() -> None:
    b = Builder()
    x = b.input("input", (3, 6, 6))
    x = b.node("flat", "Flatten", [b.conv("conv", x, 3, 4, relu=False)])
    most = b.node("most", "ReduceMax", [x], keepdims=0)
    least = b.constant("least", 0, dtype=np.float32)
    b.node("clip", "Clip", [x, least, most])
    assert behind(moved(b.model({"clip_out": (144,)}))) == {"clip": "Flatten"}


def test_imported_networks_have_rectifiers_where_runtimes_fuse_them() -> None:
    imported = OnnxImporter().import_model(joined().SerializeToString())
    assert set(behind(load_model(imported.graph)).values()) == {"Conv"}
