"""Data made up from networks: in range, diverse, smooth, good enough to calibrate on, kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper

from fakes.gratings import CLASSES, gratings, trained_depthwise
from fakes.networks import Builder, padded_shortcut, several_outputs
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.training.synthesis import Network, Synthesis, find_range, noise
from tightfit_service.adapters.training.synthetic_dataset import NetworkSynthesizer
from tightfit_service.application.ports import ImportedModel, QuantizationSettings, TensorSignature
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import MetricName, SplitName
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.passes.quantization import StaticQuantizationPass


def _imported(graph: bytes) -> ImportedModel:
    return OnnxImporter().import_model(graph)


def _for_inputs_times(graph: bytes, factor: float) -> bytes:
    """The same network for inputs that are larger by a factor."""
    model = onnx.load_model_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.name == "stem.w":
            smaller = (numpy_helper.to_array(tensor) / factor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(smaller, tensor.name))
    return model.SerializeToString()


def _agreement(graph: bytes, calibration: Samples, test: Samples) -> float:
    exported = (
        StaticQuantizationPass()
        .quantize(graph, calibration=calibration, settings=QuantizationSettings())
        .graph
    )
    evaluator = OnnxRuntimeEvaluator()
    inputs = test.inputs(slice(0, len(test)))
    answers = [evaluator.outputs(data, inputs).argmax(axis=1) for data in (graph, exported)]
    return float((answers[0] == answers[1]).mean())


@pytest.mark.parametrize("factor", [1.0, 64.0])
def test_calibrating_on_made_up_data_is_close_to_calibrating_on_real_data(
    factor: float, tmp_path: Path
) -> None:
    graph = _for_inputs_times(trained_depthwise(), factor)
    real, test = gratings(128, 4), gratings(512, 3)
    for samples in (real, test):
        samples.stored[...] = samples.inputs(slice(None)) * np.float32(factor)
    made_up = (
        NetworkSynthesizer(threads=1, most_samples=256)
        .dataset(_imported(graph), cache_dir=tmp_path, seed=0)
        .samples(SplitName.CALIBRATION)
    )
    assert made_up is not None
    wrong = Samples(stored=np.ones_like(real.stored) * 1e-3, labels=None)
    assert _agreement(graph, made_up, test) > _agreement(graph, real, test) - 0.05
    assert _agreement(graph, wrong, test) < 0.8  # calibration does matter here


def test_splits_are_apart_and_labelled_by_the_network(tmp_path: Path) -> None:
    graph = trained_depthwise()
    dataset = NetworkSynthesizer(threads=1, most_samples=128).dataset(
        _imported(graph), cache_dir=tmp_path, seed=0
    )
    seen: set[bytes] = set()
    counts = {
        SplitName.TRAIN: 64,
        SplitName.CALIBRATION: 16,
        SplitName.SELECTION: 16,
        SplitName.EVALUATION: 32,
    }
    assert dataset.samples(SplitName.UNLABELED) is None
    for split, count in counts.items():
        samples = dataset.samples(split)
        assert samples is not None
        assert len(samples) == count
        assert samples.metric is MetricName.TOP1
        assert OnnxRuntimeEvaluator().evaluate(graph, samples).value == 1.0
        rows = {row.tobytes() for row in samples.stored}
        assert not rows & seen
        seen |= rows
        assert samples.labels is not None
        if count >= 32:
            assert len(np.unique(samples.labels)) == CLASSES
    assert set(dataset.manifest.splits) == {"train", "calibration", "evaluation"}


def test_the_second_time_nothing_is_made(tmp_path: Path) -> None:
    model = _imported(trained_depthwise())
    synthesizer = NetworkSynthesizer(threads=1, most_samples=64)
    first = synthesizer.dataset(model, cache_dir=tmp_path, seed=0).samples(SplitName.TRAIN)
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    again = synthesizer.dataset(model, cache_dir=tmp_path, seed=0).samples(SplitName.TRAIN)
    other = synthesizer.dataset(model, cache_dir=tmp_path, seed=1).samples(SplitName.TRAIN)
    assert file.stat().st_mtime_ns == stamp
    assert first is not None
    assert again is not None
    assert other is not None
    np.testing.assert_array_equal(first.stored, again.stored)
    assert not np.array_equal(first.stored, other.stored)


def test_inputs_match_the_statistics_of_batch_norms() -> None:
    network = Network(padded_shortcut(1).SerializeToString())
    shape = (3, 8, 8)
    start = torch.from_numpy(noise(64, shape, np.random.default_rng(0)))
    span = find_range(network, start)
    made = Synthesis(network=network, shape=shape, steps=16).inputs(64, seed=0)
    with torch.no_grad():
        before = torch.stack(network.run(start * span.deviation + span.mean)[1]).mean()
        after = torch.stack(network.run(torch.from_numpy(made))[1]).mean()
    assert float(after) < 0.9 * float(before)


def _autoencoder() -> ModelProto:
    b = Builder(0)
    x = b.node("relu", "Relu", [b.gemm("down", b.input("input", (12,)), 12, 6)])
    return b.model({b.gemm("up", x, 6, 12): (12,)})


def _segmenter() -> ModelProto:
    b = Builder(0)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 6)
    return b.model({b.conv("classes", x, 6, 4, relu=False): (4, 8, 8)})


@pytest.mark.parametrize(
    ("make", "metric"), [(_autoencoder, MetricName.SQNR), (_segmenter, MetricName.AGREEMENT)]
)
def test_other_networks_are_labelled_by_their_outputs(
    make: type, metric: MetricName, tmp_path: Path
) -> None:
    graph = make().SerializeToString()
    samples = (
        NetworkSynthesizer(threads=1, most_samples=64)
        .dataset(_imported(graph), cache_dir=tmp_path, seed=0)
        .samples(SplitName.EVALUATION)
    )
    assert samples is not None
    assert samples.metric is metric
    assert samples.labels is not None
    expected = OnnxRuntimeEvaluator().outputs(graph, samples.inputs(slice(0, len(samples))))
    np.testing.assert_allclose(samples.labels, expected, rtol=1e-4, atol=1e-5)
    assert samples.labels.std() > 0


def test_noise_for_images_is_smooth() -> None:
    random = np.random.default_rng(0)
    image, signal = noise(32, (3, 16, 16), random), noise(32, (64,), random)
    for values in (image, signal):
        assert values.mean() == pytest.approx(0.0, abs=1e-5)
        assert values.std() == pytest.approx(1.0, abs=1e-5)
    neighbours = np.corrcoef(image[..., 1:].ravel(), image[..., :-1].ravel())[0, 1]
    assert neighbours > 0.5
    assert abs(np.corrcoef(signal[:, 1:].ravel(), signal[:, :-1].ravel())[0, 1]) < 0.1


def test_several_inputs_are_refused(tmp_path: Path) -> None:
    model = _imported(several_outputs(0).SerializeToString())
    with pytest.raises(UnsupportedError, match="2 inputs") as caught:
        NetworkSynthesizer().dataset(model, cache_dir=tmp_path, seed=0)
    assert caught.value.field == "dataset"


@pytest.mark.parametrize(
    ("signature", "why"),
    [
        (TensorSignature(name="ids", shape=(-1, 4), dtype="int64"), "int64"),
        (TensorSignature(name="input", shape=(-1, 1, -1, 8), dtype="float32"), "free"),
    ],
)
def test_inputs_that_cannot_be_made_up_are_refused(
    signature: TensorSignature, why: str, tmp_path: Path
) -> None:
    model = replace(_imported(padded_shortcut(1).SerializeToString()), inputs=(signature,))
    with pytest.raises(UnsupportedError, match=why) as caught:
        NetworkSynthesizer().dataset(model, cache_dir=tmp_path, seed=0)
    assert caught.value.field == "dataset"
