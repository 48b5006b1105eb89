"""Tests of packing: every file comes back bit by bit, and weights that are simple become small."""

from __future__ import annotations

import lzma
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fakes.networks import NETWORKS, Builder
from fakes.tflite_files import TfliteBuilder
from tightfit.packed_file import HEADER, unpack
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.packed import expected_bytes, layer_sizes, pack
from tightfit_service.adapters.formats.packed_constants import find_constants
from tightfit_service.adapters.formats.packed_model import SharedTables, best_stream, plain_stream
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.application.ports import PassContext, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import (
    InvalidModelError,
    ResourceExhaustedError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.passes.clustering import ClusteringPass
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.sparsity import SparsityPass

ONNX, TFLITE = ModelFormat.ONNX, ModelFormat.TFLITE


def onnx_file(values: Any, *, dtype: int | None = None) -> bytes:
    tensor = numpy_helper.from_array(np.asarray(values), "w")
    if dtype is not None:
        tensor = helper.make_tensor("w", dtype, np.shape(values), values)
    node = helper.make_node("Identity", ["w"], ["y"], name="copy")
    output = helper.make_tensor_value_info("y", tensor.data_type, None)
    graph = helper.make_graph([node], "g", [], [output], [tensor])
    return bytes(helper.make_model(graph).SerializeToString())


def tflite_file(*values: Any) -> bytes:
    builder = TfliteBuilder()
    for value in values:
        array = np.asarray(value)
        builder.constant(array, dtype=str(array.dtype))
    builder.graph.inputs, builder.graph.outputs = [], []
    return TfliteFile.to_bytes(_opened(builder))


def _opened(builder: TfliteBuilder) -> TfliteFile:
    file = TfliteFile.__new__(TfliteFile)
    file.model, file.graph = builder.model, builder.graph
    return file


def clustered(rng: np.random.Generator, shape: tuple[int, ...], *, zeros: float) -> Any:
    book = rng.normal(size=15).astype(np.float32)
    values = book[rng.integers(0, 15, shape)]
    values[rng.random(shape) < zeros] = 0
    return values


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_come_back(name: str) -> None:
    data = NETWORKS[name](1).SerializeToString()
    assert unpack(pack(data, ONNX)) == data


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64"]
)
@pytest.mark.parametrize("zeros", [0.0, 0.9, 1.0])
def test_every_type_comes_back(dtype: str, zeros: float) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(24, 40)) * 30
    values[rng.random(values.shape) < zeros] = 0
    for data, kind in (
        (onnx_file(values.astype(dtype)), ONNX),
        *([(tflite_file(values.astype(dtype)), TFLITE)] if dtype in {"float32", "int8", "int32"} else []),
    ):  # fmt: skip
        assert unpack(pack(data, kind)) == data


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=6),
    shape=st.sampled_from([(128,), (1, 3, 3, 20), (16, 16), (5, 70), (300, 2)]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None)
def test_any_values_come_back(values: list[float], shape: tuple[int, ...], seed: int) -> None:
    # among them NaN, infinity and both zeros, which compare otherwise than their bits
    array = np.random.default_rng(seed).choice(np.array(values, dtype=np.float32), shape)
    data = onnx_file(array)
    assert unpack(pack(data, ONNX)) == data


def test_values_of_half_a_byte_come_back() -> None:
    data = onnx_file(np.arange(1024).reshape(32, 32) % 7 - 3, dtype=TensorProto.INT4)
    assert unpack(pack(data, ONNX)) == data
    data = onnx_file(np.full((20, 20), 1.5), dtype=TensorProto.BFLOAT16)
    assert unpack(pack(data, ONNX)) == data


def test_files_of_other_formats_come_back() -> None:
    data = b"const unsigned char model[] = {" + b"0x01, " * 500
    packed = pack(data, ModelFormat.C_ARRAY)
    assert unpack(packed) == data
    assert len(packed) < 200
    assert unpack(pack(b"", ModelFormat.OPENVINO)) == b""


def test_constants_in_nodes_and_repeated_ones_are_found() -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-20, 20, (16, 32)).astype(np.int8)
    builder = Builder()
    builder.input("x", (4,))
    model = builder.model({"x": (4,)})
    model.graph.initializer.extend(numpy_helper.from_array(weight, name) for name in "ab")
    attribute = helper.make_attribute("value", numpy_helper.from_array(weight, "c"))
    node = onnx.NodeProto(op_type="Constant", name="constant", output=["c"])
    node.attribute.append(attribute)
    model.graph.node.insert(0, node)
    data = model.SerializeToString()
    found = find_constants(data, ONNX)
    assert len(found) == 3
    assert all(data[item.start : item.end] == weight.tobytes() for item in found)
    assert unpack(pack(data, ONNX)) == data


def test_constants_of_tflite_files_are_found() -> None:
    rng = np.random.default_rng(0)
    arrays: list[Any] = [rng.integers(-9, 9, (8, 3, 3, 16)).astype(np.int8), rng.normal(size=(10, 64)).astype(np.float32)]  # fmt: skip
    data = tflite_file(*arrays)
    found = find_constants(data, TFLITE)
    assert sorted(data[item.start : item.end] for item in found) == sorted(
        array.tobytes() for array in arrays
    )
    assert {item.row_lengths for item in found} == {(16, 144), (64,)}


def test_clustered_sparse_weights_come_close_to_their_entropy() -> None:
    rng = np.random.default_rng(1)
    values = clustered(rng, (300, 400), zeros=0.9)
    data = onnx_file(values)
    packed = pack(data, ONNX)
    _, counts = np.unique(values, return_counts=True)
    share = counts / counts.sum()
    entropy_bytes = -(share * np.log2(share)).sum() * values.size / 8
    assert len(packed) < 1.03 * entropy_bytes + 400
    assert len(packed) < 0.85 * len(lzma.compress(data, preset=9))


