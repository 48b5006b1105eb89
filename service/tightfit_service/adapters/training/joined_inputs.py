"""Networks with several inputs as networks with one, so that training feeds a single array.

The joined input holds the values of all inputs of a sample side by side; two nodes per input take
them apart again. Everything behind is the network as it came, under the names that it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout, Preprocess
from tightfit_service.graph.model_file import load_model, save_model
from tightfit_service.graph.structure import graph_inputs, replace_nodes, tensor_shapes

JOINED = "joined/inputs"
"""Name of the joined input, and the beginning of all names that are added."""

_IN_MEMORY_BYTES = 512 << 20
_CHUNK = 1024


def has_several_inputs(graph: bytes) -> bool:
    """Return whether a graph has more than one input."""
    return len(graph_inputs(load_model(graph))) > 1


def join_inputs(graph: bytes, names: Sequence[str] = ()) -> bytes:
    """Return the graph with one input of shape (batch, values) in place of its own.

    `names` is the order in which they lie there; by default that of the graph.
    """
    model = load_model(graph)
    names = names or graph_inputs(model)
    shapes = tensor_shapes(model)
    sizes = [math.prod(shapes[name][1:]) for name in names]
    added = {f"{JOINED}/sizes": np.asarray(sizes, dtype=np.int64)}
    parts = [f"{JOINED}/{name}/values" for name in names]
    nodes = [
        helper.make_node(
            "Split", [JOINED, f"{JOINED}/sizes"], parts, name=f"{JOINED}/split", axis=1
        )
    ]
    for name, part in zip(names, parts, strict=True):
        goal = f"{JOINED}/{name}/shape"
        added[goal] = np.asarray([-1, *shapes[name][1:]], dtype=np.int64)
        nodes.append(
            helper.make_node("Reshape", [part, goal], [name], name=f"{JOINED}/{name}/reshape")
        )
    del model.graph.input[:]
    model.graph.input.append(
        helper.make_tensor_value_info(JOINED, onnx.TensorProto.FLOAT, ["batch", sum(sizes)])
    )
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in added.items())
    replace_nodes(model.graph, [*nodes, *model.graph.node])
    return save_model(model)


def part_inputs(graph: bytes, like: bytes) -> bytes:
    """Return a joined graph with the inputs of the graph that it was made from."""
    model = load_model(graph)
    del model.graph.input[:]
    model.graph.input.extend(load_model(like).graph.input)
    kept = [node for node in model.graph.node if not node.name.startswith(f"{JOINED}/")]
    replace_nodes(model.graph, kept)
    own = [t for t in model.graph.initializer if not t.name.startswith(f"{JOINED}/")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(own)
    return save_model(model)


def join_samples(samples: Samples, names: tuple[str, ...], folder: Path) -> Samples:
    """Return the samples with all inputs, preprocessed, in one array of float32.

    Large sets lie in a file in `folder`, which belongs to the process and may be deleted with it.

    Raises:
        InvalidDatasetError: The samples have other inputs.
    """
    first = samples.feeds([0], names)
    width = sum(value[0].size for value in first.values())
    shape = (len(samples), width)
    stored: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    if 4 * math.prod(shape) <= _IN_MEMORY_BYTES:
        stored = np.empty(shape, dtype=np.float32)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"joined-{id(samples)}-{samples.name}.npy"
        stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, len(samples), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(samples)))
        values = samples.feeds(part, names).values()
        stored[part] = np.concatenate([value.reshape(len(value), -1) for value in values], axis=1)
    return replace(
        samples,
        stored=stored,
        preprocess=Preprocess(),
        layout=Layout.ANY,
        model_layout=Layout.ANY,
        input_name=JOINED,
        others={},
    )
