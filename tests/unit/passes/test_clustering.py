"""Clustering: how many values remain, how near they are, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest

from fakes.networks import NETWORKS, Builder
from tightfit_service.application.ports import DownloadPass, NodePass, PassContext
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, Memory, NumberFormat, Runtime
from tightfit_service.graph.batch_norm import fold_batch_norms, foldable_batch_norms
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.clustering import DOWNLOAD_CLUSTERS, ClusteringPass, k_means
from tightfit_service.passes.layer_weights import layer_weights
from tightfit_service.passes.sparsity import SparsityPass

clustering = ClusteringPass()
as_port: NodePass = clustering
CNN = NETWORKS["plain_cnn"](0).SerializeToString()
TARGET = HardwareSpec(
    name="board",
    display_name="Board",
    core="cortex-m7",
    clock_mhz=280.0,
    memory=Memory(ram_bytes=1 << 20, flash_bytes=1 << 21),
    runtime=Runtime(name="TFLM+CMSIS-NN"),
)


def rows(data: bytes, name: str) -> Any:
    return layer_weights(onnx.load_from_string(data))[name].rows()


def apply(data: bytes, node: str, **choice: Any) -> bytes:
    return clustering.apply(data, {"nodes": {node: choice}}, PassContext())


def squared_error(values: Any, means: Any) -> float:
    distances = np.abs(values[:, None] - np.asarray(means)[None])
    return float(np.square(distances.min(axis=1)).sum())


@pytest.mark.parametrize("clusters", [1, 2, 7, 16])
def test_at_most_so_many_values_remain(clusters: int) -> None:
    after = rows(apply(CNN, "fc1", clusters=clusters), "fc1")
    assert len(np.unique(after)) == clusters


def test_each_weight_takes_the_nearest_of_the_values() -> None:
    before, after = (
        rows(CNN, "conv2").ravel(),
        rows(apply(CNN, "conv2", clusters=6), "conv2").ravel(),
    )
    values = np.unique(after)
    nearest = values[np.abs(before[:, None] - values[None]).argmin(axis=1)]
    assert np.allclose(np.abs(before - after), np.abs(before - nearest), atol=1e-6)


def test_few_clusters_are_as_good_as_the_best_of_all_partitions() -> None:
    values = np.random.default_rng(5).normal(size=14)
    ordered = np.sort(values)
    best = min(
        sum(float(np.square(part - part.mean()).sum()) for part in np.split(ordered, cut))
        for cut in itertools.combinations(range(1, 14), 3)
    )
    found = squared_error(values, k_means(values, 4))
    # Lloyd's iteration ends at a local optimum
    assert best <= found + 1e-12
    assert found < 1.6 * best


def test_means_are_a_fixed_point() -> None:
    values = np.random.default_rng(3).standard_t(3, size=3000)
    means = k_means(values, 16)
    nearest = np.abs(values[:, None] - means[None]).argmin(axis=1)
    assert set(nearest) == set(range(16))
    assert np.allclose([values[nearest == i].mean() for i in range(16)], means)


def test_values_far_apart_leave_no_cluster_empty() -> None:
    values = np.concatenate([np.linspace(-1, 1, 500), [1000.0]])
    means = k_means(values, 8)
    assert len(np.unique(means)) == 8
    nearest = np.abs(values[:, None] - means[None]).argmin(axis=1)
    assert set(nearest) == set(range(8))


def test_few_different_values_are_kept_exactly() -> None:
    assert k_means(np.array([3.0, 1.0, 3.0, 2.0]), 5).tolist() == [1.0, 2.0, 3.0]


def test_zeros_stay_zero_and_no_weight_joins_them() -> None:
    parameters = {"nodes": {"fc1": {"pattern": "unstructured", "ratio": 0.8}}}
    sparse = SparsityPass().apply(CNN, parameters, PassContext())
    before, after = rows(sparse, "fc1"), rows(apply(sparse, "fc1", clusters=4), "fc1")
    assert np.array_equal(before == 0, after == 0)
    assert len(np.unique(after)) == 5
    nothing = apply(apply_zeros(CNN), "fc1", clusters=4)
    assert not rows(nothing, "fc1").any()


def apply_zeros(data: bytes) -> bytes:
    model = onnx.load_from_string(data)
    for tensor in model.graph.initializer:
        if tensor.name == "fc1.w":
            tensor.raw_data = bytes(len(tensor.raw_data))
    return bytes(model.SerializeToString())


def test_groups_of_channels_have_values_of_their_own() -> None:
    after = rows(apply(CNN, "conv2", clusters=3, groups=4), "conv2")
    parts = [set(np.unique(part)) for part in np.split(after, 4)]
    assert all(len(part) == 3 for part in parts)
    assert not parts[0] & parts[1]
    builder = Builder()
    centres = np.repeat([0.0, 10.0, 20.0, 30.0], 2)[:, None]
    values = builder.rng.normal(size=(8, 50)) + centres
    inputs = [builder.input("x", (50,)), builder.constant("w", values, dtype=np.float32)]
    data = builder.model({builder.node("fc", "Gemm", inputs, transB=1): (8,)}).SerializeToString()
    choices = ({"nodes": {"fc": {"clusters": 3, "groups": groups}}} for groups in (1, 4))
    together, apart = (clustering.errors(data, choice, PassContext())["fc"] for choice in choices)
    assert apart < 0.2 * together


def test_more_clusters_are_nearer() -> None:
    errors = [
        clustering.errors(CNN, {"nodes": {"fc1": {"clusters": count}}}, PassContext())["fc1"]
        for count in (2, 4, 8, 16, 32)
    ]
    assert errors == sorted(errors, reverse=True)
    before, after = rows(CNN, "fc1"), rows(apply(CNN, "fc1", clusters=8), "fc1")
    expected = np.square(before - after).sum() / np.square(before).sum()
    assert errors[2] == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_stays_valid_and_only_weights_change(name: str) -> None:
    given = NETWORKS[name](0)
    model = fold_batch_norms(given)
    weights = layer_weights(model)
    data = given.SerializeToString()
    parameters = {"nodes": {node: {"clusters": 5} for node in weights}}
    result = clustering.apply(data, parameters, PassContext())
    after = onnx.load_from_string(result)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.node) == list(model.graph.node)
    names = {weight.name for weight in weights.values()}
    for old, new in zip(model.graph.initializer, after.graph.initializer, strict=True):
        assert old == new or old.name in names
    assert result == clustering.apply(data, parameters, PassContext())


def test_no_target_gains_speed() -> None:
    (reason,) = clustering.applies_to(CNN, TARGET)
    assert "packed" in reason
    assert clustering.alternatives(CNN, OnnxGraphInspector().profile(CNN), TARGET) == {}
    builder = Builder()
    builder.node("relu", "Relu", [builder.input("x", (4,))])
    empty = builder.model({"relu_out": (4,)}).SerializeToString()
    assert "no convolution" in clustering.applies_to(empty, TARGET)[0]


@pytest.mark.parametrize(
    ("choice", "key"),
    [
        ({}, "clusters"),
        ({"clusters": 0}, "clusters"),
        ({"clusters": 257}, "clusters"),
        ({"clusters": 4.0}, "clusters"),
        ({"clusters": True}, "clusters"),
        ({"clusters": 4, "groups": 0}, "groups"),
        ({"clusters": 4, "groups": 1000}, "groups"),
        ({"clusters": 4, "bits": 2}, "bits"),
    ],
)
def test_bad_parameters_are_refused(choice: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        clustering.check(CNN, {"nodes": {"fc1": choice}})
    assert caught.value.field == f"parameters.nodes[fc1].{key}"
    with pytest.raises(InvalidRequestError, match="nothing"):
        clustering.check(CNN, {"nodes": {"nothing": {"clusters": 4}}})


def test_strengths_for_the_download_grow_and_spare_small_layers() -> None:
    offered: DownloadPass = clustering
    strengths = offered.strengths(CNN, TARGET, NumberFormat.INT8)
    counts = [{choice["clusters"] for choice in one["nodes"].values()} for one in strengths]
    assert counts == [{count} for count in DOWNLOAD_CLUSTERS]
    assert list(DOWNLOAD_CLUSTERS) == sorted(DOWNLOAD_CLUSTERS, reverse=True)
    weights = layer_weights(onnx.load_from_string(CNN))
    total = sum(weight.value.size for weight in weights.values())
    for one in strengths:
        clustering.check(CNN, one)
        assert one["nodes"].keys() == {
            name for name, weight in weights.items() if weight.value.size >= total / 100
        }
    assert not clustering.strengths(CNN, TARGET, NumberFormat.INT4)


def test_equal_values_are_equal_behind_a_batch_norm_too() -> None:
    model = onnx.load_from_string(CNN)
    assert "conv1" in foldable_batch_norms(model).values()
    after = onnx.load_from_string(apply(CNN, "conv1", clusters=4))
    exported = fold_batch_norms(after)
    assert len(np.unique(layer_weights(exported)["conv1"].rows())) == 4


def test_each_layer_is_clustered_alone_with_normalization_folded() -> None:
    nodes = {name: {"clusters": 4} for name in ("conv1", "fc1")}
    folded = fold_batch_norms(onnx.load_from_string(CNN)).SerializeToString()
    together = clustering.apply(CNN, {"nodes": nodes}, PassContext())
    found = list(clustering.each_alone(CNN, {"nodes": nodes}, PassContext()))
    assert [layer.node for layer in found] == ["conv1", "fc1"]
    errors = clustering.errors(CNN, {"nodes": nodes}, PassContext())
    for layer in found:
        assert layer.error == pytest.approx(errors[layer.node])
        for name in layer_weights(onnx.load_from_string(folded)):
            expected = together if name == layer.node else folded
            np.testing.assert_array_equal(rows(layer.graph, name), rows(expected, name))
