"""Conversion of working graphs to float TFLite files, with channels last, through torch."""

from __future__ import annotations

import threading

import torch
from onnx import ModelProto

from tightfit_service.adapters.formats.onnx_export import single_input_shape
from tightfit_service.adapters.formats.tflite_cleanup import clean_up
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.training.module import build_module
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.graph.batch_norm import fold_batch_norms
from tightfit_service.graph.model_file import save_model
from tightfit_service.graph.structure import attribute, consumers, graph_inputs

_TO_NCHW = [0, 3, 1, 2]
_CONVERTING = threading.Lock()
"""torch.export and the converter keep state of their own per process."""


def is_channels_last(model: ModelProto) -> bool:
    """Whether the file of a graph takes images as NHWC where the graph takes NCHW.

    It does for every image input, except those that the graph itself brings from NHWC to NCHW.
    """
    if len(single_input_shape(model)) != 4:
        return False
    readers = consumers(model.graph).get(graph_inputs(model)[0], [])
    return not readers or any(
        node.op_type != "Transpose" or attribute(node, "perm") != _TO_NCHW for node in readers
    )


def convert(model: ModelProto) -> TfliteFile:
    """Return the float TFLite file of a graph: batch 1, BatchNorm folded, channels last, cleaned up.

    Raises:
        UnsupportedError: An operator that cannot be expressed; names it.
    """
    shape = single_input_shape(model)
    module = build_module(save_model(fold_batch_norms(model))).eval()
    with _CONVERTING:
        data = _converted(module, shape, channels_last=is_channels_last(model))
    file = TfliteFile(data)
    if len(file.model.subgraphs) != 1:
        raise UnsupportedError(
            "the graph has control flow, which TFLite files for small devices do not have",
            field="output_format",
            remedy="export as ONNX",
        )
    clean_up(file)
    return file


def _converted(module: torch.nn.Module, shape: tuple[int, ...], *, channels_last: bool) -> bytes:
    import litert_torch
    from litert_torch import progress

    progress.config.show_progress = False
    if channels_last:
        module = litert_torch.to_channel_last_io(module, args=[0]).eval()
        shape = (shape[0], *shape[2:], shape[1])
    try:
        with torch.no_grad():
            return bytes(litert_torch.convert(module, (torch.zeros(shape),)).model_content())
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        raise UnsupportedError(
            f"the graph cannot be converted to TFLite: {str(error).splitlines()[0][:200]}",
            field="output_format",
            remedy="export as ONNX, or replace the operator",
        ) from error
