"""Importance predicts what the loss gains when a unit is removed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from scipy.stats import spearmanr

from fakes.networks import NETWORKS, Builder, plain_cnn, random_inputs, residual
from tightfit_service.adapters.training.teacher import Teacher
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.dataset import Layout
from tightfit_service.graph.logits import find_logits
from tightfit_service.passes.structured_pruning import StructuredPruningPass


def _samples(model: ModelProto, count: int = 128) -> Samples:
    (name, stored), *others = random_inputs(model, batch=count).items()
    layout = Layout.NCHW if stored.ndim == 4 else Layout.ANY
    return Samples(
        stored=stored,
        labels=None,
        layout=layout,
        model_layout=layout,
        input_name=name,
        others={key: StoredInput(stored=value) for key, value in others},
    )


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_every_unit_has_a_finite_importance(make: Callable[[int], ModelProto]) -> None:
    model = make(0)
    graph = model.SerializeToString()
    space = StructuredPruningPass().space(graph)
    found = TorchTrainer(threads=1).importance(graph, space, _samples(model, 32), seed=0)
    assert {key: len(values) for key, values in found.items()} == {
        group.group_id: group.unit_count for group in space.groups
    }
    for values in found.values():
        assert np.isfinite(values).all()
        assert min(values) >= 0.0
        assert max(values) > 0.0


@pytest.mark.parametrize("make", [plain_cnn, residual])
def test_importance_ranks_units_by_what_removal_costs(make: Callable[[int], ModelProto]) -> None:
    model = make(0)
    graph = model.SerializeToString()
    passes = StructuredPruningPass()
    space = passes.space(graph)
    samples = _samples(model, 128)
    found = TorchTrainer(threads=1).importance(graph, space, samples, seed=0)

    def log_chances(of: bytes) -> np.ndarray:
        logits = Teacher(graph=of, tensors=[find_logits(model)], threads=1).logits(
            samples.inputs(slice(None))
        )
        rows = logits.reshape(len(samples), -1).astype(np.float64)
        return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))

    before = log_chances(graph)
    predicted, seen = [], []
    for group in space.groups:
        for unit in range(group.unit_count):
            keep = [u for u in range(group.unit_count) if u != unit]
            after = log_chances(passes.apply(graph, {group.group_id: keep}))
            seen.append(float((np.exp(before) * (before - after)).sum(axis=1).mean()))
            predicted.append(found[group.group_id][unit])
    assert spearmanr(predicted, seen)[0] > 0.75


def test_a_unit_that_nobody_listens_to_has_none() -> None:
    model = plain_cnn(0)
    graph = model.SerializeToString()
    group = StructuredPruningPass().space(graph).groups[0]
    reader = next(n for n in model.graph.node if n.name == group.consumers[-1])
    tensors = {t.name: t for t in model.graph.initializer}
    weight = numpy_helper.to_array(tensors[reader.input[1]]).copy()
    weight[:, 1] = 0.0
    tensors[reader.input[1]].CopyFrom(numpy_helper.from_array(weight, reader.input[1]))
    deaf = model.SerializeToString()
    assert onnx.load_model_from_string(deaf).graph.node
    space = StructuredPruningPass().space(deaf)
    found = TorchTrainer(threads=1).importance(deaf, space, _samples(model), seed=0)
    assert found[group.group_id][1] == pytest.approx(0.0, abs=1e-12)
    assert found[group.group_id][0] > 0.0


def test_the_same_seed_gives_the_same_importance() -> None:
    model = plain_cnn(0)
    graph = model.SerializeToString()
    space = StructuredPruningPass().space(graph)
    trainer = TorchTrainer(threads=1)
    one = trainer.importance(graph, space, _samples(model), seed=3)
    assert one == trainer.importance(graph, space, _samples(model), seed=3)
    assert one != trainer.importance(graph, space, _samples(model), seed=4)


def test_all_outputs_count() -> None:
    """What only a second output listens to is missed as well."""
    b = Builder(0)
    x = b.conv("stem", b.input("input", (3, 6, 6)), 3, 4)
    classes = b.head(b.conv("left", x, 4, 6), 6)
    values = b.conv("boxes", b.conv("right", x, 4, 6), 6, 8, stride=2, relu=False)
    model = b.model({classes: (5,), values: (8, 3, 3)})
    graph = model.SerializeToString()
    space = StructuredPruningPass().space(graph)
    found = TorchTrainer(threads=1).importance(graph, space, _samples(model), seed=0)
    assert min(found["right"]) > 0.0
    assert min(found["left"]) > 0.0