def test_contexts_find_where_the_zeros_are() -> None:
    rng = np.random.default_rng(2)
    values = clustered(rng, (200, 300), zeros=0.0)
    empty = rng.random(300) < 0.7
    mixed = values.copy()
    mixed[:, empty] = 0
    scattered = np.where(rng.random(values.shape) < 0.7, np.float32(0), values)
    in_columns, anywhere = (len(pack(onnx_file(item), ONNX)) for item in (mixed, scattered))
    assert in_columns < 0.75 * anywhere


def test_sparse_weights_that_are_not_clustered_shrink_by_their_zeros() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(200, 200)).astype(np.float32)
    values[rng.random(values.shape) < 0.9] = 0
    data = onnx_file(values)
    packed = pack(data, ONNX)
    assert len(packed) < 0.15 * len(data)
    assert unpack(packed) == data


def test_noise_costs_next_to_nothing_more() -> None:
    data = onnx_file(np.random.default_rng(5).integers(0, 256, 20_000).astype(np.uint8))
    assert len(pack(data, ONNX)) < len(data) + HEADER.size + 300


def test_packing_is_deterministic() -> None:
    data = NETWORKS["residual"](0).SerializeToString()
    assert pack(data, ONNX) == pack(data, ONNX)


def test_tables_are_shared_where_statistics_are_alike() -> None:
    rng = np.random.default_rng(6)
    tables = SharedTables()
    first, alike, other = (
        plain_stream(rng.binomial(15, share, 2000).astype(np.uint8), 16, bytes(16))
        for share in (0.5, 0.5, 0.1)
    )
    assert set(tables.join(first)) == {0}
    assert set(tables.join(alike)) == {0}
    assert set(tables.join(other)) == {1}


def test_contexts_are_only_used_where_they_help() -> None:
    rng = np.random.default_rng(7)
    magnitudes = bytes([0, 8])
    noise = rng.integers(0, 2, 4000).astype(np.uint8)
    assert len(best_stream(noise, 2, magnitudes, (40,)).counts) == 1
    rows = np.repeat(rng.integers(0, 2, 100), 40).astype(np.uint8)
    model = best_stream(rows, 2, magnitudes, (40,))
    assert model.bits < 0.5 * plain_stream(rows, 2, magnitudes).bits


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidModelError):
        pack(b"no model", ONNX)
    monkeypatch.setattr("tightfit_service.adapters.formats.packed._MOST_BYTES", 10)
    with pytest.raises(ResourceExhaustedError, match="more than the 10"):
        pack(bytes(11), TFLITE)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9])
def test_the_size_of_a_packed_file_is_estimated(bits: int, zeros: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(64, 32, 3, 3)) * (rng.random((64, 32, 3, 3)) >= zeros)
    weights = np.round(20 * values).astype(np.int8) if bits == 8 else values.astype(np.float32)
    book = rng.normal(size=15)
    shared = book[np.abs(values[..., None] - book).argmin(axis=-1)].astype(np.float32)
    shared[values == 0] = 0
    for data in (onnx_file(weights), onnx_file(shared), tflite_file(weights)):
        kind = TFLITE if data[4:8] == b"TFL3" else ONNX
        assert expected_bytes(data, kind) == pytest.approx(len(pack(data, kind)), rel=0.05)


@pytest.mark.parametrize("number_format", [NumberFormat.INT8, NumberFormat.FLOAT32])
def test_what_each_layer_takes_up_is_estimated(number_format: NumberFormat) -> None:
    network = NETWORKS["plain_cnn"](0).SerializeToString()
    inputs = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
    settings = QuantizationSettings(number_format=number_format, per_channel=False)

    def exported(graph: bytes) -> bytes:
        exporter = OnnxExporter(quantizer=StaticQuantizationPass())
        samples = Samples(stored=inputs, labels=None)
        return exporter.export(graph, calibration=samples, settings=settings, metadata={}).data

    half = {"nodes": {"fc1": {"pattern": "unstructured", "ratio": 0.5}}}
    before = exported(network)
    zeros = exported(SparsityPass().apply(network, half, PassContext()))
    few = exported(
        ClusteringPass().apply(network, {"nodes": {"fc1": {"clusters": 4}}}, PassContext())
    )
    sizes = layer_sizes(before, ONNX)
    # the weights of the first convolution and of the last layer are too small in int8
    assert {"conv2", "fc1"} <= set(sizes)
    assert sum(size.packed_bytes for size in sizes.values()) < expected_bytes(before, ONNX)
    assert layer_sizes(zeros, ONNX)["fc1"].zeros == pytest.approx(0.5, abs=0.05)
    for changed in (zeros, few):
        other = layer_sizes(changed, ONNX)
        assert other["fc1"].packed_bytes < 0.9 * sizes["fc1"].packed_bytes
        assert other["conv2"].packed_bytes == pytest.approx(sizes["conv2"].packed_bytes, rel=0.01)
        saved = expected_bytes(before, ONNX) - expected_bytes(changed, ONNX)
        assert sizes["fc1"].packed_bytes - other["fc1"].packed_bytes == pytest.approx(
            saved, abs=0.1 * saved + 30
        )
    with pytest.raises(UnsupportedError, match="not told apart"):
        layer_sizes(tflite_file(np.zeros((10, 64), dtype=np.float32)), TFLITE)
