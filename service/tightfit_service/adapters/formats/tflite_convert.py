"""Conversion of working graphs to float TFLite files, with channels last, through torch."""

from __future__ import annotations

import threading
import warnings
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, NodeProto, helper

from tightfit_service.adapters.formats.onnx_export import input_shape
from tightfit_service.adapters.formats.tflite_cleanup import clean_up
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.training.module import build_module
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.graph.batch_norm import affine_of, fold_batch_norms
from tightfit_service.graph.gelu import with_gelus
from tightfit_service.graph.model_file import copy_model, save_model
from tightfit_service.graph.structure import (
    attribute,
    consumers,
    first_line,
    graph_inputs,
    initializers,
    replace_nodes,
    set_initializer,
    tensor_shapes,
)

_TO_NCHW = [0, 3, 1, 2]
_CONVERTING = threading.Lock()
"""torch.export and the converter keep state of their own per process."""


def is_channels_last(model: ModelProto, name: str) -> bool:
    """Whether the file of a graph takes an input as NHWC where the graph takes NCHW.

    It does for every input of four axes, which are images, except those that the graph itself
    brings from NHWC to NCHW. Series (N, C, L) and flat inputs (N, F) are taken as the graph takes them.
    """
    if len(input_shape(model, name)) != 4:
        return False
    readers = consumers(model.graph).get(name, [])
    return not readers or any(
        node.op_type != "Transpose" or attribute(node, "perm") != _TO_NCHW for node in readers
    )


def convert(model: ModelProto) -> TfliteFile:
    """Return the float TFLite file of a graph: batch 1, BatchNorm folded, channels last, cleaned up.

    Inputs and outputs are in the graph's order. Inputs are turned as `is_channels_last` says; outputs
    that end in a change from NHWC to NCHW are left as NHWC (`TfliteFile.channels_last_outputs`).

    Raises:
        UnsupportedError: An operator that cannot be expressed; names it.
    """
    names = graph_inputs(model)
    shapes = [input_shape(model, name) for name in names]
    turned = [place for place, name in enumerate(names) if is_channels_last(model, name)]
    plain = _leaky(_norms_as_products(fold_batch_norms(model)))
    simple = with_gelus(_copies_beside_images(plain))
    with _CONVERTING:
        data = _converted(save_model(simple), tuple(shapes), tuple(turned))
    file = TfliteFile(data)
    if len(file.model.subgraphs) != 1:
        raise UnsupportedError(
            "the graph has control flow, which TFLite files for small devices do not have",
            field="output_format",
            remedy="export as ONNX",
        )
    if len(file.graph.inputs) != len(names) or len(file.graph.outputs) != len(model.graph.output):
        raise UnsupportedError(
            "the converted file has other inputs or outputs than the graph",
            field="output_format",
            remedy="remove inputs that nothing reads and outputs that are the same tensor",
        )
    clean_up(file)
    return file


def _norms_as_products(model: ModelProto) -> ModelProto:
    """Return the graph with each BatchNormalization that is left as a depthwise convolution of one pixel.

    The converter spells it out as four operators, each rounded to int8 on its own. Beside images it becomes one
    product and one sum.
    """
    values = initializers(model)
    nodes: list[NodeProto] = []
    added: dict[str, npt.NDArray[np.float64]] = {}
    ranks = {name: len(shape) for name, shape in tensor_shapes(model).items()}
    for node in model.graph.node:
        known = node.input[0] in ranks and all(name in values for name in node.input[1:5])
        if node.op_type != "BatchNormalization" or not known or attribute(node, "training_mode", 0):
            nodes.append(node)
            continue
        scale, shift = affine_of(node, values)
        source, output = node.input[0], node.output[0]
        names = [f"{output}.{part}" for part in ("scale", "shift", "product")]
        if ranks[source] == len(_TO_NCHW):
            added[names[0]], added[names[1]] = scale.reshape(-1, 1, 1, 1), shift
            nodes.append(helper.make_node("Conv", [source, *names[:2]], [output], group=scale.size))
            continue
        per_channel = (-1, *(1,) * (ranks[source] - 2))
        added[names[0]], added[names[1]] = scale.reshape(per_channel), shift.reshape(per_channel)
        nodes.append(helper.make_node("Mul", [source, names[0]], [names[2]]))
        nodes.append(helper.make_node("Add", [names[2], names[1]], [output]))
    result = copy_model(model)
    replace_nodes(result.graph, nodes)
    for name, value in added.items():
        set_initializer(result, name, value.astype(np.float32))
    return result


