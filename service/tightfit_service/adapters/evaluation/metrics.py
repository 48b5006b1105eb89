"""The declared metrics, of anything that maps batches of inputs to its first output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tightfit_service.adapters.evaluation.bootstrap import Weights, bootstrap_accuracy
from tightfit_service.adapters.evaluation.class_scores import (
    classes_of,
    dense_classes_of,
    probabilities,
    row_scores,
)
from tightfit_service.application.samples import FloatArray, LabelArray, Samples
from tightfit_service.domain.dataset import MetricName, Task
from tightfit_service.domain.errors import InvalidDatasetError
from tightfit_service.domain.quantities import Accuracy, wilson_accuracy

Outputs = npt.NDArray[np.float32]
Run = Callable[[Mapping[str, FloatArray]], Outputs]
"""Maps inputs by name (in the model's order; one may be nameless) to the first output."""

_NO_CLASS = 255
_TOO_FAR = 1e30
"""Stands for the error of an output that is no number."""


def evaluate_metric(run: Run, samples: Samples, *, batch_size: int) -> Accuracy:
    """Return the metric that the samples declare, with its 95 % interval.

    Shares of samples have a Wilson interval, all others a bootstrap over samples.

    Args:
        run: The model.
        samples: Labelled samples; `samples.metric` says by what to judge.
        batch_size: Most samples given to `run` at once.

    Raises:
        InvalidDatasetError: No samples, no labels, or labels that do not fit the outputs.
    """
    if len(samples) == 0:
        raise InvalidDatasetError(
            f"the {samples.name or 'given'} split is empty",
            field=f"splits.{samples.name}",
            remedy="give at least one sample",
        )
    if samples.labels is None:
        raise InvalidDatasetError(
            f"the {samples.name or 'given'} split has no labels, which {samples.metric} needs",
            field=f"splits.{samples.name}.label",
            remedy="compare with the original's outputs, which stand for labels"
            if samples.metric.is_fidelity
            else "name the array of labels",
        )
    return _METRICS[samples.metric](_walk(run, samples, samples.labels, batch_size), samples)


@dataclass(frozen=True, kw_only=True)
class _Batch:
    outputs: Outputs
    labels: LabelArray
    inputs: FloatArray


def _walk(run: Run, samples: Samples, labels: LabelArray, size: int) -> Iterator[_Batch]:
    """Yield outputs, labels and first inputs, batch by batch."""
    names = list(samples.by_input)
    for start in range(0, len(samples), size):
        part = slice(start, min(start + size, len(samples)))
        feeds = samples.feeds(part, names)
        yield _Batch(outputs=run(feeds), labels=labels[part], inputs=next(iter(feeds.values())))


def _among_best(count: int) -> Callable[[Iterator[_Batch], Samples], Accuracy]:
    """Return the share of samples whose label has one of the highest scores; NaN is wrong."""

    def metric(batches: Iterator[_Batch], samples: Samples) -> Accuracy:
        right = 0
        for batch in batches:
            scores = row_scores(batch.outputs, batch.labels, split=samples.name)
            if scores.shape[1] == 1:
                found = classes_of(scores)[:, 0] == batch.labels
            else:
                own = scores[np.arange(len(scores)), batch.labels][:, None]
                # of equal scores the first counts, as argmax has it
                is_earlier = np.arange(scores.shape[1]) < batch.labels[:, None]
                found = ((scores > own) | ((scores == own) & is_earlier)).sum(axis=1) < count
            right += int((found & np.isfinite(scores).all(axis=1)).sum())
        return wilson_accuracy(right, len(samples))

    return metric


def _f1(batches: Iterator[_Batch], samples: Samples) -> Accuracy:
    """Return the mean over classes (of labels or answers) of the harmonic mean of both rates."""
    truths, answers, classes = [], [], 2
    for batch in batches:
        scores = row_scores(batch.outputs, batch.labels, split=samples.name)
        classes = max(classes, scores.shape[1])
        truths.append(batch.labels)
        answers.append(classes_of(scores)[:, 0])
    truth, answer = np.concatenate(truths), np.concatenate(answers)

    def value(weights: Weights) -> float:
        agreed = np.bincount(truth, weights=weights * (truth == answer), minlength=classes)
        both = np.bincount(truth, weights=weights, minlength=classes)
        both += np.bincount(answer, weights=weights, minlength=classes)
        seen = both > 0
        return float((2 * agreed[seen] / both[seen]).mean())

    return bootstrap_accuracy(value, len(samples), cost=10)


def _auc(batches: Iterator[_Batch], samples: Samples) -> Accuracy:
    """Return the mean area under the curve of each class against the rest.

    Of two classes only the second is looked at; a reconstruction's score is its squared error.
    """
    found, truths = [], []
    for batch in batches:
        if samples.task is Task.RECONSTRUCTION:
            difference = batch.outputs.reshape(len(batch.inputs), -1) - batch.inputs.reshape(
                len(batch.inputs), -1
            )
            found.append(np.square(difference).mean(axis=1, keepdims=True))
        else:
            found.append(row_scores(batch.outputs, batch.labels, split=samples.name))
        truths.append(batch.labels)
    truth = np.concatenate(truths)
    scores = probabilities(np.concatenate(found))
    columns = {1: scores[:, -1]} if scores.shape[1] <= 2 else dict(enumerate(scores.T))
    ranks = {
        number: np.unique(column, return_inverse=True)[1]
        for number, column in columns.items()
        if 0 < int((truth == number).sum()) < len(truth)
    }
    if not ranks:
        raise InvalidDatasetError(
            f"all samples of the {samples.name or 'given'} split have the same label",
            field=f"splits.{samples.name}.label",
            remedy="give samples of at least two classes",
        )

    def value(weights: Weights) -> float:
        areas = [_area(rank, weights, truth == number) for number, rank in ranks.items()]
        known = [area for area in areas if area is not None]
        return float(np.mean(known)) if known else 0.5

    return bootstrap_accuracy(value, len(samples), cost=10 * len(ranks))


def _area(
    rank: npt.NDArray[np.int64], weights: Weights, is_own: npt.NDArray[np.bool_]
) -> float | None:
    """Return the chance that an own sample ranks above another one (Mann and Whitney, 1947)."""
    own = np.bincount(rank, weights=weights * is_own)
    rest = np.bincount(rank, weights=weights * ~is_own)
    pairs = own.sum() * rest.sum()
    below = np.cumsum(rest) - rest / 2  # ties count half
    return float((own * below).sum() / pairs) if pairs > 0 else None


def _explained(batches: Iterator[_Batch], samples: Samples) -> Accuracy:
    """Return 1 - error / error of a constant answer (for SQNR: of answering zero)."""
    assert samples.labels is not None
    is_absolute = samples.metric is MetricName.MAE
    labels = samples.labels.reshape(len(samples), -1).astype(np.float64)
    if samples.metric is MetricName.SQNR:
        constant = np.zeros(labels.shape[1])
    else:
        constant = np.median(labels, axis=0) if is_absolute else labels.mean(axis=0)

    def distance(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        size = np.abs(values) if is_absolute else np.square(values)
        return np.asarray(size.mean(axis=1))

    errors, scales = [], []
    for batch in batches:
        truth = batch.labels.reshape(len(batch.labels), -1).astype(np.float64)
        answer = batch.outputs.reshape(len(batch.outputs), -1).astype(np.float64)
        if truth.shape != answer.shape:
            raise _misfit(samples, truth.shape[1], answer.shape[1])
        with np.errstate(invalid="ignore", over="ignore"):
            error = distance(answer - truth)
        errors.append(np.where(np.isfinite(error), error, _TOO_FAR))
        scales.append(distance(truth - constant))
    error, scale = np.concatenate(errors), np.concatenate(scales)

    def value(weights: Weights) -> float:
        whole, part = float(weights @ scale), float(weights @ error)
        if whole == 0.0:
            return 1.0 if part == 0.0 else 0.0
        return 1.0 - part / whole

    return bootstrap_accuracy(value, len(samples))


def _intersections(batches: Iterator[_Batch], samples: Samples) -> Accuracy:
    """Return the mean over classes (of labels or answers) of intersection over union."""
    assert samples.labels is not None
    width = max(_NO_CLASS, int(samples.labels.max())) + 1
    counts: list[npt.NDArray[np.int64]] = []
    for batch in batches:
        answer = dense_classes_of(batch.outputs, batch.labels.shape[1:], split=samples.name)
        for truth, found in zip(batch.labels, answer, strict=True):
            known = truth != _NO_CLASS
            own, given = truth[known], np.clip(found[known], 0, width - 1)
            agreed = np.bincount(own[own == given], minlength=width)
            both = np.bincount(own, minlength=width) + np.bincount(given, minlength=width)
            counts.append(np.stack([agreed, both]))
    table = np.stack(counts).astype(np.float64)

    def value(weights: Weights) -> float:
        agreed, both = np.tensordot(weights, table, axes=1)
        union = both - agreed
        seen = union > 0
        return float((agreed[seen] / union[seen]).mean()) if seen.any() else 0.0

    return bootstrap_accuracy(value, len(samples), cost=2 * table.shape[2])


def _agreement(batches: Iterator[_Batch], samples: Samples) -> Accuracy:
    """Return the share of samples, or the mean share of their places, with the original's class."""
    right = 0.0
    for batch in batches:
        if batch.labels.shape != batch.outputs.shape:
            sizes = (int(np.prod(a.shape[1:])) for a in (batch.labels, batch.outputs))
            raise _misfit(samples, *sizes)
        same = classes_of(batch.outputs) == classes_of(np.asarray(batch.labels, np.float32))
        is_number = np.isfinite(batch.outputs).reshape(len(same), -1).all(axis=1)
        right += float((same.mean(axis=1) * is_number).sum())
    return wilson_accuracy(right, len(samples))


def _misfit(samples: Samples, label_size: int, output_size: int) -> InvalidDatasetError:
    return InvalidDatasetError(
        f"a label of the {samples.name or 'given'} split has {label_size} values, "
        f"the model's output {output_size}",
        field=f"splits.{samples.name}.label",
        remedy="give labels of the shape of the model's first output",
    )


_METRICS: Mapping[MetricName, Callable[[Iterator[_Batch], Samples], Accuracy]] = {
    MetricName.TOP1: _among_best(1),
    MetricName.TOP5: _among_best(5),
    MetricName.F1: _f1,
    MetricName.AUC: _auc,
    MetricName.MAE: _explained,
    MetricName.MSE: _explained,
    MetricName.MIOU: _intersections,
    MetricName.AGREEMENT: _agreement,
    MetricName.SQNR: _explained,
}
