"""Inputs that are made up, for models of which only the speed matters."""

from __future__ import annotations

from typing import Any

import numpy as np

SEED = 20


def made_up(shape: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Return seeded random numbers: standard normal floats, integers over the range of small types."""
    random = np.random.default_rng(SEED)
    sizes = [size if isinstance(size, int) and size > 0 else 1 for size in shape]
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return random.standard_normal(sizes).astype(kind)
    if kind.kind == "b":
        return random.integers(0, 2, sizes).astype(kind)
    if kind.kind in "iu":
        # Wide integers are indices or lengths more often than not.
        span = np.iinfo(kind) if kind.itemsize < 4 else None
        low, high = (span.min, span.max + 1) if span is not None else (0, 2)
        return random.integers(low, high, sizes).astype(kind)
    raise ValueError(f"inputs of type {kind} cannot be made up")
