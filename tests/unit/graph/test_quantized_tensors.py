"""Tests of which tensors integers are kept in."""

from __future__ import annotations

from fakes.networks import NETWORKS, Builder, token_attention
from tightfit_service.graph.quantized_tensors import quantized_tensors


def test_what_is_fused_is_not_rounded() -> None:
    found = quantized_tensors(NETWORKS["residual"](0))
    assert "stem.relu_out" in found
    assert {"stem_out", "stem.bn_out", "a.add_out"}.isdisjoint(found)
    assert found["a.relu_out"].group == "a.relu_out"
    assert found["flat_out"].group == "gap_out"


def test_kernels_that_pass_integers_on_share_a_scale() -> None:
    found = quantized_tensors(NETWORKS["inception"](0))
    joined = {name for name, item in found.items() if item.group == found["concat_out"].group}
    assert {"concat_out", "expand1.relu_out", "expand3.relu_out"} <= joined
    assert "after.relu_out" not in joined


def test_what_a_product_of_activations_reads_second_is_centred() -> None:
    found = quantized_tensors(token_attention())
    assert {name for name, item in found.items() if item.is_centred} == {
        f"{part}{end}_out" for part in ("key", "value") for end in ("", ".split", ".heads")
    }


def test_fixed_scales_stay_out_of_others() -> None:
    builder = Builder()
    source = builder.input("x", (4, 6, 6))
    left = builder.conv("left", source, 4, 4, relu=False)
    right = builder.conv("right", source, 4, 4, relu=True)
    gate = builder.node("gate", "Sigmoid", [left])
    turned = builder.node("turned", "Transpose", [gate], perm=[0, 2, 3, 1])
    back = builder.node("back", "Transpose", [turned], perm=[0, 3, 1, 2])
    builder.node("cat", "Concat", [back, right], axis=1)
    found = quantized_tensors(builder.model({"cat_out": (8, 6, 6)}))
    assert found["gate_out"].fixed == found["back_out"].fixed == "unit"
    assert found["back_out"].group == "gate_out"
    assert found["cat_out"].fixed == ""
    assert found["cat_out"].group == found["right.relu_out"].group
    assert found["x"].group == "x"
