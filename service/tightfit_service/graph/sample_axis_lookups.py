"""Rules that follow the samples through operators that pick entries at positions."""

from __future__ import annotations

from onnx import NodeProto

from tightfit_service.graph.sample_axis import FRONT, NoPlaceError, SampleAxes, moved
from tightfit_service.graph.structure import attribute


def gather(g: SampleAxes, node: NodeProto) -> None:
    """Entries along one axis: the same of every sample, or each sample's own."""
    data, positions = node.input
    rank, inner = len(g.shapes[node.input[0]]), len(g.shapes[positions])
    axis = int(attribute(node, "axis", 0)) % rank
    if not g.has_samples(positions):
        place = g.place_beside(data, [axis])
        behind = place - 1 + inner if place > axis else place
        inputs = [g.view(data, place), positions]
        g.emit(node, inputs, behind, axis=moved([axis], place)[0])
    elif not g.has_samples(data):
        if axis and g.place(positions) == FRONT:
            raise NoPlaceError("it picks along an inner axis of a constant")
        place = g.place(positions)
        g.emit(node, [data, g.home(positions)[1]], place if place == FRONT else place + axis)
    else:
        if axis:
            raise NoPlaceError("each sample picks along an inner axis of its own values")
        listed = g.shapes[positions]
        deeper = g.reshaped(g.view(positions, FRONT), (-1, *listed), (-1, *listed, 1))
        picked = g.emit_plain("GatherND", [g.view(data, FRONT), deeper], batch_dims=1)
        g.define(node.output[0], picked, FRONT)


def gather_nd(g: SampleAxes, node: NodeProto) -> None:
    """Entries at positions of several axes; a position's own count of samples is always 0."""
    data, positions = node.input
    shared = int(attribute(node, "batch_dims", 0))
    if not g.has_samples(positions):
        if shared:
            raise NoPlaceError("it picks the same entries per group")
        rank = len(g.shapes[node.input[0]])
        turned = g.emit_plain("Transpose", [g.view(data, FRONT)], perm=[*range(1, rank + 1), 0])
        picked = g.emit_plain("GatherND", [turned, positions])
        last = len(g.shapes[node.output[0]])
        g.define(
            node.output[0], g.emit_plain("Transpose", [picked], perm=[last, *range(last)]), FRONT
        )
    elif not g.has_samples(data):
        if shared:
            raise NoPlaceError("its constant is grouped")
        place = g.place_beside(positions, [len(g.shapes[positions]) - 1])
        g.emit(node, [data, g.view(positions, place)], place)
    else:
        inputs = [g.view(data, FRONT), g.view(positions, FRONT)]
        g.emit(node, inputs, FRONT, batch_dims=shared + 1)


def gather_elements(g: SampleAxes, node: NodeProto) -> None:
    """Entries along one axis, at positions that each entry of the result has of its own."""
    if not all(g.has_samples(name) for name in node.input):
        raise NoPlaceError("its values or its positions are the same for all samples")
    rank = len(g.shapes[node.input[0]])
    axis = int(attribute(node, "axis", 0)) % rank
    place = g.common_place(node.input, rank, barred=(axis,))
    inputs = [g.view(name, place) for name in node.input]
    g.emit(node, inputs, place, axis=moved([axis], place)[0])
