"""Packed datasets for tests: archives as the client makes them, and hostile ones."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


def image_arrays(
    *, train_count: int = 40, test_count: int = 20, class_count: int = 4, seed: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """Return byte images of shape (n, 3, 6, 5) whose labels go round."""
    rng = np.random.default_rng(seed)
    return {
        "train_x": rng.integers(0, 256, (train_count, 3, 6, 5), dtype=np.uint8),
        "train_y": np.arange(train_count, dtype=np.int64) % class_count,
        "test_x": rng.integers(0, 256, (test_count, 3, 6, 5), dtype=np.uint8),
        "test_y": np.arange(test_count, dtype=np.int64) % class_count,
    }


def manifest(**changes: Any) -> dict[str, Any]:
    """Return a manifest over the arrays of `image_arrays` in one .npz, with changes."""
    document: dict[str, Any] = {
        "version": 1,
        "task": "classification",
        "arrays": {"*": "arrays/data.npz"},
        "splits": {
            "train": {"input": "train_x", "label": "train_y"},
            "evaluation": {"input": "test_x", "label": "test_y"},
        },
        "calibration": {"from": "train", "count": 8},
        "layout": "NCHW",
        "preprocess": {"scale": 1.0, "mean": [], "std": []},
        "metric": "top1",
    }
    document.update(changes)
    return document


def npz_bytes(arrays: Arrays, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a .npz of the arrays."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, value in arrays.items():
            archive.writestr(f"{name}.npy", npy_bytes(value))
    return stream.getvalue()


def npy_bytes(value: npt.NDArray[Any], *, allow_pickle: bool = False) -> bytes:
    """Return a .npy of one array."""
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=allow_pickle)
    return stream.getvalue()


def pack(
    path: Path,
    arrays: Arrays,
    *,
    document: Mapping[str, Any] | None = None,
    compression: int = zipfile.ZIP_STORED,
    inner_compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write an archive with all arrays in one .npz, and return its path."""
    members = {"arrays/data.npz": npz_bytes(arrays, compression=inner_compression)}
    return pack_members(path, members, document=document, compression=compression)


def pack_members(
    path: Path,
    members: Mapping[str, bytes],
    *,
    document: Mapping[str, Any] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write an archive with the given members beside its manifest, and return its path."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("manifest.json", json.dumps(document or manifest()))
        for name, data in members.items():
            archive.writestr(name, data)
    return path
