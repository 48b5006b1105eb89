"""Importance predicts what the loss gains when a unit is removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from scipy.stats import spearmanr

from fakes.logits import find_logits
from fakes.networks import NETWORKS, Builder, plain_cnn, random_inputs, residual
from tightfit_service.adapters.training.teacher import Teacher
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.adapters.training.weight_magnitude import weight_magnitude
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.dataset import Layout
from tightfit_service.domain.network import ChannelGroup, ImportanceCriterion
from tightfit_service.graph.batch_norm import affine_of
from tightfit_service.graph.structure import initializers
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


def _log_chances(graph: bytes, samples: Samples) -> np.ndarray:
    tensor = find_logits(onnx.load_model_from_string(graph))
    logits = Teacher(graph=graph, tensors=[tensor], threads=1).logits(samples.inputs(slice(None)))
    rows = logits.reshape(len(samples), -1).astype(np.float64)
    return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("criterion", ImportanceCriterion)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_every_unit_has_a_finite_importance(
    make: Callable[[int], ModelProto], criterion: ImportanceCriterion
) -> None:
    model = make(0)
    graph = model.SerializeToString()
    space = StructuredPruningPass().space(graph)
    found = TorchTrainer(threads=1).importance(
        graph, space, _samples(model, 32), seed=0, criterion=criterion
    )
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

    before = _log_chances(graph, samples)
    predicted, seen = [], []
    for group in space.groups:
        for unit in range(group.unit_count):
            keep = [u for u in range(group.unit_count) if u != unit]
            after = _log_chances(passes.apply(graph, {group.group_id: keep}), samples)
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


def _gate_gradients(model: ModelProto, samples: Samples, group: ChannelGroup) -> np.ndarray:
    """The change of all log chances by a gate on each unit of a group with one reader, by differences.

    Shape (units, samples, classes).
    """
    (reader,) = (node for node in model.graph.node if node.name == group.consumers[-1])
    step, found = 0.02, []
    for unit in range(group.unit_count):
        sides = []
        for factor in (1 + step, 1 - step):
            changed = onnx.ModelProto()
            changed.CopyFrom(model)
            (tensor,) = (t for t in changed.graph.initializer if t.name == reader.input[1])
            weight = numpy_helper.to_array(tensor).copy()
            weight[:, unit] *= factor
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
            sides.append(_log_chances(changed.SerializeToString(), samples))
        found.append((sides[0] - sides[1]) / (2 * step))
    return np.asarray(found)


def test_by_taylor_it_is_what_the_loss_of_the_labels_changes_by() -> None:
    model = plain_cnn(0)
    graph = model.SerializeToString()
    space = StructuredPruningPass().space(graph)
    samples = _samples(model, 48)
    labels = np.random.default_rng(1).integers(0, _log_chances(graph, samples).shape[1], 48)
    samples = replace(samples, labels=labels.astype(np.int64))
    found = TorchTrainer(threads=1).importance(
        graph, space, samples, seed=0, criterion=ImportanceCriterion.TAYLOR
    )
    gradients = _gate_gradients(model, samples, space.groups[0])
    wanted = np.abs(gradients[:, np.arange(48), labels]).mean(axis=1)
    np.testing.assert_allclose(found[space.groups[0].group_id], wanted, rtol=0.05, atol=1e-4)


def test_by_fisher_it_is_half_the_information_on_a_gate() -> None:
    model = plain_cnn(0)
    graph = model.SerializeToString()
    space = StructuredPruningPass().space(graph)
    samples = _samples(model, 1024)
    found = TorchTrainer(threads=1).importance(graph, space, samples, seed=0)
    gradients = _gate_gradients(model, samples, space.groups[0])
    chances = np.exp(_log_chances(graph, samples))
    wanted = 0.5 * (chances * np.square(gradients)).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(found[space.groups[0].group_id], wanted, rtol=0.3)
    assert sum(found[space.groups[0].group_id]) == pytest.approx(wanted.sum(), rel=0.1)


def test_labels_count_by_taylor_only() -> None:
    model = plain_cnn(0)
    graph = model.SerializeToString()
    space = StructuredPruningPass().space(graph)
    unlabelled = _samples(model, 32)
    labelled = replace(unlabelled, labels=np.zeros(32, dtype=np.int64))
    trainer = TorchTrainer(threads=1)
    for criterion in ImportanceCriterion:
        one, two = (
            trainer.importance(graph, space, samples, seed=0, criterion=criterion)
            for samples in (unlabelled, labelled)
        )
        assert (one != two) == (criterion is ImportanceCriterion.TAYLOR)


def test_by_magnitude_it_is_the_norm_of_the_weights_against_the_mean_of_the_layer() -> None:
    model = plain_cnn(0)
    group = StructuredPruningPass().space(model.SerializeToString()).groups[0]
    (node,) = (node for node in model.graph.node if node.name == group.producers[0])
    (tensor,) = (t for t in model.graph.initializer if t.name == node.input[1])
    weight = numpy_helper.to_array(tensor).copy()
    weight[2] = 0.0
    (norm,) = (n for n in model.graph.node if n.op_type == "BatchNormalization")
    scales, _ = affine_of(norm, initializers(model))
    norms = np.linalg.norm(weight.reshape(len(weight), -1).astype(np.float64), axis=1) * scales
    for scale in (1.0, 100.0):
        tensor.CopyFrom(numpy_helper.from_array(weight * np.float32(scale), tensor.name))
        graph = model.SerializeToString()
        space = StructuredPruningPass().space(graph)
        found = weight_magnitude(graph, space)[group.group_id]
        np.testing.assert_allclose(found, norms / norms.mean(), rtol=1e-5)


def test_each_layer_that_makes_a_channel_counts_the_same() -> None:
    """The layers on both sides of an addition make its channels together."""
    b = Builder(0)
    x = b.conv("stem", b.input("input", (3, 6, 6)), 3, 6)
    left = b.conv("left", x, 6, 6, relu=False)
    x = b.node("add", "Add", [left, b.conv("right", x, 6, 6, relu=False)])
    model = b.model({b.head(b.conv("last", x, 6, 4), 4): (5,)})
    weights = {}
    for tensor in model.graph.initializer:
        for name in ("left", "right"):
            if tensor.name == next(n for n in model.graph.node if n.name == name).input[1]:
                value = numpy_helper.to_array(tensor) * np.float32(50.0 if name == "left" else 1.0)
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
                norms = np.linalg.norm(value.reshape(6, -1).astype(np.float64), axis=1)
                weights[name] = norms / norms.mean()
    graph = model.SerializeToString()
    found = weight_magnitude(graph, StructuredPruningPass().space(graph))
    np.testing.assert_allclose(found["left"], (weights["left"] + weights["right"]) / 2, rtol=1e-6)


def test_by_magnitude_networks_count_that_have_no_gradients() -> None:
    model = NETWORKS["unknown_operator"](0)
    graph = model.SerializeToString()
    space = StructuredPruningPass().space(graph)
    assert space.groups
    assert all(min(scores) > 0.0 for scores in weight_magnitude(graph, space).values())
