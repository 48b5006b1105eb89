"""Every operator rule computes what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tightfit_service.adapters.training.module import build_module
from tightfit_service.adapters.training.operators import RULES
from tightfit_service.domain.errors import UnsupportedError

OPSET = 17
RNG = np.random.default_rng(3)


def _floats(*shape: int) -> np.ndarray:
    draw = np.random.default_rng(sum(shape) + len(shape)).normal(size=shape)
    return np.asarray(draw, dtype=np.float32)


def _number(value: float) -> np.ndarray:
    return np.asarray(value, dtype=np.float32)


def _positive(*shape: int) -> np.ndarray:
    return np.asarray(np.abs(_floats(*shape)) + 0.5, dtype=np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def _model(
    op_type: str,
    x: np.ndarray,
    others: tuple[np.ndarray | None, ...] = (),
    *,
    opset: int = OPSET,
    outputs: int = 1,
    **attributes: Any,
) -> bytes:
    names = [f"c{i}" if v is not None else "" for i, v in enumerate(others)]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op_type, ["x", *names], results, name="node", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [onnx.ValueInfoProto(name=name) for name in results],
        [
            numpy_helper.from_array(v, n)
            for n, v in zip(names, others, strict=True)
            if v is not None
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return inferred.SerializeToString()


def _differences(model: bytes, feeds: Mapping[str, np.ndarray]) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    expected = session.run(None, dict(feeds))
    module = build_module(model)
    found = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    results = found if isinstance(found, tuple) else (found,)
    worst = 0.0
    for want, got in zip(expected, results, strict=True):
        got_array = got.detach().numpy()
        assert got_array.shape == want.shape
        worst = max(worst, float(np.abs(got_array.astype(np.float64) - want).max(initial=0.0)))
    return worst


IMAGE = _floats(2, 4, 9, 8)
UNARY = [
    "Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "LogSoftmax", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softmax",
    "Softplus", "Softsign", "Tanh", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Transpose",
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSum",
]  # fmt: skip
BINARY = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum"]

W33 = _floats(6, 4, 3, 3)
CASES: list[tuple[str, bytes]] = [
    *((op, _model(op, IMAGE)) for op in UNARY),
    *((f"{op} constant", _model(op, IMAGE, (_positive(1, 4, 1, 1),))) for op in BINARY),
    ("Log", _model("Log", _positive(2, 3))),
    ("Sqrt", _model("Sqrt", _positive(2, 3))),
    ("Pow", _model("Pow", _positive(2, 3), (_number(2.0),))),
    ("Mish", _model("Mish", IMAGE, opset=18)),
    ("Gelu", _model("Gelu", IMAGE, opset=20)),
    ("Gelu tanh", _model("Gelu", IMAGE, opset=20, approximate="tanh")),
    ("HardSigmoid sixth", _model("HardSigmoid", IMAGE, alpha=1 / 6, beta=0.5)),
    ("Clip 6", _model("Clip", IMAGE, (_number(0), _number(6)))),
    ("Clip low", _model("Clip", IMAGE, (_number(-0.3),))),
    ("Clip old", _model("Clip", IMAGE, opset=10, min=-0.5, max=0.5)),
    ("Clip nothing", _model("Clip", IMAGE)),
    ("PRelu", _model("PRelu", IMAGE, (_positive(4, 1, 1),))),
    ("Softmax axis", _model("Softmax", IMAGE, axis=1)),
    ("Softmax old", _model("Softmax", IMAGE, opset=11, axis=1)),
    ("Softmax old last", _model("Softmax", IMAGE, opset=11, axis=3)),
    ("Conv", _model("Conv", IMAGE, (W33, _floats(6)), pads=[1, 1, 1, 1], strides=[2, 1])),
    ("Conv no bias", _model("Conv", IMAGE, (W33,))),
    ("Conv uneven", _model("Conv", IMAGE, (W33,), pads=[0, 0, 1, 1], strides=[2, 2])),
    ("Conv upper", _model("Conv", IMAGE, (W33,), auto_pad="SAME_UPPER", strides=[2, 2])),
    ("Conv lower", _model("Conv", IMAGE, (W33,), auto_pad="SAME_LOWER", strides=[2, 2])),
    ("Conv valid", _model("Conv", IMAGE, (W33,), auto_pad="VALID", dilations=[2, 2])),
    ("Conv grouped", _model("Conv", IMAGE, (_floats(8, 2, 3, 3),), group=2)),
    ("Conv depthwise", _model("Conv", IMAGE, (_floats(4, 1, 3, 3),), group=4)),
    ("Conv 1d", _model("Conv", _floats(2, 3, 11), (_floats(5, 3, 4),), pads=[1, 2])),
    ("Conv 3d", _model("Conv", _floats(1, 2, 5, 5, 5), (_floats(3, 2, 2, 2, 2),))),
    ("ConvTranspose", _model("ConvTranspose", IMAGE, (_floats(4, 5, 3, 3), _floats(5)), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])),
    ("ConvTranspose uneven", _model("ConvTranspose", IMAGE, (_floats(4, 5, 3, 3),), strides=[2, 2], pads=[0, 0, 1, 1])),
    ("ConvTranspose same", _model("ConvTranspose", IMAGE, (_floats(4, 5, 3, 3),), strides=[2, 2], auto_pad="SAME_UPPER")),
    ("ConvTranspose shape", _model("ConvTranspose", IMAGE, (_floats(4, 5, 3, 3),), strides=[2, 2], output_shape=[18, 16])),
    ("MaxPool", _model("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
    ("MaxPool ceil", _model("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
    ("MaxPool uneven", _model("MaxPool", IMAGE, kernel_shape=[2, 2], pads=[0, 0, 1, 1])),
    ("MaxPool same", _model("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")),
    ("MaxPool 1d", _model("MaxPool", _floats(2, 3, 11), kernel_shape=[2], strides=[2])),
    ("AveragePool", _model("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
    ("AveragePool counting", _model("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)),
    ("AveragePool uneven", _model("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[0, 0, 1, 1], strides=[2, 2])),
    ("AveragePool uneven counting", _model("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[0, 0, 1, 1], strides=[2, 2], count_include_pad=1)),
    ("AveragePool ceil", _model("AveragePool", IMAGE, opset=19, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
    ("AveragePool same", _model("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")),
    ("BatchNormalization", _model("BatchNormalization", IMAGE, (_floats(4), _floats(4), _floats(4), _positive(4)), epsilon=1e-3)),
    ("InstanceNormalization", _model("InstanceNormalization", IMAGE, (_floats(4), _floats(4)))),
    ("LayerNormalization", _model("LayerNormalization", IMAGE, (_floats(9, 8), _floats(9, 8)), axis=2)),
    ("GroupNormalization", _model("GroupNormalization", IMAGE, (_floats(4), _floats(4)), opset=21, num_groups=2)),
    ("LRN", _model("LRN", IMAGE, size=3, alpha=1e-2)),
    ("Gemm", _model("Gemm", _floats(3, 5), (_floats(4, 5), _floats(4)), transB=1)),
    ("Gemm scaled", _model("Gemm", _floats(5, 3), (_floats(5, 4), _floats(1, 4)), transA=1, alpha=0.5, beta=2.0)),
    ("Gemm no bias", _model("Gemm", _floats(3, 5), (_floats(5, 4),))),
    ("MatMul", _model("MatMul", _floats(2, 3, 5), (_floats(5, 4),))),
    ("Reshape", _model("Reshape", IMAGE, (_ints(0, -1, 8),))),
    ("Flatten 2", _model("Flatten", IMAGE, axis=2)),
    ("Transpose perm", _model("Transpose", IMAGE, perm=[0, 2, 3, 1])),
    ("Squeeze", _model("Squeeze", _floats(2, 1, 3, 1), (_ints(1),))),
    ("Squeeze all", _model("Squeeze", _floats(2, 1, 3, 1))),
    ("Squeeze old", _model("Squeeze", _floats(2, 1, 3, 1), opset=11, axes=[3])),
    ("Unsqueeze", _model("Unsqueeze", _floats(2, 3), (_ints(0, -1),))),
    ("Slice", _model("Slice", IMAGE, (_ints(1, 0), _ints(100, -1), _ints(2, 3), _ints(2, 1)))),
    ("Slice back", _model("Slice", IMAGE, (_ints(-1), _ints(-(2**40)), _ints(1), _ints(-2)))),
    ("Slice old", _model("Slice", IMAGE, opset=9, starts=[0, 1], ends=[4, 3], axes=[1, 2])),
    ("Pad", _model("Pad", IMAGE, (_ints(0, 1, 0, 2, 0, 0, 3, 1), _number(0.5)))),
    ("Pad crop", _model("Pad", IMAGE, (_ints(0, 0, -1, 0, 0, 0, 1, -2),))),
    ("Pad reflect", _model("Pad", IMAGE, (_ints(0, 0, 1, 2, 0, 0, 2, 1),), mode="reflect")),
    ("Pad edge", _model("Pad", IMAGE, (_ints(0, 0, 1, 2, 0, 0, 2, 1),), mode="edge")),
    ("Pad axes", _model("Pad", IMAGE, (_ints(1, 2), None, _ints(2)), opset=18)),
    ("Concat", _model("Concat", IMAGE, (_floats(2, 3, 9, 8),), axis=1)),
    ("Split", _model("Split", IMAGE, (_ints(1, 3),), outputs=2, axis=1)),
    ("Split even", _model("Split", IMAGE, outputs=2, axis=1)),
    ("Split count", _model("Split", IMAGE, opset=18, outputs=2, axis=2, num_outputs=2)),
    ("Gather", _model("Gather", IMAGE, (_ints(3, -4, 1),), axis=1)),
    ("Gather one", _model("Gather", IMAGE, (np.asarray(1, dtype=np.int64),), axis=2)),
    ("Gather matrix", _model("Gather", IMAGE, (np.asarray([[0, 1], [2, 3]], dtype=np.int64),), axis=1)),
    ("Expand", _model("Expand", _floats(2, 1, 3), (_ints(2, 4, 1),))),
    ("Tile", _model("Tile", _floats(2, 3), (_ints(1, 2),))),
    ("Cast", _model("Cast", _floats(2, 3), to=TensorProto.INT32)),
    ("Dropout", _model("Dropout", IMAGE)),
    ("ReduceMean axes", _model("ReduceMean", IMAGE, axes=[2, 3], keepdims=0)),
    ("ReduceSum axes", _model("ReduceSum", IMAGE, (_ints(1),))),
    ("ReduceSum noop", _model("ReduceSum", IMAGE, noop_with_empty_axes=1)),
    ("DepthToSpace", _model("DepthToSpace", IMAGE, blocksize=2)),
    ("DepthToSpace CRD", _model("DepthToSpace", IMAGE, blocksize=2, mode="CRD")),
    ("SpaceToDepth", _model("SpaceToDepth", _floats(2, 3, 4, 6), blocksize=2)),
    ("Upsample", _model("Upsample", IMAGE, (np.asarray([1, 1, 2, 2], dtype=np.float32),), opset=9)),
    *(
        (f"Resize {mode} {where} {rounding}", _model("Resize", IMAGE, (None, np.asarray([1, 1, *scale], dtype=np.float32)), mode=mode, coordinate_transformation_mode=where, nearest_mode=rounding))
        for mode, where, rounding, scale in [
            ("nearest", "asymmetric", "floor", (2, 2)),
            ("nearest", "half_pixel", "round_prefer_floor", (1.5, 2)),
            ("nearest", "asymmetric", "ceil", (0.5, 2)),
            ("nearest", "half_pixel", "round_prefer_ceil", (2, 2)),
            ("linear", "half_pixel", "floor", (2, 2)),
            ("linear", "align_corners", "floor", (2, 3)),
            ("linear", "asymmetric", "floor", (2, 2)),
            ("linear", "pytorch_half_pixel", "floor", (0.5, 0.5)),
        ]
    ),
    ("Resize sizes", _model("Resize", IMAGE, (None, None, _ints(2, 4, 5, 7)), mode="linear")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "model"), CASES, ids=[name for name, _ in CASES])
def test_a_rule_computes_what_onnxruntime_computes(name: str, model: bytes) -> None:
    parsed = onnx.load_model_from_string(model)
    shape = [d.dim_value for d in parsed.graph.input[0].type.tensor_type.shape.dim]
    feed = _positive(*shape) if name in {"Log", "Sqrt", "Pow"} else _floats(*shape)
    assert _differences(model, {"x": feed}) < 2e-5


def test_where_chooses_by_condition() -> None:
    condition = np.asarray([[True, False, True]])
    node = helper.make_node("Where", ["c", "x", "z"], ["y"], name="where")
    graph = helper.make_graph(
        [node],
        "where",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(condition, "c"), numpy_helper.from_array(_floats(1, 3), "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    assert _differences(model.SerializeToString(), {"x": _floats(2, 3)}) == 0.0


def test_every_rule_is_compared() -> None:
    compared = {name.split(" ")[0] for name, _ in CASES}
    elsewhere = {"Where", "Shape"}
    assert set(RULES) - compared - elsewhere == set()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_model("MaxPool", IMAGE, outputs=2, kernel_shape=[2, 2]), "indices"),
        (_model("Resize", IMAGE, (None, np.asarray([1, 1, 2, 2], np.float32)), mode="cubic"), "cubic"),
        (_model("LRN", IMAGE, size=2), "even"),
    ],
)  # fmt: skip
def test_a_form_without_a_rule_names_the_node(model: bytes, words: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"node 'node' .*{words}"):
        build_module(model)(torch.from_numpy(IMAGE))


def test_a_shape_that_depends_on_data_is_refused() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], name="cast", to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "i"], ["y"], name="reshape"),
    ]
    graph = helper.make_graph(
        nodes,
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [onnx.ValueInfoProto(name="y")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    with pytest.raises(UnsupportedError, match=r"'reshape' .* depends on data"):
        build_module(model.SerializeToString())(torch.tensor([1.0, 2.0]))
