"""Exporter of ExecuTorch programs with XNNPACK kernels, reloaded in ExecuTorch's runtime."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from onnx import ModelProto

from tightfit_service.adapters.evaluation.executorch_evaluator import (
    INPUT_NAMES,
    ExecutorchRunner,
    executorch_runtime,
)
from tightfit_service.adapters.formats.executorch_module import QuantizedModule
from tightfit_service.adapters.formats.metadata import affordable
from tightfit_service.adapters.formats.onnx_execution import run_feeds
from tightfit_service.adapters.formats.onnx_export import (
    Quantizer,
    comparison_feeds,
    input_shape,
)
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.application.work.file_parity import check_outputs, noise_limit_of
from tightfit_service.domain.errors import InvalidModelError, ParityError, UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.structure import first_line, graph_inputs

_OFFERED = frozenset({NumberFormat.FLOAT32, NumberFormat.INT8})
_EXPORTING = threading.Lock()
"""torch.export keeps state of its own per process."""


class ExecutorchExporter:
    """Writes `.pte` files (`ports.Exporter`): batch 1, inputs and outputs as the graph has them.

    What XNNPACK computes is handed to it; the rest runs in ExecuTorch's portable kernels. Metadata
    are methods without inputs, called as the key is with `_` for each dot.
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
        """Quantize as told, lower, reload in ExecuTorch, compare.

        Raises:
            ParityError: The reloaded file does not compute what the graph does.
            UnsupportedError: ExecuTorch is not installed, a number format other than int8 and
                float32, or an operator that cannot be lowered.
            InvalidDatasetError: Integers without calibration samples, or unusable samples.
        """
        executorch_runtime()
        used = {settings.number_format, *settings.node_formats.values()}
        _check(used)
        given = load_model(graph)
        feeds = comparison_feeds(calibration, given)
        quantized = self._quantizer.quantize(
            graph, calibration=calibration, settings=settings, ranges=ranges
        )
        data = _lowered(load_model(quantized.graph), metadata)
        try:
            found = ExecutorchRunner(data).run(feeds)
        except InvalidModelError as error:
            raise ParityError(
                "the exported file does not run in ExecuTorch",
                field="model",
                remedy="export as TFLite or ONNX, or in float32",
            ) from error
        limit = noise_limit_of(settings)
        return ExportedModel(
            data=data,
            format=ModelFormat.EXECUTORCH,
            number_format=settings.number_format,
            parity=check_outputs(
                run_feeds(graph, feeds),
                found,
                is_quantized=limit is not None,
                noise_limit=limit or 0.0,
            ),
            notes=quantized.notes,
            format_notes=quantized.format_notes,
        )


def _check(used: AbstractSet[NumberFormat]) -> None:
    others = sorted(used - _OFFERED)
    if others:
        raise UnsupportedError(
            f"ExecuTorch files in {others[0]} are not offered, only in int8 and float32",
            field="quantization.number_format",
            remedy="use int8 or float32, or export as TFLite",
        )


def _lowered(model: ModelProto, metadata: Mapping[str, str]) -> bytes:
    module = QuantizedModule(model).eval()
    names = graph_inputs(model)
    shapes = [input_shape(model, name) for name in names]
    facts: dict[str, Any] = {
        key.replace(".", "_"): value
        for key, value in affordable(metadata, model.ByteSize()).items()
    }
    facts[INPUT_NAMES] = "\n".join(names)
    try:
        # torch and ExecuTorch warn about each other, which says nothing about the user's model
        with _EXPORTING, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            from executorch.exir import to_edge_transform_and_lower

            program = torch.export.export(module, tuple(torch.zeros(shape) for shape in shapes))
            lowered = to_edge_transform_and_lower(
                program, partitioner=[_partitioner()], constant_methods=facts
            )
            return bytes(lowered.to_executorch().buffer)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        raise UnsupportedError(
            f"the graph cannot be lowered to ExecuTorch: {first_line(error)}",
            field="output_format",
            remedy="export as TFLite or ONNX",
        ) from error


def _partitioner() -> Any:
    """Return what chooses the nodes that XNNPACK computes.

    Its integer kernel for concatenation wants all parts in the scale of the result, which the
    partitioner does not look at; the graph has a scale for each, so they are joined as floats.
    """
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import CatConfig
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    class FloatCatConfig(CatConfig):  # type: ignore[misc]  # ExecuTorch has no types
        def supported_precision_types(self) -> list[Any]:
            return [ConfigPrecisionType.FP32]

    return XnnpackPartitioner(
        configs=[
            FloatCatConfig if config is CatConfig else config for config in ALL_PARTITIONER_CONFIGS
        ]
    )
