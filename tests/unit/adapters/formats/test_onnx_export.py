"""Tests of ONNX export: names, metadata, size, and what is refused."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from fakes.networks import NETWORKS, Builder
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter, read_metadata
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.application.work.file_parity import NOISE_LIMITS
from tightfit_service.domain.errors import InvalidDatasetError, InvalidModelError, ParityError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.passes.number_formats import quantizable_nodes
from tightfit_service.passes.quantization import StaticQuantizationPass

FLOAT = QuantizationSettings(number_format=NumberFormat.FLOAT32)
INT8 = QuantizationSettings()
EXPORTER = OnnxExporter(quantizer=StaticQuantizationPass())


def graph_and_samples(name: str) -> tuple[bytes, Samples]:
    model = NETWORKS[name](0)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    stored = np.random.default_rng(0).normal(size=(48, *shape)).astype(np.float32)
    return model.SerializeToString(), Samples(stored=stored, labels=None)


def executed(data: bytes, folder: Path) -> Counter[str]:
    """Return the operators that onnxruntime runs of a file, by kind."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "executed.onnx")
    options.log_severity_level = 3  # it warns that such a file is for this machine
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    model = onnx.load(folder / "executed.onnx")
    return Counter(node.op_type for node in model.graph.node)


def test_every_convolution_of_an_int8_file_is_run_in_integers(tmp_path: Path) -> None:
    graph, samples = graph_and_samples("residual")
    count = Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)["Conv"]
    exported = EXPORTER.export(graph, calibration=samples, settings=INT8, metadata={})
    kinds = executed(exported.data, tmp_path)
    assert (kinds["QLinearConv"], kinds["Conv"], kinds["FusedConv"]) == (count, 0, 0)


def test_activations_without_a_sign_are_the_same_numbers() -> None:
    graph, samples = graph_and_samples("residual")
    quantizer = StaticQuantizationPass()
    signed = quantizer.quantize(graph, calibration=samples, settings=INT8).graph
    exported = EXPORTER.export(graph, calibration=samples, settings=INT8, metadata={})
    feeds = {"input": samples.stored[:4]}
    for expected, found in zip(
        run_exactly(signed, feeds), run_exactly(exported.data, feeds), strict=True
    ):
        np.testing.assert_array_equal(expected, found)
    types = {tensor.data_type for tensor in onnx.load_from_string(exported.data).graph.initializer}
    assert types == {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT32,
    }


@pytest.mark.parametrize("zero_point", [None, np.int8(3)], ids=["left out", "signed"])
def test_what_a_graph_quantizes_itself_stays_as_it_is(zero_point: np.int8 | None) -> None:
    b = Builder(0)
    pair = [b.constant("scale", np.float32(0.05))]
    if zero_point is not None:
        pair.append(b.constant("zero", zero_point))
    rounded = b.node("quantize", "QuantizeLinear", [b.input("input", (3, 4, 4)), *pair])
    flat = b.node("flatten", "Flatten", [rounded])
    graph = b.model({b.node("back", "DequantizeLinear", [flat, *pair]): (48,)})
    exported = EXPORTER.export(
        graph.SerializeToString(), calibration=None, settings=FLOAT, metadata={}
    )
    nodes = onnx.load_from_string(exported.data).graph.node
    assert [node.op_type for node in nodes] == ["QuantizeLinear", "Flatten", "DequantizeLinear"]


