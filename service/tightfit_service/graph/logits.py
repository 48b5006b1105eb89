"""Finding the logits of a classifier: the tensor in front of its final normalisation."""

from __future__ import annotations

from onnx import ModelProto

from tightfit_service.graph.structure import graph_outputs, producers

_FINAL = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
_TRANSPARENT = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"})


def find_logits(model: ModelProto, *, output: str = "") -> str:
    """Return the tensor that a final Softmax, LogSoftmax or Sigmoid reads, else the output itself.

    Shape changes between the normalisation and the output are looked through; the tensor returned
    is the one in front of the normalisation, whose shape may differ from the output's.

    Args:
        model: A working graph.
        output: Name of the output to follow; the first one by default.
    """
    name = output or graph_outputs(model)[0]
    makers = producers(model.graph)
    current = name
    while (node := makers.get(current)) is not None:
        if node.op_type in _FINAL:
            return node.input[0]
        if node.op_type not in _TRANSPARENT:
            return name
        current = node.input[0]
    return name
