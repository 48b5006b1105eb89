"""Exporter of ONNX files in any number format, reloaded in onnxruntime and compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from onnx import GraphProto, ModelProto

from tightfit_service.adapters.formats.metadata import affordable
from tightfit_service.adapters.formats.onnx_execution import LIBRARY_ERRORS, run_feeds
from tightfit_service.adapters.formats.onnx_unsigned import with_unsigned_activations
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.application.work.file_parity import (
    COMPARED_SAMPLES,
    check_outputs,
    noise_limit_of,
)
from tightfit_service.domain.errors import InvalidDatasetError, ParityError, UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.graph.model_file import copy_model, load_model, save_model, subgraphs
from tightfit_service.graph.structure import declared_shape, first_line, graph_inputs

_ADDED_OPERATORS = frozenset({"QuantizeLinear", "DequantizeLinear"})


class QuantizedGraph(Protocol):
    """A graph in its final number formats, and what the user should know about them."""

    @property
    def graph(self) -> bytes:
        """Serialized ONNX."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on calibration and the file."""
        ...

    @property
    def format_notes(self) -> tuple[str, ...]:
        """Which nodes compute in other numbers than asked for, and why."""
        ...


class Quantizer(Protocol):
    """Brings every node of a float graph into its number format; safe for several threads."""

    def quantize(
        self,
        graph: bytes,
        *,
        calibration: Samples | None,
        settings: QuantizationSettings,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> QuantizedGraph:
        """Return the graph with BatchNorm folded and number formats as told; `graph` is not changed.

        `ranges` holds least and greatest values of activation tensors that are not calibrated.
        """
        ...


class OnnxExporter:
    """Writes ONNX files (`ports.Exporter`): BatchNorm folded, intermediate shapes left out.

    Files in another format than float32 are held against `NOISE_LIMITS`, that of the coarsest
    format in them.
    """

    def __init__(self, *, quantizer: Quantizer) -> None:
        """Keep the quantizer that decides what is computed in which number format."""
        self._quantizer = quantizer

    def export(
        self,
        graph: bytes,
        *,
        calibration: Samples | None,
        settings: QuantizationSettings,
        metadata: Mapping[str, str],
        ranges: Mapping[str, tuple[float, float]] | None = None,
        target: HardwareSpec | None = None,  # noqa: ARG002  # written alike for all
    ) -> ExportedModel:
        """Quantize as told, write, reload in onnxruntime, compare.

        Raises:
            ParityError: The reloaded file does not compute what the graph does.
            UnsupportedError: The graph cannot be quantized, or its inputs have no declared shape.
            InvalidRequestError: Settings that name unknown nodes or methods.
            InvalidDatasetError: Integers without calibration samples, or unusable samples.
        """
        given = load_model(graph)
        feeds = comparison_feeds(calibration, given)
        quantized = self._quantizer.quantize(
            graph, calibration=calibration, settings=settings, ranges=ranges
        )
        unsigned = with_unsigned_activations(load_model(quantized.graph))
        data = save_model(_finished(unsigned, metadata))
        expected = run_feeds(graph, feeds)
        try:
            exported = run_feeds(data, feeds)
        except LIBRARY_ERRORS as error:
            raise ParityError(
                f"the exported file does not run in onnxruntime: {first_line(error)}",
                field="model",
                remedy="export in float32, or in another format",
            ) from error
        limit = noise_limit_of(settings)
        parity = check_outputs(
            expected, exported, is_quantized=limit is not None, noise_limit=limit or 0.0
        )
        return ExportedModel(
            data=data,
            format=ModelFormat.ONNX,
            number_format=settings.number_format,
            parity=parity,
            notes=quantized.notes,
            format_notes=(*quantized.format_notes, *_mixed_formats(settings)),
        )


def read_metadata(data: bytes) -> Mapping[str, str]:
    """Return what `OnnxExporter` wrote into a file as `metadata`.

    Raises:
        InvalidModelError: Not an ONNX file.
    """
    return {item.key: item.value for item in load_model(data).metadata_props}


def comparison_feeds(calibration: Samples | None, model: ModelProto) -> dict[str, FloatArray]:
    """Return inputs to compare on: calibration samples, or seeded normal ones where there are none.

    Raises:
        UnsupportedError: A shape that is not declared, without samples.
        InvalidDatasetError: The samples have other inputs than the model.
    """
    names = graph_inputs(model)
    if calibration is not None and len(calibration):
        count = min(COMPARED_SAMPLES, len(calibration))
        chosen = np.linspace(0, len(calibration) - 1, count).astype(np.int64)
        return calibration.feeds(np.unique(chosen), names)
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(
            (COMPARED_SAMPLES // 4, *input_shape(model, name)[1:])
        ).astype(np.float32)
        for name in names
    }


def calibration_missing() -> InvalidDatasetError:
    """Return the error for an integer export that was given no samples."""
    return InvalidDatasetError(
        "int8 needs calibration samples and there are none",
        field="calibration",
        remedy="give a dataset, or export in float32",
    )


def input_shape(model: ModelProto, name: str) -> tuple[int, ...]:
    """Return the shape of one of the model's inputs, its free batch as 1.

    Raises:
        UnsupportedError: The shape is not declared.
    """
    value = next(item for item in model.graph.input if item.name == name)
    shape = declared_shape(value)
    if not shape or any(not isinstance(size, int) for size in shape[1:]):
        raise UnsupportedError(
            f"the input {name!r} has no declared shape",
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
    for key, value in sorted(affordable(metadata, result.ByteSize()).items()):
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


def _mixed_formats(settings: QuantizationSettings) -> tuple[str, ...]:
    """Tell which nodes are in another format than the rest."""
    others: dict[NumberFormat, list[str]] = {}
    for name, number_format in settings.node_formats.items():
        if number_format is not settings.number_format:
            others.setdefault(number_format, []).append(name)
    return tuple(f"in {key}: {', '.join(names)}" for key, names in sorted(others.items()))
