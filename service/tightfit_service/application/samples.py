"""Samples of a dataset split: stored arrays that become model inputs batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tightfit_service.domain.dataset import Layout, Preprocess

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Inputs as stored (any dtype, samples first) with labels and the way to model inputs.

    The stored array may be memory-mapped; nothing is converted before a batch is asked for.

    Attributes:
        stored: Array of shape (N, ...) in `layout`.
        labels: Class indices of shape (N,), or None for unlabelled data.
        model_layout: Order of axes that the working graph's input wants: NCHW for images, ANY as is.
        name: For messages: the split this came from.
    """

    stored: npt.NDArray[np.generic]
    labels: IntArray | None
    preprocess: Preprocess = field(default_factory=Preprocess)
    layout: Layout = Layout.NCHW
    model_layout: Layout = Layout.NCHW
    name: str = ""

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self.stored.shape[0])

    def inputs(self, indices: slice | Sequence[int] | IntArray) -> FloatArray:
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

    def batches(self, size: int) -> Iterator[tuple[FloatArray, IntArray | None]]:
        """Yield all samples in order as (inputs, labels) of at most `size` each."""
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield self.inputs(part), None if self.labels is None else self.labels[part]

    def take(self, indices: Sequence[int] | IntArray, *, name: str = "") -> Samples:
        """Return the given samples as a set of its own."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Samples(
            stored=self.stored[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            preprocess=self.preprocess,
            layout=self.layout,
            model_layout=self.model_layout,
            name=name or self.name,
        )
