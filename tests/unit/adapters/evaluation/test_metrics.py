"""Each declared metric against figures worked out by other means, and its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tightfit_service.adapters.evaluation.bootstrap import bootstrap_accuracy
from tightfit_service.adapters.evaluation.metrics import evaluate_metric
from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.domain.dataset import Layout, MetricName, Task
from tightfit_service.domain.errors import InvalidDatasetError
from tightfit_service.domain.quantities import Accuracy, wilson_accuracy

Array = npt.NDArray[Any]


def _judge(
    outputs: Array,
    labels: Array | None,
    metric: MetricName,
    *,
    task: Task = Task.CLASSIFICATION,
    inputs: Array | None = None,
) -> Accuracy:
    """Judge given outputs: the input of each sample is its number, by which the model finds them."""
    count = len(outputs)
    stored = np.arange(count, dtype=np.float32)[:, None] if inputs is None else inputs
    seen = iter(range(0, count, 3))

    def run(feeds: Mapping[str, FloatArray]) -> npt.NDArray[np.float32]:
        start = next(seen)
        (given,) = feeds.values()
        return np.asarray(outputs[start : start + len(given)], dtype=np.float32)

    samples = Samples(
        stored=stored,
        labels=labels,
        layout=Layout.ANY,
        model_layout=Layout.ANY,
        name="evaluation",
        metric=metric,
        task=task,
    )
    return evaluate_metric(run, samples, batch_size=3)


def _contains(found: Accuracy) -> bool:
    return 0.0 <= found.low <= found.value <= found.high <= 1.0


def _scores(count: int = 60, classes: int = 8, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    scores = rng.normal(size=(count, classes))
    scores[np.arange(count), labels] += 1.0
    return scores, labels


def test_top1_is_the_share_of_highest_scores() -> None:
    scores, labels = _scores()
    right = int((scores.argmax(axis=1) == labels).sum())
    assert _judge(scores, labels, MetricName.TOP1) == wilson_accuracy(right, 60)


def test_top5_takes_the_five_highest() -> None:
    scores, labels = _scores()
    best = np.argsort(-scores, axis=1)[:, :5]
    right = int((best == labels[:, None]).any(axis=1).sum())
    assert _judge(scores, labels, MetricName.TOP5) == wilson_accuracy(right, 60)


def test_of_equal_scores_the_first_counts_and_nan_is_wrong() -> None:
    scores = np.asarray([[1, 1, 0], [1, 1, 0], [np.nan, 0, 1], [0, 0, 5]])
    found = _judge(scores, np.asarray([0, 1, 2, 2]), MetricName.TOP1)
    assert found == wilson_accuracy(2, 4)


def test_f1_is_the_mean_over_classes() -> None:
    scores, labels = _scores(classes=3)
    answers = scores.argmax(axis=1)
    values = []
    for c in range(3):
        hit = ((answers == c) & (labels == c)).sum()
        precision, recall = hit / (answers == c).sum(), hit / (labels == c).sum()
        values.append(2 * precision * recall / (precision + recall))
    found = _judge(scores, labels, MetricName.F1)
    assert found.value == pytest.approx(np.mean(values))
    assert found.low < found.value < found.high


def _pairs_won(scores: Array, is_own: Array) -> float:
    difference = scores[is_own][:, None] - scores[~is_own][None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def test_auc_counts_pairs_in_the_right_order_with_ties_as_half() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 40)
    scores = np.round((rng.random(40) + 0.3 * labels) / 1.3, 1)[:, None]
    found = _judge(scores, labels, MetricName.AUC)
    assert found.value == pytest.approx(_pairs_won(scores[:, 0], labels == 1))
    assert found.low < found.value < found.high


def test_auc_of_many_classes_is_the_mean_of_each_against_the_rest() -> None:
    scores, labels = _scores(classes=4)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = np.mean([_pairs_won(shares[:, c], labels == c) for c in range(4)])
    assert _judge(scores, labels, MetricName.AUC).value == pytest.approx(expected, abs=1e-6)
    assert _judge(shares, labels, MetricName.AUC).value == pytest.approx(expected, abs=1e-6)


def test_auc_of_a_reconstruction_ranks_by_its_error() -> None:
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(30, 5)).astype(np.float32)
    labels = np.arange(30) % 2
    outputs = inputs + rng.normal(size=(30, 5)) * np.where(labels, 0.6, 0.4)[:, None]
    errors = np.square(outputs.astype(np.float32) - inputs).mean(axis=1)
    found = _judge(outputs, labels, MetricName.AUC, task=Task.RECONSTRUCTION, inputs=inputs)
    assert found.value == pytest.approx(_pairs_won(errors, labels == 1))


def test_auc_needs_two_classes() -> None:
    with pytest.raises(InvalidDatasetError, match="same label"):
        _judge(np.ones((4, 1)), np.ones(4, dtype=np.int64), MetricName.AUC)


def test_squared_and_absolute_errors_are_shares_explained() -> None:
    rng = np.random.default_rng(3)
    labels = rng.normal(2.0, 3.0, (50, 2))
    outputs = labels + rng.normal(0.0, 1.0, labels.shape)
    mse = np.square(outputs - labels).mean() / np.square(labels - labels.mean(axis=0)).mean()
    mae = np.abs(outputs - labels).mean() / np.abs(labels - np.median(labels, axis=0)).mean()
    for metric, ratio in ((MetricName.MSE, mse), (MetricName.MAE, mae)):
        found = _judge(outputs, labels, metric, task=Task.REGRESSION)
        assert found.value == pytest.approx(1 - ratio, abs=1e-5)
        assert found.low < found.value < found.high


def test_answers_worse_than_a_constant_have_no_worth() -> None:
    labels = np.arange(10.0)[:, None]
    found = _judge(-5 * labels, labels, MetricName.MSE, task=Task.REGRESSION)
    assert found.value == 0.0
    broken = np.full_like(labels, np.nan)
    assert _judge(broken, labels, MetricName.MSE, task=Task.REGRESSION).value == 0.0


def test_noise_of_a_hundredth_is_20_db() -> None:
    original = np.where(np.arange(40).reshape(10, 4) % 2, 1.0, -1.0)
    assert _judge(0.9 * original, original, MetricName.SQNR).value == pytest.approx(0.99)


def test_agreement_is_the_share_of_the_same_answers() -> None:
    scores, _ = _scores()
    other, _ = _scores(seed=5)
    right = int((scores.argmax(axis=1) == other.argmax(axis=1)).sum())
    assert _judge(scores, other, MetricName.AGREEMENT) == wilson_accuracy(right, 60)


def test_agreement_of_dense_outputs_is_by_pixel() -> None:
    rng = np.random.default_rng(6)
    ours, theirs = rng.normal(size=(2, 7, 3, 4, 5))
    share = (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()
    assert _judge(ours, theirs, MetricName.AGREEMENT).value == pytest.approx(share)


def _maps() -> tuple[Array, Array, float]:
    """Scores, labels (some of no class) and the mean intersection over union of three classes."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, (8, 6, 5))
    scores = rng.normal(size=(8, 3, 6, 5))
    np.put_along_axis(scores, labels[:, None], 1.5, axis=1)
    labels[:, 0] = 255
    answers, known = scores.argmax(axis=1), labels != 255
    values = [
        (known & (answers == c) & (labels == c)).sum()
        / (known & ((answers == c) | (labels == c))).sum()
        for c in range(3)
    ]
    return scores, labels, float(np.mean(values))


