"""Nodes without a rule: run by onnxruntime as they are, with no gradient through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper

from tightfit_service.adapters.training.node_view import (
    Arguments,
    NodeView,
    StaticArray,
    Value,
)
from tightfit_service.graph.structure import first_line, names_read


def single_node_model(
    node: onnx.NodeProto, opsets: Sequence[onnx.OperatorSetIdProto], inputs: Sequence[str] = ()
) -> onnx.ModelProto:
    """Return a model of one node; its inputs keep their names and have no types yet."""
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    wanted = [onnx.ValueInfoProto(name=name) for name in inputs or dict.fromkeys(names_read(node))]
    graph = helper.make_graph([node], "node", wanted, outputs)
    return helper.make_model(graph, opset_imports=list(opsets), ir_version=10)


class FrozenNode:
    """One node in onnxruntime. What flows through it counts as constant to the gradient."""

    def __init__(self, node: onnx.NodeProto, opsets: Sequence[onnx.OperatorSetIdProto]) -> None:
        """Keep the node; the session is opened when the types of its inputs are seen."""
        self._node = node
        self._opsets = opsets
        self.input_names = tuple(dict.fromkeys(names_read(node)))
        self._sessions: dict[tuple[str, ...], onnxruntime.InferenceSession] = {}

    def __deepcopy__(self, _memo: object) -> FrozenNode:
        """Return itself: it has nothing that training changes, and sessions run in several threads."""
        return self

    def run(self, view: NodeView, values: Mapping[str, Value]) -> tuple[Value, ...]:
        """Return all outputs, in order, by the names of the inputs.

        Raises:
            UnsupportedError: onnxruntime does not run the node, or an exporter is watching.
        """
        if torch.compiler.is_exporting():
            raise view.unsupported("it has no form in torch")
        like = next((v for v in values.values() if isinstance(v, torch.Tensor)), None)
        feeds = {name: _as_array(values[name]) for name in self.input_names}
        try:
            results = self._session(feeds).run(None, feeds)
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise view.unsupported(first_line(error)) from error
        found = dict(zip([n for n in self._node.output if n], results, strict=True))
        return tuple(_as_value(found.get(name), like) for name in self._node.output)

    def _session(self, feeds: Mapping[str, StaticArray]) -> onnxruntime.InferenceSession:
        key = tuple(value.dtype.str for value in feeds.values())
        if key not in self._sessions:
            model = single_node_model(self._node, self._opsets)
            for value in model.graph.input:
                array = feeds[value.name]
                kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                value.CopyFrom(helper.make_tensor_value_info(value.name, kind, [None] * array.ndim))
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._sessions[key] = onnxruntime.InferenceSession(
                _typed(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[key]


def run_static(
    view: NodeView, evaluator: FrozenNode, names: Sequence[str], args: Arguments
) -> tuple[Value, ...]:
    """Run a node on positional arguments."""
    return evaluator.run(
        view, {n: a for n, a in zip(names, args, strict=False) if n and a is not None}
    )


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give outputs the types that inference finds; operators of other domains give floats."""
    inferred = onnx.shape_inference.infer_shapes(model)
    for output in inferred.graph.output:
        if not output.type.HasField("tensor_type") or not output.type.tensor_type.elem_type:
            output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        output.type.tensor_type.ClearField("shape")
    return inferred


def _as_array(value: Value) -> StaticArray:
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu()
        return plain.float().numpy() if plain.dtype == torch.bfloat16 else plain.numpy()
    return np.asarray(value)


def _as_value(value: StaticArray | None, like: torch.Tensor | None) -> torch.Tensor:
    if value is None:
        return torch.empty(0)
    result = torch.from_numpy(np.array(value))
    return result if like is None else result.to(like.device)
