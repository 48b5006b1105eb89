"""Tests of measured precision: the layer that suffers is the one that is told."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fakes.networks import NETWORKS
from tightfit_service.adapters.formats.onnx_execution import run_feeds
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidDatasetError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.passes.precision_sensitivity import precision_sensitivity


def samples_for(name: str, count: int = 96) -> Samples:
    model = NETWORKS[name](0)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    stored = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
    return Samples(stored=stored, labels=None)


class Agreement:
    """Share of samples with the class that the float graph gives; counts how often it is asked."""

    def __init__(self, name: str) -> None:
        self.graph = NETWORKS[name](0).SerializeToString()
        self.samples = samples_for(name)
        self.feeds = {"input": self.samples.inputs(slice(None))}
        self.classes = run_feeds(self.graph, self.feeds)[0].argmax(axis=1)
        self.calls = 0

    def __call__(self, graph: bytes) -> float:
        self.calls += 1
        return float((run_feeds(graph, self.feeds)[0].argmax(axis=1) == self.classes).mean())


@pytest.mark.parametrize("name", ["plain_cnn", "residual", "depthwise"])
def test_every_layer_is_measured_alone_and_kept_out(name: str) -> None:
    score = Agreement(name)
    found = precision_sensitivity(
        score.graph,
        calibration=score.samples,
        score=score,
        settings=QuantizationSettings(),
    )
    assert found.float_accuracy == 1.0
    assert found.quantized_accuracy > 0.9
    assert score.calls == 2 * len(found.layers) + 2
    for layer in found.layers:
        assert layer.number_format is NumberFormat.INT8
        assert 20.0 < layer.sqnr_db < 70.0
        assert found.drop_alone(layer) <= 0.1


def test_fewer_bits_have_more_noise() -> None:
    score = Agreement("residual")
    ratios = []
    for number_format in (
        NumberFormat.INT4,
        NumberFormat.INT8,
        NumberFormat.INT16X8,
        NumberFormat.FLOAT16,
    ):
        found = precision_sensitivity(
            score.graph,
            calibration=score.samples,
            score=score,
            settings=QuantizationSettings(number_format=number_format),
        )
        ratios.append([layer.sqnr_db for layer in found.layers])
    for worse, better in itertools.pairwise(ratios):
        assert all(a < b for a, b in zip(worse, better, strict=True))


def test_the_layer_in_few_bits_is_the_one_that_costs() -> None:
    score = Agreement("residual")
    formats = {"a.conv2": NumberFormat.INT4}
    messages: list[tuple[float, str]] = []
    found = precision_sensitivity(
        score.graph,
        calibration=score.samples,
        score=score,
        settings=QuantizationSettings(node_formats=formats),
        on_progress=lambda share, text: messages.append((share, text)),
    )
    worst = min(found.layers, key=lambda layer: layer.sqnr_db)
    assert worst.node == "a.conv2"
    assert worst.number_format is NumberFormat.INT4
    assert found.gain_in_float(worst) >= 0.0
    assert messages[0] == (0.0, "precision of stem")


def test_layers_in_float_and_unnamed_ones_are_left_out() -> None:
    score = Agreement("residual")
    settings = QuantizationSettings(node_formats={"stem": NumberFormat.FLOAT32})
    found = precision_sensitivity(
        score.graph,
        calibration=score.samples,
        score=score,
        settings=settings,
        nodes=["stem", "fc"],
    )
    assert [layer.node for layer in found.layers] == ["fc"]


def test_samples_are_needed() -> None:
    score = Agreement("mlp")
    with pytest.raises(InvalidDatasetError):
        precision_sensitivity(
            score.graph,
            calibration=samples_for("mlp", 0),
            score=score,
            settings=QuantizationSettings(),
        )
