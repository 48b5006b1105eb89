"""Graphs with a fixed batch of 1, rewritten for any number of samples node by node."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from tightfit_service.graph.model_file import invalid, shown, subgraphs
from tightfit_service.graph.sample_axis import NoPlaceError, SampleAxes
from tightfit_service.graph.sample_axis_rules import RULES
from tightfit_service.graph.structure import Shape, default_opset, remove_dead_code

_REMEDY = "export the model with a free (dynamic) batch axis"


def spread_over_batch(model: ModelProto, shapes: Mapping[str, Shape]) -> None:
    """Let a graph for one sample compute each of many samples alike, in place.

    Its inputs must have axis 0 of size 1, which becomes the batch; that of the outputs too.

    Args:
        model: Nodes in topological order, with unique names; what shapes determine is constant.
        shapes: The shape of every tensor, at batch 1.

    Raises:
        InvalidModelError: The batch cannot be followed through a node: names it, and says why.
    """
    axes = SampleAxes(model, shapes, default_opset(model))
    for node in model.graph.node:
        if not any(axes.has_samples(name) for name in node.input):
            axes.keep(node)
            continue
        told = f"node {shown(node.name)} ({shown(node.op_type)})"
        rule = None if node.domain else RULES.get(node.op_type)
        if rule is None or next(subgraphs(node), None) is not None:
            raise _cannot(f"no rule is known for {told}")
        unknown = next((n for n in (*node.input, *node.output) if n and n not in shapes), None)
        if unknown is not None:
            raise _cannot(f"the size of {shown(unknown)} at {told} is not known")
        try:
            rule(axes, node)
        except NoPlaceError as error:
            raise _cannot(f"{told}: {error}") from error
    try:
        axes.finish(model)
    except NoPlaceError as error:
        raise _cannot(str(error)) from error
    remove_dead_code(model)


def _cannot(reason: str) -> Exception:
    return invalid(f"the batch of the model cannot be made free: {reason}", remedy=_REMEDY)
