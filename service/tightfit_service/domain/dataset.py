"""Datasets: the manifest of arrays, splits, layout and preprocessing; no user code."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Task(enum.StrEnum):
    """What the labels mean."""

    CLASSIFICATION = "classification"
    """A class index per sample."""
    SEGMENTATION = "segmentation"
    """A class index per pixel."""
    REGRESSION = "regression"
    """A value, or an array of them, per sample: of the shape of the first output."""
    RECONSTRUCTION = "reconstruction"
    """The input itself: labels are the inputs (autoencoders)."""


class MetricName(enum.StrEnum):
    """A declared metric; accuracy everywhere in tightfit means this one's value.

    Every metric is a fraction in [0, 1], higher being better, so that budgets and comparisons mean
    the same for all of them; metrics of error become the share that is explained.
    """

    TOP1 = "top1"
    """Share of samples whose highest score is their label's."""
    TOP5 = "top5"
    """Share of samples whose label is among the five highest scores."""
    F1 = "f1"
    """Mean over the classes of the harmonic mean of precision and recall."""
    AUC = "auc"
    """Area under the receiver operating characteristic, mean over classes against the rest."""
    MAE = "mae"
    """1 - (mean absolute error) / (that of answering the median label always)."""
    MSE = "mse"
    """1 - (mean squared error) / (variance of the labels): the coefficient of determination."""
    MIOU = "miou"
    """Mean over the classes of intersection over union of dense labels; 255 is no class."""
    AGREEMENT = "agreement"
    """Share of samples (for dense outputs: places) on which the highest score is the original's."""
    SQNR = "sqnr"
    """1 - (squared difference to the original's outputs) / (their square): 0.99 is 20 dB."""

    @property
    def is_fidelity(self) -> bool:
        """Whether labels are the original model's outputs, and no truth."""
        return self in {MetricName.AGREEMENT, MetricName.SQNR}

    @property
    def is_error(self) -> bool:
        """Whether outputs are compared by value, and are no scores of classes."""
        return self in {MetricName.MAE, MetricName.MSE, MetricName.SQNR}

    @property
    def has_class_labels(self) -> bool:
        """Whether labels are class indices, of samples or of pixels."""
        return not self.is_fidelity and not self.is_error

    @property
    def is_dense(self) -> bool:
        """Whether labels are class indices of pixels."""
        return self is MetricName.MIOU


class Layout(enum.StrEnum):
    """Order of the axes of the stored inputs; ANY is for inputs that are no images."""

    NCHW = "NCHW"
    NHWC = "NHWC"
    ANY = "ANY"


class SplitName(enum.StrEnum):
    """The sets that are never mixed. SELECTION is held out by tightfit, not given by the user.

    UNLABELED holds further inputs for training, which only teachers answer for.
    """

    TRAIN = "train"
    CALIBRATION = "calibration"
    SELECTION = "selection"
    EVALUATION = "evaluation"
    UNLABELED = "unlabeled"


METRICS_OF_TASK: Mapping[Task, tuple[MetricName, ...]] = {
    Task.CLASSIFICATION: (
        MetricName.TOP1,
        MetricName.TOP5,
        MetricName.F1,
        MetricName.AUC,
        MetricName.AGREEMENT,
        MetricName.SQNR,
    ),
    Task.SEGMENTATION: (MetricName.MIOU, MetricName.AGREEMENT, MetricName.SQNR),
    Task.REGRESSION: (MetricName.MSE, MetricName.MAE, MetricName.SQNR),
    Task.RECONSTRUCTION: (MetricName.MSE, MetricName.MAE, MetricName.AUC, MetricName.SQNR),
}
"""What can be declared for a task, its default first. AUC of a reconstruction takes the error of
each sample as the score for its label 1 (anomaly detection)."""


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """Where the arrays of a split are.

    Attributes:
        input: Array of a model with one input; empty where `inputs` names several.
        label: Empty for unlabelled data.
        inputs: Array per name of a model's input.
    """

    input: str = ""
    label: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def input_arrays(self) -> Mapping[str, str]:
        """Array per input name, which is empty for a model's only input."""
        return self.inputs or {"": self.input}


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
class InputSpec:
    """What one named input's arrays hold."""

    layout: Layout = Layout.NCHW
    preprocess: Preprocess = Preprocess()


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """The content of `dataset.yaml`.

    Attributes:
        arrays: Array names to file names inside the uploaded archive; a single .npz is given as
            {"*": "file.npz"}.
        layout: Of the inputs that `inputs` does not name; so is `preprocess`.
        inputs: Layout and preprocessing of single inputs, by the name of the model's input.
        class_names: What the classes are called, in the order of the scores; empty where not said.
    """

    arrays: Mapping[str, str]
    splits: Mapping[str, SplitSpec]
    task: Task = Task.CLASSIFICATION
    layout: Layout = Layout.NCHW
    preprocess: Preprocess = Preprocess()
    metric: MetricName = MetricName.TOP1
    calibration: CalibrationSpec = CalibrationSpec()
    inputs: Mapping[str, InputSpec] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()

    def input_spec(self, name: str) -> InputSpec:
        """Return layout and preprocessing of an input."""
        return self.inputs.get(name) or InputSpec(layout=self.layout, preprocess=self.preprocess)
