"""Batches computed in parts: the gradient is that of the whole, and parameters are shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto

from fakes.networks import Builder, mlp, padded_shortcut, plain_cnn
from fakes.recoveries import halved, samples_of
from tightfit_service.adapters.training import session
from tightfit_service.adapters.training.batch_shards import Figures, shards_of
from tightfit_service.adapters.training.learner import Learner
from tightfit_service.adapters.training.module import build_module
from tightfit_service.adapters.training.number_format import TrainingFormat, fastest_format
from tightfit_service.adapters.training.targets import find_targets
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.adapters.training.training_set import Batch
from tightfit_service.application.ports import (
    RecoveryResult,
    RecoverySettings,
    Teachers,
    TrainingData,
)

THREADS = 2


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def _learner(model: ModelProto, shards: int) -> Learner:
    graph = model.SerializeToString()
    return Learner(
        module=build_module(graph),
        targets=find_targets(graph),
        form=TrainingFormat(shards=shards),
    )


def _batch(model: ModelProto, count: int) -> Batch:
    samples = samples_of(model, count, 3)
    assert samples.labels is not None
    return Batch(
        inputs=samples.stored.astype(np.float32),
        answers=((np.zeros((count, 1), np.float32),),),
        labels=samples.labels[:, None],
    )


def _squares(learner: Learner, batch: Batch) -> tuple[torch.Tensor, Figures]:
    # with running statistics: those of a batch are of its part alone
    loss = learner.outputs(batch.inputs)[0].square().mean()
    return loss, (float(loss.detach()), float(batch.labels.mean()))


def _gradients(learner: Learner, batch: Batch) -> tuple[Figures, list[torch.Tensor]]:
    with shards_of(learner) as shards:
        told = shards.gradients(batch, learner.parameters(), _squares)
    found = [p.grad for p in learner.parameters()]
    return told, [gradient for gradient in found if gradient is not None]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("count", [64, 33])
def test_the_gradient_is_that_of_the_whole_batch(count: int) -> None:
    model = plain_cnn(1)
    batch = _batch(model, count)
    whole, parted = (_gradients(_learner(model, shards), batch) for shards in (1, 2))
    assert parted[0] == pytest.approx(whole[0], rel=1e-5)
    assert len(whole[1]) == len(parted[1]) == len(_learner(model, 1).parameters())
    for one, other in zip(whole[1], parted[1], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("two_threads")
def test_a_batch_of_one_sample_is_one_part() -> None:
    model = plain_cnn(1)
    batch = _batch(model, 1)
    assert _gradients(_learner(model, 2), batch)[0] == pytest.approx(
        _gradients(_learner(model, 1), batch)[0]
    )


def test_copies_share_parameters_but_no_statistics() -> None:
    learner = _learner(padded_shortcut(1), 2)
    copy = learner.sharing()
    for one, other in zip(learner.parameters(), copy.parameters(), strict=True):
        assert one is other
    before = [mean.clone() for mean, _ in learner.module.statistics()]
    assert before
    copy.outputs(_batch(padded_shortcut(1), 16).inputs + 5, training=True)
    for old, (mean, _), (moved, _) in zip(
        before, learner.module.statistics(), copy.module.statistics(), strict=True
    ):
        torch.testing.assert_close(mean, old)
        assert not torch.equal(moved, old)


@pytest.mark.usefixtures("two_threads")
def test_nodes_without_gradient_run_in_all_parts() -> None:
    b = Builder(0)
    x = b.conv("before", b.input("input", (3, 8, 8)), 3, 8)
    x = b.conv("behind", b.node("middle", "Hardmax", [x], axis=1), 8, 8)
    model = b.model({b.head(x, 8): (5,)})
    learner, batch = _learner(model, 2), _batch(model, 64)
    learner.outputs(batch.inputs)  # opens the session of the node
    assert list(learner.module.frozen_nodes) == ["middle"]
    parted = _gradients(learner, batch)
    assert parted[0] == pytest.approx(_gradients(_learner(model, 1), batch)[0], rel=1e-5)
    assert parted[1]


@pytest.mark.usefixtures("two_threads")
def test_threads_are_given_back() -> None:
    learner = _learner(plain_cnn(1), 2)

    def threads_of_each(_learner: Learner, _batch: Batch) -> tuple[torch.Tensor, Figures]:
        return _squares(_learner, _batch)[0], (float(torch.get_num_threads()),)

    with shards_of(learner) as shards:
        told = shards.gradients(_batch(plain_cnn(1), 8), learner.parameters(), threads_of_each)
    assert told == (1.0,)
    assert torch.get_num_threads() == THREADS


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("model", "samples", "shards"),
    [(plain_cnn(1), 128, 2), (plain_cnn(1), 63, 1), (mlp(1), 128, 1)],
)
def test_batches_of_images_go_in_parts_large_enough(
    model: ModelProto, samples: int, shards: int
) -> None:
    learner = _learner(model, 1)
    inputs = _batch(model, samples).inputs
    form = fastest_format(learner.module, learner.targets[0].name, inputs)
    assert form.shards == shards


@pytest.mark.usefixtures("two_threads")
def test_the_same_seed_gives_the_same_bytes_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_PROBE_FROM_STEPS", 1)
    asked = 0

    def in_parts(*_: object) -> TrainingFormat:
        nonlocal asked
        asked += 1
        return TrainingFormat(shards=2)

    monkeypatch.setattr(session, "fastest_format", in_parts)
    model = padded_shortcut(1)

    def trained() -> RecoveryResult:
        return TorchTrainer(threads=THREADS).recover(
            halved(model),
            teachers=Teachers(original=model.SerializeToString()),
            data=TrainingData(train=samples_of(model, 256, 1), selection=samples_of(model, 128, 2)),
            settings=RecoverySettings(epochs=3, batch_size=64),
            cache_dir=tmp_path,
            on_progress=lambda _share, _message: None,
        )

    one, other = trained(), trained()
    assert asked == 2
    assert one.graph == other.graph
    onnx.checker.check_model(onnx.load_model_from_string(one.graph))
    scores = [entry["selection_accuracy"] for entry in one.history]
    assert scores[-1] > scores[0]
