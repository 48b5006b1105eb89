"""Running ONNX models in onnxruntime, and comparing what they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import google.protobuf.message
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from tightfit_service.adapters.evaluation.onnxruntime_evaluator import exact_session
from tightfit_service.application.samples import FloatArray
from tightfit_service.graph.model_file import copy_model, invalid, save_model
from tightfit_service.graph.normal_form import name_nodes
from tightfit_service.graph.structure import Array, graph_inputs

LIBRARY_ERRORS = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    google.protobuf.message.Error,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
    ort_errors.NoModel,
    RuntimeError,
    ValueError,
    TypeError,
    OverflowError,
    IndexError,
    KeyError,
    MemoryError,
    RecursionError,
)
"""What onnx, protobuf, numpy and onnxruntime raise on files that are not what they seem."""


_RUN_BATCH = 16
_NO_LOG = 4


def open_session(data: bytes) -> onnxruntime.InferenceSession:
    """Return a quiet single-threaded session on the CPU.

    Raises:
        Exception: One of `LIBRARY_ERRORS` where onnxruntime refuses the model.
    """
    session: onnxruntime.InferenceSession = exact_session(data, threads=1, log_level=_NO_LOG)
    return session


def run_original(model: ModelProto, inputs: Sequence[FloatArray]) -> list[npt.NDArray[np.generic]]:
    """Return the outputs of a model as it came, run sample by sample: its batch may be fixed at 1.

    Nodes are given unique names on the way, which onnxruntime insists on and exporters do not.
    """
    names = graph_inputs(model)
    if len(names) != len(inputs):
        raise invalid(
            f"the model has {len(names)} inputs, {len(inputs)} were given",
            remedy="give one array per input",
        )
    runnable = copy_model(model)
    name_nodes(runnable)
    session = open_session(save_model(runnable))
    single = [
        session.run(None, {n: x[i : i + 1] for n, x in zip(names, inputs, strict=True)})
        for i in range(len(inputs[0]))
    ]
    return [
        np.concatenate(parts) if np.ndim(parts[0]) else np.stack(parts)
        for parts in zip(*single, strict=True)
    ]


def run_working(model: ModelProto, inputs: Sequence[FloatArray]) -> list[npt.NDArray[np.generic]]:
    """Return the outputs of a working graph on whole batches."""
    session = open_session(save_model(model))
    feeds = dict(zip(graph_inputs(model), inputs, strict=True))
    return [np.asarray(value) for value in session.run(None, feeds)]


def run_feeds(data: bytes, feeds: Mapping[str, FloatArray]) -> list[npt.NDArray[np.float32]]:
    """Return the outputs of a file on all samples of `feeds`, run in bounded batches.

    Raises:
        Exception: One of `LIBRARY_ERRORS` where onnxruntime refuses the model or cannot run it.
    """
    session = open_session(data)
    shapes = [value.shape for value in session.get_inputs()]
    is_fixed = any(shape and shape[0] == 1 for shape in shapes)
    size = 1 if is_fixed else _RUN_BATCH
    count = min((len(values) for values in feeds.values()), default=0)
    parts = [
        session.run(None, {name: values[i : i + size] for name, values in feeds.items()})
        for i in range(0, count, size)
    ]
    return [
        np.concatenate([np.asarray(part, dtype=np.float32) for part in output])
        for output in zip(*parts, strict=True)
    ]


def relative_difference(reference: Array, value: Array) -> float:
    """Return the largest difference relative to the reference's largest absolute value.

    Positions where both are NaN, or the same infinity, agree. The shapes must be equal.
    """
    if not reference.size:
        return 0.0
    left, right = reference.astype(np.float64), value.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    if same.all():
        return 0.0
    finite = np.isfinite(left) & np.isfinite(right)
    if not (same | finite).all():
        return float("inf")
    scale = float(np.abs(left[finite]).max())
    return float(np.abs(left[~same] - right[~same]).max()) / max(scale, 1e-12)
