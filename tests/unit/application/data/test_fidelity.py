"""Datasets without labels: the model's own answers stand for them, whatever is done to it later."""

from __future__ import annotations

import numpy as np

from tightfit_service.application.data.fidelity import AnsweredDataset
from tightfit_service.application.samples import ModelInputs, Samples
from tightfit_service.domain.dataset import DatasetManifest, MetricName, SplitName, SplitSpec
from tightfit_service.domain.quantities import Accuracy


class _Dataset:
    def __init__(self, samples: Samples) -> None:
        self.manifest = DatasetManifest(
            arrays={"*": "x.npz"},
            splits={"evaluation": SplitSpec(input="x")},
            metric=MetricName.AGREEMENT,
        )
        self._samples = samples

    def samples(self, split: SplitName) -> Samples | None:
        return None if split is SplitName.TRAIN else self._samples


class _Doubling:
    """A model that doubles its input, and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def outputs(self, data: bytes, inputs: ModelInputs) -> np.ndarray:
        assert data == b"original"
        assert not isinstance(inputs, np.ndarray)
        self.calls += 1
        return inputs["x"] * 2

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        raise AssertionError((data, samples))


def test_answers_of_the_original_stand_where_accuracy_is_measured() -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    evaluator = _Doubling()
    dataset = AnsweredDataset(
        dataset=_Dataset(Samples(stored=values, labels=None, metric=MetricName.AGREEMENT)),
        original=b"original",
        names=["x"],
        evaluator=evaluator,
    )
    for _ in range(2):
        evaluation = dataset.samples(SplitName.EVALUATION)
        assert evaluation is not None
        assert evaluation.labels is not None
        np.testing.assert_array_equal(evaluation.labels, values * 2)
        assert evaluation.metric is MetricName.AGREEMENT
    assert evaluator.calls == 1
    calibration = dataset.samples(SplitName.CALIBRATION)
    assert calibration is not None
    assert calibration.labels is None
    assert dataset.samples(SplitName.TRAIN) is None
