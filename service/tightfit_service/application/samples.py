"""Samples of a dataset split: stored arrays that become model inputs batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tightfit_service.domain.dataset import Layout, MetricName, Preprocess, Task
from tightfit_service.domain.errors import InvalidDatasetError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
LabelArray = npt.NDArray[Any]
"""int64 class indices or float32 values; which of them, the metric says."""
ModelInputs = FloatArray | Mapping[str, FloatArray]
"""A batch for a model: the array of its only input, or arrays by the names of its inputs."""
Indices = slice | Sequence[int] | IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredInput:
    """One input of all samples as stored (any dtype, samples first), and the way to the model's input.

    Attributes:
        stored: Array of shape (N, ...) in `layout`; it may be memory-mapped.
        model_layout: Order of axes that the working graph's input wants: NCHW for images, ANY as is.
    """

    stored: npt.NDArray[np.generic]
    preprocess: Preprocess = field(default_factory=Preprocess)
    layout: Layout = Layout.NCHW
    model_layout: Layout = Layout.NCHW

    def batch(self, indices: Indices) -> FloatArray:
        """Return preprocessed float32 inputs of the given samples, shape (n, C, H, W) for images.

        Preprocessing is `x * scale`, then `(x - mean) / std` per channel, in float32.
        """
        batch = np.asarray(self.stored[indices])
        if batch.ndim == 4 and self.layout is Layout.NHWC and self.model_layout is Layout.NCHW:
            batch = batch.transpose(0, 3, 1, 2)
        elif batch.ndim == 4 and self.layout is Layout.NCHW and self.model_layout is Layout.NHWC:
            batch = batch.transpose(0, 2, 3, 1)
        result = batch.astype(np.float32)
        if self.preprocess.scale != 1.0:
            result *= np.float32(self.preprocess.scale)
        axis = -1 if self.model_layout is Layout.NHWC or result.ndim < 3 else 1
        shape = [1] * result.ndim
        shape[axis] = -1
        if any(self.preprocess.mean):
            result -= np.asarray(self.preprocess.mean, dtype=np.float32).reshape(shape)
        if self.preprocess.std and any(s != 1.0 for s in self.preprocess.std):
            result /= np.asarray(self.preprocess.std, dtype=np.float32).reshape(shape)
        return np.ascontiguousarray(result)


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Inputs as stored with labels and the way to model inputs.

    The stored arrays may be memory-mapped; nothing is converted before a batch is asked for. Most
    models have one input, which `stored` feeds; further ones are in `others`.

    Attributes:
        stored: Array of shape (N, ...) in `layout`: the model's only input, or the first one.
        labels: As `metric` wants them, or None for unlabelled data: class indices of shape (N,);
            class indices per pixel (N, H, W); values, or the original's outputs, of the shape of
            the first output.
        model_layout: Order of axes that the working graph's input wants: NCHW for images, ANY as is.
        name: For messages: the split this came from.
        metric: What accuracy on these samples means.
        task: What the model's first output is.
        input_name: Which of the model's inputs `stored` feeds; may be empty where there is one.
        others: The model's further inputs by name, as many samples each.
    """

    stored: npt.NDArray[np.generic]
    labels: LabelArray | None
    preprocess: Preprocess = field(default_factory=Preprocess)
    layout: Layout = Layout.NCHW
    model_layout: Layout = Layout.NCHW
    name: str = ""
    metric: MetricName = MetricName.TOP1
    task: Task = Task.CLASSIFICATION
    input_name: str = ""
    others: Mapping[str, StoredInput] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self.stored.shape[0])

    @property
    def class_labels(self) -> IntArray | None:
        """Labels that a loss over class scores can use, of samples or pixels, or None."""
        has_scores = self.task in {Task.CLASSIFICATION, Task.SEGMENTATION}
        return self.labels if has_scores and self.metric.has_class_labels else None

    @property
    def first(self) -> StoredInput:
        """The model's only input, or the first one."""
        return StoredInput(
            stored=self.stored,
            preprocess=self.preprocess,
            layout=self.layout,
            model_layout=self.model_layout,
        )

    @property
    def by_input(self) -> Mapping[str, StoredInput]:
        """All inputs by name; the name is empty where it was not said."""
        return {self.input_name: self.first, **self.others}

    def inputs(self, indices: Indices) -> FloatArray:
        """Return the first input of the given samples, as `StoredInput.batch`."""
        return self.first.batch(indices)

    def feeds(self, indices: Indices, names: Sequence[str]) -> dict[str, FloatArray]:
        """Return all inputs of the given samples, in the order of the model's input names.

        Raises:
            InvalidDatasetError: These samples have other inputs than the model.
        """
        known = self.by_input
        if len(names) == 1 and len(known) == 1:
            return {names[0]: self.inputs(indices)}
        if set(known) != set(names):
            raise InvalidDatasetError(
                f"the {self.name or 'given'} split has the inputs {_listed(known)}, "
                f"the model {_listed(names)}",
                field=f"splits.{self.name}.input" if self.name else "dataset",
                remedy="name an array for each of the model's inputs",
            )
        return {name: known[name].batch(indices) for name in names}

    def batches(self, size: int) -> Iterator[tuple[FloatArray, LabelArray | None]]:
        """Yield all samples in order as (first input, labels) of at most `size` each."""
        for part in self._parts(size):
            yield self.inputs(part), None if self.labels is None else self.labels[part]

    def feed_batches(
        self, size: int, names: Sequence[str]
    ) -> Iterator[tuple[dict[str, FloatArray], LabelArray | None]]:
        """Yield all samples in order as (`feeds`, labels) of at most `size` each."""
        for part in self._parts(size):
            yield self.feeds(part, names), None if self.labels is None else self.labels[part]

    def take(self, indices: Sequence[int] | IntArray, *, name: str = "") -> Samples:
        """Return the given samples as a set of its own."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            stored=self.stored[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            others={k: replace(v, stored=v.stored[chosen]) for k, v in self.others.items()},
            name=name or self.name,
        )

    def judged(self, labels: LabelArray | None, metric: MetricName) -> Samples:
        """Return the same inputs judged otherwise, such as by fidelity to the original's outputs."""
        return replace(self, labels=labels, metric=metric)

    def answered(
        self,
        run: Callable[[Mapping[str, FloatArray]], FloatArray],
        names: Sequence[str],
        *,
        batch_size: int = 256,
    ) -> Samples:
        """Return the same samples with a model's first outputs as labels, which fidelity is held against.

        Args:
            run: Maps inputs by name to the first output, shape (n, ...).
            names: The model's inputs, in order.
            batch_size: Most samples given to `run` at once.
        """
        answers = [run(feeds) for feeds, _ in self.feed_batches(batch_size, names)]
        return self.judged(np.concatenate(answers), self.metric)

    def _parts(self, size: int) -> Iterator[slice]:
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


def _listed(names: Sequence[str] | Mapping[str, StoredInput]) -> str:
    return ", ".join(repr(name) if name else "(one without a name)" for name in names)
