"""The logits of small classifiers."""

from __future__ import annotations

from onnx import ModelProto

from tightfit_service.graph.structure import graph_outputs, producers

_FINAL = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})


def find_logits(model: ModelProto) -> str:
    """Return what a Softmax, LogSoftmax or Sigmoid at the first output reads, else the output itself."""
    name = graph_outputs(model)[0]
    node = producers(model.graph).get(name)
    return node.input[0] if node is not None and node.op_type in _FINAL else name
