"""The contract of `ports.Evaluator`, run on every runtime with the same small classifier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fakes.tflite_files import image_sum
from tightfit_service.adapters.evaluation.litert_evaluator import LitertEvaluator
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.application.ports import Evaluator
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.dataset import Layout, MetricName, Preprocess
from tightfit_service.domain.errors import InvalidDatasetError, InvalidModelError
from tightfit_service.domain.quantities import wilson_accuracy

WEIGHTS = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
SHAPE = (3, 6, 5)


@dataclass(frozen=True, kw_only=True)
class Case:
    evaluator: Evaluator
    file: bytes


def onnx_file(*, batch: int | str) -> bytes:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "w"], ["y"], name="dense", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.fixture(params=["onnx", "onnx-batch-4", "onnx-small-batches", "tflite", "tflite-threads"])
def case(request: pytest.FixtureRequest) -> Case:
    nhwc = (SHAPE[1], SHAPE[2], SHAPE[0])
    cases = {
        "onnx": lambda: Case(evaluator=OnnxRuntimeEvaluator(), file=onnx_file(batch="n")),
        "onnx-batch-4": lambda: Case(evaluator=OnnxRuntimeEvaluator(), file=onnx_file(batch=4)),
        "onnx-small-batches": lambda: Case(
            evaluator=OnnxRuntimeEvaluator(threads=2, batch_size=3), file=onnx_file(batch="n")
        ),
        "tflite": lambda: Case(evaluator=LitertEvaluator(), file=image_sum(nhwc, WEIGHTS)),
        "tflite-threads": lambda: Case(
            evaluator=LitertEvaluator(threads=2), file=image_sum(nhwc, WEIGHTS)
        ),
    }
    return cases[request.param]()


def samples(*, layout: Layout = Layout.NCHW, labelled: bool = True, count: int = 11) -> Samples:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    if layout is Layout.NHWC:
        stored = stored.transpose(0, 2, 3, 1)
    return Samples(
        stored=stored,
        labels=rng.integers(0, 4, count) if labelled else None,
        preprocess=Preprocess(scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3)),
        layout=layout,
        name="evaluation",
    )


def expected_scores(given: Samples) -> np.ndarray:
    return np.asarray(given.inputs(slice(None)).mean(axis=(2, 3)) @ WEIGHTS.T)


def test_outputs_are_those_of_the_model(case: Case) -> None:
    given = samples()
    found = case.evaluator.outputs(case.file, given.inputs(slice(None)))
    assert found.dtype == np.float32
    assert np.allclose(found, expected_scores(given), atol=1e-4)


@pytest.mark.parametrize("layout", [Layout.NCHW, Layout.NHWC])
def test_accuracy_is_counted_over_all_samples(case: Case, layout: Layout) -> None:
    given = samples(layout=layout)
    correct = int((expected_scores(given).argmax(axis=1) == given.labels).sum())
    assert case.evaluator.evaluate(case.file, given) == wilson_accuracy(correct, 11)


def test_the_same_call_gives_the_same_bits(case: Case) -> None:
    inputs = samples().inputs(slice(None))
    first, second = (case.evaluator.outputs(case.file, inputs) for _ in range(2))
    assert np.array_equal(first, second)


def test_samples_without_labels_are_refused(case: Case) -> None:
    with pytest.raises(InvalidDatasetError, match="no labels") as caught:
        case.evaluator.evaluate(case.file, samples(labelled=False))
    assert caught.value.field == "splits.evaluation.label"


def test_no_samples_are_refused(case: Case) -> None:
    with pytest.raises(InvalidDatasetError, match="empty"):
        case.evaluator.evaluate(case.file, samples(count=0))


def test_labels_out_of_range_are_refused(case: Case) -> None:
    given = samples()
    wrong = Samples(stored=given.stored, labels=np.full(11, 4), name="evaluation")
    with pytest.raises(InvalidDatasetError, match="4 classes"):
        case.evaluator.evaluate(case.file, wrong)


def test_other_shapes_are_refused(case: Case) -> None:
    with pytest.raises(InvalidDatasetError, match="shape"):
        case.evaluator.outputs(case.file, np.zeros((1, 3, 5, 6), np.float32))


@pytest.mark.parametrize("data", [b"", b"no model", b"\0" * 100])
def test_what_is_no_model_is_refused(case: Case, data: bytes) -> None:
    with pytest.raises(InvalidModelError):
        case.evaluator.outputs(data, np.zeros((1, *SHAPE), np.float32))


def two_input_file() -> bytes:
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], name="flat"),
        helper.make_node("Concat", ["flat", "facts"], ["joined"], name="join", axis=1),
        helper.make_node("Gemm", ["joined", "w"], ["y"], name="dense", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 2, 2]),
            helper.make_tensor_value_info("facts", TensorProto.FLOAT, ["n", 2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(TWO_WEIGHTS, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


TWO_WEIGHTS = np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32)


def test_several_inputs_are_fed_by_name() -> None:
    rng = np.random.default_rng(3)
    image = rng.normal(size=(11, 1, 2, 2)).astype(np.float32)
    facts = rng.normal(size=(11, 2)).astype(np.float32)
    expected = np.concatenate([image.reshape(11, 4), facts], axis=1) @ TWO_WEIGHTS.T
    evaluator = OnnxRuntimeEvaluator(batch_size=4)
    found = evaluator.outputs(two_input_file(), {"facts": facts, "image": image})
    assert np.allclose(found, expected, atol=1e-5)
    labels = rng.integers(0, 3, 11)
    given = Samples(
        stored=image,
        labels=labels,
        input_name="image",
        others={"facts": StoredInput(stored=facts, layout=Layout.ANY)},
    )
    right = int((expected.argmax(axis=1) == labels).sum())
    assert evaluator.evaluate(two_input_file(), given) == wilson_accuracy(right, 11)
    for wrong in (image, {"image": image}, {"image": image, "fact": facts}):
        with pytest.raises(InvalidDatasetError, match="the given inputs"):
            evaluator.outputs(two_input_file(), wrong)


def test_the_declared_metric_is_what_counts(case: Case) -> None:
    given = samples()
    scores = expected_scores(given)
    own = case.evaluator.evaluate(case.file, given.judged(scores, MetricName.SQNR))
    assert own.value > 0.999
    other = scores + np.random.default_rng(0).normal(size=scores.shape).astype(np.float32)
    share = 1 - np.square(scores - other).mean() / np.square(other).mean()
    found = case.evaluator.evaluate(case.file, given.judged(other, MetricName.SQNR))
    assert found.value == pytest.approx(max(share, 0.0), abs=1e-3)
