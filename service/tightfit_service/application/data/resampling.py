"""Samples of another size: images averaged over areas, as a device would shrink them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.domain.dataset import Layout
from tightfit_service.domain.errors import InvalidDatasetError

_CHUNK_VALUES = 16 << 20
"""Stored values converted at once (64 MiB of float32)."""


def resize_samples(samples: Samples, height: int, width: int) -> Samples:
    """Return the samples with images of another size, in the type they are stored in.

    Each pixel is the mean over the area it covers (OpenCV's INTER_AREA); where an axis grows, linear
    interpolation between pixel centres. Both are weighted means, so it does not matter that
    `preprocess`, which is linear per channel, comes after: a device has to average its camera's pixels
    the same way and normalise then, with the same figures. Whole-number types are rounded to the
    nearest, as a device that stores bytes does.

    The result is held in memory: `len(samples) * channels * height * width` values.

    Args:
        samples: Images, stored as (N, C, H, W) or (N, H, W, C) according to `layout`.
        height: In pixels, at least 1.
        width: In pixels, at least 1.

    Raises:
        InvalidDatasetError: The samples are no images.
    """
    stored = samples.stored
    if stored.ndim != 4 or samples.layout not in {Layout.NCHW, Layout.NHWC}:
        raise InvalidDatasetError(
            "only images can be resized",
            field="dataset.layout",
            remedy="give samples of shape (N, C, H, W) with layout NCHW, or (N, H, W, C) with NHWC",
        )
    first = 2 if samples.layout is Layout.NCHW else 1
    own = stored.shape[first : first + 2]
    if own == (height, width):
        return samples
    down, across = resampling_weights(own[0], height), resampling_weights(own[1], width)
    shape = (*stored.shape[:first], height, width, *stored.shape[first + 2 :])
    result = np.empty(shape, dtype=stored.dtype)
    step = max(1, _CHUNK_VALUES // max(1, int(np.prod(stored.shape[1:]))))
    for start in range(0, len(stored), step):
        part = np.moveaxis(np.asarray(stored[start : start + step]), (first, first + 1), (-2, -1))
        resized = np.moveaxis(
            down @ part.astype(np.float32) @ across.T, (-2, -1), (first, first + 1)
        )
        result[start : start + step] = _as_stored(resized, stored.dtype)
    return replace(samples, stored=result)


def resampling_weights(source: int, target: int) -> FloatArray:
    """Return the weights (target, source) that make a line of `target` pixels from `source` ones.

    Rows sum to 1: shares of the area covered where the line shrinks, linear interpolation between
    pixel centres with the edge repeated where it grows.
    """
    scale = source / target
    if target <= source:
        edges = np.arange(target + 1) * scale
        pixels = np.arange(source)
        overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return np.asarray(np.clip(overlap, 0.0, None) / scale, dtype=np.float32)
    centres = np.clip((np.arange(target) + 0.5) * scale - 0.5, 0, source - 1)
    left = np.minimum(np.floor(centres).astype(np.int64), source - 1)
    right = np.minimum(left + 1, source - 1)
    weights = np.zeros((target, source), dtype=np.float32)
    rows = np.arange(target)
    np.add.at(weights, (rows, left), 1 - (centres - left))
    np.add.at(weights, (rows, right), centres - left)
    return weights


def _as_stored(values: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[np.generic]:
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
