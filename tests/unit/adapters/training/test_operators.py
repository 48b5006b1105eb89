"""Every operator rule computes what onnxruntime computes, and gradients flow through it."""

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
    inferred = onnx.shape_inference.infer_shapes(model)
    return inferred.SerializeToString()


def _gradients(model: bytes, feed: np.ndarray) -> torch.Tensor | None:
    """Return the gradient of a weighted sum of all float outputs by the input."""
    module = build_module(model).train()
    x = torch.from_numpy(feed.copy()).requires_grad_()
    found = module(x)
    outputs = found if isinstance(found, tuple) else (found,)
    shown = [o for o in outputs if o.dtype.is_floating_point and o.requires_grad]
    if not shown:
        return None
    torch.manual_seed(0)
    sum((torch.randn(o.shape) * o).sum() for o in shown).backward()
    return x.grad


def _differences(model: bytes, feeds: Mapping[str, np.ndarray]) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    expected = session.run(None, dict(feeds))
    module = build_module(model)
    found = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    results = found if isinstance(found, tuple) else (found,)
    assert not module.frozen_nodes
    worst = 0.0
    for want, got in zip(expected, results, strict=True):
        got_array = got.detach().numpy()
        assert got_array.shape == want.shape
        worst = max(worst, float(np.abs(got_array.astype(np.float64) - want).max(initial=0.0)))
    return worst


IMAGE = _floats(2, 4, 9, 8)
NARROW = np.asarray(np.tanh(_floats(3, 5)) * 0.9, dtype=np.float32)
SEQUENCE = _floats(7, 3, 5)
UNARY = [
    "Asinh", "Atan", "Celu", "Cosh", "GlobalLpPool", "IsNaN", "ReduceLogSumExp",
    "ReduceSumSquare", "Round", "Shrink", "Sign", "Sinh", "ThresholdedRelu",
    "Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "LogSoftmax", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softmax",
    "Softplus", "Softsign", "Tanh", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Transpose",
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSum",
]  # fmt: skip
BINARY = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum"]