def _leaky(model: ModelProto) -> ModelProto:
    """Return the graph with each PRelu of one slope as LeakyRelu: one operator, where the converter makes four."""
    values = initializers(model)
    result = copy_model(model)
    for node in result.graph.node:
        slope = values.get(node.input[1]) if node.op_type == "PRelu" else None
        if slope is not None and np.unique(slope).size == 1:
            node.op_type = "LeakyRelu"
            del node.input[1]
            node.attribute.append(helper.make_attribute("alpha", float(slope.flat[0])))
    return result


def _copies_beside_images(model: ModelProto) -> ModelProto:
    """Return the graph with each Expand and Tile of an image as Concat, and as an Expand of five axes.

    litert_torch 0.10 turns images to channels last around both and leaves their sizes as they are, so
    that it repeats along channels what was to be repeated along columns. Five axes it leaves alone.
    """
    shapes = tensor_shapes(model)
    result = copy_model(model)
    nodes: list[NodeProto] = []
    images = {name for name, shape in shapes.items() if len(shape) == len(_TO_NCHW)}
    for node in result.graph.node:
        if node.op_type not in ("Expand", "Tile") or not {node.input[0], node.output[0]} <= images:
            nodes.append(node)
            continue
        source, target = node.input[0], node.output[0]
        before, after = shapes[source], shapes[target]
        for axis, (old, new) in enumerate(zip(before, after, strict=True)):
            if 1 < old < new:
                joined = f"{target}.axis{axis}"
                copies = [source] * (new // old)
                nodes.append(helper.make_node("Concat", copies, [joined], axis=axis))
                source = joined
        single = [old if old == 1 else new for old, new in zip(before, after, strict=True)]
        for step, op_type, sizes in (
            (f"{target}.wide", "Reshape", (1, *single)),
            (f"{target}.copied", "Expand", (1, *after)),
            (target, "Reshape", after),
        ):
            set_initializer(result, f"{step}.sizes", np.array(sizes, dtype=np.int64))
            nodes.append(helper.make_node(op_type, [source, f"{step}.sizes"], [step]))
            source = step
    replace_nodes(result.graph, nodes)
    return result


@lru_cache(maxsize=1)
def _converted(graph: bytes, shapes: tuple[tuple[int, ...], ...], turned: tuple[int, ...]) -> bytes:
    """Return the file of a graph as the converter writes it.

    The last one is kept: a network is often written in one number format after the other, and the
    converter takes seconds where quantizing its file takes a fraction of one.
    """
    module: torch.nn.Module = build_module(graph).eval()
    try:
        # Torch and LiteRT warn about each other, which says nothing about the user's model.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            import litert_torch
            from litert_torch import progress

            progress.config.show_progress = False
            if turned:
                module = litert_torch.to_channel_last_io(module, args=list(turned)).eval()
                shapes = tuple(
                    (n, *rest[1:], rest[0]) if place in turned else (n, *rest)
                    for place, (n, *rest) in enumerate(shapes)
                )
            samples = tuple(torch.zeros(shape) for shape in shapes)
            return bytes(litert_torch.convert(module, samples).model_content())
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        raise UnsupportedError(
            f"the graph cannot be converted to TFLite: {first_line(error)}",
            field="output_format",
            remedy="export as ONNX, or replace the operator",
        ) from error