def test_miou_leaves_out_what_has_no_class() -> None:
    scores, labels, expected = _maps()
    found = _judge(scores, labels, MetricName.MIOU, task=Task.SEGMENTATION)
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high


def test_miou_takes_channels_last_and_maps_of_classes() -> None:
    scores, labels, expected = _maps()
    for outputs in (scores.transpose(0, 2, 3, 1), scores.argmax(axis=1)):
        found = _judge(outputs, labels, MetricName.MIOU, task=Task.SEGMENTATION)
        assert found.value == pytest.approx(expected)


def test_a_single_map_tells_two_classes_apart() -> None:
    labels = np.random.default_rng(8).integers(0, 2, (5, 4, 4))
    for outputs in (labels[:, None] * 0.8 + 0.1, labels[:, None] * 4.0 - 2.0):
        assert _judge(outputs, labels, MetricName.MIOU, task=Task.SEGMENTATION).value == 1.0


@pytest.mark.parametrize("metric", list(MetricName))
def test_a_metric_without_labels_names_them(metric: MetricName) -> None:
    with pytest.raises(InvalidDatasetError, match=f"no labels, which {metric} needs") as caught:
        _judge(np.ones((4, 3)), None, metric)
    assert caught.value.field == "splits.evaluation.label"


@pytest.mark.parametrize(
    "metric", [MetricName.MSE, MetricName.MAE, MetricName.SQNR, MetricName.AGREEMENT]
)
def test_labels_of_another_size_are_refused(metric: MetricName) -> None:
    with pytest.raises(InvalidDatasetError, match=r"2 values.*3"):
        _judge(np.ones((4, 3)), np.ones((4, 2)), metric)


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(InvalidDatasetError, match="pixels"):
        _judge(np.ones((4, 3, 2, 2)), np.ones((4, 3, 3), dtype=np.int64), MetricName.MIOU)


def test_an_interval_is_seeded_and_narrows_with_samples() -> None:
    def spread(count: int) -> float:
        values = np.random.default_rng(0).random(count)
        found = bootstrap_accuracy(lambda w: float(w @ values / w.sum()), count)
        assert found == bootstrap_accuracy(lambda w: float(w @ values / w.sum()), count)
        assert _contains(found)
        return found.high - found.low

    # the standard error of a uniform mean: 4 * 0.289 / sqrt(n) wide
    assert spread(400) == pytest.approx(3.92 * 0.289 / 20, rel=0.2)
    assert spread(6400) == pytest.approx(spread(400) / 4, rel=0.2)


def test_a_single_sample_says_nothing() -> None:
    assert bootstrap_accuracy(lambda w: 0.7, 1) == Accuracy(
        value=0.7, low=0.0, high=1.0, sample_count=1
    )
