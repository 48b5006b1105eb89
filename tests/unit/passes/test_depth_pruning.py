"""Depth pruning: blocks left out of graphs, variants, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto

from fakes.networks import NETWORKS, Builder, random_inputs
from tightfit_service.application.ports import PassContext
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, Memory, Runtime
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.depth_pruning import DepthPruningPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

TARGET = HardwareSpec(
    name="board",
    display_name="Board",
    core="cortex-m7",
    clock_mhz=280.0,
    memory=Memory(ram_bytes=1 << 20, flash_bytes=1 << 21),
    runtime=Runtime(name="tflm"),
)
depth = DepthPruningPass()


def run(data: bytes, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]


def resnet(block_count: int = 3, seed: int = 0, *, pre_activation: bool = False) -> ModelProto:
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 6)
    for index in range(block_count):
        name = f"block{index}"
        y = x
        if pre_activation:
            y = b.node(f"{name}.pre.relu", "Relu", [b.batch_norm(f"{name}.pre", y, 6)])
        y = b.conv(f"{name}.conv1", y, 6, 6, norm=True)
        y = b.conv(f"{name}.conv2", y, 6, 6, norm=not pre_activation, relu=False)
        x = b.node(f"{name}.add", "Add", [y, x])
        if not pre_activation:
            x = b.node(f"{name}.relu", "Relu", [x])
    return b.model({b.head(x, 6): (5,)})


def silenced(model: ModelProto, name: str) -> bytes:
    """Return the graph with a block's branch made zero."""
    copy = load_model(model.SerializeToString())
    for tensor in copy.graph.initializer:
        if tensor.name.startswith(f"{name}.conv2"):
            is_variance = tensor.name.endswith(".var")
            value = onnx.numpy_helper.to_array(tensor)
            changed = np.ones_like(value) if is_variance else np.zeros_like(value)
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    return bytes(copy.SerializeToString())


@pytest.mark.parametrize("pre_activation", [False, True])
@pytest.mark.parametrize("names", [["block0"], ["block1"], ["block2"]])
def test_leaving_a_block_out_is_making_its_branch_zero(
    names: list[str], pre_activation: bool
) -> None:
    model = resnet(pre_activation=pre_activation)
    data = model.SerializeToString()
    result = depth.apply(data, {"blocks": [f"{name}.add" for name in names]}, PassContext())
    onnx.checker.check_model(load_model(result), full_check=True)
    feeds = random_inputs(model)
    expected = run(silenced(model, names[0]), feeds)[0]
    np.testing.assert_allclose(run(result, feeds)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pre_activation", [False, True])
def test_all_blocks_can_go_and_activations_behind_the_sums_stay(pre_activation: bool) -> None:
    model = resnet(pre_activation=pre_activation)
    data = model.SerializeToString()
    blocks = [f"block{index}.add" for index in range(3)]
    result = depth.apply(data, {"blocks": blocks}, PassContext())
    names = [node.name for node in load_model(result).graph.node]
    rest = [] if pre_activation else [f"block{index}.relu" for index in range(3)]
    assert names == ["stem", "stem.relu", *rest, "gap", "flat", "fc"]
    assert run(result, random_inputs(model))[0].shape == (2, 5)


def test_no_blocks_change_nothing() -> None:
    model = resnet()
    data = model.SerializeToString()
    feeds = random_inputs(model)
    result = depth.apply(data, {"blocks": []}, PassContext())
    np.testing.assert_array_equal(run(result, feeds)[0], run(data, feeds)[0])


def test_variants_go_from_one_block_to_all() -> None:
    data = resnet(3).SerializeToString()
    variants = depth.variants(data, TARGET)
    assert [len(variant.parameters["blocks"]) for variant in variants] == [1, 2, 3]
    macs = [
        OnnxGraphInspector().profile(depth.apply(data, variant.parameters, PassContext())).macs
        for variant in variants
    ]
    whole = OnnxGraphInspector().profile(data).macs
    assert [whole, *macs] == sorted([whole, *macs], reverse=True)
    assert variants[0].label == "without " + variants[0].parameters["blocks"][0]
    assert variants[2].label == "without 3 blocks"


def test_there_are_never_more_than_six_variants() -> None:
    variants = depth.variants(resnet(9).SerializeToString(), TARGET)
    counts = [len(variant.parameters["blocks"]) for variant in variants]
    assert counts == [1, 3, 4, 6, 7, 9]
    assert all(
        set(mild.parameters["blocks"]) < set(strong.parameters["blocks"])
        for mild, strong in itertools.pairwise(variants)
    )


def test_with_data_the_block_that_changes_least_goes_first() -> None:
    model = resnet(3)
    for tensor in model.graph.initializer:
        # of equal weights in the eyes of `branch_shares`, but nothing reaches the convolution
        if tensor.name == "block1.conv1.bn.beta":
            value = np.full(6, -50, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        if tensor.name in {"block1.conv2.bn.beta", "block1.conv2.bn.mean"}:
            value = np.zeros(6, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    data = model.SerializeToString()
    stored = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    context = PassContext(calibration=Samples(stored=stored, labels=None))
    first = depth.variants(data, TARGET, context=context)[0]
    assert first.parameters["blocks"] == ["block1.add"]


def test_structured_pruning_works_on_the_result() -> None:
    model = resnet(3)
    result = depth.apply(model.SerializeToString(), {"blocks": ["block1.add"]}, PassContext())
    pruning = StructuredPruningPass()
    space = pruning.space(result)
    keep = {group.group_id: list(range(group.unit_count // 2)) for group in space.groups}
    pruned = pruning.apply(result, keep)
    assert run(pruned, random_inputs(model))[0].shape == (2, 5)


def test_blocks_keep_their_ids_after_structured_pruning() -> None:
    data = resnet(3).SerializeToString()
    pruning = StructuredPruningPass()
    keep = {g.group_id: list(range(g.unit_count // 2)) for g in pruning.space(data).groups}
    depth.check(pruning.apply(data, keep), {"blocks": ["block0.add", "block2.add"]})


def test_networks_without_blocks_are_told() -> None:
    plain = NETWORKS["plain_cnn"](0).SerializeToString()
    assert "no residual block keeps" in depth.applies_to(plain, TARGET)[0]
    assert depth.variants(plain, TARGET) == ()
    assert depth.applies_to(resnet().SerializeToString(), TARGET) == ()


@pytest.mark.parametrize(
    ("parameters", "field", "message"),
    [
        ({"layers": []}, "parameters.layers", "unknown key"),
        ({"blocks": "block0.add"}, "parameters.blocks", "no list"),
        ({"blocks": ["block0.conv1"]}, "parameters.blocks", "no block"),
    ],
)
def test_parameters_are_refused_with_the_field(
    parameters: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        depth.check(resnet().SerializeToString(), parameters)
    assert caught.value.field == field
    assert caught.value.remedy
