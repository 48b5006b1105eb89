"""TFLite files in: read with distrust, brought into working form, and proven against LiteRT."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tightfit_service.adapters.formats.layout import channels_first
from tightfit_service.adapters.formats.onnx_execution import (
    LIBRARY_ERRORS,
    relative_difference,
    run_original,
    run_working,
)
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.formats.onnx_proof import PARITY_LIMIT, quantized_warning
from tightfit_service.adapters.formats.tflite_execution import (
    LitertReference,
    first_difference,
    written,
)
from tightfit_service.adapters.formats.tflite_literal import LiteralGraph, literal_graph
from tightfit_service.adapters.formats.tflite_reader import TfliteTensor, read_tflite
from tightfit_service.application.ports import ImportedModel
from tightfit_service.application.samples import FloatArray
from tightfit_service.domain.errors import InvalidModelError, ParityError
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.graph.model_file import (
    DEFAULT_LIMITS,
    ModelLimits,
    check_bounds,
    copy_model,
    invalid,
    load_model,
    save_model,
    shown,
)
from tightfit_service.graph.normal_form import check_inputs
from tightfit_service.graph.structure import Array, first_line, remove_dead_code

_COMPARED_SAMPLES = 2
_OPERATORWISE_SAMPLES = 2


class TfliteImporter:
    """Implements `application.ports.ModelImporter` for TFLite; stateless and thread-safe.

    The working graph is NCHW inside; inputs and outputs keep names, order and layout of the file.
    Quantized files become the graph of the real numbers that their integers stand for.
    """

    def __init__(self, *, limits: ModelLimits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._onnx = OnnxImporter(limits=limits)

    def import_model(self, data: bytes) -> ImportedModel:
        """Check, translate and normalise a model, and compare it with LiteRT on two random samples.

        Raises:
            InvalidModelError: Anything about the file that cannot be used, with the remedy.
        """
        try:
            return self._import(data)
        except ParityError as error:
            raise invalid(error.message, remedy=error.remedy) from error
        except LIBRARY_ERRORS as error:
            raise invalid(
                f"the model cannot be used: {first_line(error)}",
                remedy="check that the file runs in ai_edge_litert's Interpreter",
            ) from error

    def check_parity(self, original: bytes, graph: bytes, inputs: Sequence[FloatArray]) -> float:
        """Run the file in LiteRT and the graph in onnxruntime; return the largest relative difference.

        `inputs` holds one batch of float values per model input, in the file's layout; LiteRT gets
        them sample by sample, quantized where the file wants integers. Differences are relative to
        the largest absolute value of each output.

        The outputs of a file that rounds to integers differ by what rounding adds up to, for which there is no
        bound that would catch a wrong operator. There each operator is compared alone, fed with
        what LiteRT computed before it (within three steps of its output's scale, or 2 % of its
        largest value), and the graph with the operators put together (within float32 rounding).

        Raises:
            InvalidModelError: One of the two does not run.
            ParityError: They differ by more than that; names the first operator that does.
        """
        try:
            literal = literal_graph(read_tflite(original, limits=self._limits))
            return _compared(literal, graph, inputs)
        except LIBRARY_ERRORS as error:
            raise invalid(
                f"the model does not run on these inputs: {first_line(error)}",
                remedy="check that LiteRT runs the model on inputs of the declared shape",
            ) from error

    def _import(self, data: bytes) -> ImportedModel:
        source = read_tflite(data, limits=self._limits)
        literal = literal_graph(source)
        check_bounds(literal.model, limits=self._limits)
        check_inputs(literal.model)
        alive = copy_model(literal.model)
        remove_dead_code(alive)
        try:
            imported = self._onnx.import_model(save_model(channels_first(alive, literal.shapes)))
        except InvalidModelError as error:
            remedy = f"send the model as ONNX, or convert it again ({error.remedy})"
            raise invalid(error.message, remedy=remedy) from error
        rng = np.random.default_rng(0)
        samples = [_random(source.tensors[index], rng) for index in source.inputs]
        _compared(literal, imported.graph, samples)
        warnings = [
            f"left out at the end of the graph, whose outputs are now what it reads: {item}"
            for item in literal.left_out
        ]
        if source.is_quantized:
            warnings.append(quantized_warning())
        else:
            # The batch of a TFLite file is 1 by convention: that it was made free is no news.
            warnings.extend(item for item in imported.warnings if "batch was fixed" not in item)
        return dataclasses.replace(
            imported,
            is_quantized=source.is_quantized,
            source_format=ModelFormat.TFLITE,
            warnings=tuple(warnings),
        )


def checked_file(data: bytes) -> bytes:
    """Return a TFLite file written anew from what was read and checked of another.

    LiteRT may be given this one: it trusts the offsets and sizes in what it loads.

    Raises:
        InvalidModelError: The file cannot be read, or has operators that are not known.
    """
    return written(literal_graph(read_tflite(data)))


def _random(tensor: TfliteTensor, rng: np.random.Generator) -> FloatArray:
    """Return samples for an input: over its range where it is quantized, else in [0, 1)."""
    low, high = 0.0, 1.0
    if tensor.is_integer_code:
        low, high = (float(tensor.real(np.asarray(level))) for level in tensor.levels)
    shape = (_COMPARED_SAMPLES, *tensor.shape[1:])
    return rng.uniform(low, high, shape).astype(np.float32)


def _in_steps(tensor: TfliteTensor, values: FloatArray) -> FloatArray:
    quantization = tensor.quantization
    if not tensor.is_integer_code or quantization is None:
        return values
    scale, zero_point = quantization.scales[0], quantization.zero_points[0]
    codes = np.clip(np.round(values / scale) + zero_point, *tensor.levels)
    return np.asarray(tensor.real(codes), dtype=np.float32)


def _compared(literal: LiteralGraph, graph: bytes, inputs: Sequence[FloatArray]) -> float:
    """Return the largest relative difference between LiteRT and the working graph."""
    source = literal.source
    if len(inputs) != len(source.inputs):
        raise invalid(
            f"the model has {len(source.inputs)} inputs, {len(inputs)} were given",
            remedy="give one array per input",
        )
    # Integer inputs take steps: both sides get the values that the file can be given.
    inputs = [
        _in_steps(source.tensors[index], value)
        for index, value in zip(source.inputs, inputs, strict=True)
    ]
    found = run_working(load_model(graph), inputs)
    expected = LitertReference(literal).run_batch(inputs)
    worst = max(_differences(literal, expected, found), default=0.0)
    if not source.rounds:
        if worst > PARITY_LIMIT:
            raise _differs(literal, worst, inputs)
        return worst
    together = run_original(literal.model, inputs)
    if max(_differences(literal, together, found), default=0.0) > PARITY_LIMIT:
        raise _differs(literal, worst, inputs)
    for sample in range(min(len(inputs[0]), _OPERATORWISE_SAMPLES)):
        if first_difference(literal, [x[sample : sample + 1] for x in inputs]) is not None:
            raise _differs(literal, worst, [x[sample : sample + 1] for x in inputs])
    return worst


def _differences(
    literal: LiteralGraph, expected: Sequence[Array], found: Sequence[Array]
) -> list[float]:
    names = [literal.source.tensors[index].name for index in literal.outputs]
    worst = []
    for name, reference, value in zip(names, expected, found, strict=True):
        if reference.shape != value.shape:
            raise ParityError(
                f"output {shown(name)} of the imported graph has shape {value.shape}, the file's "
                f"has {reference.shape}",
                field="model",
                remedy="convert the model so that axis 0 of every output is the batch",
            )
        worst.append(relative_difference(reference, value))
    return worst


def _differs(literal: LiteralGraph, worst: float, inputs: Sequence[FloatArray]) -> ParityError:
    """Return the error that names the first operator that differs."""
    try:
        first = first_difference(literal, [x[:1] for x in inputs])
    except (InvalidModelError, *LIBRARY_ERRORS):
        first = None
    where = "no operator alone differs: rounding adds up, or the graph was changed"
    if first is not None:
        where = (
            f"the first operator that differs is {first.index} ({first.kind}), which computes "
            f"tensor {shown(first.tensor)}, by {first.relative:.3g}"
        )
    return ParityError(
        f"the imported graph differs from what LiteRT computes by {worst:.3g} of the largest "
        f"output; {where}",
        field="model",
        remedy="report the model; one exported as ONNX may import correctly",
    )
