"""Closing a graph after surgery: fresh names, dead code removed, shapes inferred again, checked."""

from __future__ import annotations

import onnx
from onnx import ModelProto

from tightfit_service.domain.errors import WorkFailedError
from tightfit_service.graph.structure import (
    first_line,
    names_read,
    remove_dead_code,
    unique_name,
)


class FreshNames:
    """Names of nodes and tensors that a graph does not have yet; equal graphs get equal names."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self._taken = {tensor.name for tensor in graph.initializer}
        self._taken.update(value.name for value in graph.input)
        for node in graph.node:
            self._taken.update((node.name, *node.output, *names_read(node)))

    def take(self, stem: str) -> str:
        """Return the stem, with a number behind it where the graph has it already, and reserve it."""
        return unique_name(stem, self._taken)


def rebuilt(model: ModelProto, *, technique: str) -> ModelProto:
    """Return the model without dead code and with all shapes inferred anew.

    Nodes must be in topological order; `model` is changed on the way.

    Raises:
        WorkFailedError: onnx refuses the result, which is an error of the technique, not of the user.
    """
    remove_dead_code(model)
    del model.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise WorkFailedError(
            f"{technique} produced a graph that onnx refuses: {first_line(error)}",
            remedy=f"report the model; leave the {technique} pass out meanwhile",
        ) from error
    return inferred
