"""Which layer pays what: cost before and after, and what each change costs in accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tightfit_service.application.recipes.steps import (
    PRUNING_STEP,
    QUANTIZATION_STEP,
    RECOVERY_STEP,
    quantization_of,
)
from tightfit_service.application.recipes.techniques import LOW_RANK
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.job import LayerAttribution
from tightfit_service.domain.network import ChannelGroup, NetworkProfile, Operator, PruningSpace
from tightfit_service.domain.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ChangeLosses:
    """What a candidate's changes cost in accuracy, as fractions.

    Attributes:
        groups: Per channel group, at the width it was cut to.
        nodes: Per node that is computed in another way than the ordinary one.
        formats: Per node, what the network's number format costs there.
    """

    groups: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, float] = field(default_factory=dict)
    formats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExplainedLosses:
    """What is known of the losses by a trial's changes.

    Attributes:
        trained: Predicted with training behind them; `formats` were measured before any cut.
        untrained: Predicted for each change alone and untrained, before any trial ran.
        measured: The same as measured; `formats` in the compressed network.
    """

    trained: ChangeLosses = field(default_factory=ChangeLosses)
    untrained: ChangeLosses = field(default_factory=ChangeLosses)
    measured: ChangeLosses = field(default_factory=ChangeLosses)


def attribute_layers(
    *,
    before: NetworkProfile,
    before_cost: CostEstimate,
    after: NetworkProfile,
    after_cost: CostEstimate,
    space: PruningSpace,
    recipe: Recipe,
    losses: ExplainedLosses,
) -> tuple[LayerAttribution, ...]:
    """Return one entry per operator of the network as it came, in schedule order.

    A group's loss is shared evenly by the operators that produce its channels, so that the entries
    add up to the predicted loss of the whole. Operators that one was split into count as that one.

    Args:
        before: The network as it came.
        before_cost: Its cost, in the number format of the export.
        after: The compressed network.
        after_cost: Its cost.
        space: What could be pruned.
        recipe: What was done.
        losses: What that costs, predicted and measured.
    """
    costs_before = {layer.node: layer.latency_ms for layer in before_cost.layers}
    costs_after = {layer.node: layer.latency_ms for layer in after_cost.layers}
    names = [operator.node for operator in before.operators]
    parts = _parts(names, after.operators)
    trained = _shares(names, space, recipe, losses.trained)
    untrained = _whole_shares(names, space, recipe, losses.untrained)
    measured = _whole_shares(names, space, recipe, losses.measured)
    quantization = quantization_of(recipe)
    ordinary, own_formats = quantization.number_format, quantization.node_formats
    changes = _changes(recipe, {node: len(found) for node, found in parts.items()})
    result = []
    for operator in before.operators:
        later = parts.get(operator.node, ())
        number_format = own_formats.get(operator.node, ordinary)
        rounding = losses.trained.formats.get(operator.node)
        is_ordinary = number_format is ordinary
        done = list(changes.get(operator.node, ()))
        if not is_ordinary:
            done.append(_instead(number_format, ordinary, rounding))
        result.append(
            LayerAttribution(
                node=operator.node,
                op_type=operator.op_type,
                macs_before=operator.macs,
                macs_after=sum(part.macs for part in later),
                latency_ms_before=costs_before.get(operator.node, 0.0),
                latency_ms_after=sum(costs_after.get(part.node, 0.0) for part in later),
                channels_before=operator.out_channels,
                channels_after=later[-1].out_channels if later else 0,
                accuracy_cost=trained.get(operator.node),
                predicted_alone=untrained.get(operator.node),
                measured_alone=measured.get(operator.node),
                number_format=str(number_format),
                # what was measured is the cost of the ordinary format
                format_cost=rounding if is_ordinary else None,
                format_cost_after=losses.measured.formats.get(operator.node)
                if is_ordinary
                else None,
                changes=tuple(done),
            )
        )
    return tuple(result)


def _parts(names: Sequence[str], after: Sequence[Operator]) -> Mapping[str, Sequence[Operator]]:
    """Return the operators that stand for each original one: itself, and what it was split into."""
    known = set(names)
    found: dict[str, list[Operator]] = {}
    for operator in after:
        origin = operator.node
        while origin not in known and "." in origin:
            origin = origin.rpartition(".")[0]
        if origin in known:
            found.setdefault(origin, []).append(operator)
    return found


def _shares(
    names: Sequence[str], space: PruningSpace, recipe: Recipe, losses: ChangeLosses
) -> Mapping[str, float]:
    """Return the loss per operator that pays for a cut or for another way to compute it.

    Changes of which nothing is known, as in a recipe that was given, are left out: they are not free.
    """
    known = set(names)
    shares: dict[str, float] = {}
    for group in _cut_groups(space, recipe):
        if group.group_id not in losses.groups:
            continue
        producers = [node for node in group.producers if node in known]
        for node in producers:
            loss = losses.groups[group.group_id] / len(producers)
            shares[node] = shares.get(node, 0.0) + loss
    for node, loss in losses.nodes.items():
        if node in known:
            shares[node] = shares.get(node, 0.0) + loss
    return shares


def _whole_shares(
    names: Sequence[str], space: PruningSpace, recipe: Recipe, losses: ChangeLosses
) -> Mapping[str, float]:
    """Return the loss per operator of which every cut and every other way to compute it is known.

    Only then can what was predicted be held against what was measured.
    """
    step = recipe.step(LOW_RANK)
    ways = {} if step is None else step.parameters.get("nodes", {})
    unknown = {
        node
        for group in _cut_groups(space, recipe)
        if group.group_id not in losses.groups
        for node in group.producers
    }
    unknown |= {*ways, *quantization_of(recipe).node_formats} - losses.nodes.keys()
    found = _shares(names, space, recipe, losses)
    return {node: loss for node, loss in found.items() if node not in unknown}


def _cut_groups(space: PruningSpace, recipe: Recipe) -> Sequence[ChannelGroup]:
    """Return the groups that lose units."""
    step = recipe.step(PRUNING_STEP)
    kept = step.parameters.get("keep", {}) if step is not None else {}
    return [
        group
        for group in space.groups
        if len(kept.get(group.group_id, ())) not in {0, group.unit_count}
    ]


def _changes(recipe: Recipe, parts: Mapping[str, int]) -> Mapping[str, Sequence[str]]:
    """Return in a few words what a recipe does to single nodes, apart from their width and format.

    `parts` has the number of operators that stand for each node afterwards.
    """
    found: dict[str, list[str]] = {}
    for step in recipe.steps:
        if step.pass_name in {PRUNING_STEP, RECOVERY_STEP, QUANTIZATION_STEP}:
            continue
        for node, parameters in step.parameters.get("nodes", {}).items():
            words = [step.pass_name.replace("_", " ")]
            words += [
                str(value) if isinstance(value, str) else f"{key} {value}"
                for key, value in parameters.items()
                if isinstance(value, str | int | float)
            ]
            text = " ".join(words)
            if step.pass_name == LOW_RANK and parts.get(node) == 1:
                text += ", left out: too few channels are left for it"
            found.setdefault(node, []).append(text)
    return found


def _instead(number_format: NumberFormat, ordinary: NumberFormat, cost: float | None) -> str:
    """Say why a layer is in another format than the network, as far as that was measured."""
    reason = "" if cost is None else f", which costs {cost * 100:.2f} points here"
    return f"{number_format} instead of {ordinary}{reason}"
