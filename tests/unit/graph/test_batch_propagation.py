"""Graphs for one sample, rewritten for many: each sample's outputs are what the original gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.graph.batch_propagation import spread_over_batch
from tightfit_service.graph.normal_form import free_input_batch
from tightfit_service.graph.structure import tensor_shapes

Shape = tuple[int, ...]
_SAMPLES = 3


class _Graph:
    """Builds graphs of one sample, by hand."""

    def __init__(self, shape: Shape) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.shape = shape

    def constant(self, value: npt.ArrayLike) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.asarray(values, dtype=np.int64))

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.normal(size=shape).astype(np.float32))

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        stem = f"t{len(self.nodes)}"
        results = [stem, *(f"{stem}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, inputs, results, name=stem, **attributes))
        return stem

    def model(self, *outputs: str) -> ModelProto:
        values = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        given = [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.shape)]
        graph = helper.make_graph(self.nodes, "graph", given, values, self.constants)
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return model


def _frames_of_a_layer(g: _Graph) -> list[str]:
    """Frames (time, 1, features) cut out one by one and joined along time, as TFLite files do it."""
    frames = g.node("Reshape", "input", g.ints(4, 1, 3))
    state = ""
    states = []
    for time in range(4):
        frame = g.node("Slice", frames, g.ints(time), g.ints(time + 1), g.ints(0), g.ints(1))
        frame = g.node("Reshape", frame, g.ints(1, 3))
        given = g.node("Gemm", frame, g.weight(5, 3), g.weight(5), transB=1)
        state = g.node("Tanh", g.node("Add", given, state) if state else given)
        states.append(g.node("Reshape", state, g.ints(1, 1, 5)))
    joined = g.node("Concat", *states, axis=0)
    return [state, g.node("Transpose", joined, perm=[1, 0, 2])]


def _heads_without_batch(g: _Graph) -> list[str]:
    """Attention whose heads took the place of the batch."""
    rows = g.node("Reshape", g.node("MatMul", "input", g.weight(8, 24)), g.ints(-1, 1, 3, 8))
    parts = []
    for index in range(3):
        cut = g.node("Slice", rows, g.ints(index), g.ints(index + 1), g.ints(2), g.ints(1))
        split = g.node("Reshape", cut, g.ints(5, 2, 4))
        parts.append(g.node("Transpose", split, perm=[1, 2, 0] if index == 1 else [1, 0, 2]))
    scores = g.node("Softmax", g.node("MatMul", parts[0], parts[1]), axis=-1)
    mixed = g.node("Transpose", g.node("MatMul", scores, parts[2]), perm=[1, 0, 2])
    dense = g.node("Gemm", g.node("Reshape", mixed, g.ints(5, 8)), g.weight(8, 8), g.weight(8))
    return [g.node("Add", "input", dense)]


def _statistics_without_batch(g: _Graph) -> list[str]:
    mean = g.node("ReduceMean", "input", axes=[2], keepdims=0)
    flat = g.node("Squeeze", mean, g.ints(0))
    spread = g.node("Sqrt", g.node("Add", g.node("Mul", flat, flat), g.constant(np.float32(1))))
    back = g.node("Reshape", spread, g.ints(1, 5, 1))
    return [
        g.node("Div", "input", back),
        g.node("Sub", "input", g.node("Unsqueeze", flat, g.ints(0, 2))),
    ]


def _joined_along_the_batch(g: _Graph) -> list[str]:
    parts = [
        g.node("Slice", "input", g.ints(i), g.ints(i + 3), g.ints(1), g.ints(1)) for i in range(3)
    ]
    stacked = g.node("Concat", *parts, axis=0)
    image = g.node("Reshape", stacked, g.ints(3, 1, 3, 8))
    windows = g.node("Conv", image, g.weight(2, 1, 2, 2), kernel_shape=[2, 2])
    total = g.node("ReduceSum", windows, g.ints(0), keepdims=0)
    return [g.node("Reshape", total, g.ints(1, -1))]


def _constants_between(g: _Graph) -> list[str]:
    flat = g.node("Reshape", "input", g.ints(40))
    ends = g.weight(2), g.weight(3), g.weight(1)
    whole = g.node("Concat", ends[0], flat, ends[1], flat, ends[2], axis=0)
    token = g.node("Concat", g.weight(1, 1, 8), "input", axis=1)
    return [g.node("Reshape", whole, g.ints(1, 86)), token]


def _own_positions(g: _Graph) -> list[str]:
    scores = g.node("ReduceMax", "input", axes=[2], keepdims=0)
    g.nodes.append(helper.make_node("TopK", [scores, g.ints(2)], ["best", "places"], name="top"))
    flat = g.node("Reshape", "places", g.ints(2))
    rows = g.node("Reshape", "input", g.ints(5, 8))
    picked = g.node("Gather", rows, flat, axis=0)
    table = g.node("Gather", g.weight(5, 3), "places", axis=0)
    zeros = g.constant(np.zeros((1, 2, 1), dtype=np.int64))
    where = g.node("Concat", zeros, g.node("Unsqueeze", "places", g.ints(2)), axis=2)
    deep = g.node("GatherND", "input", where)
    wide = g.node("Expand", g.node("Unsqueeze", "places", g.ints(2)), g.ints(1, 2, 8))
    return [
        g.node("Reshape", picked, g.ints(1, 2, 8)),
        table,
        deep,
        g.node("GatherElements", "input", wide, axis=1),
    ]


def _same_positions(g: _Graph) -> list[str]:
    rows = g.node("Reshape", "input", g.ints(5, 8))
    some = g.node("Gather", rows, g.ints(4, 0, 0), axis=0)
    deep = g.node("GatherND", "input", g.constant(np.array([[0, 1], [0, 3]], dtype=np.int64)))
    return [
        g.node("Reshape", some, g.ints(1, 3, 8)),
        g.node("Reshape", deep, g.ints(1, 2, 8)),
        g.node("Gather", "input", g.constant(np.array([[0, 7], [1, 1]], dtype=np.int64)), axis=2),
    ]


def _axes_of_all_kinds(g: _Graph) -> list[str]:
    rows = g.node("Reshape", "input", g.ints(5, 8))
    normed = g.node("LayerNormalization", rows, g.weight(8), g.weight(8), axis=-1)
    sums = g.node("CumSum", normed, g.constant(np.int64(0)))
    padded = g.node("Pad", sums, g.ints(1, 0, 0, 2))
    g.nodes.append(
        helper.make_node("Split", [padded, g.ints(2, 4)], ["upper", "lower"], name="split", axis=0)
    )
    tiled = g.node("Tile", "upper", g.ints(2, 1))
    wide = g.node("Expand", g.node("ReduceMean", tiled, axes=[0, 1], keepdims=1), g.ints(4, 10))
    total = g.node("Add", g.node("LogSoftmax", g.node("Add", tiled, wide), axis=0), "lower")
    most = g.node("Cast", g.node("ArgMax", total, axis=1, keepdims=0), to=TensorProto.FLOAT)
    least = g.node("ReduceSum", total)
    return [
        g.node("Reshape", total, g.ints(1, 40)),
        g.node("Unsqueeze", most, g.ints(0)),
        g.node("Reshape", least, g.ints(1, 1)),
    ]


def _sizes_of_one_sample(g: _Graph) -> list[str]:
    shape = g.node("Shape", "input")
    return [g.node("Reshape", g.node("Relu", "input"), shape)]


def _layer_over_time(g: _Graph) -> list[str]:
    frames = g.node("Reshape", "input", g.ints(5, 1, 8))
    weights = g.weight(1, 16, 8), g.weight(1, 16, 4)
    g.nodes.append(
        helper.make_node("LSTM", [frames, *weights], ["all", "last"], name="lstm", hidden_size=4)
    )
    states = g.node("Squeeze", "all", g.ints(1))
    return [g.node("Transpose", states, perm=[1, 0, 2]), g.node("Squeeze", "last", g.ints(0))]


_CASES: dict[str, tuple[Shape, Callable[[_Graph], list[str]]]] = {
    "frames": ((1, 4, 3), _frames_of_a_layer),
    "heads": ((1, 5, 8), _heads_without_batch),
    "statistics": ((1, 5, 8), _statistics_without_batch),
    "stacked": ((1, 5, 8), _joined_along_the_batch),
    "constants": ((1, 5, 8), _constants_between),
    "own positions": ((1, 5, 8), _own_positions),
    "same positions": ((1, 5, 8), _same_positions),
    "axes": ((1, 5, 8), _axes_of_all_kinds),
    "sizes": ((1, 5, 8), _sizes_of_one_sample),
    "over time": ((1, 5, 8), _layer_over_time),
}


def _run(model: ModelProto, inputs: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [np.asarray(value) for value in session.run(None, {"input": inputs})]


@pytest.mark.parametrize("case", _CASES)
def test_every_sample_is_computed_like_a_single_one(case: str) -> None:
    shape, build = _CASES[case]
    graph = _Graph(shape)
    model = graph.model(*build(graph))
    freed = ModelProto()
    freed.CopyFrom(model)
    spread_over_batch(freed, tensor_shapes(model))
    free_input_batch(freed)
    inputs = np.random.default_rng(1).normal(size=(_SAMPLES, *shape[1:])).astype(np.float32)
    singles = [_run(model, inputs[index : index + 1]) for index in range(_SAMPLES)]
    for found, parts in zip(_run(freed, inputs), zip(*singles, strict=True), strict=True):
        np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-5, atol=1e-5)


def test_a_graph_that_keeps_its_batch_stays_as_it_is() -> None:
    graph = _Graph((1, 3, 8, 8))
    x = graph.node("Relu", graph.node("Conv", "input", graph.weight(4, 3, 3, 3)))
    x = graph.node("GlobalAveragePool", graph.node("Mul", x, graph.weight(4, 1, 1)))
    x = graph.node("Gemm", graph.node("Flatten", x), graph.weight(4, 2), graph.weight(2))
    model = graph.model(x)
    before = [node.op_type for node in model.graph.node]
    spread_over_batch(model, tensor_shapes(model))
    after = [node.op_type for node in model.graph.node]
    assert after == [kind if kind != "Flatten" else "Reshape" for kind in before]


def test_what_cannot_be_followed_is_named() -> None:
    graph = _Graph((1, 5, 8))
    x = graph.node("Einsum", "input", graph.weight(8, 2), equation="bij,jk->bik")
    model = graph.model(x)
    with pytest.raises(InvalidModelError) as caught:
        spread_over_batch(model, tensor_shapes(model))
    assert 'node "t0" ("Einsum")' in caught.value.message
    assert caught.value.remedy


def test_an_output_without_a_batch_is_named() -> None:
    graph = _Graph((1, 5, 8))
    model = graph.model(graph.node("Reshape", "input", graph.ints(5, 8)))
    with pytest.raises(InvalidModelError, match="output 't0' has no batch axis"):
        spread_over_batch(model, tensor_shapes(model))
