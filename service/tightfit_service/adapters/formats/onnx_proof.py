"""The proof that an imported ONNX graph computes what the file does, for each sample of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from tightfit_service.adapters.formats.departure import departure_from_onnx
from tightfit_service.adapters.formats.onnx_execution import (
    LIBRARY_ERRORS,
    relative_difference,
    run_original,
    run_working,
)
from tightfit_service.application.samples import FloatArray
from tightfit_service.domain.errors import ParityError
from tightfit_service.graph.model_file import invalid, shown
from tightfit_service.graph.normal_form import BATCH
from tightfit_service.graph.structure import (
    Array,
    first_line,
    graph_inputs,
    graph_outputs,
    tensor_shapes,
)

PARITY_LIMIT = 2e-4
"""Largest difference, relative to the largest output, that float32 rounding is allowed to explain.

Reordered sums of a deep network differ by some 1e-5; a wrong operator differs by more than 1e-2.
"""
QUANTIZED_PARITY_LIMIT = 0.05
"""For quantized models a value may round to the neighbouring level."""

_FAR = 100.0
"""How much larger than the first the second sample is where it is seen whether samples mix."""
_MIXED_LIMIT = 1e-5
"""The same sample at the same batch size is computed in the same order, so that hardly any is left."""

_QUANTIZED = frozenset(
    [
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "MatMulInteger",
        "MatMulNBits",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
    ]
)


def is_quantized(model: ModelProto) -> bool:
    """Return whether a model holds quantized operators (QDQ, QLinear, integer products)."""
    return any(
        node.op_type in _QUANTIZED or node.op_type.startswith("QLinear")
        for node in model.graph.node
    )


def quantized_warning() -> str:
    """Return what users should know about a model that came quantized."""
    return (
        "the model is quantized: it can be checked, estimated and evaluated, but not compressed, "
        "for its weights are rounded already; to compress it, send the float model that it was "
        "made from"
    )


def compared(
    source: ModelProto,
    model: ModelProto,
    inputs: Sequence[FloatArray],
    *,
    expected: Sequence[Array],
    found: Sequence[Array],
) -> float:
    """Return the largest relative difference between the outputs of the original and of the graph.

    Args:
        source: The original.
        model: The graph that was made of it.
        inputs: What both were run on.
        expected: The original's outputs.
        found: The graph's.

    Raises:
        ParityError: They differ by more than rounding; names the first node that does.
    """
    limit = QUANTIZED_PARITY_LIMIT if is_quantized(model) else PARITY_LIMIT
    worst = 0.0
    for name, reference, value in zip(graph_outputs(model), expected, found, strict=True):
        if value.shape != reference.shape:
            raise ParityError(
                f"output {shown(name)} of the imported graph has shape {value.shape}, the "
                f"original's has {reference.shape}"
                + departure_from_onnx(source, model, inputs, limit=limit),
                field="model",
                remedy="export the model with a free (dynamic) batch axis",
            )
        difference = relative_difference(reference, value)
        if difference > limit:
            raise ParityError(
                f"output {shown(name)} of the imported graph differs from the original's by "
                f"{difference:.3g} of its largest value (at most {limit:g} is rounding)"
                + departure_from_onnx(source, model, inputs, limit=limit),
                field="model",
                remedy="report the model; a newer export (opset 17) may import correctly",
            )
        worst = max(worst, difference)
    return worst


def prove_batch(source: ModelProto, model: ModelProto) -> None:
    """Run two samples at once and compare with the original, so that the free batch is real.

    The outputs' shapes are declared as seen.
    """
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(model, batch=2)
    inputs = [
        rng.uniform(0.0, 1.0, shapes[name]).astype(np.float32) for name in graph_inputs(model)
    ]
    expected = run_original(source, inputs)
    for name, value in zip(graph_outputs(model), expected, strict=True):
        if np.shape(value)[:1] != (2,):
            raise invalid(
                f"output {shown(name)} has no batch axis",
                remedy="export the model so that axis 0 of every output is the batch",
            )
    try:
        found = run_working(model, inputs)
        compared(source, model, inputs, expected=expected, found=found)
    except (ParityError, *LIBRARY_ERRORS) as error:
        told = error.message if isinstance(error, ParityError) else first_line(error)
        raise invalid(
            f"the batch of the model cannot be made free: {told}",
            remedy="export the model with a free (dynamic) batch axis",
        ) from error
    _declare_outputs(model, expected)
    _prove_apart(model, inputs, found)


def _prove_apart(model: ModelProto, inputs: Sequence[FloatArray], found: Sequence[Array]) -> None:
    """See that what a graph returns for the first of two samples does not depend on the second.

    Where samples mix in a small term, outputs on like samples differ by no more than rounding does;
    so the second sample is made a far larger one. Quantized graphs may take their scales from whole
    batches, as dynamic quantization does. `found` is what it returns for `inputs`.
    """
    if is_quantized(model):
        return
    far = [np.concatenate([value[:1], -_FAR * value[1:]]) for value in inputs]
    try:
        beside_far = run_working(model, far)
    except LIBRARY_ERRORS:
        return  # positions that are computed from such values may lie outside of what they pick from
    for name, near, other in zip(graph_outputs(model), found, beside_far, strict=True):
        difference = relative_difference(near[:1], other[:1])
        if difference > _MIXED_LIMIT:
            raise invalid(
                f"the batch of the model cannot be made free: output {shown(name)} of one sample "
                f"depends on other samples (by {difference:.3g} of its largest value)",
                remedy="export the model with a free (dynamic) batch axis",
            )


def _declare_outputs(model: ModelProto, values: Sequence[Array]) -> None:
    """Write the shapes that the outputs were seen to have into the model, axis 0 as the batch."""
    for output, value in zip(model.graph.output, values, strict=True):
        shape = output.type.tensor_type.shape
        shape.Clear()
        shape.dim.add(dim_param=BATCH)
        for size in value.shape[1:]:
            shape.dim.add(dim_value=size)
