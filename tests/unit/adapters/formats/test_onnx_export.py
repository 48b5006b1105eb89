"""Tests of ONNX export: names, metadata, size, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from fakes.networks import NETWORKS
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidDatasetError, ParityError, UnsupportedError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.passes.quantization import StaticQuantizationPass

FLOAT = QuantizationSettings(number_format=NumberFormat.FLOAT32)
INT8 = QuantizationSettings()
EXPORTER = OnnxExporter(quantizer=StaticQuantizationPass())


def graph_and_samples(name: str) -> tuple[bytes, Samples]:
    model = NETWORKS[name](0)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    stored = np.random.default_rng(0).normal(size=(48, *shape)).astype(np.float32)
    return model.SerializeToString(), Samples(stored=stored, labels=None)


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


def test_other_number_formats_and_several_inputs_are_refused() -> None:
    graph, samples = graph_and_samples("mlp")
    settings = QuantizationSettings(number_format=NumberFormat.INT4)
    with pytest.raises(UnsupportedError, match="int4"):
        EXPORTER.export(graph, calibration=samples, settings=settings, metadata={})
    graph, samples = graph_and_samples("several_outputs")
    with pytest.raises(UnsupportedError, match="2 inputs"):
        EXPORTER.export(graph, calibration=samples, settings=INT8, metadata={})


class _Zeroing:
    """A quantizer that loses all weights."""

    def quantize(
        self,
        graph: bytes,
        *,
        calibration: Samples,
        settings: QuantizationSettings,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> bytes:
        del calibration, settings, ranges
        model = onnx.load_from_string(graph)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                zeros = np.zeros(tuple(tensor.dims), np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
        return model.SerializeToString()


def test_a_quantizer_that_breaks_the_graph_is_found_out() -> None:
    graph, samples = graph_and_samples("mlp")
    with pytest.raises(ParityError):
        OnnxExporter(quantizer=_Zeroing()).export(
            graph, calibration=samples, settings=INT8, metadata={}
        )
