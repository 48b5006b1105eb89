"""The first node at which an imported graph departs from the file that it was made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, ValueInfoProto

from tightfit_service.adapters.formats.onnx_execution import (
    LIBRARY_ERRORS,
    open_session,
    relative_difference,
)
from tightfit_service.application.samples import FloatArray
from tightfit_service.graph.model_file import copy_model, save_model, shown
from tightfit_service.graph.normal_form import name_nodes
from tightfit_service.graph.structure import (
    Array,
    graph_inputs,
    graph_outputs,
    sorted_model_nodes,
)


@dataclass(frozen=True, kw_only=True)
class ComputedTensor:
    """A tensor that the file computes for one sample, and the node that computes it."""

    name: str
    node: str
    kind: str
    value: Array


def departure_from_onnx(
    source: ModelProto, working: ModelProto, inputs: Sequence[FloatArray], *, limit: float
) -> str:
    """Return the end of a sentence that names the first node that differs from an ONNX file's.

    Tensors are compared by their names, in the order of the file, on the first sample: nodes that the
    import replaced by others, and what lies inside of subgraphs and functions, cannot be named.

    Args:
        source: The file as it came.
        working: The graph that was made of it.
        inputs: One batch per input of the model.
        limit: Largest relative difference that is rounding.

    Returns:
        A clause that begins with a semicolon; empty where one of the two does not run.
    """
    first = [values[:1] for values in inputs]
    try:
        return departure(_tensors(source, _computed(working), first), working, first, limit=limit)
    except LIBRARY_ERRORS:
        return ""


def departure(
    expected: Iterable[ComputedTensor],
    working: ModelProto,
    inputs: Sequence[FloatArray],
    *,
    limit: float,
) -> str:
    """Return the same for tensors that the file's own runtime has computed, in its order.

    Raises:
        Exception: One of `LIBRARY_ERRORS` where the graph does not run on the inputs.
    """
    wanted = {item.name: item for item in expected}
    found = _values(working, wanted.keys() & _computed(working), inputs)
    for name, item in wanted.items():
        if name in found and (difference := _difference(item.value, found[name])) > limit:
            return (
                f"; the first node that differs is {shown(item.node)} ({item.kind}), whose "
                f"{shown(name)} is off by {difference:.3g} of its largest value"
            )
    return "; no node inside that both have differs by more"


def _computed(model: ModelProto) -> set[str]:
    """Return the tensors that nodes of the main graph compute."""
    return {name for node in model.graph.node for name in node.output if name}


def _tensors(
    source: ModelProto, names: Collection[str], inputs: Sequence[FloatArray]
) -> list[ComputedTensor]:
    """Return what an ONNX file computes under these names, in the order of its nodes."""
    runnable = copy_model(source)
    name_nodes(runnable)
    values = _values(runnable, _computed(runnable) & set(names), inputs)
    return [
        ComputedTensor(name=name, node=node.name, kind=node.op_type, value=values[name])
        for node in sorted_model_nodes(runnable)
        for name in node.output
        if name in values
    ]


def _values(
    model: ModelProto, names: Collection[str], inputs: Sequence[FloatArray]
) -> Mapping[str, Array]:
    """Run a model and return the named tensors."""
    observed = copy_model(model)
    known = set(graph_outputs(model))
    # onnxruntime infers the types of outputs that are declared without one
    observed.graph.output.extend(ValueInfoProto(name=name) for name in sorted(set(names) - known))
    feeds = dict(zip(graph_inputs(model), inputs, strict=True))
    wanted = sorted(names)
    if not wanted:
        return {}
    results = open_session(save_model(observed)).run(wanted, feeds)
    return {name: np.asarray(value) for name, value in zip(wanted, results, strict=True)}


def _difference(expected: Array, found: Array) -> float:
    """Return the relative difference of two tensors, whose axes may be spelt otherwise."""
    if expected.dtype.kind not in "fiub" or found.dtype.kind not in "fiub":
        return 0.0
    if expected.size != found.size:
        return float("inf")
    return relative_difference(expected, found.reshape(expected.shape))
