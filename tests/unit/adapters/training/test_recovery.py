"""Recovery: trains pruned graphs back, never returns worse than it got, and says what went wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from fakes.networks import Builder, mlp, padded_shortcut, plain_cnn, several_outputs
from fakes.recoveries import accuracy, halved, recover, samples_of, teacher_of
from tightfit_service.adapters.training.scoring import find_augmentation
from tightfit_service.adapters.training.teacher import Augmentation, TeacherCache
from tightfit_service.application.ports import RecoverySettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import DivergedError, InvalidDatasetError

SHORT = RecoverySettings(epochs=6, batch_size=64)


@pytest.mark.parametrize("make", [plain_cnn, padded_shortcut, mlp])
def test_a_halved_network_is_trained_back(make: type, tmp_path: Path) -> None:
    model = make(1)
    pruned = halved(model)
    selection = samples_of(model, 256, 2)
    result = recover(pruned, model, tmp_path, SHORT, selection=selection)
    before, after = accuracy(pruned, selection), accuracy(result.graph, selection)
    assert after > before + 0.05
    assert result.history[-1]["selection_accuracy"] == pytest.approx(after, abs=0.02)
    assert result.steps == 48
    assert result.epochs == pytest.approx(6.0)
    one, two = onnx.load_model_from_string(pruned), onnx.load_model_from_string(result.graph)
    onnx.checker.check_model(two, full_check=True)
    assert [n.name for n in two.graph.node] == [n.name for n in one.graph.node]
    assert list(two.graph.input) == list(one.graph.input)
    assert list(two.graph.output) == list(one.graph.output)


def test_loud_inputs_do_not_diverge(tmp_path: Path) -> None:
    model = plain_cnn(1)
    train, selection = samples_of(model, 512, 1, loud=120), samples_of(model, 256, 2, loud=120)
    pruned = halved(model)
    result = recover(pruned, model, tmp_path, SHORT, train=train, selection=selection)
    assert any("inputs divided by" in note for note in result.notes)
    assert accuracy(result.graph, selection) > accuracy(pruned, selection)


def test_without_labels_the_teacher_is_the_measure(tmp_path: Path) -> None:
    model = plain_cnn(1)
    result = recover(
        halved(model),
        model,
        tmp_path,
        SHORT,
        train=samples_of(model, 256, 1, labelled=False),
        selection=samples_of(model, 128, 2, labelled=False),
    )
    scores = [entry["selection_agreement"] for entry in result.history]
    assert max(scores) > scores[0]
    assert "selection_accuracy" not in result.history[-1]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    model = plain_cnn(1)
    pruned = halved(model)
    settings = RecoverySettings(epochs=1, batch_size=64, seed=5)
    first = recover(pruned, model, tmp_path / "one", settings)
    warm = recover(pruned, model, tmp_path / "one", settings)
    cold = recover(pruned, model, tmp_path / "two", settings)
    assert first.graph == warm.graph == cold.graph


def test_no_epochs_still_fit_layers_and_statistics(tmp_path: Path) -> None:
    model = padded_shortcut(1)
    pruned = halved(model)
    selection = samples_of(model, 256, 2)
    result = recover(pruned, model, tmp_path, RecoverySettings(epochs=0), selection=selection)
    assert result.steps == 0
    assert accuracy(result.graph, selection) > accuracy(pruned, selection)


def test_a_whole_network_comes_back_no_worse(tmp_path: Path) -> None:
    model = plain_cnn(1)
    selection = samples_of(model, 256, 2)
    settings = RecoverySettings(epochs=1, batch_size=32, learning_rate=0.5)
    result = recover(model.SerializeToString(), model, tmp_path, settings, selection=selection)
    assert accuracy(result.graph, selection) == 1.0


def test_a_rate_beyond_repair_is_reported(tmp_path: Path) -> None:
    model = plain_cnn(1)
    settings = RecoverySettings(epochs=8, batch_size=64, learning_rate=1e12)
    with pytest.raises(DivergedError, match="every learning rate"):
        recover(model.SerializeToString(), model, tmp_path, settings)


def test_a_rate_too_high_is_rolled_back(tmp_path: Path) -> None:
    model = padded_shortcut(1)
    pruned = halved(model)
    selection = samples_of(model, 256, 2)
    settings = RecoverySettings(epochs=8, batch_size=64, learning_rate=1e12)
    result = recover(pruned, model, tmp_path, settings, selection=selection)
    assert any("rolled back" in note for note in result.notes)
    assert accuracy(result.graph, selection) > accuracy(pruned, selection)


def test_broken_samples_end_in_an_error(tmp_path: Path) -> None:
    model = plain_cnn(1)
    train = samples_of(model, 64, 1)
    train.stored[...] = np.nan
    with pytest.raises(DivergedError):
        recover(halved(model), model, tmp_path, SHORT, train=train)


@pytest.mark.parametrize("count", [1, 5, 33])
def test_few_samples_are_enough(count: int, tmp_path: Path) -> None:
    model = plain_cnn(1)
    result = recover(
        halved(model),
        model,
        tmp_path,
        RecoverySettings(epochs=2),
        train=samples_of(model, count, 1),
    )
    onnx.checker.check_model(onnx.load_model_from_string(result.graph))


def test_time_ends_the_schedule(tmp_path: Path) -> None:
    model = mlp(1)
    settings = RecoverySettings(epochs=1e7, batch_size=64, max_seconds=1.5)
    result = recover(halved(model), model, tmp_path, settings)
    assert result.steps < 1e6
    assert result.history[-1]["learning_rate"] == 0.0


def test_a_single_output_is_trained_towards_the_teacher(tmp_path: Path) -> None:
    b = Builder(0)
    x = b.conv("hidden", b.input("input", (3, 6, 6)), 3, 8)
    model = b.model({b.node("chance", "Sigmoid", [b.head(x, 8, 1)]): (1,)})
    stored = np.random.default_rng(0).normal(size=(256, 3, 6, 6)).astype(np.float32)
    labels = (teacher_of(model).logits(stored)[:, 0] > 0).astype(np.int64)
    samples = Samples(stored=stored, labels=labels)
    result = recover(halved(model), model, tmp_path, SHORT, train=samples, selection=samples)
    assert max(entry["selection_accuracy"] for entry in result.history) > 0.8


@pytest.mark.parametrize(
    ("train", "selection", "field"),
    [
        (0, 8, "dataset.splits.train"),
        (8, 0, "dataset.splits.selection"),
    ],
)
def test_an_empty_split_is_refused(train: int, selection: int, field: str, tmp_path: Path) -> None:
    model = plain_cnn(1)
    full = samples_of(model, 8, 1)
    with pytest.raises(InvalidDatasetError) as caught:
        recover(
            halved(model),
            model,
            tmp_path,
            SHORT,
            train=full.take(range(train)),
            selection=full.take(range(selection)),
        )
    assert caught.value.field == field


def test_labels_beyond_the_outputs_are_refused(tmp_path: Path) -> None:
    model = plain_cnn(1)
    train = samples_of(model, 8, 1)
    assert train.labels is not None
    train.labels[3] = 99
    with pytest.raises(InvalidDatasetError, match=r"run from . to 99"):
        recover(halved(model), model, tmp_path, SHORT, train=train)


def test_the_teacher_is_asked_once_per_view(tmp_path: Path) -> None:
    model = plain_cnn(1)
    train = samples_of(model, 20, 1)
    caches = [
        TeacherCache(
            teacher=teacher_of(model), train=train, augmentation=Augmentation(), folder=tmp_path
        )
        for _ in range(2)
    ]
    everything = np.arange(20)
    inputs = caches[0].inputs(everything, 0)
    (first,) = caches[0].answers(everything[:12], 0, inputs[:12])
    (again,) = caches[0].answers(everything, 0, inputs)
    (other,) = caches[1].answers(everything, 0, inputs)
    assert [cache.computed_count for cache in caches] == [20, 0]
    np.testing.assert_array_equal(first, again[:12])
    np.testing.assert_array_equal(again, other)
    np.testing.assert_allclose(first, teacher_of(model).logits(inputs)[:12], rtol=2e-3, atol=2e-3)


def test_other_data_or_another_augmentation_has_its_own_answers(tmp_path: Path) -> None:
    model = plain_cnn(1)
    for train, augmentation in [
        (samples_of(model, 4, 1), Augmentation()),
        (samples_of(model, 4, 2), Augmentation()),
        (samples_of(model, 4, 1), Augmentation(shift=1)),
    ]:
        TeacherCache(
            teacher=teacher_of(model), train=train, augmentation=augmentation, folder=tmp_path
        )
    assert len(list(tmp_path.iterdir())) == 3


def test_a_view_is_the_same_for_every_order_of_samples() -> None:
    images = np.random.default_rng(0).normal(size=(6, 3, 16, 16)).astype(np.float32)
    augmentation = Augmentation(shift=2, flip=True)
    numbers = np.arange(6)
    whole = augmentation.apply(images, numbers, 3, 6)
    part = augmentation.apply(images[[4, 1]], numbers[[4, 1]], 3, 6)
    np.testing.assert_array_equal(part, whole[[4, 1]])
    assert not np.array_equal(whole, augmentation.apply(images, numbers, 2, 6))


def _image_network(*, sees_sides: bool) -> ModelProto:
    """Two classes: which side is brighter, or which of two colours is."""
    b = Builder(0)
    x = b.input("input", (3, 16, 16))
    weight = np.zeros((2, 3, 16, 16), dtype=np.float32)
    if sees_sides:
        weight[0, :, :, :8] = weight[1, :, :, 8:] = 1.0
    else:
        weight[0, 0] = weight[1, 1] = 1.0
    y = b.node("look", "Conv", [x, b.constant("weight", weight)])
    return b.model({b.node("flat", "Flatten", [y]): (2,)})


@pytest.mark.parametrize("sees_sides", [True, False])
def test_mirroring_is_left_out_where_it_changes_the_answer(sees_sides: bool) -> None:
    model = _image_network(sees_sides=sees_sides)
    samples = samples_of(model, 200, 0)
    found = find_augmentation(teacher_of(model), samples, "auto")
    assert found.flip is not sees_sides
    assert find_augmentation(teacher_of(model), samples, "none").is_none


def test_small_images_are_not_augmented() -> None:
    model = plain_cnn(1)
    assert find_augmentation(teacher_of(model), samples_of(model, 10, 0), "auto").is_none


def test_samples_of_other_inputs_are_refused(tmp_path: Path) -> None:
    model = several_outputs(0)
    samples = samples_of(plain_cnn(1), 4, 0)
    with pytest.raises(InvalidDatasetError, match="the model 'image', 'other'"):
        recover(model.SerializeToString(), model, tmp_path, SHORT, train=samples, selection=samples)


def test_training_that_ends_worse_is_not_kept(tmp_path: Path) -> None:
    model = plain_cnn(1)
    settings = RecoverySettings(epochs=1, batch_size=32, learning_rate=0.5)
    result = recover(model.SerializeToString(), model, tmp_path, settings)
    assert any("which is kept" in note for note in result.notes)
