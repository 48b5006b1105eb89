"""A dataset of made-up inputs with a network's own answers (`ports.DataSynthesizer`)."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tightfit_service.adapters.training.scoring import answers_of
from tightfit_service.adapters.training.synthesis import Network, Synthesis
from tightfit_service.adapters.training.targets import DistilledTensor
from tightfit_service.adapters.training.teacher import Teacher
from tightfit_service.application.ports import ImportedModel
from tightfit_service.application.samples import FloatArray, LabelArray, Samples
from tightfit_service.domain.dataset import (
    CalibrationSpec,
    DatasetManifest,
    Layout,
    MetricName,
    SplitName,
    SplitSpec,
    Task,
)
from tightfit_service.domain.errors import UnsupportedError

_VERSION = 1
"""Of the way inputs are made; part of the key that they are kept under."""

_LEAST_SAMPLES = 128
_STEPS = 32
_WORK = 6e11
"""Multiply-accumulates spent on one network, the backward pass counted double: about a minute on one
core. A count instead of a time, so that the samples are the same on a busy machine."""

_SHARES = {
    SplitName.TRAIN: 0.5,
    SplitName.CALIBRATION: 0.125,
    SplitName.SELECTION: 0.125,
    SplitName.EVALUATION: 0.25,
}
_BATCH = 64


class SyntheticDataset:
    """Made-up samples, divided into splits (`ports.OpenDataset`)."""

    def __init__(self, *, manifest: DatasetManifest, samples: Mapping[SplitName, Samples]) -> None:
        """Keep the splits."""
        self._manifest, self._samples = manifest, samples

    @property
    def manifest(self) -> DatasetManifest:
        """A manifest as if the samples had been packed by a user."""
        return self._manifest

    def samples(self, split: SplitName) -> Samples | None:
        """Return a split."""
        return self._samples.get(split)


class NetworkSynthesizer:
    """Makes data from networks (`ports.DataSynthesizer`). One call at a time, as `TorchTrainer`."""

    def __init__(self, *, threads: int | None = None, most_samples: int = 1024) -> None:
        """Keep the settings.

        Args:
            threads: Threads to use; None leaves it to torch.
            most_samples: Samples made for a small network; large ones get fewer, to bound the time.
        """
        self._threads = threads
        self._most_samples = most_samples

    def dataset(self, model: ImportedModel, *, cache_dir: Path, seed: int) -> SyntheticDataset:
        """Return synthetic samples, half of them for training; made once and kept in `cache_dir`.

        Classifiers get class indices as labels and top-1 as metric, which then is agreement with
        the original; all others get the original's outputs and a metric of fidelity.

        Raises:
            UnsupportedError: Several inputs, an input that is no float or has a free size, or an
                operator that cannot be executed.
        """
        shape = _input_shape(model)
        count, steps = _extent(model.macs, self._most_samples)
        facts = f" {_VERSION} {seed} {count} {steps}"
        key = hashlib.sha256(model.graph + facts.encode()).hexdigest()
        path = cache_dir / f"synthetic-{key[:32]}.npz"
        network = Network(model.graph)
        if not path.exists():
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            synthesis = Synthesis(network=network, shape=shape, steps=steps)
            _store(path, synthesis.inputs(count, seed=seed))
        with np.load(path) as arrays:
            inputs = arrays["inputs"]
        labels, metric = self._answers(model.graph, network.targets, inputs)
        layout = Layout.NCHW if len(shape) == 3 else Layout.ANY
        whole = Samples(
            stored=inputs,
            labels=labels,
            layout=layout,
            model_layout=layout,
            metric=metric,
        )
        return SyntheticDataset(
            manifest=_manifest(layout, metric, network.targets[0]), samples=_divided(whole)
        )

    def _answers(
        self, graph: bytes, targets: tuple[DistilledTensor, ...], inputs: FloatArray
    ) -> tuple[LabelArray, MetricName]:
        first = targets[0]
        threads = self._threads or torch.get_num_threads()
        scores = _ask(Teacher(graph=graph, tensors=[first.name], threads=threads), inputs)
        if first.axis is not None and scores[0].size == scores.shape[first.axis]:
            return answers_of(scores), MetricName.TOP1
        outputs = _ask(Teacher(graph=graph, tensors=[first.output], threads=threads), inputs)
        metric = MetricName.SQNR if first.axis is None else MetricName.AGREEMENT
        return outputs, metric


def _ask(teacher: Teacher, inputs: FloatArray) -> npt.NDArray[np.float32]:
    parts = [
        teacher.logits(inputs[start : start + _BATCH]) for start in range(0, len(inputs), _BATCH)
    ]
    return np.concatenate(parts)


def _input_shape(model: ImportedModel) -> tuple[int, ...]:
    """Return the shape of one sample.

    Raises:
        UnsupportedError: The input cannot be synthesised.
    """
    why = ""
    if len(model.inputs) != 1:
        why = f"the model has {len(model.inputs)} inputs"
    elif not model.inputs[0].dtype.startswith("float"):
        why = f"the input {model.inputs[0].name!r} holds {model.inputs[0].dtype}, not floats"
    elif any(size < 1 for size in model.inputs[0].shape[1:]):
        why = f"the input {model.inputs[0].name!r} has sizes that are free besides the batch"
    if why:
        raise UnsupportedError(
            f"no data can be made up: {why}",
            field="dataset",
            remedy="give a dataset; some hundred unlabelled samples are enough",
        )
    return model.inputs[0].shape[1:]


def _extent(macs: int, most_samples: int) -> tuple[int, int]:
    """Return how many samples are made and in how many steps each, within the work allowed."""
    affordable = int(_WORK / (3 * max(macs, 1)) / _STEPS)
    count = min(most_samples, max(_LEAST_SAMPLES, affordable))
    steps = min(_STEPS, int(_WORK / (3 * max(macs, 1)) / count))
    return count // 8 * 8, max(steps, 4)


def _store(path: Path, inputs: FloatArray) -> None:
    """Write the file whole or not at all: other processes may look for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".draft")
    with os.fdopen(handle, "wb") as file:
        np.savez(file, inputs=inputs)
    Path(draft).replace(path)


def _divided(whole: Samples) -> dict[SplitName, Samples]:
    """Deal the samples out in turn, so that every split has every class."""
    places = np.arange(len(whole)) % 8
    ends = np.cumsum([round(8 * share) for share in _SHARES.values()])
    found, start = {}, 0
    # the places of one class would all fall to one split if classes were a multiple of 8
    turned = (places + np.arange(len(whole)) // 8) % 8
    for split, end in zip(_SHARES, ends, strict=True):
        chosen = np.flatnonzero((turned >= start) & (turned < end))
        found[split] = whole.take(chosen, name=split.value)
        start = int(end)
    return found


def _manifest(layout: Layout, metric: MetricName, target: DistilledTensor) -> DatasetManifest:
    task = Task.CLASSIFICATION
    if target.axis is None:
        task = Task.REGRESSION
    elif metric is MetricName.AGREEMENT:
        task = Task.SEGMENTATION
    names = [split.value for split in _SHARES if split is not SplitName.SELECTION]
    return DatasetManifest(
        arrays={"*": "synthetic.npz"},
        splits={name: SplitSpec(input=f"{name}_x", label=f"{name}_y") for name in names},
        task=task,
        layout=layout,
        metric=metric,
        calibration=CalibrationSpec(),
    )
