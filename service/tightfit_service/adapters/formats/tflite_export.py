"""Exporter of TFLite files: channels last, batch 1, in all number formats, reloaded in LiteRT."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from onnx import ModelProto

from tightfit_service.adapters.evaluation.litert_evaluator import (
    INPUT_LAYOUT_KEY,
    METADATA_NAME,
    OUTPUT_LAYOUT_KEY,
    LitertRunner,
)
from tightfit_service.adapters.formats.metadata import affordable
from tightfit_service.adapters.formats.onnx_execution import run_feeds
from tightfit_service.adapters.formats.onnx_export import calibration_missing, comparison_feeds
from tightfit_service.adapters.formats.tflite_convert import convert, is_channels_last
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_float_islands import compute_in_float
from tightfit_service.adapters.formats.tflite_match import Correspondence, correspond
from tightfit_service.adapters.formats.tflite_quantize import Fallback, quantize_file
from tightfit_service.adapters.formats.tflite_scales import FLOATS
from tightfit_service.adapters.formats.tflite_spelling import multiply_powers, spell_out
from tightfit_service.application.data.activation_ranges import TensorRange
from tightfit_service.application.data.calibration_checks import checked_inputs
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.application.work.file_parity import check_outputs, noise_limit_of
from tightfit_service.domain.errors import (
    InvalidModelError,
    InvalidRequestError,
    ParityError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.measurement import runs_xnnpack
from tightfit_service.graph.logarithms import logarithms
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.structure import graph_inputs, graph_outputs

_KEPT_METADATA = frozenset({b"min_runtime_version"})
_CALIBRATION_BATCH = 32
_MATCHED_SAMPLES = 3
_TO_NHWC = (0, 2, 3, 1)
_LAYOUT_OPERATORS = ("TRANSPOSE", "QUANTIZE", "DEQUANTIZE")
_NAMED_NODES = 8
"""Nodes that a note lists by name; the rest are counted."""
_PRECISION = (
    NumberFormat.FLOAT32,
    NumberFormat.FLOAT16,
    NumberFormat.INT16X8,
    NumberFormat.INT8,
    NumberFormat.INT4,
)
"""Formats from the most precise to the least: fused nodes run in the first that any of them asks for."""


class TfliteExporter:
    """Writes TFLite files (`ports.Exporter`) as microcontroller and mobile runtimes expect them.

    What is rounded and how is told in `tflite_quantize`. float16 keeps weights in 16 bits and
    computes in 32. Tensor names are shortened, for they count as flash; inputs and outputs keep theirs.
    """

    def export(
        self,
        graph: bytes,
        *,
        calibration: Samples | None,
        settings: QuantizationSettings,
        metadata: Mapping[str, str],
        ranges: Mapping[str, tuple[float, float]] | None = None,
        target: HardwareSpec | None = None,
    ) -> ExportedModel:
        """Quantize as told, write, reload in LiteRT, compare.

        Raises:
            ParityError: The reloaded file does not compute what the graph does, beyond what
                float32 rounding or `file_parity.NOISE_LIMITS` of the coarsest format explains.
            UnsupportedError: bfloat16, or an operator that TFLite cannot express.
            InvalidRequestError: A node that the graph does not have, or an unknown method.
            InvalidDatasetError: Integers without calibration samples, or with such as have other
                inputs or values that are not finite.
        """
        model = load_model(graph)
        used = {settings.number_format, *settings.node_formats.values()}
        _check(model, settings, used)
        doubts: tuple[str, ...] = ()
        if used - FLOATS:
            if calibration is None or len(calibration) == 0:
                raise calibration_missing()
            doubts = checked_inputs(calibration, graph_inputs(model))
        feeds = comparison_feeds(calibration, model)
        file = convert(model)
        is_on_xnnpack = target is not None and runs_xnnpack(target)
        if used - FLOATS:
            has_swish = NumberFormat.INT16X8 not in used and not is_on_xnnpack
            spell_out(file, has_swish=has_swish)
        matches = _matches(model, file, feeds)
        is_float = settings.number_format in FLOATS
        kept = [n for n in logarithms(model) if not is_float and n not in settings.node_formats]
        formats = _operator_formats(file, matches, settings, kept)
        operators = list(file.graph.operators)
        fallbacks = quantize_file(
            file,
            lambda: _samples(model, calibration),
            settings=settings,
            formats=formats,
            given=_given(matches, ranges or {}),
        )
        multiply_powers(file)
        floats = {id(item) for item in compute_in_float(file)} if is_on_xnnpack else set()
        islands = [place for place, item in enumerate(operators) if id(item) in floats]
        notes = (*doubts, *_notes(file))
        _finish(file, model, metadata)
        data = file.to_bytes()
        limit = noise_limit_of(settings)
        return ExportedModel(
            data=data,
            format=ModelFormat.TFLITE,
            number_format=settings.number_format,
            parity=check_outputs(
                run_feeds(graph, feeds),
                _reloaded(data, feeds),
                is_quantized=limit is not None,
                noise_limit=limit or 0.0,
            ),
            notes=notes,
            format_notes=(
                *_kept_notes(kept),
                *_fallback_notes(fallbacks, matches),
                *_island_notes(islands, matches),
            ),
        )


def _check(model: ModelProto, settings: QuantizationSettings, used: set[NumberFormat]) -> None:
    if NumberFormat.BFLOAT16 in used:
        raise UnsupportedError(
            "TFLite files in bfloat16 are not offered: no kernel of LiteRT computes in it",
            field="quantization.number_format",
            remedy="use float16",
        )
    unknown = sorted(settings.node_formats.keys() - {node.name for node in model.graph.node})
    if unknown:
        raise InvalidRequestError(
            f"the graph has no node {unknown[0]!r}",
            field="quantization.node_formats",
            remedy="name nodes of the working graph",
        )


def _reloaded(data: bytes, feeds: Mapping[str, FloatArray]) -> list[FloatArray]:
    try:
        return LitertRunner(data, threads=1).run(feeds)
    except InvalidModelError as error:
        raise ParityError(
            "the exported file does not run in LiteRT",
            field="model",
            remedy="export as ONNX, or in float32",
        ) from error


def _turned(model: ModelProto, feeds: Mapping[str, FloatArray]) -> list[FloatArray]:
    """Return inputs in the layout and order of the file."""
    return [
        np.ascontiguousarray(values.transpose(_TO_NHWC))
        if is_channels_last(model, name)
        else values
        for name, values in feeds.items()
    ]


def _samples(model: ModelProto, calibration: Samples | None) -> Iterator[Sequence[FloatArray]]:
    """Yield calibration inputs in the layout of the file, one sample at a time."""
    if calibration is None:
        return
    names = graph_inputs(model)
    for feeds, _ in calibration.feed_batches(_CALIBRATION_BATCH, names):
        batch = _turned(model, feeds)
        for place in range(len(batch[0])):
            yield [values[place : place + 1] for values in batch]


def _matches(
    model: ModelProto, file: TfliteFile, feeds: Mapping[str, FloatArray]
) -> Correspondence:
    turned = _turned(model, feeds)
    places = range(min(_MATCHED_SAMPLES, len(turned[0])))
    return correspond(
        model,
        file,
        graph_samples=[{n: v[place : place + 1] for n, v in feeds.items()} for place in places],
        file_samples=[[values[place : place + 1] for values in turned] for place in places],
    )


def _given(
    matches: Correspondence, ranges: Mapping[str, tuple[float, float]]
) -> dict[int, TensorRange]:
    """Return given ranges of the graph's tensors by tensors of the file."""
    found: dict[int, TensorRange] = {}
    for index, names in matches.tensors.items():
        known = [ranges[name] for name in names if name in ranges]
        if known:
            low, high = known[-1]
            found[index] = TensorRange(low=min(0.0, low), high=max(0.0, high))
    return found


