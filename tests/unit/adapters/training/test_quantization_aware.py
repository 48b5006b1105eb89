"""Quantization-aware training: computes as the exported file does, and gains over rounding afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper

from fakes.gratings import badly_scaled, gratings, trained_depthwise
from fakes.networks import Builder, padded_shortcut, plain_cnn, residual, token_attention
from fakes.recoveries import recover, samples_of
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.training.fake_quantization import FakeQuantization
from tightfit_service.adapters.training.learner import Learner
from tightfit_service.adapters.training.module import build_module, write_back
from tightfit_service.adapters.training.preparation import Student, prepare
from tightfit_service.adapters.training.quantization_plan import plan_quantization
from tightfit_service.adapters.training.range_calibration import rounding_of
from tightfit_service.adapters.training.targets import find_targets
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.ports import (
    QuantizationSettings,
    RecoveryResult,
    RecoverySettings,
    Teachers,
    TrainingData,
)
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.graph.rounding import activation_scale
from tightfit_service.passes.quantization import StaticQuantizationPass

INT8 = QuantizationSettings()
INT4 = QuantizationSettings(number_format=NumberFormat.INT4)
INT4_PER_TENSOR = QuantizationSettings(number_format=NumberFormat.INT4, per_channel=False)
INT16 = QuantizationSettings(number_format=NumberFormat.INT16X8)


def _exported(
    graph: bytes,
    calibration: Samples,
    settings: QuantizationSettings,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> bytes:
    return (
        StaticQuantizationPass()
        .quantize(graph, calibration=calibration, settings=settings, ranges=ranges)
        .graph
    )


def _train(graph: bytes, settings: QuantizationSettings, folder: Path) -> RecoveryResult:
    return TorchTrainer(threads=1).recover(
        graph,
        teachers=Teachers(original=trained_depthwise()),
        data=TrainingData(train=gratings(512, 1), selection=gratings(256, 2)),
        settings=RecoverySettings(epochs=4, batch_size=32, quantization_aware=True),
        cache_dir=folder,
        on_progress=lambda _share, _message: None,
        quantization=settings,
    )


@pytest.mark.parametrize(("settings", "spread"), [(INT8, 1.3), (INT4, 0.8), (INT4_PER_TENSOR, 0.0)])
def test_training_gains_over_rounding_afterwards(
    settings: QuantizationSettings, spread: float, tmp_path: Path
) -> None:
    graph = badly_scaled(trained_depthwise(), spread)
    calibration, test = gratings(256, 4), gratings(1024, 3)
    evaluator = OnnxRuntimeEvaluator()
    in_float = evaluator.evaluate(graph, test).value
    afterwards = evaluator.evaluate(_exported(graph, calibration, settings), test).value
    result = _train(graph, settings, tmp_path)
    exported = _exported(result.graph, calibration, settings, result.ranges)
    aware = evaluator.evaluate(exported, test).value
    assert afterwards < in_float - 0.1
    assert aware > afterwards + 0.05
    # what training saw is what the file does
    assert aware == pytest.approx(result.history[-1]["selection_accuracy"], abs=0.06)


def _learner(
    graph: bytes, settings: QuantizationSettings, samples: Samples
) -> tuple[Learner, FakeQuantization]:
    """A learner that rounds a graph, and its rounding."""
    student = Student(
        module=build_module(graph),
        given=graph,
        graph=graph,
        norms=(),
        input_scale=1.0,
        scaled_weights=(),
    )
    learner = Learner(module=student.module, targets=find_targets(graph))
    rounding = rounding_of(student, learner, samples, settings, seed=0)
    learner.quantizer = rounding
    return learner, rounding


def _without_softmax(model: ModelProto) -> bytes:
    """The model up to its logits."""
    last = model.graph.node[-1]
    if last.op_type == "Softmax":
        del model.graph.node[-1]
        model.graph.output[0].name = last.input[0]
    return model.SerializeToString()


def _upsampling(seed: int, groups: int = 1) -> ModelProto:
    """A transposed convolution with BatchNormalization behind it."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 4, 4)), 3, 8)
    weight = b.weight("up.w", (8, 8 // groups, 2, 2), fan_in=8)
    x = b.node("up", "ConvTranspose", [x, weight], strides=[2, 2], group=groups)
    x = b.node("up.relu", "Relu", [b.batch_norm("up.bn", x, 8)])
    return b.model({b.head(x, 8): (5,)})


@pytest.mark.parametrize("make", [plain_cnn, residual, padded_shortcut, _upsampling, None])
@pytest.mark.parametrize("settings", [INT8, INT4, INT16])
def test_the_forward_pass_is_that_of_the_exported_file(
    make: type | None, settings: QuantizationSettings
) -> None:
    if make is None:
        graph, samples = trained_depthwise(), gratings(256, 4)
    else:
        model = make(1)
        samples = samples_of(model, 256, 4)
        graph = _without_softmax(model)
    learner, rounding = _learner(graph, settings, samples)
    rounding.settle()
    ranges = rounding.ranges(1.0)
    with torch.inference_mode():
        own = learner.outputs(samples.inputs(slice(0, 64)))[0].numpy()
    file = _exported(write_back(graph, learner.module), samples, settings, ranges)
    expected = OnnxRuntimeEvaluator().outputs(file, samples.inputs(slice(0, 64)))
    low, high = ranges[learner.targets[0].name]
    bits = 16 if settings is INT16 else 8
    step = activation_scale(low, high, bits=bits).scale
    difference = np.abs(own - expected)
    if bits == 8:
        assert (difference <= 1.01 * step).mean() > 0.99
        assert (difference < 0.01 * step).mean() > 0.6
    else:  # the file rounds over all 65536 levels, TFLite over the symmetric 65535
        assert difference.max() < 0.01 * (high - low)


def test_groups_of_a_transposed_convolution_are_rounded_too() -> None:
    model = _upsampling(1, groups=4)
    graph, samples = model.SerializeToString(), samples_of(model, 64, 4)
    learner, _ = _learner(graph, INT8, samples)
    with torch.no_grad():
        rounded = learner.outputs(samples.inputs(slice(None)))[0]
        learner.quantizer = None
        plain = learner.outputs(samples.inputs(slice(None)))[0]
    error = float((rounded - plain).square().mean() / plain.var())
    assert 0.0 < error < 0.01


def test_nodes_keep_formats_of_their_own() -> None:
    graph = trained_depthwise()
    settings = QuantizationSettings(
        node_formats={"stem": NumberFormat.FLOAT32, "pw1": NumberFormat.INT4}
    )
    samples = gratings(128, 4)
    student = prepare(graph, logits="fc_out", inputs=samples.inputs(slice(0, 128)))
    plan = plan_quantization(student, settings)
    assert {name: weight.bits for name, weight in plan.weights.items()} == {
        "dw0": 8,
        "pw0": 8,
        "dw1": 8,
        "pw1": 4,
        "fc": 8,
    }
    assert "input" not in plan.activations  # only the stem reads it
    assert "stem.relu_out" in plan.activations  # its reader rounds it


def test_a_format_for_an_unknown_node_is_refused(tmp_path: Path) -> None:
    settings = QuantizationSettings(node_formats={"nowhere": NumberFormat.INT8})
    with pytest.raises(InvalidRequestError) as caught:
        _train(trained_depthwise(), settings, tmp_path)
    assert caught.value.field == "quantization.node_formats"


def test_weights_of_the_result_lie_on_their_grid(tmp_path: Path) -> None:
    result = _train(trained_depthwise(), INT4, tmp_path)
    model = onnx.load_model_from_string(result.graph)
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith(".w")]
    for weight in weights:
        for channel in weight:
            assert len(np.unique(np.round(channel / np.abs(channel).max(), 4))) <= 15


def test_sparse_weights_stay_sparse(tmp_path: Path) -> None:
    model = plain_cnn(1)
    sparse = ModelProto()
    sparse.CopyFrom(model)
    for tensor in sparse.graph.initializer:
        weight = numpy_helper.to_array(tensor).copy()
        if weight.ndim > 1 and weight.dtype == np.float32:
            weight[np.abs(weight) < np.median(np.abs(weight))] = 0
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    settings = RecoverySettings(epochs=2, batch_size=64, keep_zeros=True, quantization_aware=True)
    result = recover(sparse.SerializeToString(), model, tmp_path, settings, quantization=INT8)
    after = {
        t.name: numpy_helper.to_array(t)
        for t in onnx.load_model_from_string(result.graph).graph.initializer
    }
    for tensor in sparse.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.ndim > 1 and weight.dtype == np.float32:
            assert (after[tensor.name][weight == 0] == 0).all()
    assert set(result.ranges) >= {"input", "conv1.relu_out", "conv2.relu_out"}


def test_ranges_are_in_the_units_of_the_graph(tmp_path: Path) -> None:
    b = Builder(1)
    x = b.node("flat", "Flatten", [b.input("input", (1, 2, 3))], axis=1)
    x = b.node("relu", "Relu", [b.gemm("fc1", x, 6, 8)])
    model = b.model({b.gemm("fc2", x, 8, 3): (3,)})
    loud = samples_of(model, 256, 1, loud=50.0)
    settings = RecoverySettings(epochs=1, batch_size=64, quantization_aware=True)
    graph = model.SerializeToString()
    result = recover(graph, model, tmp_path, settings, train=loud, selection=loud)
    assert any("inputs divided by" in note for note in result.notes)
    inputs = loud.inputs(slice(None))
    assert 0.5 * inputs.max() < result.ranges["input"][1] < 1.5 * inputs.max()
    assert result.ranges["flat_out"] == result.ranges["input"]
    inner = build_module(result.graph).run_to(["relu_out"], torch.from_numpy(inputs))[0]
    most = float(inner.detach().max())
    assert 0.5 * most < result.ranges["relu_out"][1] < 1.5 * most


def test_what_a_product_of_activations_reads_second_is_rounded_around_zero() -> None:
    model = token_attention(1)
    learner, rounding = _learner(model.SerializeToString(), INT8, samples_of(model, 64, 4))
    ranges = rounding.ranges(1.0)
    for name in ("value_out", "key_out", "key.heads_out"):
        assert activation_scale(*ranges[name], bits=8).zero_point == 0
    assert activation_scale(*ranges["query_out"], bits=8).zero_point != 0
    learner.outputs(samples_of(model, 8, 5).inputs(slice(None)), training=True)[0].sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert rounding.ends.grad is not None
    assert torch.isfinite(rounding.ends.grad).all()


def test_gradients_reach_weights_and_the_ends_of_ranges() -> None:
    graph = trained_depthwise()
    learner, rounding = _learner(graph, INT8, gratings(64, 4))
    with torch.no_grad():
        rounding.ends.sub_(1.0)  # a third of the range: much is clipped
    inputs = gratings(16, 5).inputs(slice(None))
    loss = learner.outputs(inputs, training=True)[0].square().sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert rounding.ends.grad is not None
    assert (rounding.ends.grad != 0).any()
    weight = learner.module.value_of("stem.w")
    assert weight is not None
    assert weight.grad is not None
    assert (weight.grad != 0).any()
