"""Structured pruning: whole channels removed wherever index propagation finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from tightfit_service.domain.errors import InvalidRequestError, WorkFailedError
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import FrozenChannels, PruningSpace, Width
from tightfit_service.graph.channel_groups import UnitGroups, unit_groups
from tightfit_service.graph.channel_removal import remove_channels
from tightfit_service.graph.fusion import fused_graph
from tightfit_service.graph.index_propagation import propagate
from tightfit_service.graph.model_file import load_model, save_model
from tightfit_service.graph.propagation_state import Propagation, SliceRole
from tightfit_service.graph.structure import first_line

_CHANNELS_LAST = frozenset({"LSTM", "GRU", "RNN", "MatMul"})
_LONE = "it has no equal: its channels are needed as a whole"


class StructuredPruningPass:
    """Implements `application.ports.StructuredPruning`; stateless and thread-safe.

    A unit of a group is a channel with all that depends on it, a head of attention, or a hidden unit
    of a recurrent layer; see `graph.index_propagation`.
    """

    name = "structured_pruning"

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        """Return why the pass cannot help; empty when it can. Fewer channels help on every target."""
        del target
        space = self.space(graph)
        if space.groups:
            return ()
        if not space.frozen:
            return (
                "the network has no convolution or dense layer whose channels could be removed",
            )
        return tuple(f"{item.node}: {item.reason}" for item in space.frozen)

    def space(self, graph: bytes) -> PruningSpace:
        """Return what can be removed and what cannot. Deterministic: the same graph, the same ids.

        Raises:
            InvalidModelError: Not a working graph.
        """
        model = load_model(graph)
        state = propagate(model)
        groups = unit_groups(state)
        inputs: dict[str, Width] = {}
        outputs: dict[str, Width] = {}
        for item in fused_graph(model).operators:
            if item.inputs and (width := _tensor_width(state, groups, item.inputs[0])) is not None:
                inputs[item.node.name] = width
            if (width := _tensor_width(state, groups, item.outputs[0])) is not None:
                outputs[item.node.name] = width
        tensors = {
            name: width
            for name in state.labels
            if (width := _tensor_width(state, groups, name)) is not None
        }
        return PruningSpace(
            groups=tuple(group.channels for group in groups.groups),
            input_widths=inputs,
            output_widths=outputs,
            tensor_widths=tensors,
            frozen=_frozen(state, groups),
        )

    def apply(self, graph: bytes, keep: Mapping[str, Sequence[int]]) -> bytes:
        """Return the graph with only the given units of each named group; others stay whole.

        Raises:
            InvalidModelError: Not a working graph.
            InvalidRequestError: An unknown group, a unit out of range, or a group left empty.
            WorkFailedError: The result is not a valid graph, which would be an error of this pass.
        """
        model = load_model(graph)
        state = propagate(model)
        groups = unit_groups(state)
        by_id = {group.channels.group_id: group for group in groups.groups}
        removed: set[int] = set()
        for group_id, units in keep.items():
            if group_id not in by_id:
                raise InvalidRequestError(
                    f'the graph has no channel group "{group_id}"',
                    field=f"keep[{group_id}]",
                    remedy="take group ids from the pruning space of this very graph",
                )
            group = by_id[group_id]
            chosen = _checked_units(group_id, units, group.channels.unit_count)
            removed.update(np.delete(group.roots, chosen).tolist())
        result = remove_channels(model, state, frozenset(removed))
        return save_model(_verified(result))


def _checked_units(group_id: str, units: Sequence[int], count: int) -> list[int]:
    chosen = sorted({int(unit) for unit in units})
    field = f"keep[{group_id}]"
    if not chosen:
        raise InvalidRequestError(
            f'no unit of group "{group_id}" would stay',
            field=field,
            remedy="keep at least one unit of every group",
        )
    if chosen[0] < 0 or chosen[-1] >= count:
        raise InvalidRequestError(
            f'group "{group_id}" has units 0 to {count - 1}, not {chosen[0]} to {chosen[-1]}',
            field=field,
            remedy="take unit indices from the pruning space of this very graph",
        )
    return chosen


def _verified(model: ModelProto) -> ModelProto:
    """Return the model with inferred shapes once onnx.checker and strict shape inference pass."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise WorkFailedError(
            f"pruning produced a graph that onnx.checker refuses: {first_line(error)}",
            remedy="report the model; leave the structured_pruning pass out meanwhile",
        ) from error
    return inferred


def _tensor_width(state: Propagation, groups: UnitGroups, name: str) -> Width | None:
    found = state.channel_vector(name)
    if found is None:
        return None
    width = groups.width(state, found[1])
    return width if width.terms else None


def _frozen(state: Propagation, groups: UnitGroups) -> tuple[FrozenChannels, ...]:
    """Return, per node and reason, the output channels that must stay."""
    counts: dict[tuple[str, str], int] = {}
    for item in state.slices:
        if item.role is not SliceRole.OUTPUT:
            continue
        for root, frozen in zip(
            state.classes.roots(item.labels).tolist(),
            state.classes.is_frozen(item.labels).tolist(),
            strict=True,
        ):
            if frozen or root in groups.lone_roots:
                reason = state.classes.reason(root) if frozen else _LONE
                counts[item.node, reason] = counts.get((item.node, reason), 0) + 1
    for node in state.nodes:
        why = state.unruled.get(node.name, "")
        shape = state.shapes.get(node.output[0], ())
        if why and len(shape) > 1 and _has_matrix(state, node):
            axis = -1 if node.op_type in _CHANNELS_LAST else 1
            counts.setdefault((node.name, why), shape[axis])
    return tuple(
        FrozenChannels(node=node, channel_count=count, reason=reason)
        for (node, reason), count in counts.items()
    )


def _has_matrix(state: Propagation, node: NodeProto) -> bool:
    """Whether the node multiplies with weights: operators of vectors make no channels of their own."""
    return any(
        name in state.constants
        and sum(size > 1 for size in state.constants[name].shape) > 1
        and state.constants[name].dtype.kind == "f"
        for name in node.input
    )
