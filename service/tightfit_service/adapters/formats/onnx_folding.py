"""Folding of what an ONNX graph computes from constants or from shapes, by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from tightfit_service.adapters.formats.onnx_execution import open_session
from tightfit_service.graph.batch_expansion import absorb_repeated
from tightfit_service.graph.model_file import copy_model, save_model
from tightfit_service.graph.shape_chains import constant_chains, shape_chains
from tightfit_service.graph.structure import (
    Array,
    Shape,
    remove_dead_code,
    replace_nodes,
    set_initializer,
    tensor_shapes,
    unique_name,
)

_PROBED_BATCHES = (1, 2, 3)
"""Batch sizes at which sizes computed by the graph are compared."""


def fold_fixed_shapes(model: ModelProto) -> None:
    """Replace, in place, everything computed from shapes in a model whose batch is fixed at 1."""
    while _fold_round(model, batches=(1,)):
        remove_dead_code(model)


def fold_constants(model: ModelProto, *, max_elements: int) -> None:
    """Replace nodes that compute on constants only by their results, in place.

    Nothing is folded where a result would have more than `max_elements`, or an unknown size.
    """
    nodes, results = constant_chains(model)
    if not nodes:
        return
    shapes = tensor_shapes(model)
    for name in results:
        if name not in shapes or _elements(shapes[name]) > max_elements:
            return
    values = _evaluate(model, nodes, results)
    inner = {node.name for node in nodes}
    replace_nodes(model.graph, [n for n in model.graph.node if n.name not in inner])
    for name, value in values.items():
        set_initializer(model, name, value)
    remove_dead_code(model)


def fold_shape_chains(model: ModelProto) -> None:
    """Replace sizes that the graph computes from shapes by constants, wherever the batch allows it.

    What one round folds tells the shapes that the next one needs. Constants that are only repeated
    over the batch are joined without a computed shape (see `absorb_repeated`).
    """
    while _fold_round(model):
        remove_dead_code(model)


def _fold_round(model: ModelProto, *, batches: Sequence[int] = _PROBED_BATCHES) -> bool:
    """Fold what can be folded at once; return whether anything was."""
    readers = shape_chains(model)
    if not readers:
        return False
    names = sorted({reader.name for reader in readers})
    probe = copy_model(model)
    types = _inferred_types(probe)
    del probe.graph.output[:]
    for name in names:
        probe.graph.output.add(name=name).type.tensor_type.elem_type = types[name]
    session = open_session(save_model(probe))
    known = {value.name for value in session.get_inputs()}
    shapes_at = {batch: tensor_shapes(model, batch=batch) for batch in batches}
    runs = [
        session.run(None, {name: np.zeros(shapes[name], dtype=np.float32) for name in known})
        for shapes in shapes_at.values()
    ]
    values = {name: [np.asarray(run[i]) for run in runs] for i, name in enumerate(names)}
    by_node = {node.name: node for node in model.graph.node}
    taken = {tensor.name for tensor in model.graph.initializer}
    changed = False
    for reader in readers:
        node = by_node[reader.node]
        constant = _constant_size(values[reader.name])
        if constant is None and reader.is_reshape_target:
            sources = [shapes.get(node.input[0], ())[:1] for shapes in shapes_at.values()]
            follows = sources == [(batch,) for batch in _PROBED_BATCHES]
            constant = _batched_size(values[reader.name], source_has_batch=follows)
        if constant is None:
            continue
        changed = True
        name = unique_name(f"{reader.node}.{reader.name}", taken)
        set_initializer(model, name, constant)
        node.input[reader.index] = name
    repeated = {name: seen[0] for name, seen in values.items() if _repeats_batch(seen)}
    return absorb_repeated(model, repeated, shapes_at[1]) or changed


def _repeats_batch(values: Sequence[Array]) -> bool:
    """Whether a tensor of floats is one constant, once per sample along axis 0."""
    first = values[0]
    return len(values) > 1 and all(
        value.dtype.kind == "f"
        and value.ndim > 1
        and len(value) == batch
        and np.array_equal(value, np.broadcast_to(first, (batch, *first.shape[1:])))
        for batch, value in zip(_PROBED_BATCHES, values, strict=True)
    )


def _constant_size(values: Sequence[Array]) -> Array | None:
    """Return the value that is the same for every batch size, or None."""
    first = values[0]
    return first if all(np.array_equal(value, first) for value in values[1:]) else None


def _batched_size(values: Sequence[Array], *, source_has_batch: bool) -> Array | None:
    """Return a Reshape target that follows the batch in its one varying entry, or None."""
    first = values[0]
    if first.ndim != 1 or any(value.shape != first.shape for value in values):
        return None
    differs = np.flatnonzero((np.stack(values) != first).any(axis=0))
    if len(differs) != 1:
        return None
    target = first.copy()
    column = [int(value[differs[0]]) for value in values]
    if differs[0] == 0 and source_has_batch and column == list(_PROBED_BATCHES):
        target[0] = 0
    elif -1 not in first:
        target[differs] = -1
    else:
        return None
    return target


def _evaluate(
    model: ModelProto, nodes: Sequence[NodeProto], results: Sequence[str]
) -> dict[str, Array]:
    """Return the values of tensors that the given nodes compute from constants."""
    part = ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.graph.name = "constants"
    part.graph.node.extend(nodes)
    needed = {name for node in nodes for name in node.input}
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    types = _inferred_types(model)
    for name in results:
        part.graph.output.add(name=name).type.tensor_type.elem_type = types[name]
    values = open_session(save_model(part)).run(None, {})
    return {name: np.asarray(value) for name, value in zip(results, values, strict=True)}


def _inferred_types(model: ModelProto) -> Mapping[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }


def _elements(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.float64))
