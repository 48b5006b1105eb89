"""Networks with several inputs are trained as networks with one, and come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from fakes.networks import random_inputs, several_outputs
from tightfit_service.adapters.training import joined_inputs
from tightfit_service.adapters.training.joined_inputs import (
    has_several_inputs,
    join_inputs,
    join_samples,
    part_inputs,
)
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.ports import (
    RecoverySettings,
    Teachers,
    TrainingData,
)
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.dataset import Preprocess
from tightfit_service.domain.errors import InvalidDatasetError
from tightfit_service.passes.structured_pruning import StructuredPruningPass

GRAPH = several_outputs(0).SerializeToString()
NAMES = ("image", "other")


def _run(graph: bytes, feeds: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def _samples(count: int, *, seed: int = 0, name: str = "train") -> Samples:
    feeds = random_inputs(several_outputs(0), batch=count, seed=seed)
    return Samples(
        stored=feeds["image"],
        labels=None,
        preprocess=Preprocess(scale=0.5),
        name=name,
        input_name="image",
        others={"other": StoredInput(stored=feeds["other"])},
    )


def test_joined_inputs_compute_the_same() -> None:
    samples = _samples(5)
    joined = join_inputs(GRAPH)
    onnx.checker.check_model(onnx.load_model_from_string(joined), full_check=True)
    assert has_several_inputs(GRAPH)
    assert not has_several_inputs(joined)
    rows = join_samples(samples, NAMES, Path("unused")).inputs(slice(None))
    before = _run(GRAPH, samples.feeds(slice(None), NAMES))
    after = _run(joined, {joined_inputs.JOINED: rows})
    for want, got in zip(before, after, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_parting_brings_back_the_graph() -> None:
    parted = onnx.load_model_from_string(part_inputs(join_inputs(GRAPH), GRAPH))
    original = onnx.load_model_from_string(GRAPH)
    assert list(parted.graph.node) == list(original.graph.node)
    assert list(parted.graph.input) == list(original.graph.input)
    assert sorted(t.name for t in parted.graph.initializer) == sorted(
        t.name for t in original.graph.initializer
    )


def test_inputs_are_joined_in_a_given_order() -> None:
    """A teacher whose inputs come in another order reads the same samples."""
    model = onnx.load_model_from_string(GRAPH)
    inputs = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend(reversed(inputs))
    turned = model.SerializeToString()
    rows = join_samples(_samples(5), NAMES, Path("unused")).inputs(slice(None))
    joined = {joined_inputs.JOINED: rows}
    wanted = _run(join_inputs(GRAPH), joined)
    for own, other in zip(wanted, _run(join_inputs(turned, NAMES), joined), strict=True):
        np.testing.assert_array_equal(own, other)
    TorchTrainer(threads=1).check_teacher(turned, original=GRAPH, samples=_samples(5))


def test_large_sets_are_joined_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = join_samples(_samples(9), NAMES, tmp_path)
    monkeypatch.setattr(joined_inputs, "_IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(joined_inputs, "_CHUNK", 4)
    large = join_samples(_samples(9), NAMES, tmp_path)
    assert isinstance(large.stored, np.memmap)
    np.testing.assert_array_equal(large.stored, small.stored)


def test_samples_with_other_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDatasetError, match="'image', 'other'"):
        join_samples(_samples(3), ("image", "sound"), tmp_path)


def test_a_pruned_network_with_two_inputs_and_outputs_recovers(tmp_path: Path) -> None:
    passes = StructuredPruningPass()
    groups = passes.space(GRAPH).groups
    keep = {g.group_id: list(range((g.unit_count + 1) // 2)) for g in groups}
    cut = passes.apply(GRAPH, keep)
    found = TorchTrainer(threads=1).recover(
        cut,
        teachers=Teachers(original=GRAPH),
        data=TrainingData(train=_samples(256), selection=_samples(128, seed=1, name="selection")),
        settings=RecoverySettings(epochs=4, batch_size=32),
        cache_dir=tmp_path,
        on_progress=lambda _share, _message: None,
    )
    model = onnx.load_model_from_string(found.graph)
    assert [value.name for value in model.graph.input] == list(NAMES)
    assert not any(node.name.startswith(joined_inputs.JOINED) for node in model.graph.node)
    feeds = _samples(128, seed=2).feeds(slice(None), NAMES)
    original, before, after = (_run(graph, feeds) for graph in (GRAPH, cut, found.graph))

    def error(outputs: list[npt.NDArray[np.float32]]) -> float:
        return sum(
            float(np.square(a - b).mean() / b.var()) for a, b in zip(outputs, original, strict=True)
        )

    assert error(after) < 0.7 * error(before)
