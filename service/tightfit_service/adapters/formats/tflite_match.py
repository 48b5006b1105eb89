"""Which tensors and operators of a converted TFLite file belong to which of the graph, by value.

Converters rename, fuse, decompose and turn everything, so names do not survive; values do. Both
are run on the same samples, and two tensors correspond when they hold the same values in any
order: transposed tensors do, too.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, helper

from tightfit_service.adapters.formats.onnx_execution import open_session
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_values import tensor_values
from tightfit_service.application.samples import FloatArray
from tightfit_service.graph.model_file import copy_model, save_model
from tightfit_service.graph.structure import graph_inputs, producers, tensor_shapes

_TOLERANCE = 1e-3
"""Of a tensor's largest value: other kernels sum in another order, which costs up to 1e-4."""


@dataclass(frozen=True, kw_only=True)
class Correspondence:
    """Where the graph's tensors and nodes are found in the file.

    Attributes:
        tensors: Names in the graph, in topological order, of each tensor of the file (by its
            index) that holds the same values; tensors between two of the graph's are missing.
        nodes: Positions in the file's schedule of the operators that compute a node of the graph,
            alone or together with others that are fused with it. Nodes that vanish have none.
    """

    tensors: Mapping[int, tuple[str, ...]]
    nodes: Mapping[str, tuple[int, ...]]


def correspond(
    model: ModelProto,
    file: TfliteFile,
    *,
    graph_samples: Sequence[Mapping[str, FloatArray]],
    file_samples: Sequence[Sequence[FloatArray]],
) -> Correspondence:
    """Return what corresponds between a graph and its float file.

    Args:
        model: The graph with its own names.
        file: Its conversion, with inputs in the graph's order.
        graph_samples: Inputs of single samples by name, batch 1, as the graph wants them.
        file_samples: The same samples as the file wants them.
    """
    ours = _graph_values(model, graph_samples)
    theirs: dict[int, list[FloatArray]] = defaultdict(list)
    for sample in tensor_values(file, file_samples):
        for index, value in sample.items():
            theirs[index].append(value)
    by_size: dict[int, list[tuple[str, FloatArray]]] = defaultdict(list)
    for name, values in ours.items():
        print_ = _fingerprint(values)
        by_size[print_.size].append((name, print_))
    tensors: dict[int, tuple[str, ...]] = {}
    for index, found in theirs.items():
        fingerprint = _fingerprint(found)
        same = tuple(
            name for name, other in by_size[fingerprint.size] if _agree(fingerprint, other)
        )
        if same:
            tensors[index] = same
    for index, name in zip(file.graph.inputs, graph_inputs(model), strict=True):
        tensors[int(index)] = (name, *(n for n in tensors.get(int(index), ()) if n != name))
    return Correspondence(tensors=tensors, nodes=_nodes(model, file, tensors))


def _graph_values(
    model: ModelProto, samples: Sequence[Mapping[str, FloatArray]]
) -> dict[str, list[FloatArray]]:
    """Return the values of all float tensors, in topological order of their nodes."""
    opened = copy_model(model)
    shapes = tensor_shapes(model)
    made = [name for node in model.graph.node for name in node.output if name in shapes]
    del opened.graph.output[:]
    opened.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    session = open_session(save_model(opened))
    values: dict[str, list[FloatArray]] = defaultdict(list)
    for sample in samples:
        for name, value in sample.items():
            values[name].append(value)
        for name, value in zip(made, session.run(None, dict(sample)), strict=True):
            if np.asarray(value).dtype.kind == "f":
                values[name].append(np.asarray(value, dtype=np.float32))
    return values


def _fingerprint(values: Sequence[npt.NDArray[np.float32]]) -> FloatArray:
    return np.concatenate([np.sort(value, axis=None) for value in values])


def _agree(one: FloatArray, other: FloatArray) -> bool:
    peak = max(float(np.abs(one).max(initial=0.0)), 1e-30)
    return bool(np.abs(one - other).max(initial=0.0) <= _TOLERANCE * peak)


def _nodes(
    model: ModelProto, file: TfliteFile, tensors: Mapping[int, tuple[str, ...]]
) -> dict[str, tuple[int, ...]]:
    """Give every node the operators between the tensors behind it and those before it."""
    regions = _regions(file, tensors)
    made = producers(model.graph)
    owners: dict[str, int] = {}
    for index in sorted(regions, key=lambda item: max(regions[item])):
        # Of equal tensors (a reshape's input and output), each operator takes the next in order.
        free = (name for name in tensors[index] if name not in owners and name in made)
        for name in itertools.islice(free, 1):
            owners[name] = index
    found: dict[str, tuple[int, ...]] = {}
    readers: dict[str, list[str]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].extend(node.output)
    behind: dict[str, tuple[int, ...]] = {}
    for node in reversed(model.graph.node):
        operators: set[int] = set()
        for name in node.output:
            own = owners.get(name)
            after = (
                (regions[own],) if own is not None else (behind.get(n, ()) for n in readers[name])
            )
            behind[name] = tuple(sorted({item for group in after for item in group}))
            operators.update(behind[name])
        found[node.name] = tuple(sorted(operators))
    return found


def _regions(
    file: TfliteFile, tensors: Mapping[int, tuple[str, ...]]
) -> dict[int, tuple[int, ...]]:
    """Return, for each corresponding tensor, the operators between it and those before it."""
    maker = {
        int(item): place
        for place, operator in enumerate(file.graph.operators)
        for item in operator.outputs
    }
    regions: dict[int, tuple[int, ...]] = {}
    for index in tensors:
        if index not in maker:
            continue
        found: set[int] = set()
        waiting = [index]
        while waiting:
            place = maker.get(waiting.pop())
            if place is None or place in found:
                continue
            found.add(place)
            inputs = (int(item) for item in file.graph.operators[place].inputs)
            waiting.extend(item for item in inputs if item not in tensors)
        regions[index] = tuple(sorted(found))
    return regions
