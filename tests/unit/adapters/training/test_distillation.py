"""What students learn from: several teachers, unlabelled samples, inner activations, other outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto

from fakes.gratings import gratings, trained_depthwise
from fakes.networks import Builder, mlp, padded_shortcut, residual
from fakes.recoveries import accuracy, halved, recover, samples_of, teacher_of
from tightfit_service.adapters.training.features import FeatureGuide, feature_points
from tightfit_service.adapters.training.losses import NO_LABEL, DistillationLoss
from tightfit_service.adapters.training.module import build_module
from tightfit_service.adapters.training.number_format import TrainingFormat
from tightfit_service.adapters.training.targets import DistilledTensor
from tightfit_service.adapters.training.teacher import Augmentation, open_teachers
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.adapters.training.training_set import TrainingSet
from tightfit_service.application.ports import RecoverySettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout, MetricName
from tightfit_service.domain.errors import InvalidRequestError

SCORES = DistilledTensor(name="x", loss="softmax", axis=1, output="x")
VALUES = DistilledTensor(name="y", loss="squared_error", axis=None, output="y")


def _loss(*targets: DistilledTensor, variance: float = 1.0, share: float = 1.0) -> DistillationLoss:
    return DistillationLoss(
        targets=targets,
        variances=tuple(1.0 if t.axis is not None else variance for t in targets),
        settings=RecoverySettings(temperature=2.0, distillation_weight=share),
    )


def _no_labels(count: int) -> torch.Tensor:
    return torch.full((count, 1), NO_LABEL)


def test_the_distributions_of_several_teachers_are_averaged() -> None:
    random = torch.Generator().manual_seed(0)
    one, two = (torch.randn(4, 5, generator=random) for _ in range(2))
    mean = ((one / 2).softmax(1) + (two / 2).softmax(1)) / 2
    loss = _loss(SCORES)
    perfect = 2 * mean.log()
    torch.testing.assert_close(
        loss([perfect], [[one], [two]], _no_labels(4)), torch.tensor(0.0), atol=1e-5, rtol=0
    )
    own = torch.randn(4, 5, generator=random)
    expected = (mean * (mean.log() - (own / 2).log_softmax(1))).sum(1).mean() * 4
    torch.testing.assert_close(loss([own], [[one], [two]], _no_labels(4)), expected)


def test_values_are_compared_in_units_of_their_variance() -> None:
    loss = _loss(VALUES, variance=100.0)
    found = loss([torch.zeros(3, 2, 4)], [[torch.full((3, 2, 4), 10.0)]], _no_labels(3))
    torch.testing.assert_close(found, torch.tensor(1.0))


def test_labels_count_only_for_samples_that_have_one() -> None:
    scores = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    loss = _loss(SCORES, share=0.25)
    labels = torch.tensor([[2], [NO_LABEL]])
    hard = torch.nn.functional.cross_entropy(scores[:1], labels[:1, 0])
    # the teacher agrees with the student, so only the label of the first sample costs anything
    torch.testing.assert_close(loss([scores], [[scores]], labels), 0.75 * hard / 2)


def test_labels_of_pixels_are_compared_place_by_place() -> None:
    scores = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 2, NO_LABEL, 1]])
    rows = scores[0].reshape(3, 4).T
    known = torch.tensor([0, 1, 3])
    hard = torch.nn.functional.cross_entropy(rows[known], labels[0, known])
    loss = _loss(SCORES, share=0.0)
    torch.testing.assert_close(loss([scores], [[scores]], labels), hard)


def test_unlabelled_samples_are_mixed_in_with_their_teachers_answers(tmp_path: Path) -> None:
    model = mlp(1)
    train, more = samples_of(model, 5, 1), samples_of(model, 7, 2)
    data = TrainingSet(
        train=train,
        unlabeled=more,
        teachers=[teacher_of(model), teacher_of(mlp(2))],
        augmentation=Augmentation(),
        folder=tmp_path,
    )
    assert len(data) == 12
    batch = data.batch(np.array([1, 4, 5, 11]), 0)
    inputs = np.concatenate([train.stored[[1, 4]], more.stored[[0, 6]]])
    np.testing.assert_array_equal(batch.inputs, inputs)
    assert train.labels is not None
    assert batch.labels[:, 0].tolist() == [train.labels[1], train.labels[4], NO_LABEL, NO_LABEL]
    for answers, teacher in zip(batch.answers, (model, mlp(2)), strict=True):
        np.testing.assert_allclose(
            answers[0], teacher_of(teacher).logits(inputs), rtol=2e-3, atol=2e-3
        )


def test_unlabelled_samples_help_where_labelled_ones_are_few(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(trained_depthwise())
    pruned, few = halved(model), gratings(32, 51)
    selection, test = gratings(128, 2), gratings(512, 3)
    settings = RecoverySettings(epochs=6, batch_size=32)
    alone = recover(pruned, model, tmp_path, settings, train=few, selection=selection)
    helped = recover(
        pruned,
        model,
        tmp_path,
        settings,
        train=few,
        selection=selection,
        unlabeled=gratings(256, 4),
    )
    assert accuracy(helped.graph, test) > accuracy(alone.graph, test) + 0.1


def test_a_second_teacher_is_listened_to(tmp_path: Path) -> None:
    model = mlp(1)
    settings = RecoverySettings(epochs=2, batch_size=64)
    one = recover(halved(model), model, tmp_path, settings)
    two = recover(
        halved(model), model, tmp_path, settings, more_teachers=[mlp(2).SerializeToString()]
    )
    losses = [[entry.get("loss") for entry in result.history] for result in (one, two)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("other", [residual, padded_shortcut])
def test_a_teacher_of_other_classes_or_inputs_is_refused(other: type, tmp_path: Path) -> None:
    model = mlp(1)
    with pytest.raises(InvalidRequestError) as caught:
        recover(
            halved(model),
            model,
            tmp_path,
            RecoverySettings(epochs=1),
            more_teachers=[mlp(2).SerializeToString(), other(0).SerializeToString()],
        )
    assert caught.value.field == "teachers[1]"
    assert caught.value.remedy
    with pytest.raises(InvalidRequestError):
        TorchTrainer(threads=1).check_teacher(
            other(0).SerializeToString(),
            original=model.SerializeToString(),
            samples=samples_of(model, 4, 1),
        )


def _with_last(model: ModelProto, op_type: str, shape: tuple[int, ...]) -> bytes:
    """The network with one more node at its end, whose output has another shape."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    (output,) = changed.graph.output
    node = onnx.helper.make_node(op_type, [output.name], ["end"], name="end")
    if op_type == "Reshape":
        goal = np.asarray([-1, *shape], dtype=np.int64)
        changed.graph.initializer.append(onnx.numpy_helper.from_array(goal, "end.shape"))
        node.input.append("end.shape")
    changed.graph.node.append(node)
    del changed.graph.output[:]
    changed.graph.output.append(
        onnx.helper.make_tensor_value_info("end", onnx.TensorProto.FLOAT, ["batch", *shape])
    )
    onnx.checker.check_model(changed, full_check=True)
    return changed.SerializeToString()


