"""Datasets: the manifest of arrays, splits, layout and preprocessing; no user code."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Task(enum.StrEnum):
    """What the labels mean."""

    CLASSIFICATION = "classification"


class MetricName(enum.StrEnum):
    """A declared metric; accuracy everywhere in tightfit means this one's value."""

    TOP1 = "top1"


class Layout(enum.StrEnum):
    """Order of the axes of the stored inputs; ANY is for inputs that are no images."""

    NCHW = "NCHW"
    NHWC = "NHWC"
    ANY = "ANY"


class SplitName(enum.StrEnum):
    """The sets that are never mixed. SELECTION is held out by tightfit, not given by the user."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    SELECTION = "selection"
    EVALUATION = "evaluation"


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """Where the arrays of a split are; `label` is empty for unlabelled data."""

    input: str
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class CalibrationSpec:
    """Calibration samples are taken from another split."""

    source: str = "train"
    count: int = 256


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Maps stored values to what the model expects: `x * scale`, then `(x - mean) / std` per channel.

    Empty `mean` and `std` mean 0 and 1.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """The content of `dataset.yaml`.

    `arrays` maps array names to file names inside the uploaded archive; a single .npz is given as
    {"*": "file.npz"}.
    """

    arrays: Mapping[str, str]
    splits: Mapping[str, SplitSpec]
    task: Task = Task.CLASSIFICATION
    layout: Layout = Layout.NCHW
    preprocess: Preprocess = Preprocess()
    metric: MetricName = MetricName.TOP1
    calibration: CalibrationSpec = CalibrationSpec()
