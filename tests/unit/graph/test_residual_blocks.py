"""Residual blocks: which are found in which architectures, and how their branches are ranked."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from fakes.networks import NETWORKS, Builder
from fakes.odd_networks import ODD_NETWORKS
from tightfit_service.graph.residual_blocks import branch_shares, residual_blocks


def found(model: ModelProto) -> list[str]:
    return [block.block_id for block in residual_blocks(model)]


def basic_block(b: Builder, name: str, x: str, channels: int) -> str:
    y = b.conv(f"{name}.conv1", x, channels, channels, norm=True)
    y = b.conv(f"{name}.conv2", y, channels, channels, norm=True, relu=False)
    return b.node(f"{name}.relu", "Relu", [b.node(f"{name}.add", "Add", [y, x])])


def transformer(b: Builder, x: str, width: int) -> str:
    """A pre-norm layer: attention and feed-forward halves, tanh-approximated GELU inside."""
    y = b.node(
        "ln1", "LayerNormalization", [x, b.vector("ln1.s", width, low=0.5, high=1.5)], axis=-1
    )
    q = b.node("q", "MatMul", [y, b.weight("q.w", (width, width), fan_in=width)])
    k = b.node("k", "MatMul", [y, b.weight("k.w", (width, width), fan_in=width)])
    v = b.node("v", "MatMul", [y, b.weight("v.w", (width, width), fan_in=width)])
    scores = b.node("scores", "MatMul", [q, b.node("kt", "Transpose", [k], perm=[0, 2, 1])])
    mixed = b.node("mixed", "MatMul", [b.node("soft", "Softmax", [scores], axis=-1), v])
    x = b.node("attention.add", "Add", [x, mixed])
    y = b.node(
        "ln2", "LayerNormalization", [x, b.vector("ln2.s", width, low=0.5, high=1.5)], axis=-1
    )
    y = b.node("up", "MatMul", [y, b.weight("up.w", (width, 2 * width), fan_in=width)])
    cube = b.node("cube", "Mul", [b.node("square", "Mul", [y, y]), y])
    y = b.node("gelu.add", "Add", [y, b.node("scaled", "Mul", [cube, b.vector("c", 1)])])
    y = b.node("gelu", "Tanh", [y])
    y = b.node("down", "MatMul", [y, b.weight("down.w", (2 * width, width), fan_in=width)])
    return b.node("ffn.add", "Add", [y, x])


def test_basic_blocks_are_found_in_order_with_their_nodes() -> None:
    b = Builder()
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 6)
    for name in ("one", "two"):
        x = basic_block(b, name, x, 6)
    blocks = residual_blocks(b.model({b.head(x, 6): (5,)}))
    assert [block.block_id for block in blocks] == ["one.add", "two.add"]
    assert blocks[1].nodes == (
        "two.conv1",
        "two.conv1.bn",
        "two.conv1.relu",
        "two.conv2",
        "two.conv2.bn",
    )
    assert blocks[1].shortcut == "one.relu_out"


def test_blocks_that_change_the_shape_are_none() -> None:
    assert found(NETWORKS["residual"](0)) == ["a.add"]
    assert found(NETWORKS["padded_shortcut"](0)) == []


def test_inverted_residuals_are_found() -> None:
    assert found(NETWORKS["depthwise"](0)) == ["add"]


def test_halves_of_transformer_layers_are_found_and_gelu_is_none() -> None:
    b = Builder()
    x = b.node("embed", "MatMul", [b.input("input", (5, 6)), b.weight("e.w", (6, 8), fan_in=6)])
    x = b.node("mean", "ReduceMean", [transformer(b, x, 8)], axes=[1], keepdims=0)
    blocks = residual_blocks(b.model({b.gemm("fc", x, 8, 3): (3,)}))
    assert [block.block_id for block in blocks] == ["attention.add", "ffn.add"]
    assert "ln1" in blocks[0].nodes
    assert "ln2" in blocks[1].nodes


def test_squeeze_and_excitation_inside_a_branch_belongs_to_it() -> None:
    b = Builder()
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 6)
    y = b.conv("conv", x, 6, 6)
    s = b.node("pool", "GlobalAveragePool", [y])
    gate = b.node("gate", "Sigmoid", [b.conv("se", s, 6, 6, kernel=1, relu=False)])
    y = b.node("scale", "Mul", [y, gate])
    x = b.node("add", "Add", [x, y])
    (block,) = residual_blocks(b.model({b.head(x, 6): (5,)}))
    assert set(block.nodes) == {"conv", "conv.relu", "pool", "se", "gate", "scale"}


def test_a_branch_that_is_read_outside_is_none() -> None:
    b = Builder()
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 6)
    y = b.conv("conv1", x, 6, 6)
    z = b.conv("conv2", y, 6, 6)
    x = b.node("add", "Add", [x, z])
    x = b.node("join", "Concat", [x, y], axis=1)
    assert found(b.model({b.head(x, 12): (5,)})) == []


def test_a_sum_that_is_an_output_stays() -> None:
    b = Builder()
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 6)
    x = b.node("add", "Add", [x, b.conv("conv", x, 6, 6)])
    assert found(b.model({x: (6, 8, 8)})) == []


def test_blocks_around_blocks_are_left_to_the_inner_ones() -> None:
    b = Builder()
    x = outer = b.conv("stem", b.input("input", (3, 8, 8)), 3, 6)
    for name in ("one", "two"):
        x = basic_block(b, name, x, 6)
    x = b.node("outer.add", "Add", [outer, b.conv("last", x, 6, 6)])
    assert found(b.model({b.head(x, 6): (5,)})) == ["one.add", "two.add"]


@pytest.mark.parametrize("name", sorted({**NETWORKS, **ODD_NETWORKS}))
def test_every_network_is_read(name: str) -> None:
    model = {**NETWORKS, **ODD_NETWORKS}[name](0)
    blocks = residual_blocks(model)
    shares = branch_shares(model, blocks)
    assert set(shares) == {block.block_id for block in blocks}
    assert all(0.0 <= share <= 1.0 for share in shares.values())


def test_branches_with_small_weights_have_small_shares() -> None:
    b = Builder()
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 6)
    for name in ("strong", "weak"):
        x = basic_block(b, name, x, 6)
    b.constants["weak.conv2.bn.gamma"] = np.full(6, 0.01, np.float32)
    b.constants["weak.conv2.bn.beta"] = np.zeros(6, np.float32)
    model = b.model({b.head(x, 6): (5,)})
    shares = branch_shares(model, residual_blocks(model))
    assert shares["weak.add"] < 0.05 < shares["strong.add"]
