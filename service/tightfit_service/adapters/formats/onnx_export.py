"""Exporter of ONNX files: float32, or int8 as QDQ pairs, reloaded in onnxruntime and compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Protocol

from onnx import GraphProto, ModelProto

from tightfit_service.adapters.formats.parity import check_outputs, comparison_inputs, run_graph
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import (
    InvalidDatasetError,
    InvalidModelError,
    ParityError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.graph.batch_norm import fold_batch_norms
from tightfit_service.graph.model_file import copy_model, load_model, save_model, subgraphs
from tightfit_service.graph.structure import declared_shape, graph_inputs

_ADDED_OPERATORS = frozenset({"QuantizeLinear", "DequantizeLinear"})


class Quantizer(Protocol):
    """Turns a float graph into one with QDQ pairs; safe for several threads."""

    def quantize(
        self,
        graph: bytes,
        *,
        calibration: Samples,
        settings: QuantizationSettings,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> bytes:
        """Return the quantized graph; `graph` is not changed.

        `ranges` holds least and greatest values of activation tensors that are not calibrated.
        """
        ...


class OnnxExporter:
    """Writes ONNX files (`ports.Exporter`): BatchNorm folded, intermediate shapes left out."""

    def __init__(self, *, quantizer: Quantizer) -> None:
        """Keep the quantizer that makes int8 graphs."""
        self._quantizer = quantizer

    def export(
        self,
        graph: bytes,
        *,
        calibration: Samples | None,
        settings: QuantizationSettings,
        metadata: Mapping[str, str],
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> ExportedModel:
        """Quantize as told, write, reload in onnxruntime, compare.

        Raises:
            ParityError: The reloaded file does not compute what the graph does.
            UnsupportedError: A number format other than float32 and int8, or several inputs.
            InvalidDatasetError: int8 without calibration samples.
        """
        given = load_model(graph)
        shape = single_input_shape(given)
        is_quantized = settings.number_format is NumberFormat.INT8
        if is_quantized:
            if calibration is None:
                raise calibration_missing()
            model = load_model(
                self._quantizer.quantize(
                    graph, calibration=calibration, settings=settings, ranges=ranges
                )
            )
        elif settings.number_format is NumberFormat.FLOAT32:
            model = fold_batch_norms(given)
        else:
            raise UnsupportedError(
                f"ONNX files in {settings.number_format} are not offered",
                field="quantization.number_format",
                remedy="use int8 or float32",
            )
        data = save_model(_finished(model, metadata))
        inputs = comparison_inputs(calibration, shape)
        expected = run_graph(graph, inputs)
        try:
            exported = run_graph(data, inputs)
        except InvalidModelError as error:
            raise ParityError(
                "the exported file does not run in onnxruntime",
                field="model",
                remedy="export in float32, or in another format",
            ) from error
        parity = check_outputs(expected, exported, is_quantized=is_quantized)
        return ExportedModel(
            data=data,
            format=ModelFormat.ONNX,
            number_format=settings.number_format,
            parity=parity,
            notes=_notes(settings),
        )


def calibration_missing() -> InvalidDatasetError:
    """Return the error for an integer export that was given no samples."""
    return InvalidDatasetError(
        "int8 needs calibration samples and there are none",
        field="calibration",
        remedy="give a dataset, or export in float32",
    )


def single_input_shape(model: ModelProto) -> tuple[int, ...]:
    """Return the shape of the model's input, its free batch as 1.

    Raises:
        UnsupportedError: Several inputs, or a shape that is not declared.
    """
    names = graph_inputs(model)
    if len(names) != 1:
        raise UnsupportedError(
            f"the model has {len(names)} inputs; export compares models with one",
            field="model",
            remedy="export the model with a single input",
        )
    value = next(item for item in model.graph.input if item.name == names[0])
    shape = declared_shape(value)
    if not shape or any(not isinstance(size, int) for size in shape[1:]):
        raise UnsupportedError(
            f"the input {names[0]!r} has no declared shape",
            field="model",
            remedy="export the model with fixed sizes behind the batch",
        )
    return (1, *(int(size) for size in shape[1:] if size is not None))


def _finished(model: ModelProto, metadata: Mapping[str, str]) -> ModelProto:
    result = copy_model(model)
    result.producer_name = "tightfit"
    result.producer_version = ""
    # Runtimes infer these again; in the file they only cost flash.
    del result.graph.value_info[:]
    for node in result.graph.node:
        node.doc_string = ""
        if node.op_type in _ADDED_OPERATORS:
            node.name = ""
    _shorten_tensor_names(result.graph)
    del result.metadata_props[:]
    for key, value in sorted(metadata.items()):
        result.metadata_props.add(key=key, value=value)
    return result


def _shorten_tensor_names(graph: GraphProto) -> None:
    """Rename tensors inside the graph in place; nodes, inputs and outputs keep their names.

    Converters build tensor names from paths, and every QDQ pair repeats them: a third of the file
    of an int8 ResNet-8. Graphs with subgraphs are left alone, for those capture tensors by name.
    """
    if any(True for node in graph.node for _ in subgraphs(node)):
        return
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    fresh = (name for name in (f"t{index}" for index in itertools.count()) if name not in kept)
    short: dict[str, str] = {}

    def renamed(name: str) -> str:
        if name in kept:
            return name
        if name not in short:
            short[name] = next(fresh)
        return short[name]

    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]


def _notes(settings: QuantizationSettings) -> tuple[str, ...]:
    if settings.number_format is NumberFormat.INT8 and settings.node_formats:
        return ("kept in float: " + ", ".join(settings.node_formats),)
    return ()
