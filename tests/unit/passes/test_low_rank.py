"""Low-rank factorization on graphs: what is computed, what it costs, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto

from fakes.networks import NETWORKS, Builder, random_inputs
from tightfit_service.application.ports import PassContext
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, Memory, Runtime
from tightfit_service.domain.network import Operator
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.low_rank import LowRankPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

TARGET = HardwareSpec(
    name="board",
    display_name="Board",
    core="cortex-m7",
    clock_mhz=280.0,
    memory=Memory(ram_bytes=1 << 20, flash_bytes=1 << 21),
    runtime=Runtime(name="tflm"),
)
low_rank = LowRankPass()


def run(data: bytes, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]


def images(count: int = 64, shape: Sequence[int] = (3, 12, 12), seed: int = 0) -> Samples:
    """Smooth images: neighbouring pixels and channels go together, as they do in photographs."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, *shape))
    smooth = noise + np.roll(noise, 1, -1) + np.roll(noise, 1, -2) + noise.mean(1, keepdims=True)
    return Samples(stored=smooth.astype(np.float32), labels=None, layout=Layout.NCHW)


def wide_cnn(seed: int = 0, *, opset: int = 17) -> ModelProto:
    """Layers wide enough that factors save: strides, dilations, pads of every kind, two dense layers."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 12, 12)), 3, 16, norm=True, bias=False)
    for name, extra in (
        ("uneven", {"pads": [0, 1, 2, 1], "strides": [2, 1]}),
        ("dilated", {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
        ("same", {"auto_pad": "SAME_UPPER", "strides": [1, 2]}),
        ("lower", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ):
        weight = b.weight(f"{name}.w", (16, 16, 3, 3), fan_in=144)
        bias = [b.vector(f"{name}.b", 16)] if name != "lower" else []
        x = b.node(name, "Conv", [x, weight, *bias], kernel_shape=[3, 3], **extra)
        x = b.node(f"{name}.relu", "Relu", [x])
    x = b.conv("point", x, 16, 32, kernel=1, norm=True)
    x = b.node("gap", "GlobalAveragePool", [x])
    x = b.node("flat", "Flatten", [x], axis=1)
    w1 = b.weight("fc1.w", (32, 24), fan_in=32)
    x = b.node("fc1", "Gemm", [x, w1, b.vector("fc1.b", 24)], alpha=0.5, beta=2.0)
    x = b.node("fc1.relu", "Relu", [x])
    x = b.node("mm", "MatMul", [x, b.weight("mm.w", (24, 20), fan_in=24)])
    x = b.node("mm.add", "Add", [x, b.vector("mm.b", 20)])
    return b.model({b.gemm("fc2", x, 20, 10): (10,)}, opset=opset)


def choices(data: bytes, method: str) -> dict[str, Any]:
    """Return one choice per layer that takes the method, at full rank."""
    found: dict[str, Any] = {}
    values = {t.name: t.dims for t in load_model(data).graph.initializer}
    for node in load_model(data).graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        shape = list(values[node.input[1]])
        if node.op_type != "Conv":
            full: Any = min(shape) if method == "svd" else None
        elif method == "svd":
            full = min(shape[0], int(np.prod(shape[1:])))
        elif shape[2] == 1:
            full = None
        else:
            full = min(shape[1], shape[0]) * 3 if method == "spatial" else [shape[1], shape[0]]
        if full is not None:
            found[node.name] = {"method": method, "rank": full}
    return found


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("method", ["svd", "spatial", "tucker2"])
def test_full_rank_reproduces_the_original(method: str, with_data: bool) -> None:
    model = wide_cnn()
    data = model.SerializeToString()
    context = PassContext(calibration=images() if with_data else None)
    parameters = {"nodes": choices(data, method)}
    assert len(parameters["nodes"]) >= 5
    low_rank.check(data, parameters)
    result = low_rank.apply(data, parameters, context)
    onnx.checker.check_model(load_model(result), full_check=True)
    feeds = random_inputs(model)
    for expected, found in zip(run(data, feeds), run(result, feeds), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker2"])
def test_nodes_keep_their_names_and_chains_end_with_them(method: str) -> None:
    data = wide_cnn().SerializeToString()
    before = {node.name for node in load_model(data).graph.node}
    result = low_rank.apply(data, {"nodes": choices(data, method)}, PassContext())
    after = [node.name for node in load_model(result).graph.node]
    assert before < set(after)
    assert len(after) == len(set(after))


@pytest.mark.parametrize("with_data", [False, True])
def test_alternatives_cost_exactly_what_they_say(with_data: bool) -> None:
    model = wide_cnn()
    data = model.SerializeToString()
    profile = OnnxGraphInspector().profile(data)
    context = PassContext(calibration=images() if with_data else None)
    found = low_rank.alternatives(data, profile, TARGET, context=context)
    assert found
    for node, offers in found.items():
        own = next(item for item in profile.operators if item.node == node)
        errors = [offer.error for offer in offers]
        macs = [sum(item.macs for item in offer.operators) for offer in offers]
        assert errors == sorted(errors)
        assert macs == sorted(macs, reverse=True)
        assert len(offers) <= 5
        for offer in offers:
            assert sum(item.macs for item in offer.operators) < own.macs
            assert sum(item.weight_count for item in offer.operators) < own.weight_count
            result = low_rank.apply(data, {"nodes": {node: offer.parameters}}, context)
            after = OnnxGraphInspector().profile(result)
            names = [item.node for item in offer.operators]
            real = tuple(item for item in after.operators if item.node in names)
            assert real == offer.operators


def test_one_sided_padding_stays_with_the_first_operator() -> None:
    b = Builder()
    x = b.conv("stem", b.input("input", (3, 12, 12)), 3, 16)
    weight = b.constant("w", low_rank_kernel(16, 16, 4), dtype=np.float32)
    x = b.node("conv", "Conv", [x, weight], kernel_shape=[3, 3], pads=[0, 1, 2, 1])
    data = b.model({b.head(x, 16): (5,)}).SerializeToString()
    profile = OnnxGraphInspector().profile(data)
    offers = low_rank.alternatives(data, profile, TARGET)["conv"]
    assert offers
    for offer in offers:
        result = low_rank.apply(data, {"nodes": {"conv": offer.parameters}}, PassContext())
        after = OnnxGraphInspector().profile(result)
        names = {item.node for item in offer.operators}
        assert tuple(item for item in after.operators if item.node in names) == offer.operators


def low_rank_kernel(out: int, inner: int, rank: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    core = rng.normal(size=(rank, rank, 3, 3))
    return np.einsum(
        "or,rshw,sc->ochw",
        rng.normal(size=(out, rank)),
        core,
        rng.normal(size=(rank, inner)),
        optimize=True,
    ) / (6 * rank)


def test_a_layer_of_low_rank_is_found_exactly() -> None:
    b = Builder()
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 16)
    weight = b.constant("w", low_rank_kernel(20, 16, 4), dtype=np.float32)
    x = b.node("conv", "Conv", [x, weight, b.vector("b", 20)], kernel_shape=[3, 3], pads=[1] * 4)
    model = b.model({b.head(x, 20): (5,)})
    data = model.SerializeToString()
    offers = low_rank.alternatives(data, OnnxGraphInspector().profile(data), TARGET)["conv"]
    tucker = [offer for offer in offers if offer.parameters["method"] == "tucker2"]
    assert tucker[0].parameters["rank"] == [4, 4]
    assert tucker[0].error < 1e-9
    result = low_rank.apply(data, {"nodes": {"conv": tucker[0].parameters}}, PassContext())
    feeds = random_inputs(model)
    expected, found = run(data, feeds)[0], run(result, feeds)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


def test_calibration_lowers_the_error_of_the_output() -> None:
    model = wide_cnn()
    data = model.SerializeToString()
    parameters = {
        "nodes": {
            "uneven": {"method": "tucker2", "rank": [6, 6]},
            "dilated": {"method": "spatial", "rank": 8},
            "fc1": {"method": "svd", "rank": 8},
        }
    }
    seen, fresh = images(), images(seed=1)
    feeds = {"input": fresh.inputs(slice(None))}
    expected = run(data, feeds)[0]

    def error(context: PassContext) -> float:
        found = run(low_rank.apply(data, parameters, context), feeds)[0]
        return float(((found - expected) ** 2).mean())

    assert error(PassContext(calibration=seen)) < 0.5 * error(PassContext())


def test_the_error_told_with_data_is_that_of_the_output() -> None:
    b = Builder(3)
    x = b.input("input", (3, 12, 12))
    x = b.conv("first", x, 3, 24, kernel=1, relu=False)
    x = b.conv("conv", x, 24, 24, relu=False, norm=True)
    data = b.model({x: (24, 12, 12)}).SerializeToString()
    samples = images(count=128)
    context = PassContext(calibration=samples)
    profile = OnnxGraphInspector().profile(data)
    offers = low_rank.alternatives(data, profile, TARGET, context=context)["conv"]
    feeds = {"input": samples.inputs(slice(None))}
    expected = run(data, feeds)[0]
    about = expected - expected.mean(axis=(0, 2, 3), keepdims=True)
    for offer in offers:
        result = low_rank.apply(data, {"nodes": {"conv": offer.parameters}}, context)
        measured = ((run(result, feeds)[0] - expected) ** 2).mean() / (about**2).mean()
        assert measured == pytest.approx(offer.error, rel=0.25, abs=2e-3)


def test_ranks_are_clipped_after_structured_pruning() -> None:
    model = wide_cnn()
    data = model.SerializeToString()
    pruning = StructuredPruningPass()
    keep = {group.group_id: list(range(4)) for group in pruning.space(data).groups}
    narrow = pruning.apply(data, keep)
    parameters = {
        "nodes": {
            "dilated": {"method": "tucker2", "rank": [12, 3]},
            "uneven": {"method": "tucker2", "rank": [12, 12]},
        }
    }
    low_rank.check(data, parameters)
    with pytest.raises(InvalidRequestError, match="above full rank 4x4"):
        low_rank.check(narrow, parameters)
    result = load_model(low_rank.apply(narrow, parameters, PassContext()))
    shapes = {tensor.name: list(tensor.dims) for tensor in result.graph.initializer}
    assert shapes["dilated.reduce.weight"] == [4, 4, 1, 1]
    assert shapes["dilated.core.weight"] == [3, 4, 3, 3]
    assert "uneven.core" not in {node.name for node in result.graph.node}


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker2"])
def test_a_layer_pruned_to_a_single_channel_stays_as_it_is(method: str) -> None:
    data = wide_cnn().SerializeToString()
    pruning = StructuredPruningPass()
    keep = {group.group_id: [0] for group in pruning.space(data).groups}
    narrow = pruning.apply(data, keep)
    rank = [3, 3] if method == "tucker2" else 3
    parameters = {"nodes": {"dilated": {"method": method, "rank": rank}}}
    low_rank.check(data, parameters)
    assert low_rank.apply(data, parameters, PassContext()) != data
    before, after = (
        load_model(graph) for graph in (narrow, low_rank.apply(narrow, parameters, PassContext()))
    )
    assert [node.name for node in after.graph.node] == [node.name for node in before.graph.node]
    # what is asked of such a layer outright cannot be meant
    with pytest.raises(InvalidRequestError, match='no layer "dilated"'):
        low_rank.check(narrow, parameters)


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker2"])
def test_structured_pruning_still_works_on_the_result(method: str) -> None:
    model = wide_cnn()
    data = model.SerializeToString()
    nodes = choices(data, method)
    for choice in nodes.values():
        rank = choice["rank"]
        choice["rank"] = [6, 6] if isinstance(rank, list) else min(rank, 6)
    result = low_rank.apply(data, {"nodes": nodes}, PassContext())
    pruning = StructuredPruningPass()
    space = pruning.space(result)
    inner = {"svd": ".reduce", "spatial": ".vertical", "tucker2": ".core"}[method]
    assert any(group.group_id.endswith(inner) for group in space.groups)
    keep = {g.group_id: list(range(max(1, g.unit_count // 2))) for g in space.groups}
    pruned = pruning.apply(result, keep)
    onnx.checker.check_model(load_model(pruned), full_check=True)
    assert run(pruned, random_inputs(model))[0].shape == (2, 10)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_alternative_of_every_network_applies(name: str) -> None:
    model = NETWORKS[name](0)
    data = model.SerializeToString()
    found = low_rank.alternatives(data, OnnxGraphInspector().profile(data), TARGET)
    nodes = {node: offers[-1].parameters for node, offers in found.items()}
    low_rank.check(data, {"nodes": nodes})
    feeds = random_inputs(model)
    result = low_rank.apply(data, {"nodes": nodes}, PassContext())
    for expected, value in zip(run(data, feeds), run(result, feeds), strict=True):
        assert value.shape == expected.shape
        assert np.isfinite(value).all()


def test_ranks_are_multiples_of_the_targets() -> None:
    data = wide_cnn().SerializeToString()
    target = replace(TARGET, channel_multiple=4)
    found = low_rank.alternatives(data, OnnxGraphInspector().profile(data), target)
    ranks = [np.atleast_1d(o.parameters["rank"]) for offers in found.values() for o in offers]
    assert ranks
    assert all((rank % 4 == 0).all() for rank in ranks)


def test_weights_that_others_share_stay() -> None:
    b = Builder()
    weight = b.weight("w", (16, 16, 3, 3), fan_in=144)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 16)
    bias = b.vector("shared.b", 16)
    for name in ("one", "two"):
        x = b.node(name, "Conv", [x, weight, bias], kernel_shape=[3, 3], pads=[1] * 4)
    model = b.model({b.head(x, 16): (5,)})
    data = model.SerializeToString()
    context = PassContext(calibration=images(shape=(3, 8, 8)))
    parameters = {"nodes": {"one": {"method": "svd", "rank": 15}}}
    result = low_rank.apply(data, parameters, context)
    values = {t.name for t in load_model(result).graph.initializer}
    assert {"w", "shared.b", "one.bias"} <= values
    feeds = random_inputs(model)
    assert run(result, feeds)[0].shape == run(data, feeds)[0].shape


def test_the_result_is_the_same_twice() -> None:
    data = wide_cnn().SerializeToString()
    parameters = {"nodes": {"dilated": {"method": "spatial", "rank": 5}}}
    context = PassContext(calibration=images(), seed=3)
    assert low_rank.apply(data, parameters, context) == low_rank.apply(data, parameters, context)


@pytest.mark.parametrize(
    ("parameters", "field", "message"),
    [
        ({"layers": {}}, "parameters.layers", "unknown key"),
        ({"nodes": []}, "parameters.nodes", "no mapping"),
        ({"nodes": {"gap": {"method": "svd", "rank": 2}}}, "parameters.nodes[gap]", "no layer"),
        ({"nodes": {"fc1": {"rank": 2}}}, "parameters.nodes[fc1]", "keys"),
        (
            {"nodes": {"fc1": {"method": "tucker2", "rank": [2, 2]}}},
            "parameters.nodes[fc1].method",
            "not offered",
        ),
        (
            {"nodes": {"point": {"method": "spatial", "rank": 2}}},
            "parameters.nodes[point].method",
            "not offered",
        ),
        ({"nodes": {"fc1": {"method": "svd", "rank": 0}}}, "parameters.nodes[fc1].rank", "is 0"),
        (
            {"nodes": {"fc1": {"method": "svd", "rank": True}}},
            "parameters.nodes[fc1].rank",
            "is True",
        ),
        (
            {"nodes": {"same": {"method": "tucker2", "rank": 4}}},
            "parameters.nodes[same].rank",
            "is 4",
        ),
        (
            {"nodes": {"fc1": {"method": "svd", "rank": 25}}},
            "parameters.nodes[fc1].rank",
            "above full rank 24",
        ),
    ],
)
def test_parameters_are_refused_with_the_field(
    parameters: dict[str, Any], field: str, message: str
) -> None:
    data = wide_cnn().SerializeToString()
    with pytest.raises(InvalidRequestError, match=message) as caught:
        low_rank.check(data, parameters)
    assert caught.value.field == field
    assert caught.value.remedy


def test_networks_without_layers_to_factorize_are_told() -> None:
    b = Builder()
    x = b.conv("dw", b.input("input", (4, 6, 6)), 4, 4, groups=4)
    data = b.model({x: (4, 6, 6)}).SerializeToString()
    assert "no dense layer" in low_rank.applies_to(data, TARGET)[0]
    assert low_rank.applies_to(wide_cnn().SerializeToString(), TARGET) == ()


def test_operators_of_one_chain_join() -> None:
    data = wide_cnn().SerializeToString()
    profile = OnnxGraphInspector().profile(data)
    for offers in low_rank.alternatives(data, profile, TARGET).values():
        for offer in offers:
            pairs: list[tuple[Operator, Operator]] = list(
                zip(offer.operators, offer.operators[1:], strict=False)
            )
            assert all(left.outputs == right.inputs for left, right in pairs)
            assert offer.operators[-1].node == offer.node
