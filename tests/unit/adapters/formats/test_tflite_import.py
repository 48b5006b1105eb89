"""TFLite files come in as graphs that compute what LiteRT computes, channels first inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from fakes.conversions import Convert
from fakes.networks import NETWORKS
from fakes.tflite_files import TfliteBuilder
from fakes.tflite_operators import (
    OPERATORS,
    Net,
    conv,
    custom_in_the_middle,
    dense,
    detector,
    lstm,
    quantized_block,
)
from tightfit_service.adapters.evaluation.litert_evaluator import LitertEvaluator
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats import tflite_literal
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.formats.tflite_import import TfliteImporter, checked_file
from tightfit_service.adapters.formats.tflite_reader import read_tflite
from tightfit_service.adapters.formats.tflite_rules_windows import same_padding
from tightfit_service.adapters.formats.tflite_translation import Translation
from tightfit_service.application.ports import ImportedModel
from tightfit_service.domain.errors import InvalidModelError, ParityError
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.graph.model_file import ModelLimits
from tightfit_service.passes.structured_pruning import StructuredPruningPass

importer = TfliteImporter()


def samples(model: ImportedModel, count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.uniform(0, 1, (count, *i.shape[1:])).astype(np.float32) for i in model.inputs]


def kinds(model: ImportedModel) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model.graph).graph.node)


def refused(data: bytes, limits: ModelLimits | None = None) -> InvalidModelError:
    chosen = importer if limits is None else TfliteImporter(limits=limits)
    with pytest.raises(InvalidModelError) as caught:
        chosen.import_model(data)
    assert caught.value.field == "model"
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS.keys())
def test_operators_compute_what_litert_computes(make: Callable[[], bytes]) -> None:
    data = make()
    model = importer.import_model(data)
    assert importer.check_parity(data, model.graph, samples(model)) < 1e-5
    assert model.source_format is ModelFormat.TFLITE
    assert not model.is_quantized
    assert {i.shape[0] for i in (*model.inputs, *model.outputs)} == {-1}


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "padding"),
    [
        (8, 3, 1, 1, (1, 1)),
        (8, 3, 2, 1, (0, 1)),
        (9, 3, 2, 1, (1, 1)),
        (10, 2, 1, 1, (0, 1)),
        (10, 3, 1, 3, (3, 3)),
        (5, 1, 2, 1, (0, 0)),
    ],
)
def test_same_padding_puts_the_odd_pixel_at_the_end(
    size: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int]
) -> None:
    assert same_padding(size, kernel, stride, dilation) == padding


class TestLayout:
    def test_a_block_of_a_mobilenet_has_one_transpose_at_its_input(self) -> None:
        found = kinds(importer.import_model(OPERATORS["squeeze excite"]()))
        assert found["Transpose"] == 1
        assert found["GlobalAveragePool"] == 2

    def test_flattening_for_a_dense_layer_reorders_its_weights_instead(self) -> None:
        model = importer.import_model(OPERATORS["dense on image"]())
        assert kinds(model) == {"Transpose": 1, "Conv": 1, "Relu": 1, "Reshape": 1, "Gemm": 1}

    def test_images_out_get_a_second_one(self) -> None:
        model = importer.import_model(OPERATORS["concat channels"]())
        assert kinds(model) == {"Transpose": 2, "Conv": 3, "Relu": 3, "Concat": 1}
        nodes = onnx.load_from_string(model.graph).graph.node
        assert [nodes[0].op_type, nodes[-1].op_type] == ["Transpose", "Transpose"]
        (concat,) = (node for node in nodes if node.op_type == "Concat")
        assert onnx.helper.get_attribute_value(concat.attribute[0]) == 1

    def test_inputs_and_outputs_keep_the_layout_and_names_of_the_file(self) -> None:
        model = importer.import_model(OPERATORS["conv same stride 2"]())
        assert [(i.name, i.shape) for i in model.inputs] == [("layer/0", (-1, 9, 10, 3))]
        assert [(o.name, o.shape) for o in model.outputs] == [("layer/3", (-1, 5, 5, 8))]

    def test_nodes_are_named_after_the_tensors_they_compute(self) -> None:
        model = importer.import_model(OPERATORS["squeeze excite"]())
        names = {node.op_type: node.name for node in onnx.load_from_string(model.graph).graph.node}
        assert names["HardSwish"] == "layer/21"
        assert names["Softmax"] == "layer/28"

    def test_module_paths_of_converters_are_left_out_of_names(self) -> None:
        net = Net()
        found = dense(net, net.input(1, 4), 4, 3)
        name = "a_tool.io.ChannelLastIOWrapper/my.net.Head_1/fc.2;other/thing"
        net.graph.tensors[found].name = name.encode()
        graph = onnx.load_from_string(importer.import_model(net.build(found)).graph).graph
        assert [node.name for node in graph.node] == ["Head_1/fc.2"]

    def test_channels_can_be_pruned(self) -> None:
        model = importer.import_model(OPERATORS["squeeze excite"]())
        pruning = StructuredPruningPass()
        groups = pruning.space(model.graph).groups
        # The gated image is one group, the gate's hidden layer another.
        assert len(groups) == 2
        pruned = pruning.apply(model.graph, {groups[0].group_id: [0]})
        assert OnnxImporter().import_model(pruned).parameter_count < model.parameter_count


class TestQuantized:
    @pytest.mark.parametrize("is_implied", [False, True], ids=["plain", "relu implied by range"])
    def test_an_int8_file_becomes_its_real_numbers(self, is_implied: bool) -> None:
        data = quantized_block(relu_implied=is_implied)
        model = importer.import_model(data)
        assert model.is_quantized
        assert model.source_format is ModelFormat.TFLITE
        (warning,) = model.warnings
        assert "not compressed" in warning
        assert "send the float model" in warning
        assert model.inputs[0].dtype == "float32"
        assert kinds(model)["Relu"] == int(is_implied)
        assert 0 < importer.check_parity(data, model.graph, samples(model)) < 0.1

    def test_what_its_integers_compute_can_be_evaluated(self) -> None:
        data = quantized_block()
        model = importer.import_model(data)
        (inputs,) = samples(model)
        evaluator, written_anew = LitertEvaluator(), checked_file(data)
        assert written_anew != data
        found = evaluator.outputs(written_anew, inputs)
        assert np.array_equal(found, evaluator.outputs(data, inputs))
        # the working graph is of real numbers
        assert not np.array_equal(found, OnnxRuntimeEvaluator().outputs(model.graph, inputs))

    def test_a_wrong_operator_is_found_behind_the_rounding(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = quantized_block()
        model = importer.import_model(data)
        monkeypatch.setattr(tflite_literal, "RULES", {**tflite_literal.RULES, "CONV_2D": _negated})
        with pytest.raises(ParityError, match=r"operator that differs is 0 \(CONV_2D\)"):
            importer.check_parity(data, model.graph, samples(model))

    def test_integers_at_the_ends_alone_do_not_make_a_model_quantized(self) -> None:
        net = Net()
        source = net.quantize(net.tensor([1, 4], np.int8), 0.01, -128)
        net.graph.inputs.append(source)
        image = net.add("DEQUANTIZE", [source], "DequantizeOptions")
        model = importer.import_model(net.build(dense(net, image, 4, 3)))
        assert not model.is_quantized

    def test_rounding_between_float_operators_is_told_from_wrong_operators(self) -> None:
        net = Net()
        codes = net.add("QUANTIZE", [net.input(1, 4)], "QuantizeOptions", outputs=[np.int8])
        net.quantize(codes, 0.01, -128)
        values = net.add("DEQUANTIZE", [codes], "DequantizeOptions")
        data = net.build(dense(net, values, 4, 3))
        model = importer.import_model(data)
        assert importer.check_parity(data, model.graph, samples(model)) > 1e-4

    def test_int4_weights_are_unpacked(self) -> None:
        net = Net()
        codes = np.array([[-8, 7, 1, -1], [3, -3, 0, 5]], dtype=np.int8)
        packed = (codes[:, ::2] & 0xF) | (codes[:, 1::2] << 4).astype(np.int8)
        weights = net.quantize(net.constant(packed, np.int8), 0.5)
        net.graph.tensors[weights].type = schema.TensorType.INT4
        net.graph.tensors[weights].shape = np.array([2, 4], dtype=np.int32)
        source = net.input(1, 4)
        found = net.add("FULLY_CONNECTED", [source, weights, -1], "FullyConnectedOptions")
        net.graph.tensors[found].shape = np.array([1, 2], dtype=np.int32)
        stored = read_tflite(net.build(found, infer=False)).tensors[weights]
        value = stored.stored()
        assert value is not None
        np.testing.assert_array_equal(value, codes)
        np.testing.assert_array_equal(stored.real(value), codes * np.float32(0.5))


def _negated(translation: Translation, operator: Any) -> None:
    value = translation.constant(np.zeros(translation.output(operator).shape, np.float32))
    source = translation.node("ReduceMax", [translation.read(operator)], keepdims=1)
    translation.bind(operator, translation.node("Add", [source, value]))


class TestRefusals:
    def test_what_ends_the_graph_is_left_out_with_a_warning(self) -> None:
        data = detector()
        model = importer.import_model(data)
        assert [o.shape for o in model.outputs] == [(-1, 32, 4), (-1, 32, 3)]
        assert "TFLite_Detection_PostProcess" in model.warnings[0]
        assert importer.check_parity(data, model.graph, samples(model)) < 1e-5

    def test_an_unknown_operator_before_a_layer_is_named(self) -> None:
        error = refused(custom_in_the_middle())
        assert '"MyLayer" at operator 1 ("layer/4"): it is a custom operator' in error.message

    def test_what_vela_compiled_is_not_left_out_but_refused(self) -> None:
        builder = TfliteBuilder()
        source = builder.tensor([1, 4])
        activated = builder.operator("RELU", [source], builder.tensor([1, 4]))
        output = builder.tensor([1, 2])
        builder.operator("CUSTOM", [activated], output)
        builder.model.operatorCodes[-1].customCode = b"ethos-u"
        error = refused(builder.build([source], [output]))
        assert "upload the file that they were compiled from" in error.message

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"\x00" * 64, "not a TFLite model"),
            (b"\x1c\x00\x00\x00TFL3", "damaged or truncated"),
            (OPERATORS["conv same"]()[:300], "damaged or truncated"),
        ],
    )
    def test_damage(self, data: bytes, said: str) -> None:
        assert said in refused(data).message

    def test_another_schema_version(self) -> None:
        net = Net()
        net.model.version = 2
        assert "schema version 2" in refused(net.build(net.input(1, 2), infer=False)).message

    def test_several_subgraphs(self) -> None:
        net = Net()
        net.model.subgraphs = [net.graph, net.graph]
        data = Net._packed(net)
        assert "2 subgraphs: control flow" in refused(data).message

    def test_sizes_that_do_not_fit(self) -> None:
        net = Net()
        found = dense(net, net.input(1, 6), 6, 5)
        net.build(found)
        net.graph.tensors[found].shape = np.array([1, 7], dtype=np.int32)
        message = refused(net.build(found, infer=False)).message
        assert "is declared as (1, 7)" in message
        assert "FULLY_CONNECTED" in message

    def test_a_constant_cut_short(self) -> None:
        net = Net()
        found = dense(net, net.input(1, 6), 6, 5)
        net.build(found)
        net.model.buffers[1].data = net.model.buffers[1].data[:-4]
        message = refused(net.build(found, infer=False)).message
        assert "announces 30 elements but stores 116 bytes" in message

    def test_a_fixed_batch(self) -> None:
        net = Net()
        assert "fixed at 4" in refused(net.build(dense(net, net.input(4, 6), 6, 5))).message

    def test_integer_inputs(self) -> None:
        net = Net()
        net.graph.inputs.append(net.tensor([4], np.int32))
        table = [net.graph.inputs[0], net.weights(9, 3)]
        found = net.add("EMBEDDING_LOOKUP", table, shape=(4, 3))
        message = refused(net.build(found, infer=False)).message
        assert 'input "layer/0" is of type int32' in message

    def test_limits(self) -> None:
        data = OPERATORS["squeeze excite"]()
        assert "more than the 10 allowed" in refused(data, ModelLimits(file_bytes=10)).message
        assert "operators, more than 5" in refused(data, ModelLimits(node_count=5)).message
        assert "tensors, more than 20" in refused(data, ModelLimits(tensor_count=20)).message

    def test_an_lstm_that_clips_is_refused_with_its_reason(self) -> None:
        graph = read_tflite(lstm())
        graph.operators[0].options.cellClip = 3.0
        with pytest.raises(InvalidModelError, match="it clips its cells"):
            tflite_literal.literal_graph(graph)


class TestParity:
    def test_the_first_operator_that_differs_is_named(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            tflite_literal, "RULES", {**tflite_literal.RULES, "HARD_SWISH": _doubled}
        )
        message = refused(OPERATORS["squeeze excite"]()).message
        assert '(HARD_SWISH), which computes tensor "layer/21"' in message

    def test_another_graph_is_told_from_the_file(self) -> None:
        data = OPERATORS["squeeze excite"]()
        model = importer.import_model(data)
        graph = onnx.load_from_string(model.graph)
        for tensor in graph.graph.initializer:
            if len(tensor.dims) == 4:
                value = onnx.numpy_helper.to_array(tensor) * np.float32(1.05)
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        with pytest.raises(ParityError, match="no operator alone differs"):
            importer.check_parity(data, graph.SerializeToString(), samples(model))

    def test_the_wrong_number_of_inputs(self) -> None:
        data = OPERATORS["conv same"]()
        with pytest.raises(InvalidModelError, match="1 inputs, 0 were given"):
            importer.check_parity(data, importer.import_model(data).graph, [])


def _doubled(translation: Translation, operator: Any) -> None:
    name = translation.read(operator)
    translation.bind(operator, translation.node("Add", [name, name]))


@pytest.mark.slow
def test_what_our_exporter_writes_comes_back(convert: Convert) -> None:
    """Through torch and LiteRT and back: the same function, and the same channels to prune."""
    source = NETWORKS["residual"](0)
    graph = OnnxImporter().import_model(source.SerializeToString()).graph
    data = convert(source).to_bytes()
    model = importer.import_model(data)
    assert importer.check_parity(data, model.graph, samples(model)) < 1e-5
    pruning = StructuredPruningPass()
    assert len(pruning.space(model.graph).groups) == len(pruning.space(graph).groups)
    assert kinds(model)["Transpose"] == 1


class TestFreeBatch:
    def test_axes_that_hold_the_batch_of_one_are_not_mixed(self) -> None:
        """LayerNorm and index_select as litert-torch writes them: both touch axis 0."""
        net = Net()
        image = conv(net, net.input(1, 4, 4, 3), 6)
        first = net.add("TRANSPOSE", [image, net.ints(0, 3, 1, 2)])
        front = net.add("RESHAPE", [first, net.ints(6, 1, 4, 4)])
        at = net.constant([[5], [0], [3]], np.int32)
        picked = net.add("GATHER_ND", [front, at], "GatherNdOptions")
        back = net.add("RESHAPE", [picked, net.ints(1, 3, 4, 4)])
        mean = net.add("MEAN", [back, net.ints(0, 2, 3)], "ReducerOptions", keepDims=False)
        spread = net.add("RESHAPE", [mean, net.ints(1, 3, 1, 1)])
        data = net.build(net.add("SUB", [back, spread], "SubOptions"))
        model = importer.import_model(data)
        assert importer.check_parity(data, model.graph, samples(model)) < 1e-5
        assert kinds(model)["Gather"] == 1

    def test_steps_of_a_sequence_with_time_first(self) -> None:
        """An unrolled recurrent layer reads its samples from axis 1."""
        net = Net()
        turned = net.add("TRANSPOSE", [net.input(1, 3, 4), net.ints(1, 0, 2)])
        steps = []
        for time in range(3):
            ranges = [turned, net.ints(time, 0, 0), net.ints(1, 1, 4)]
            step = net.add("SLICE", ranges, "SliceOptions", shape=(1, 1, 4))
            steps.append(net.add("RESHAPE", [step, net.ints(1, 4)]))
        total = net.add("ADD", steps[:2], "AddOptions")
        data = net.build(net.add("MUL", [total, steps[2]], "MulOptions"))
        model = importer.import_model(data)
        assert importer.check_parity(data, model.graph, samples(model)) < 1e-5

    def test_guards_of_positions_that_are_all_valid_go(self) -> None:
        net = Net()
        source = net.input(1, 3, 2)
        valid = net.constant([[True, True], [True, True], [True, True]], np.bool_)
        axis = net.ints(1)
        every = net.add(
            "REDUCE_ALL", [valid, axis], "ReducerOptions", outputs=[np.bool_], keepDims=True
        )
        guarded = [every, source, net.constant(np.float32(np.nan))]
        chosen = net.add("SELECT_V2", guarded, "SelectV2Options")
        data = net.build(net.add("RELU", [chosen]))
        assert kinds(importer.import_model(data)) == {"Relu": 1}


def test_equal_files_give_equal_graphs() -> None:
    data = OPERATORS["squeeze excite"]()
    assert importer.import_model(data) == importer.import_model(data)


def test_a_net_with_two_inputs_and_shared_branches() -> None:
    net = Net()
    left, right = net.input(1, 6, 6, 3), net.input(1, 6, 6, 4)
    total = net.add("ADD", [conv(net, left, 4), right], "AddOptions")
    data = net.build(total, conv(net, total, 5, fed=4))
    model = importer.import_model(data)
    assert [i.name for i in model.inputs] == ["layer/0", "layer/1"]
    assert len(model.outputs) == 2
    assert importer.check_parity(data, model.graph, samples(model)) < 1e-5