def test_answers_of_a_teacher_with_sizes_of_one_take_the_shape_of_the_original() -> None:
    model, other = mlp(1), mlp(2)
    samples = samples_of(model, 6, 1)
    reshaped = _with_last(other, "Reshape", (3, 1, 1))
    _, teacher = open_teachers([model.SerializeToString(), reshaped], samples, threads=1)
    inputs = samples.inputs(slice(None))
    np.testing.assert_array_equal(teacher.logits(inputs), teacher_of(other).logits(inputs))


def test_a_teacher_that_gives_values_in_place_of_scores_is_refused() -> None:
    model = mlp(1)
    graphs = [model.SerializeToString(), _with_last(mlp(2), "Sigmoid", (3,))]
    with pytest.raises(InvalidRequestError, match="values") as caught:
        open_teachers(graphs, samples_of(model, 6, 1), threads=1)
    assert caught.value.field == "teachers[0]"


@pytest.mark.long
def test_a_second_teacher_that_knows_less_teaches_less(tmp_path: Path) -> None:
    """The first one is the network itself in both cases."""
    model = onnx.load_model_from_string(trained_depthwise())
    selection, test = gratings(128, 2), gratings(512, 3)
    unlabelled = replace(gratings(256, 1), labels=None)
    settings = RecoverySettings(epochs=6, batch_size=32, seed=1)
    clueless = onnx.ModelProto()
    clueless.CopyFrom(model)
    random = np.random.default_rng(0)
    for tensor in clueless.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        noisy = value + random.normal(0, value.std(), value.shape).astype(value.dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(noisy, tensor.name))
    known, misled = (
        recover(
            halved(model),
            model,
            tmp_path,
            settings,
            train=unlabelled,
            selection=selection,
            more_teachers=[teacher.SerializeToString()],
        )
        for teacher in (model, clueless)
    )
    assert accuracy(known.graph, test) > accuracy(misled.graph, test)


