"""The importer brings real habits of exporters into one working form, and refuses what it cannot use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from architectures import ARCHITECTURES
from fakes.exporter_habits import (
    HABITS,
    opset_8,
    traced_flatten,
    untidy,
    with_batch,
    with_constants_as_inputs,
)
from fakes.networks import NETWORKS, Builder, random_inputs
from fakes.odd_networks import ODD_NETWORKS, spelt_sizes
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.domain.errors import InvalidModelError, ParityError
from tightfit_service.graph.batch_norm import foldable_batch_norms
from tightfit_service.graph.model_file import ModelLimits

importer = OnnxImporter()
ALL_NETWORKS = {**NETWORKS, **ODD_NETWORKS, **HABITS, "spelt_sizes": spelt_sizes}


def imported_nodes(model: ModelProto) -> list[tuple[str, str]]:
    graph = onnx.load_from_string(importer.import_model(model.SerializeToString()).graph).graph
    return [(node.name, node.op_type) for node in graph.node]


def refused(model: ModelProto | bytes) -> InvalidModelError:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(InvalidModelError) as caught:
        importer.import_model(data)
    assert caught.value.field == "model"
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("network", ALL_NETWORKS.values(), ids=ALL_NETWORKS.keys())
def test_working_form_computes_what_the_original_does(
    network: Callable[[int], ModelProto],
) -> None:
    model = network(0)
    data = model.SerializeToString()
    result = importer.import_model(data)
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(3, *i.shape[1:])).astype(np.float32) for i in result.inputs]
    assert importer.check_parity(data, result.graph, inputs) <= 1e-5
    assert {i.shape[0] for i in (*result.inputs, *result.outputs)} == {-1}
    working = onnx.load_from_string(result.graph)
    onnx.checker.check_model(working, full_check=True)
    names = [node.name for node in working.graph.node]
    assert len(set(names)) == len(names)
    assert result.node_count == len(names)
    assert importer.import_model(data) == result
    assert importer.import_model(result.graph).graph == result.graph


def test_layers_written_channels_last_are_read_channels_first() -> None:
    """As tf2onnx writes them: transposes around each convolution and normalisation, biases between."""
    architecture = ARCHITECTURES["keras_mobilenet"]
    data = architecture.export()
    result = importer.import_model(data)
    working = onnx.load_from_string(result.graph)
    count = [n.op_type for n in working.graph.node].count
    assert [n.op_type for n in onnx.load_from_string(data).graph.node].count("Transpose") == 28
    assert count("Transpose") == 1  # the input stays channels last
    assert len(foldable_batch_norms(working)) == count("BatchNormalization") == 7
    values = np.random.default_rng(0).normal(size=(3, *architecture.shapes[0])).astype(np.float32)
    assert importer.check_parity(data, result.graph, [values]) < 1e-5


class TestFacts:
    def test_signature_and_counts(self) -> None:
        result = importer.import_model(NETWORKS["plain_cnn"](0).SerializeToString())
        (first,) = result.inputs
        assert (first.name, first.shape, first.dtype) == ("input", (-1, 3, 8, 8), "float32")
        assert result.opset == 17
        assert result.macs == 71_080
        assert not result.is_quantized
        assert result.warnings == ()

    def test_inputs_stay_in_order(self) -> None:
        result = importer.import_model(NETWORKS["several_outputs"](0).SerializeToString())
        assert [i.name for i in result.inputs] == ["image", "other"]

    def test_operators_without_a_rule_are_told(self) -> None:
        result = importer.import_model(NETWORKS["unknown_operator"](0).SerializeToString())
        assert any("LRN has no pruning rule" in warning for warning in result.warnings)

    def test_quantized_model_is_recognised(self) -> None:
        b = Builder()
        x = b.input("input", (4,))
        scale = b.constant("scale", 0.1, dtype=np.float32)
        zero = b.constant("zero", 0, dtype=np.int8)
        x = b.node("q", "QuantizeLinear", [x, scale, zero])
        x = b.node("dq", "DequantizeLinear", [x, scale, zero])
        b.constant("w8", b.rng.integers(-100, 100, (4, 3)), dtype=np.int8)
        w = b.node("wdq", "DequantizeLinear", ["w8", scale, zero])
        x = b.node("fc", "Gemm", [x, w])
        result = importer.import_model(b.model({x: (3,)}).SerializeToString())
        assert result.is_quantized
        assert result.node_count == 4
        assert any("quantized" in warning for warning in result.warnings)


class TestNormalForm:
    def test_fixed_batch_becomes_free_with_reshapes(self) -> None:
        model = with_batch(NETWORKS["channels_last_head"](0), 1)
        target = next(t for t in model.graph.initializer if t.name == "reshape.shape")
        target.CopyFrom(numpy_helper.from_array(np.array([1, 36]), "reshape.shape"))
        result = importer.import_model(model.SerializeToString())
        assert result.inputs[0].shape[0] == -1
        assert "the batch was fixed at 1 and has been made free" in result.warnings

    def test_fixed_batch_is_followed_through_the_nodes(self) -> None:
        """Where samples would mix in a sum over axis 0, or meet a constant of one sample."""
        b = Builder()
        x = b.gemm("fc", b.input("input", (4,)), 4, 3)
        x = b.node("join", "Concat", [x, b.weight("token", (1, 3), fan_in=3)], axis=1)
        halves = [b.node("twice", "Concat", [x, x], axis=0), b.ints("axes", [0])]
        total = b.node("total", "ReduceSum", halves, keepdims=1)
        model = with_batch(b.model({b.node("sum", "Add", [x, total]): (6,)}), 1)
        data = model.SerializeToString()
        result = importer.import_model(data)
        assert result.inputs[0].shape == (-1, 4)
        inputs = [np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)]
        assert importer.check_parity(data, result.graph, inputs) < 1e-6

    def test_old_opset_is_converted_and_names_stay(self) -> None:
        result = importer.import_model(opset_8(0).SerializeToString())
        assert result.opset == 17
        names = [node.name for node in onnx.load_from_string(result.graph).graph.node]
        assert {"conv1", "conv1.bn", "cut", "pad", "six", "split", "pool", "fc", "prob"} <= set(
            names
        )
        assert "drop" not in names

    def test_newer_opset_is_kept(self) -> None:
        model = onnx.version_converter.convert_version(NETWORKS["residual"](0), 21)
        assert importer.import_model(model.SerializeToString()).opset == 21

    def test_constants_listed_as_inputs_are_no_inputs(self) -> None:
        model = with_constants_as_inputs(NETWORKS["mlp"](0))
        result = importer.import_model(model.SerializeToString())
        assert [i.name for i in result.inputs] == ["input"]

    def test_sizes_computed_from_shapes_become_constants(self) -> None:
        assert [op for _, op in imported_nodes(traced_flatten(0))] == [
            "Conv", "Relu", "Reshape", "Gemm", "Div", "Gemm",
        ]  # fmt: skip

    def test_untidy_graph(self) -> None:
        assert imported_nodes(untidy(0)) == [
            ("conv", "Conv"),
            ("Relu_1", "Relu"),
            ("twin", "Conv"),
            ("twin_2", "Mul"),
            ("gap", "GlobalAveragePool"),
            ("flat", "Flatten"),
            ("fc", "Gemm"),
        ]

    def test_nodes_in_wrong_order_are_sorted(self) -> None:
        model = NETWORKS["mlp"](0)
        nodes = list(model.graph.node)[::-1]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        assert imported_nodes(model) == [(n.name, n.op_type) for n in nodes[::-1]]

    def test_weights_made_by_reshape_of_a_constant_are_folded(self) -> None:
        b = Builder()
        x = b.input("input", (6,))
        w = b.node("w", "Reshape", [b.weight("raw", (2, 3, 4), fan_in=6), b.ints("s", [6, 4])])
        x = b.node("times", "MatMul", [x, w])
        assert imported_nodes(b.model({x: (4,)})) == [("times", "MatMul")]

    def test_local_functions_are_inlined(self) -> None:
        body = [helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("Relu", ["b"], ["c"])]
        function = helper.make_function(
            "mine", "Square", ["a"], ["c"], body, [helper.make_opsetid("", 17)]
        )
        b = Builder()
        x = b.gemm("fc", b.input("input", (4,)), 4, 3)
        model = b.model({x: (3,)})
        call = helper.make_node("Square", ["fc_out"], ["out"], name="sq", domain="mine")
        model.graph.node.append(call)
        model.graph.output[0].name = "out"
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid("mine", 1))
        assert [op for _, op in imported_nodes(model)] == ["Gemm", "Mul", "Relu"]


class TestParity:
    def test_difference_is_an_error_with_numbers(self) -> None:
        model = NETWORKS["mlp"](0)
        other = NETWORKS["mlp"](0)
        weight = next(t for t in other.graph.initializer if t.name == "fc3.w")
        value = numpy_helper.to_array(weight) * 1.01
        weight.CopyFrom(numpy_helper.from_array(value.astype(np.float32), "fc3.w"))
        with pytest.raises(ParityError, match=r'output "fc3_out" .* 0\.0\d+ of its largest'):
            importer.check_parity(
                model.SerializeToString(),
                other.SerializeToString(),
                list(random_inputs(model).values()),
            )

    @pytest.mark.parametrize(
        ("network", "weight", "node"),
        [("mlp", "fc2.w", '"fc2" (MatMul)'), ("plain_cnn", "conv2.w", '"conv2" (Conv)')],
    )
    def test_the_first_node_that_differs_is_named(
        self, network: str, weight: str, node: str
    ) -> None:
        model = NETWORKS[network](0)
        other = NETWORKS[network](0)
        tensor = next(t for t in other.graph.initializer if t.name == weight)
        value = np.flip(numpy_helper.to_array(tensor), axis=0).copy()
        tensor.CopyFrom(numpy_helper.from_array(value, weight))
        inputs = list(random_inputs(model).values())
        with pytest.raises(ParityError) as caught:
            importer.check_parity(model.SerializeToString(), other.SerializeToString(), inputs)
        assert f"the first node that differs is {node}" in caught.value.message

    def test_tensors_that_changed_their_names_are_passed_over(self) -> None:
        model = NETWORKS["mlp"](0)
        renamed = NETWORKS["mlp"](0)
        graph = renamed.graph
        inside = {name for node in graph.node for name in node.output} - {"fc3_out"}
        for node in graph.node:
            node.input[:] = [f"new_{name}" if name in inside else name for name in node.input]
            node.output[:] = [f"new_{name}" if name in inside else name for name in node.output]
        last = next(t for t in graph.initializer if t.name == "fc1.w")
        last.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(last), "fc1.w"))
        inputs = list(random_inputs(model).values())
        with pytest.raises(ParityError) as caught:
            importer.check_parity(model.SerializeToString(), renamed.SerializeToString(), inputs)
        # only the output has kept its name
        assert 'the first node that differs is "fc3" (Gemm)' in caught.value.message

    def test_wrong_number_or_shape_of_inputs(self) -> None:
        data = NETWORKS["mlp"](0).SerializeToString()
        with pytest.raises(InvalidModelError, match="1 inputs, 0 were given"):
            importer.check_parity(data, data, [])
        with pytest.raises(InvalidModelError, match="does not run on these inputs"):
            importer.check_parity(data, data, [np.zeros((1, 7), dtype=np.float32)])


class TestRefused:
    @pytest.mark.parametrize("data", [b"", b"PK\x03\x04 a zip", b"\x08", b"a" * 1000])
    def test_other_files(self, data: bytes) -> None:
        refused(data)

    def test_every_truncation(self) -> None:
        data = NETWORKS["mlp"](0).SerializeToString()
        for size in range(0, len(data) - 1, 97):
            refused(data[:size])

    def test_external_data(self) -> None:
        model = NETWORKS["mlp"](0)
        tensor = model.graph.initializer[0]
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")
        error = refused(model)
        assert f'"{tensor.name}"' in error.message
        assert "one file" in error.remedy

    def test_cycle(self) -> None:
        model = NETWORKS["residual"](0)
        node = next(n for n in model.graph.node if n.name == "a.conv1")
        node.input[0] = "a.relu_out"
        assert "cycle" in refused(model).message

    @pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinite values")])
    def test_weights_that_are_no_numbers(self, value: float, what: str) -> None:
        model = NETWORKS["mlp"](0)
        tensor = next(t for t in model.graph.initializer if t.name == "fc2.w")
        weights = numpy_helper.to_array(tensor).copy()
        weights[2, 3] = value
        tensor.CopyFrom(numpy_helper.from_array(weights, "fc2.w"))
        assert refused(model).message == f'tensor "fc2.w" holds {what}'

    def test_free_axis_other_than_the_batch(self) -> None:
        model = NETWORKS["residual"](0)
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
        assert refused(model).message.startswith('axis 2 of input "input" is free')

    def test_batch_fixed_above_one(self) -> None:
        error = refused(with_batch(NETWORKS["residual"](0), 4))
        assert error.message == 'the batch (axis 0) of input "input" is fixed at 4'

    def test_batch_that_cannot_be_freed(self) -> None:
        b = Builder()
        x = b.node(
            "joined", "Concat", [b.input("input", (4,)), b.weight("c", (1, 3), fan_in=3)], axis=1
        )
        x = b.node("turned", "Einsum", [x, b.weight("w", (7, 2), fan_in=7)], equation="ij,jk->ik")
        error = refused(with_batch(b.model({x: (2,)}), 1))
        assert "batch of the model cannot be made free" in error.message
        assert 'node "turned" ("Einsum")' in error.message

    def test_samples_that_mix_in_a_small_term(self) -> None:
        b = Builder()
        x = b.gemm("fc", b.input("input", (4,)), 4, 3)
        total = b.node("total", "ReduceSum", [x, b.ints("axes", [0])], keepdims=1)
        total = b.node("small", "Mul", [total, b.constant("little", 1e-5, dtype=np.float32)])
        error = refused(b.model({b.node("sum", "Add", [x, total]): (3,)}))
        assert "depends on other samples" in error.message

    @pytest.mark.parametrize("dtype", [TensorProto.UINT8, TensorProto.INT64, TensorProto.FLOAT16])
    def test_inputs_of_other_types(self, dtype: int) -> None:
        b = Builder()
        x = b.node("cast", "Cast", [b.input("ids", (4,), dtype=dtype)], to=TensorProto.FLOAT)
        error = refused(b.model({b.gemm("fc", x, 4, 2): (2,)}))
        assert error.message.startswith('input "ids" is of type')

    def test_no_inputs_outputs_or_operators(self) -> None:
        for field in ("input", "output", "node"):
            model = NETWORKS["mlp"](0)
            del getattr(model.graph, field)[:]
            refused(model)

    def test_output_without_batch(self) -> None:
        b = Builder()
        x = b.gemm("fc", b.input("input", (4,)), 4, 3)
        x = b.node("sum", "ReduceSum", [x], keepdims=0)
        model = b.model({"fc_out": (3,)})
        model.graph.output.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, []))
        refused(model)

    def test_unknown_operator_is_named(self) -> None:
        model = NETWORKS["mlp"](0)
        model.graph.node[1].op_type = "Frobnicate"
        assert refused(model).message.startswith('node "fc1.relu" is a "Frobnicate"')

    def test_custom_domain_that_no_runtime_knows(self) -> None:
        model = NETWORKS["mlp"](0)
        node = model.graph.node[1]
        node.op_type, node.domain = "Frobnicate", "com.example"
        model.opset_import.append(helper.make_opsetid("com.example", 1))
        message = refused(model).message
        assert '"fc1.relu"' in message
        assert '"com.example"' in message

    def test_runtime_operators_of_a_known_domain_are_welcome(self) -> None:
        b = Builder()
        x = b.gemm("fc", b.input("input", (4,)), 4, 6)
        model = b.model({x: (6,)})
        model.graph.node.append(
            helper.make_node("QuickGelu", ["fc_out"], ["out"], name="act", domain="com.microsoft")
        )
        model.graph.output[0].name = "out"
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        result = importer.import_model(model.SerializeToString())
        assert any("QuickGelu has no pruning rule" in warning for warning in result.warnings)
        assert result.outputs[0].shape == (-1, 6)
        onnx.checker.check_model(onnx.load_from_string(result.graph))

    @pytest.mark.parametrize("version", [0, 7, 99])
    def test_opsets_out_of_range(self, version: int) -> None:
        model = NETWORKS["mlp"](0)
        model.opset_import[0].version = version
        assert refused(model).message.startswith(f"the model uses opset {version}")

    def test_window_larger_than_its_input(self) -> None:
        model = NETWORKS["plain_cnn"](0)
        pool = next(n for n in model.graph.node if n.name == "pool")
        pool.attribute[0].ints[0] = 2**40
        assert "kernel_shape" in refused(model).message

    def test_name_that_is_not_text(self) -> None:
        data = NETWORKS["mlp"](0).SerializeToString().replace(b"fc1.relu", b"fc1\xff\xferel")
        assert "not text" in refused(data).message


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "what"),
        [
            (ModelLimits(file_bytes=100), "more than the 100 allowed"),
            (ModelLimits(node_count=3), "more than 3 nodes"),
            (ModelLimits(tensor_count=2), "more than 2 stored tensors"),
            (ModelLimits(tensor_elements=20), "more than 20"),
            (ModelLimits(rank=1), "more than 1"),
            (ModelLimits(name_characters=3), "more than 3 characters"),
        ],
    )
    def test_what_exceeds_a_limit_is_refused(self, limits: ModelLimits, what: str) -> None:
        with pytest.raises(InvalidModelError, match=what):
            OnnxImporter(limits=limits).import_model(NETWORKS["mlp"](0).SerializeToString())

    def test_activation_that_would_not_fit(self) -> None:
        b = Builder()
        x = b.input("input", (4,))
        x = b.node("tile", "Tile", [x, b.ints("n", [1, 1 << 40])])
        x = b.node("mean", "ReduceMean", [x], axes=[1])
        assert "elements for one sample" in refused(b.model({x: (1,)})).message

    def test_constant_that_claims_more_than_it_stores(self) -> None:
        model = NETWORKS["mlp"](0)
        model.graph.initializer[0].dims[0] = 1 << 20
        assert "announces" in refused(model).message

    def test_nested_subgraphs(self) -> None:
        model = NETWORKS["mlp"](0)
        inner = helper.make_graph([], "inner", [], [])
        for _ in range(8):
            node = helper.make_node("If", ["input"], ["x"], then_branch=inner, else_branch=inner)
            inner = helper.make_graph([node], "outer", [], [])
        model.graph.node.extend(inner.node)
        assert "nested deeper" in refused(model).message