def _operator_formats(
    file: TfliteFile,
    matches: Correspondence,
    settings: QuantizationSettings,
    kept: Sequence[str],
) -> list[NumberFormat]:
    """Return the format of each operator; the nodes `kept` are in float unless told otherwise."""
    asked: dict[int, list[NumberFormat]] = {}
    named = {**dict.fromkeys(kept, NumberFormat.FLOAT32), **settings.node_formats}
    for name, number_format in named.items():
        for place in matches.nodes[name]:
            asked.setdefault(place, []).append(number_format)
    return [
        min(asked.get(place, [settings.number_format]), key=_PRECISION.index)
        for place in range(len(file.graph.operators))
    ]


def _finish(file: TfliteFile, model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Name inputs and outputs as the graph does, shorten the rest, and put the metadata in."""
    outputs = range(len(file.graph.outputs))
    written = {
        INPUT_LAYOUT_KEY: _layouts(is_channels_last(model, name) for name in graph_inputs(model)),
        OUTPUT_LAYOUT_KEY: _layouts(place in file.channels_last_outputs for place in outputs),
    }
    size = sum(0 if item.data is None else len(item.data) for item in file.model.buffers)
    facts = json.dumps({**affordable(metadata, size), **written}, sort_keys=True)
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
    ends = (
        (file.graph.inputs, graph_inputs(model), "inputs"),
        (file.graph.outputs, graph_outputs(model), "outputs"),
    )
    for tensors, names, side in ends:
        for tensor, name in zip(tensors, names, strict=True):
            file.graph.tensors[tensor].name = name.encode()
            for signature in file.model.signatureDefs or []:
                for item in getattr(signature, side) or []:
                    if item.tensorIndex == tensor:
                        item.name = name.encode()


def _layouts(is_last: Iterable[bool]) -> str:
    return ",".join("NHWC" if item else "as-is" for item in is_last)


def _kept_notes(kept: Sequence[str]) -> Iterator[str]:
    """Tell which nodes are in float though nothing was said of them."""
    if kept:
        yield f"in float32, for a logarithm needs small values: {', '.join(kept)}"


def _fallback_notes(fallbacks: Sequence[Fallback], matches: Correspondence) -> Iterator[str]:
    """Tell which nodes do not run in the format asked for."""
    grouped: dict[tuple[NumberFormat, NumberFormat], list[int]] = {}
    for item in fallbacks:
        grouped.setdefault((item.asked, item.taken), []).append(item.place)
    for (asked, taken), places in grouped.items():
        yield f"in {taken} for want of a kernel in {asked}: {_listed(places, matches)}"


def _island_notes(places: Sequence[int], matches: Correspondence) -> Iterator[str]:
    """Tell which nodes stand between conversions of their own."""
    if places:
        yield f"in float32, which LiteRT is faster at here: {_listed(places, matches)}"


def _listed(places: Sequence[int], matches: Correspondence) -> str:
    """Return the last nodes that operators compute, some by name."""
    nodes = {place: name for name, found in matches.nodes.items() for place in found}
    names = list(dict.fromkeys(nodes[place] for place in places if place in nodes))
    more = f" and {len(names) - _NAMED_NODES} more" if len(names) > _NAMED_NODES else ""
    return ", ".join(names[:_NAMED_NODES]) + more


def _notes(file: TfliteFile) -> Iterator[str]:
    """Tell what a user of the file should know about its operators."""
    # What only widens constants is done once, when the file is loaded.
    counts = Counter(
        file.operator_name(item)
        for item in file.graph.operators
        if file.constant(int(item.inputs[0])) is None
    )
    odd = [f"{counts[name]} {name}" for name in _LAYOUT_OPERATORS if counts[name]]
    if odd:
        yield "operators that only move data: " + ", ".join(odd)