@pytest.mark.parametrize("make", [residual, padded_shortcut])
def test_features_are_found_at_the_ends_of_stages(make: type) -> None:
    model = make(1)
    original = model.SerializeToString()
    pruned = halved(model)
    points = feature_points(pruned, original)
    names = [point.tensor for point in points]
    expected = {
        "residual": ["a.relu_out", "b.relu_out"],
        "padded_shortcut": ["stem.relu_out", "s1.relu_out", "s2.relu_out"],
    }
    assert names == expected[make.__name__]
    stem = next(p for p in feature_points(pruned, original) if p.tensor == names[0])
    own = build_module(pruned).run_to([names[0]], torch.ones(1, 3, 8, 8))[0]
    assert own.shape[1] == len(stem.kept)


def test_features_of_kept_channels_are_compared() -> None:
    model = padded_shortcut(1)
    original = model.SerializeToString()
    inputs = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    points = feature_points(halved(model), original)[:1]  # the stem: nothing in front was removed
    guide = FeatureGuide(points=points, original=original, form=TrainingFormat())
    with torch.no_grad():
        own = build_module(halved(model)).run_to(list(guide.names), torch.from_numpy(inputs))
    assert float(guide.loss(own, inputs)) < 1e-10
    assert float(guide.loss([value + 1 for value in own], inputs)) > 0.1


def test_training_with_features_brings_them_closer(tmp_path: Path) -> None:
    model = padded_shortcut(1)
    original, pruned = model.SerializeToString(), halved(model)
    guide = FeatureGuide(
        points=feature_points(pruned, original), original=original, form=TrainingFormat()
    )
    inputs = samples_of(model, 64, 9).stored.astype(np.float32)

    def distance(weight: float) -> float:
        settings = RecoverySettings(epochs=6, batch_size=64, feature_weight=weight)
        graph = recover(pruned, model, tmp_path, settings).graph
        with torch.no_grad():
            own = build_module(graph).run_to(list(guide.names), torch.from_numpy(inputs))
        return float(guide.loss(own, inputs))

    assert distance(5.0) < 0.9 * distance(0.0)


def _autoencoder() -> ModelProto:
    b = Builder(0)
    x = b.input("input", (12,))
    x = b.node("relu1", "Relu", [b.gemm("down", x, 12, 16)])
    x = b.node("relu2", "Relu", [b.gemm("code", x, 16, 8)])
    return b.model({b.gemm("up", x, 8, 12): (12,)})


def _detector() -> ModelProto:
    b = Builder(0)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 12, norm=True)
    x = b.conv("body", x, 12, 12, stride=2, norm=True)
    boxes = b.conv("boxes", x, 12, 4, relu=False)
    scores = b.node("sure", "Sigmoid", [b.conv("scores", x, 12, 3, relu=False)])
    joined = b.node("joined", "Concat", [boxes, scores], axis=1)
    return b.model({joined: (7, 4, 4)})


def _segmenter() -> ModelProto:
    b = Builder(0)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 12, norm=True)
    x = b.conv("body", x, 12, 12, norm=True)
    return b.model({b.conv("classes", x, 12, 4, relu=False): (4, 8, 8)})


@pytest.mark.parametrize("make", [_autoencoder, _detector, _segmenter])
def test_networks_that_are_no_classifiers_are_trained_towards_the_original(
    make: type, tmp_path: Path
) -> None:
    model = make()
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    layout = Layout.NCHW if len(shape) == 3 else Layout.ANY

    def samples(seed: int, count: int) -> Samples:
        stored = np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)
        return Samples(
            stored=stored,
            labels=None,
            layout=layout,
            model_layout=layout,
            metric=MetricName.SQNR if make is _autoencoder else MetricName.AGREEMENT,
        )

    result = recover(
        halved(model),
        model,
        tmp_path,
        RecoverySettings(epochs=8, batch_size=64, learning_rate=0.05),
        train=samples(1, 512),
        selection=samples(2, 128),
    )
    scores = [entry["selection_agreement"] for entry in result.history]
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert scores[-1] > scores[0] + 0.02
    onnx.checker.check_model(onnx.load_model_from_string(result.graph))
