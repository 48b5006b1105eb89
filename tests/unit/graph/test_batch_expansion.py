"""Constants repeated over the batch and zero states are brought into a form without computed shapes."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper

from fakes.networks import Builder
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.structure import initializers


def _token_network(position: int) -> ModelProto:
    """Tokens (batch, 5, 4) with a learned one in front or behind, expanded to a computed shape."""
    b = Builder(0)
    x = b.input("input", (5, 4))
    token = b.vector("token", 4)
    token = b.node("lift", "Reshape", [token, b.ints("lift.shape", [1, 1, 4])])
    sizes = b.node("sizes", "Shape", [x], start=0, end=1)
    sizes = b.node("join", "Concat", [sizes, b.ints("rest", [1, 4])], axis=0)
    token = b.node("repeat", "Expand", [token, sizes])
    parts = [token, x] if position == 0 else [x, token]
    x = b.node("tokens", "Concat", parts, axis=1)
    x = b.node("dense", "MatMul", [x, b.weight("dense.w", (4, 3), fan_in=4)])
    x = b.node("act", "Tanh", [x])
    x = b.node("mean", "ReduceMean", [x], axes=[1], keepdims=0)
    return b.model({b.gemm("fc", x, 3, 2): (2,)})


def _run(data: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def test_a_token_is_padded_and_added() -> None:
    for position in (0, 1):
        data = _token_network(position).SerializeToString()
        graph = OnnxImporter().import_model(data).graph
        nodes = {node.name: node for node in load_model(graph).graph.node}
        assert nodes["tokens"].op_type == "Add"
        assert nodes["tokens.pad"].op_type == "Pad"
        assert {"Shape", "Expand", "Concat"}.isdisjoint(n.op_type for n in nodes.values())
        x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
        np.testing.assert_array_equal(_run(graph, x), _run(data, x))


def test_zero_states_go_and_others_stay() -> None:
    for fill in (0.0, 0.5):
        b = Builder(0)
        x = b.node("time", "Transpose", [b.input("input", (6, 5))], perm=[1, 0, 2])
        sizes = b.node("sizes", "Shape", ["input"], start=0, end=1)
        sizes = b.node("join", "Concat", [b.ints("one", [1]), sizes, b.ints("h", [4])], axis=0)
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [fill])
        state = b.node("state", "ConstantOfShape", [sizes], value=value)
        w, r = b.weight("w", (1, 12, 5), fan_in=5), b.weight("r", (1, 12, 4), fan_in=4)
        b.node("gru", "GRU", [x, w, r, "", "", state], outputs=2, hidden_size=4)
        last = b.node("last", "Squeeze", ["gru_out1", b.ints("axes", [0])])
        data = b.model({b.gemm("fc", last, 4, 2): (2,)}).SerializeToString()
        graph = OnnxImporter().import_model(data).graph
        gru = next(node for node in load_model(graph).graph.node if node.op_type == "GRU")
        assert len(gru.input) == (3 if fill == 0.0 else 6)
        values = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
        np.testing.assert_allclose(_run(graph, values), _run(data, values), rtol=1e-6)


def test_layers_get_biases_of_their_own_unless_they_share_weights() -> None:
    b = Builder(0)
    zeros = b.constant("zeros", np.zeros(4), dtype=np.float32)
    shared = b.weight("shared", (4, 4), fan_in=4)
    x = b.input("input", (4,))
    for name, weight in (
        ("one", b.weight("own", (4, 4), fan_in=4)),
        ("two", shared),
        ("three", shared),
    ):
        x = b.node(f"{name}.relu", "Relu", [b.node(name, "Gemm", [x, weight, zeros])])
    data = b.model({b.gemm("fc", x, 4, 2): (2,)}).SerializeToString()
    graph = load_model(OnnxImporter().import_model(data).graph)
    biases = {node.name: node.input[2] for node in graph.graph.node if node.op_type == "Gemm"}
    assert biases["two"] == biases["three"] != biases["one"]
    assert not initializers(graph)[biases["two"]].any()
