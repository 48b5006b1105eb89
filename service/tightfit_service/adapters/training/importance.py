"""Importance of channels: how much the loss is predicted to gain when a unit is removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from tightfit_service.adapters.training.losses import NO_LABEL
from tightfit_service.adapters.training.module import GraphModule, build_module
from tightfit_service.adapters.training.node_view import NodeView, Value
from tightfit_service.adapters.training.targets import DistilledTensor, find_targets
from tightfit_service.adapters.training.training_set import IGNORED_CLASS
from tightfit_service.adapters.training.weight_magnitude import weight_magnitude
from tightfit_service.application.samples import IntArray, Samples
from tightfit_service.domain.network import DEFAULT_IMPORTANCE, ImportanceCriterion, PruningSpace
from tightfit_service.graph.channel_groups import unit_groups
from tightfit_service.graph.index_propagation import propagate
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.propagation_state import SliceRole

_MAX_SAMPLES = 1024
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """One node that reads channels of a group, along `axis` of its input.

    `units[c]` is the unit of its input channel c, or -1.
    """

    group_id: str
    node: str
    axis: int
    units: IntArray


def channel_importance(
    graph: bytes,
    space: PruningSpace,
    samples: Samples,
    *,
    seed: int,
    criterion: ImportanceCriterion = DEFAULT_IMPORTANCE,
) -> dict[str, list[float]]:
    """Return, per group id, the importance of each unit, which is never negative.

    By gradients, a gate multiplies a unit's channels wherever a layer reads them, so closing it is
    exactly what removal does. The gradient of the loss by the gate is the sum of gradient times
    activation over the unit's channels and their places.

    - FISHER: half the mean over samples of its square. That is the diagonal of the Fisher
      information, which predicts the rise of the loss without needing the gradient itself to vanish
      or not (Theis et al., 2018; Molchanov et al., CVPR 2019). The label of each sample is drawn from
      the network's own answer: the true Fisher, which needs no labels and is not blind on samples
      that the network was trained to get right.
    - TAYLOR: the mean over samples of its absolute value, by the loss against the data's own labels:
      what the loss changes by, to first order (Molchanov et al., ICLR 2017, with sums over places
      in place of means, so that layers compare). Where the labels are no classes of the first
      output, they are drawn as above.
    - MAGNITUDE: see `weight_magnitude`; neither samples nor seed count.

    Outputs that are values and no scores count as Gaussians around themselves, as wide as their
    values spread; all outputs count.

    Raises:
        UnsupportedError: An operator has no rule; names node and operator.
        InvalidDatasetError: The samples have other inputs than the graph.
    """
    if criterion is ImportanceCriterion.MAGNITUDE:
        return weight_magnitude(graph, space)
    module = build_module(graph)
    targets = find_targets(graph, is_regression=samples.metric.is_error)
    readings = _readings(graph, space)
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(len(samples))[:_MAX_SAMPLES])
    labels = _class_labels(samples) if criterion is ImportanceCriterion.TAYLOR else None
    totals = {group.group_id: np.zeros(group.unit_count) for group in space.groups}
    taps = {reading.node: reading.axis for reading in readings}
    for start in range(0, len(chosen), _BATCH):
        batch = chosen[start : start + _BATCH]
        feeds = samples.feeds(batch, module.input_names)
        inputs = [torch.from_numpy(value) for value in feeds.values()]
        known = None if labels is None else torch.from_numpy(labels[batch])
        gates = _gate_gradients(module, targets, inputs, known, taps, random)
        for group_id, gradient in _by_unit(gates, readings, totals).items():
            if criterion is ImportanceCriterion.TAYLOR:
                totals[group_id] += np.abs(gradient).sum(axis=0)
            else:
                totals[group_id] += 0.5 * np.square(gradient).sum(axis=0)
    return {group_id: (total / len(chosen)).tolist() for group_id, total in totals.items()}


def _class_labels(samples: Samples) -> IntArray | None:
    """Return the class of each place of each sample or NO_LABEL, shape (n, places), where there are any."""
    labels = samples.class_labels
    if labels is None:
        return None
    rows = labels.reshape(len(labels), -1).astype(np.int64)
    if rows.shape[1] > 1:
        rows[rows == IGNORED_CLASS] = NO_LABEL
    return rows


def _by_unit(
    gates: Mapping[str, npt.NDArray[np.float64]],
    readings: Iterable[_Reading],
    totals: Mapping[str, npt.NDArray[np.float64]],
) -> dict[str, npt.NDArray[np.float64]]:
    """Return per group the gradients by the gates of its units, shape (n, units)."""
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for reading in readings:
        per_channel = gates.get(reading.node)
        if per_channel is None:
            continue
        known = reading.units >= 0
        spread = np.zeros((len(reading.units), len(totals[reading.group_id])))
        spread[np.flatnonzero(known), reading.units[known]] = 1.0
        part = per_channel @ spread
        sums[reading.group_id] = sums.get(reading.group_id, 0.0) + part
    return sums


def _gate_gradients(
    module: GraphModule,
    targets: Sequence[DistilledTensor],
    inputs: Sequence[torch.Tensor],
    labels: torch.Tensor | None,
    taps: Mapping[str, int],
    random: np.random.Generator,
) -> dict[str, npt.NDArray[np.float64]]:
    """Return per node the gradient by a gate on each of its input channels, shape (n, channels).

    `labels` are the classes of the first target, shape (n, places), None draws them; `taps` gives the
    axis of the channels per node.
    """
    values: dict[str, torch.Tensor] = {}

    def tap(view: NodeView, args: list[Value | None]) -> None:
        if view.name in taps and isinstance(args[0], torch.Tensor):
            # a view with one reader: its gradient is what flows through this node and no other
            args[0] = values[view.name] = args[0].view_as(args[0])

    # the gradient has to reach the readings even where no parameter lies before them
    names_out = [target.name for target in targets]
    fed = [value.requires_grad_() for value in inputs]
    outputs = module.run_to(names_out, *fed, before_node=tap)
    losses = [
        _surprise(output, target.axis, labels if place == 0 else None, random)
        for place, (output, target) in enumerate(zip(outputs, targets, strict=True))
    ]
    loss = torch.stack(losses).sum()
    names = list(values)
    gradients = torch.autograd.grad(loss, [values[name] for name in names], allow_unused=True)
    found = {}
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None:
            product = (gradient * values[name].detach()).transpose(1, taps[name])
            found[name] = product.reshape(*product.shape[:2], -1).sum(dim=2).double().numpy()
    return found


def _surprise(
    output: torch.Tensor,
    axis: int | None,
    labels: torch.Tensor | None,
    random: np.random.Generator,
) -> torch.Tensor:
    """Return the summed loss against the labels, or answers drawn from the network's own distribution.

    Along `axis` there are scores of classes, at each place of the other axes; None is for values.
    Labels, shape (n, places), count where there are as many places.
    """
    if axis is None:
        known = output.detach()
        noise = torch.from_numpy(random.standard_normal(tuple(output.shape)).astype(np.float32))
        spread = known.std(correction=0).clamp(min=1e-6) if known.shape[1:].numel() > 1 else 1.0
        return 0.5 * ((output - known) / spread - noise).square().sum()
    logits = output.movedim(axis, -1).flatten(0, -2)
    wanted = None if labels is None else labels.flatten()
    if wanted is None or len(wanted) != len(logits):
        wanted = torch.from_numpy(_drawn(logits, random))
    # labels that the network has no output for are refused by name when it is trained
    is_class = (wanted >= 0) & (wanted < logits.shape[1])
    wanted = torch.where(is_class, wanted, NO_LABEL)
    return functional.cross_entropy(logits, wanted, ignore_index=NO_LABEL, reduction="sum")


def _drawn(logits: torch.Tensor, random: np.random.Generator) -> IntArray:
    """Return a class for each row of scores, drawn by the chances that they give it."""
    chances = torch.softmax(logits.detach().double(), dim=1).numpy().cumsum(axis=1)
    draws = random.random((len(logits), 1)) * chances[:, -1:]
    below = (draws > chances).sum(axis=1)
    return np.asarray(np.minimum(below, logits.shape[1] - 1), dtype=np.int64)


def _readings(graph: bytes, space: PruningSpace) -> list[_Reading]:
    """Return which nodes read which units, for the groups of the space."""
    state = propagate(load_model(graph))
    wanted = {group.group_id for group in space.groups}
    inputs = {node.name: node.input[0] for node in state.nodes if node.input}
    readers = {item.node for item in state.slices if item.role is SliceRole.INPUT}
    found = []
    for group in unit_groups(state).groups:
        group_id = group.channels.group_id
        unit_of = {root: unit for unit, root in enumerate(group.roots.tolist())}
        for node in group.channels.consumers if group_id in wanted else ():
            vector = state.channel_vector(inputs[node]) if node in readers else None
            if vector is None:
                continue
            roots = state.classes.roots(vector[1]).tolist()
            units = np.asarray([unit_of.get(root, -1) for root in roots], dtype=np.int64)
            found.append(_Reading(group_id=group_id, node=node, axis=vector[0], units=units))
    return found