def run_exactly(data: bytes, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a file as it is written, no operators merged."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(values) for values in session.run(None, dict(feeds))]


@pytest.mark.parametrize("name", ["plain_cnn", "residual", "depthwise", "mlp", "squeeze_excite"])
def test_int8_files_are_close_to_the_graph(name: str) -> None:
    graph, samples = graph_and_samples(name)
    exported = EXPORTER.export(graph, calibration=samples, settings=INT8, metadata={})
    assert exported.format is ModelFormat.ONNX
    assert exported.number_format is NumberFormat.INT8
    assert exported.parity["noise_ratio"] < 0.01
    assert exported.parity["top1_agreement"] > 0.9
    nodes = onnx.load_from_string(exported.data).graph.node
    assert any(node.op_type == "DequantizeLinear" for node in nodes)


def test_float_files_need_no_samples_and_have_no_batch_norm() -> None:
    graph, samples = graph_and_samples("residual")
    exported = EXPORTER.export(graph, calibration=None, settings=FLOAT, metadata={"recipe": "abc"})
    model = onnx.load_from_string(exported.data)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert {item.key: item.value for item in model.metadata_props} == {"recipe": "abc"}
    evaluator = OnnxRuntimeEvaluator()
    inputs = samples.inputs(slice(0, 8))
    assert np.allclose(
        evaluator.outputs(graph, inputs), evaluator.outputs(exported.data, inputs), atol=1e-4
    )


def test_nodes_inputs_and_outputs_keep_their_names() -> None:
    graph, samples = graph_and_samples("plain_cnn")
    exported = EXPORTER.export(graph, calibration=samples, settings=INT8, metadata={})
    before, after = onnx.load_from_string(graph).graph, onnx.load_from_string(exported.data).graph
    assert {node.name for node in after.node if node.name} <= {node.name for node in before.node}
    assert [item.name for item in after.input] == [item.name for item in before.input]
    assert [item.name for item in after.output] == [item.name for item in before.output]


def test_long_tensor_names_do_not_reach_the_file() -> None:
    graph, samples = graph_and_samples("plain_cnn")
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name not in {item.name for item in model.graph.output}:
                long = name + "/path" * 40
                for reader in model.graph.node:
                    reader.input[:] = [long if item == name else item for item in reader.input]
                node.output[index] = long
    short = EXPORTER.export(graph, calibration=samples, settings=INT8, metadata={})
    long_named = EXPORTER.export(
        model.SerializeToString(), calibration=samples, settings=INT8, metadata={}
    )
    assert len(long_named.data) == len(short.data)


def test_the_same_input_gives_the_same_bytes() -> None:
    graph, samples = graph_and_samples("residual")
    first, second = (
        EXPORTER.export(graph, calibration=samples, settings=INT8, metadata={"a": "1", "b": "2"})
        for _ in range(2)
    )
    assert first.data == second.data


def test_int8_without_samples_is_refused() -> None:
    graph, _ = graph_and_samples("mlp")
    with pytest.raises(InvalidDatasetError) as caught:
        EXPORTER.export(graph, calibration=None, settings=INT8, metadata={})
    assert caught.value.field == "calibration"


@pytest.mark.parametrize(
    ("number_format", "noise"),
    [("float16", 1e-5), ("bfloat16", 1e-4), ("int16x8", 1e-3), ("int8", 1e-2), ("int4", 0.2)],
)
@pytest.mark.parametrize("name", ["plain_cnn", "residual", "depthwise", "upsampling", "mlp"])
def test_every_format_is_as_close_as_its_bits_allow(
    name: str, number_format: str, noise: float
) -> None:
    graph, samples = graph_and_samples(name)
    settings = QuantizationSettings(number_format=NumberFormat(number_format))
    exported = EXPORTER.export(graph, calibration=samples, settings=settings, metadata={})
    assert exported.number_format == number_format
    assert exported.parity["noise_ratio"] < noise
    assert noise <= NOISE_LIMITS[settings.number_format]


@pytest.mark.parametrize("default", ["int8", "int16x8", "float16", "float32"])
def test_formats_can_be_mixed(default: str) -> None:
    graph, samples = graph_and_samples("inception")
    nodes = quantizable_nodes(onnx.load_from_string(graph))
    cycle = itertools.cycle(
        [NumberFormat.INT4, NumberFormat.FLOAT16, NumberFormat.INT16X8, NumberFormat.BFLOAT16,
         NumberFormat.FLOAT32, NumberFormat.INT8]
    )  # fmt: skip
    settings = QuantizationSettings(
        number_format=NumberFormat(default), node_formats=dict(zip(nodes, cycle, strict=False))
    )
    exported = EXPORTER.export(graph, calibration=samples, settings=settings, metadata={})
    onnx.checker.check_model(onnx.load_from_string(exported.data), full_check=True)
    assert exported.parity["noise_ratio"] < 0.05
    assert any(note.startswith("in int4: ") for note in exported.format_notes)


def test_metadata_is_read_back_as_it_was_written() -> None:
    graph, samples = graph_and_samples("mlp")
    facts = {
        "labels": "cat\ndog\nh\u00f6rnchen",
        "layout": "NCHW",
        "preprocess": '{"scale": 0.00392, "mean": [0.5]}',
        "recipe": "x" * 100_000,
        "empty": "",
    }
    exported = EXPORTER.export(graph, calibration=samples, settings=INT8, metadata=facts)
    assert read_metadata(exported.data) == facts
    again = EXPORTER.export(exported.data, calibration=None, settings=FLOAT, metadata={"a": "b"})
    assert read_metadata(again.data) == {"a": "b"}
    with pytest.raises(InvalidModelError):
        read_metadata(b"TFL3")


def test_several_inputs_are_compared() -> None:
    graph, _ = graph_and_samples("several_outputs")
    rng = np.random.default_rng(0)
    image, other = (rng.normal(size=(12, c, 6, 6)).astype(np.float32) for c in (3, 1))
    samples = Samples(
        stored=image, labels=None, input_name="image", others={"other": StoredInput(stored=other)}
    )
    exported = EXPORTER.export(graph, calibration=samples, settings=INT8, metadata={})
    assert 0.0 < exported.parity["noise_ratio"] < 0.01
    plain = EXPORTER.export(graph, calibration=None, settings=FLOAT, metadata={})
    assert plain.parity["noise_ratio"] < 1e-9


@dataclass(frozen=True, kw_only=True)
class _Result:
    graph: bytes
    notes: tuple[str, ...] = ()
    format_notes: tuple[str, ...] = ()


class _Zeroing:
    """A quantizer that loses all weights."""

    def quantize(
        self,
        graph: bytes,
        *,
        calibration: Samples | None,
        settings: QuantizationSettings,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> _Result:
        del calibration, settings, ranges
        model = onnx.load_from_string(graph)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                zeros = np.zeros(tuple(tensor.dims), np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
        return _Result(graph=model.SerializeToString())


def test_a_quantizer_that_breaks_the_graph_is_found_out() -> None:
    graph, samples = graph_and_samples("mlp")
    with pytest.raises(ParityError):
        OnnxExporter(quantizer=_Zeroing()).export(
            graph, calibration=samples, settings=INT8, metadata={}
        )


def test_a_weight_that_two_nodes_share_is_rounded_once_and_runs() -> None:
    b = Builder()
    b.input("input", (6,))
    shared = [b.weight("w", (6, 6), fan_in=6), b.vector("b", 6)]
    b.node("first", "Gemm", ["input", *shared])
    b.node("relu", "Relu", ["first_out"])
    model = b.model({b.node("second", "Gemm", ["relu_out", *shared]): (6,)})
    values = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    samples = Samples(stored=values, labels=None)
    exported = OnnxExporter(quantizer=StaticQuantizationPass()).export(
        model.SerializeToString(),
        calibration=samples,
        settings=QuantizationSettings(number_format=NumberFormat.INT8),
        metadata={},
    )
    weights = [
        tensor
        for tensor in onnx.load_model_from_string(exported.data).graph.initializer
        if list(tensor.dims) == [6, 6]
    ]
    assert len(weights) == 1
    outputs = OnnxRuntimeEvaluator().outputs(exported.data, values)
    assert np.isfinite(outputs).all()
    assert exported.parity["noise_ratio"] < 0.02
