"""Exporter of TFLite files: float32 or int8, NHWC, batch 1, reloaded in LiteRT and compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from onnx import ModelProto

from tightfit_service.adapters.evaluation.litert_evaluator import (
    INPUT_LAYOUT_KEY,
    METADATA_NAME,
    LitertRunner,
)
from tightfit_service.adapters.formats.onnx_export import calibration_missing, single_input_shape
from tightfit_service.adapters.formats.parity import check_outputs, comparison_inputs, run_graph
from tightfit_service.adapters.formats.tflite_convert import convert, is_channels_last
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_match import correspond
from tightfit_service.adapters.formats.tflite_quantize import quantize_file
from tightfit_service.application.calibration import TensorRange
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.domain.errors import InvalidModelError, ParityError, UnsupportedError
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.structure import graph_inputs, graph_outputs

_KEPT_METADATA = frozenset({b"min_runtime_version"})
_CALIBRATION_BATCH = 32
_MATCHED_SAMPLES = 3
_TO_NHWC = (0, 2, 3, 1)
_LAYOUT_OPERATORS = ("TRANSPOSE", "QUANTIZE", "DEQUANTIZE")


class TfliteExporter:
    """Writes TFLite files (`ports.Exporter`) as microcontroller runtimes expect them.

    int8 files take and give int8, have one scale per output channel of convolutions, one per dense
    layer, and int32 biases. Tensor names are shortened, for they count as flash.
    """

    def export(
        self,
        graph: bytes,
        *,
        calibration: Samples | None,
        settings: QuantizationSettings,
        metadata: Mapping[str, str],
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> ExportedModel:
        """Quantize as told, write, reload in LiteRT, compare.

        Raises:
            ParityError: The reloaded file does not compute what the graph does.
            UnsupportedError: A number format other than float32 and int8, nodes to keep in float,
                several inputs, or an operator that TFLite cannot express.
            InvalidDatasetError: int8 without calibration samples.
        """
        model = load_model(graph)
        shape = single_input_shape(model)
        _check_settings(settings)
        is_quantized = settings.number_format is NumberFormat.INT8
        if is_quantized and (calibration is None or len(calibration) == 0):
            raise calibration_missing()
        file = convert(model)
        if is_quantized:
            assert calibration is not None
            channels_last = is_channels_last(model)
            file = quantize_file(
                file,
                lambda: _batches(calibration, channels_last=channels_last),
                method=settings.method,
                per_channel=settings.per_channel,
                given=_tensor_ranges(model, file, calibration, ranges or {}),
            )
        notes = _notes(file, is_quantized=is_quantized)
        _finish(file, model, metadata)
        data = file.to_bytes()
        inputs = comparison_inputs(calibration, shape)
        expected = run_graph(graph, inputs)
        try:
            exported = LitertRunner(data, threads=1).run(inputs)
        except InvalidModelError as error:
            raise ParityError(
                "the exported file does not run in LiteRT",
                field="model",
                remedy="export as ONNX, or in float32",
            ) from error
        return ExportedModel(
            data=data,
            format=ModelFormat.TFLITE,
            number_format=settings.number_format,
            parity=check_outputs(expected, exported, is_quantized=is_quantized),
            notes=notes,
        )


def _check_settings(settings: QuantizationSettings) -> None:
    if settings.number_format not in {NumberFormat.INT8, NumberFormat.FLOAT32}:
        raise UnsupportedError(
            f"TFLite files in {settings.number_format} are not offered",
            field="quantization.number_format",
            remedy="use int8 or float32",
        )
    if settings.node_formats and settings.number_format is NumberFormat.INT8:
        raise UnsupportedError(
            "TFLite files that keep single nodes in float are not offered",
            field="quantization.node_formats",
            remedy="leave the list empty, or export as ONNX",
        )


def _tensor_ranges(
    model: ModelProto,
    file: TfliteFile,
    samples: Samples,
    ranges: Mapping[str, tuple[float, float]],
) -> dict[str, TensorRange]:
    """Return given ranges of the graph's tensors by the names of the file's."""
    if not ranges:
        return {}
    inputs = samples.inputs(slice(0, _MATCHED_SAMPLES))
    turned = next(_batches(samples, channels_last=is_channels_last(model)))
    name = graph_inputs(model)[0]
    matches = correspond(
        model,
        file,
        graph_samples=[{name: item[None]} for item in inputs],
        file_samples=[[item[None]] for item in turned[:_MATCHED_SAMPLES]],
    )
    found: dict[str, TensorRange] = {}
    for index, names in matches.tensors.items():
        known = [ranges[name] for name in names if name in ranges]
        if known:
            low, high = known[-1]
            tensor = file.graph.tensors[index].name.decode()
            found[tensor] = TensorRange(low=min(0.0, low), high=max(0.0, high))
    return found


def _batches(samples: Samples, *, channels_last: bool) -> Iterator[FloatArray]:
    for inputs, _ in samples.batches(_CALIBRATION_BATCH):
        yield np.ascontiguousarray(inputs.transpose(_TO_NHWC)) if channels_last else inputs


def _finish(file: TfliteFile, model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Name inputs and outputs as the graph does, shorten the rest, and put the metadata in."""
    layout = "NHWC" if is_channels_last(model) else "as-is"
    facts = json.dumps({**metadata, INPUT_LAYOUT_KEY: layout}, sort_keys=True)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(facts.encode(), dtype=np.uint8)
    file.model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA_NAME.encode(), len(file.model.buffers) - 1
    file.model.metadata = [
        *(item for item in file.model.metadata or [] if item.name in _KEPT_METADATA),
        entry,
    ]
    file.model.description = b"tightfit"
    file.remove_dead()
    for index, tensor in enumerate(file.graph.tensors):
        is_constant = file.model.buffers[tensor.buffer].data is not None
        tensor.name = None if is_constant else f"t{index}".encode()
        if tensor.quantization is not None:
            tensor.quantization.min = tensor.quantization.max = None
    ends = (
        (file.graph.inputs, graph_inputs(model), "inputs"),
        (file.graph.outputs, graph_outputs(model), "outputs"),
    )
    for tensors, names, side in ends:
        for tensor, name in zip(tensors, names, strict=False):
            file.graph.tensors[tensor].name = name.encode()
            for signature in file.model.signatureDefs or []:
                for item in getattr(signature, side) or []:
                    if item.tensorIndex == tensor:
                        item.name = name.encode()


def _notes(file: TfliteFile, *, is_quantized: bool) -> tuple[str, ...]:
    """Tell what a user of the file should know about its operators."""
    notes: list[str] = []
    counts = Counter(file.operator_name(item) for item in file.graph.operators)
    odd = [f"{counts[name]} {name}" for name in _LAYOUT_OPERATORS if counts[name]]
    if odd:
        notes.append("operators that only move data: " + ", ".join(odd))
    if is_quantized:
        floats = Counter(
            file.operator_name(item)
            for item in file.graph.operators
            if file.graph.tensors[int(item.outputs[0])].type == schema.TensorType.FLOAT32
            and file.operator_name(item) not in _LAYOUT_OPERATORS
        )
        if floats:
            listed = ", ".join(f"{count} {name}" for name, count in sorted(floats.items()))
            notes.append(f"operators that stay in float: {listed}")
    return tuple(notes)
