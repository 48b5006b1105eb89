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
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout, Preprocess
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