RESIZINGS: list[tuple[dict[str, Any], tuple[float, float]]] = [
    ({"mode": "cubic"}, (2, 1.5)),
    ({"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}, (0.6, 2)),
    ({"mode": "cubic", "coordinate_transformation_mode": "align_corners"}, (2, 2)),
    ({"mode": "linear", "antialias": 1}, (0.5, 0.5)),
    ({"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, (1.3, 0.7)),
]
W33 = _floats(6, 4, 3, 3)
CASES: list[tuple[str, bytes]] = [
    *((op, _model(op, IMAGE)) for op in UNARY),
    *((f"{op} constant", _model(op, IMAGE, (_positive(1, 4, 1, 1),))) for op in BINARY),
    *((op, _model(op, NARROW)) for op in ("Acos", "Asin", "Atanh", "Tan")),
    ("Acosh", _model("Acosh", _positive(2, 3))),
    ("ReduceLogSum", _model("ReduceLogSum", _positive(2, 3), axes=[1])),
    ("ReduceL1", _model("ReduceL1", IMAGE, axes=[1])),
    ("ReduceProd", _model("ReduceProd", _floats(2, 3, 4), axes=[1, -1])),
    ("IsInf", _model("IsInf", IMAGE)),
    ("Not", _model("Not", _floats(2, 3) > 0)),
    *((op, _model(op, IMAGE, (_floats(1, 4, 1, 1),))) for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *((op, _model(op, _floats(2, 3) > 0, (_floats(2, 3) > 0.3,))) for op in ("And", "Or", "Xor")),
    ("Mod", _model("Mod", IMAGE, (_positive(1, 4, 1, 1),), fmod=1)),
    ("Mod whole", _model("Mod", np.arange(-4, 4), (_ints(3),))),
    ("Div whole", _model("Div", np.arange(-4, 4), (_ints(3),))),
    ("Selu other", _model("Selu", IMAGE, alpha=1.2, gamma=0.7)),
    ("Einsum", _model("Einsum", _floats(2, 3, 4), (_floats(5, 4),), equation="bij, kj -> bik")),
    ("CumSum", _model("CumSum", _floats(2, 5), (np.asarray(1),))),
    ("CumSum back", _model("CumSum", _floats(2, 5), (np.asarray(1),), exclusive=1, reverse=1)),
    ("ArgMax", _model("ArgMax", IMAGE, axis=1)),
    ("ArgMax last", _model("ArgMax", np.zeros((2, 3), np.float32), axis=1, keepdims=0, select_last_index=1)),
    ("ArgMin", _model("ArgMin", IMAGE, axis=-1, keepdims=0)),
    ("TopK", _model("TopK", IMAGE, (_ints(2),), outputs=2, axis=1)),
    ("TopK least", _model("TopK", IMAGE, (_ints(3),), outputs=2, axis=2, largest=0)),
    ("GatherElements", _model("GatherElements", IMAGE, (np.asarray([[[[0], [-1]]]]),), axis=3)),
    ("GatherND", _model("GatherND", IMAGE, (np.asarray([[0, 1], [-1, 3]]),))),
    ("GatherND batch", _model("GatherND", _floats(2, 3, 4), (np.asarray([[1], [-1]]),), batch_dims=1)),
    ("ScatterElements", _model("ScatterElements", _floats(2, 3), (np.asarray([[1, -1]]), _floats(1, 2)), axis=1)),
    ("ScatterElements add", _model("ScatterElements", _floats(2, 3), (np.asarray([[1, 1]]), _floats(1, 2)), axis=1, reduction="add")),
    ("ScatterND", _model("ScatterND", _floats(3, 4), (np.asarray([[1], [-1]]), _floats(2, 4)))),
    ("ScatterND add", _model("ScatterND", _floats(3, 4), (np.asarray([[1], [1]]), _floats(2, 4)), reduction="add")),
    ("OneHot", _model("OneHot", np.asarray([0, 2, -1, 7]), (np.asarray(3), np.asarray([0.5, 2], np.float32)))),
    ("OneHot first", _model("OneHot", np.asarray([0, 2]), (np.asarray(3), np.asarray([0, 1], np.float32)), axis=0)),
    ("Trilu", _model("Trilu", _floats(2, 4, 4), (np.asarray(1),))),
    ("Trilu low", _model("Trilu", _floats(2, 4, 4), upper=0)),
    ("ReverseSequence", _model("ReverseSequence", _floats(5, 3, 2), (_ints(2, 5, 1),))),
    ("ReverseSequence batch", _model("ReverseSequence", _floats(3, 5, 2), (_ints(2, 5, 1),), batch_axis=0, time_axis=1)),
    ("CastLike", _model("CastLike", _floats(2, 3), (_ints(1),))),
    ("RNN", _model("RNN", SEQUENCE, (_floats(1, 4, 5), _floats(1, 4, 4), _floats(1, 8)), outputs=2, hidden_size=4)),
    ("RNN relu", _model("RNN", SEQUENCE, (_floats(1, 4, 5), _floats(1, 4, 4)), outputs=2, hidden_size=4, activations=["Relu"])),
    ("RNN reverse", _model("RNN", SEQUENCE, (_floats(1, 4, 5), _floats(1, 4, 4)), outputs=2, hidden_size=4, direction="reverse")),
    ("RNN clipped", _model("RNN", SEQUENCE, (_floats(1, 4, 5), _floats(1, 4, 4)), outputs=2, hidden_size=4, clip=0.3)),
    ("GRU", _model("GRU", SEQUENCE, (_floats(1, 12, 5), _floats(1, 12, 4), _floats(1, 24)), outputs=2, hidden_size=4)),
    ("GRU linear", _model("GRU", SEQUENCE, (_floats(1, 12, 5), _floats(1, 12, 4), _floats(1, 24)), outputs=2, hidden_size=4, linear_before_reset=1)),
    ("GRU both", _model("GRU", SEQUENCE, (_floats(2, 12, 5), _floats(2, 12, 4), _floats(2, 24)), outputs=2, hidden_size=4, linear_before_reset=1, direction="bidirectional")),
    ("GRU state", _model("GRU", SEQUENCE, (_floats(1, 12, 5), _floats(1, 12, 4), None, None, _floats(1, 3, 4)), outputs=2, hidden_size=4, linear_before_reset=1)),
    ("GRU lengths", _model("GRU", SEQUENCE, (_floats(2, 12, 5), _floats(2, 12, 4), None, np.asarray([7, 2, 4], np.int32)), outputs=2, hidden_size=4, direction="bidirectional")),
    ("GRU functions", _model("GRU", SEQUENCE, (_floats(1, 12, 5), _floats(1, 12, 4)), outputs=2, hidden_size=4, activations=["HardSigmoid", "LeakyRelu"], activation_alpha=[0.3, 0.1], activation_beta=[0.4])),
    ("LSTM", _model("LSTM", SEQUENCE, (_floats(1, 16, 5), _floats(1, 16, 4), _floats(1, 32)), outputs=3, hidden_size=4)),
    ("LSTM both", _model("LSTM", SEQUENCE, (_floats(2, 16, 5), _floats(2, 16, 4), _floats(2, 32)), outputs=3, hidden_size=4, direction="bidirectional")),
    ("LSTM states", _model("LSTM", SEQUENCE, (_floats(1, 16, 5), _floats(1, 16, 4), None, None, _floats(1, 3, 4), _floats(1, 3, 4)), outputs=3, hidden_size=4)),
    ("LSTM peepholes", _model("LSTM", SEQUENCE, (_floats(1, 16, 5), _floats(1, 16, 4), _floats(1, 32), None, None, None, _floats(1, 12)), outputs=3, hidden_size=4)),
    ("LSTM lengths", _model("LSTM", SEQUENCE, (_floats(1, 16, 5), _floats(1, 16, 4), None, np.asarray([7, 2, 4], np.int32)), outputs=3, hidden_size=4)),
    ("LSTM reverse lengths", _model("LSTM", SEQUENCE, (_floats(1, 16, 5), _floats(1, 16, 4), None, np.asarray([7, 2, 4], np.int32)), outputs=3, hidden_size=4, direction="reverse")),
    ("LSTM clipped", _model("LSTM", SEQUENCE, (_floats(1, 16, 5), _floats(1, 16, 4)), outputs=3, hidden_size=4, clip=0.5)),
    ("LpNormalization", _model("LpNormalization", IMAGE, axis=1)),
    ("LpPool", _model("LpPool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])),
    ("MeanVarianceNormalization", _model("MeanVarianceNormalization", IMAGE)),
    ("LayerNormalization statistics", _model("LayerNormalization", IMAGE, (_floats(9, 8),), axis=2, outputs=3)),
    ("GridSample", _model("GridSample", IMAGE, (np.tanh(_floats(2, 5, 6, 2)),), align_corners=1)),
    ("GridSample border", _model("GridSample", IMAGE, (_floats(2, 5, 6, 2),), opset=20, padding_mode="border")),
    ("MaxPool places", _model("MaxPool", IMAGE, outputs=2, kernel_shape=[2, 2], strides=[2, 2])),
    ("AveragePool dilated", _model("AveragePool", IMAGE, opset=19, kernel_shape=[3, 2], dilations=[2, 2], pads=[1, 1, 1, 1])),
    ("Pad reflect rows", _model("Pad", _floats(3, 6), (_ints(1, 2, 0, 3),), mode="reflect")),
    ("Pad edge batch", _model("Pad", IMAGE, (_ints(1, 1, 0, 2, 0, 2, 1, 0),), mode="edge")),
    ("Pad wrap", _model("Pad", IMAGE, (_ints(0, 0, 1, 2, 0, 0, 2, 1),), mode="wrap", opset=19)),
    ("Shape", _model("Shape", IMAGE, start=1, end=-1)),
    ("Size", _model("Size", IMAGE)),
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
    *(
        (f"Resize {' '.join(map(str, options.values()))} {scale}", _model("Resize", IMAGE, (None, np.asarray([1, 1, *scale], dtype=np.float32)), opset=19, **options))
        for options, scale in RESIZINGS
    ),
    ("Resize region", _model("Resize", IMAGE, (np.asarray([0, 0, 0.1, -0.2, 1, 1, 1.2, 0.9], np.float32), None, _ints(2, 4, 6, 7)), mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=0.5)),
    ("Resize kept ratio", _model("Resize", IMAGE, (None, None, _ints(15, 20)), opset=19, axes=[2, 3], mode="linear", keep_aspect_ratio_policy="not_larger")),
    ("Resize sizes", _model("Resize", IMAGE, (None, None, _ints(2, 4, 5, 7)), mode="linear")),
]  # fmt: skip


POSITIVE = {"Log", "Sqrt", "Pow", "Acosh", "ReduceLogSum"}
FLAT = {"Ceil", "Floor", "IsInf", "IsNaN", "Round", "Sign", "Shape", "Size", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "ArgMax", "ArgMin", "Cast", "CastLike"}  # fmt: skip
"""Operators whose outputs are no numbers, or do not change with the input."""


def _feed(name: str, model: bytes) -> np.ndarray:
    value = onnx.load_model_from_string(model).graph.input[0]
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    op_type = name.split(" ", maxsplit=1)[0]
    if op_type in {"Acos", "Asin", "Atanh", "Tan"}:
        return np.asarray(np.tanh(_floats(*shape)) * 0.9, dtype=np.float32)
    if op_type == "Acosh":
        return _positive(*shape) + np.float32(1)
    if kind == np.int64:
        return np.arange(-3, -3 + int(np.prod(shape))).reshape(shape)
    values = _positive(*shape) if op_type in POSITIVE else _floats(*shape)
    return (values > 0) if kind == np.bool_ else values


@pytest.mark.parametrize(("name", "model"), CASES, ids=[name for name, _ in CASES])
def test_a_rule_computes_what_onnxruntime_computes(name: str, model: bytes) -> None:
    assert _differences(model, {"x": _feed(name, model)}) < 2e-5


@pytest.mark.parametrize(
    ("name", "model"),
    [(n, m) for n, m in CASES if n.split(" ")[0] not in FLAT and _feed(n, m).dtype == np.float32],
)
def test_a_gradient_flows_through_a_rule(name: str, model: bytes) -> None:
    gradient = _gradients(model, _feed(name, model))
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


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
    elsewhere = {"Where", "MaxUnpool", "RMSNormalization", "Swish"}
    assert set(RULES) - compared - elsewhere == set()


FROZEN = [
    ("HardMax", _model("Hardmax", IMAGE)),
    ("MaxPool", _model("MaxPool", IMAGE, outputs=2, kernel_shape=[2, 2], auto_pad="SAME_UPPER")),
    ("Det", _model("Det", _floats(2, 3, 3))),
]


@pytest.mark.parametrize(("name", "model"), FROZEN, ids=[name for name, _ in FROZEN])
def test_what_has_no_rule_runs_as_it_is(name: str, model: bytes) -> None:
    feed = _feed(name, model)
    module = build_module(model)
    found = module(torch.from_numpy(feed))
    first = found[0] if isinstance(found, tuple) else found
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(first.numpy(), session.run(None, {"x": feed})[0], rtol=1e-6)
    assert list(module.frozen_nodes) == ["node"]


def _between(op_type: str, *, weight_after: bool) -> bytes:
    """A product, the operator, and perhaps another product."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="before"),
        helper.make_node(op_type, ["a"], ["b"], name="middle"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="after")
        if weight_after
        else helper.make_node("Relu", ["b"], ["y"], name="after"),
    ]
    graph = helper.make_graph(
        nodes,
        "between",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(_floats(3, 3), n) for n in ("w", "v")[: 1 + weight_after]],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def test_weights_behind_a_frozen_node_are_trained() -> None:
    module = build_module(_between("Hardmax", weight_after=True)).train()
    assert module.frozen_nodes == {"middle": "Hardmax"}
    output = module(torch.from_numpy(_floats(2, 3)))
    assert isinstance(output, torch.Tensor)
    torch.autograd.backward(output.square().sum())
    behind, before = module.value_of("v"), module.value_of("w")
    assert behind is not None
    assert behind.grad is not None
    assert behind.grad.abs().max() > 0
    assert before is not None
    assert before.grad is None


def test_a_graph_whose_weights_all_lie_before_a_frozen_node_names_it() -> None:
    with pytest.raises(
        UnsupportedError, match=r"'middle' \(Hardmax\) .* all weights lie before it"
    ):
        build_module(_between("Hardmax", weight_after=False))


def test_a_frozen_node_cannot_be_exported() -> None:
    module = build_module(_between("Hardmax", weight_after=True))
    with pytest.raises(UnsupportedError, match="no form in torch"):
        torch.export.export(module, (torch.from_numpy(_floats(2, 3)),))


def test_a_shape_that_depends_on_data_is_left_to_the_runtime() -> None:
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
    module = build_module(model.SerializeToString())
    found = module(torch.tensor([1.0, 2.0]))
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [[1.0, 2.0]]
    assert module.frozen_nodes == {"reshape": "Reshape"}


def test_places_of_pooling_lead_back() -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["m", "i"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("MaxUnpool", ["m", "i"], ["y"], name="back", kernel_shape=[2, 2], strides=[2, 2]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "unpool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4, 6])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    assert _differences(model.SerializeToString(), {"x": _floats(2, 3, 4, 6)}) == 0.0


def test_rules_that_the_runtime_lacks_follow_the_standard() -> None:
    x = _floats(2, 3, 6)
    swish = build_module(_model("Swish", x, opset=24, alpha=0.5))(torch.from_numpy(x))
    assert isinstance(swish, torch.Tensor)
    np.testing.assert_allclose(swish.numpy(), x / (1 + np.exp(-0.5 * x)), rtol=1e-5, atol=1e-6)
    scale = _positive(6)
    norm = build_module(_model("RMSNormalization", x, (scale,), opset=23))(torch.from_numpy(x))
    assert isinstance(norm, torch.Tensor)
    power = np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm.detach().numpy(), x / power * scale, rtol=1e-5, atol=1e-6)
