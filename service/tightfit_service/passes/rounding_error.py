"""What other weights do to the outputs of single nodes, measured on samples in the float graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from tightfit_service.application.samples import Samples
from tightfit_service.graph.model_file import copy_model
from tightfit_service.graph.structure import Array, initializers, set_initializer
from tightfit_service.passes.activation_values import Observer, input_batches


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputError:
    """Error of one node's output, before bias and activation, over all samples and positions.

    Attributes:
        mean: Mean error per output channel, shape (channels,).
        relative: Squared error over squared output.
    """

    mean: npt.NDArray[np.float64]
    relative: float


def output_errors(
    model: ModelProto, weights: Mapping[str, Array], samples: Samples
) -> dict[str, OutputError]:
    """Return the error of each named product if it had other weights and all else were as it is.

    Beside each node stands another one with the difference of the weights, fed with the same float
    input, so that one run over the samples serves all nodes; it costs about three of the network.

    Args:
        model: A float graph with inferred shapes; products are Conv, ConvTranspose, Gemm, MatMul.
        weights: Per node name, the other weights in the shape of its own.
        samples: Inputs of the graph.
    """
    paired = copy_model(model)
    constants = initializers(model)
    nodes = {node.name: node for node in model.graph.node if node.name in weights}
    for name, node in nodes.items():
        own = constants[node.input[1]].astype(np.float64)
        _add_twin(paired, node, "whole", own)
        _add_twin(paired, node, "error", weights[name] - own)
    names = [_twin_output(name, kind) for name in nodes for kind in ("whole", "error")]
    observer = Observer(paired, names)
    sums = dict.fromkeys(names, 0.0)
    means: dict[str, npt.NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for feeds in input_batches(paired, samples, values_per_sample=_values(model) * 3):
        found = observer.run(feeds)
        for name, node in nodes.items():
            for kind in ("whole", "error"):
                key = _twin_output(name, kind)
                sums[key] += float((found[key].astype(np.float64) ** 2).sum())
            error = found[_twin_output(name, "error")]
            channels = np.moveaxis(error, channel_axis(node, error.ndim), 0)
            flat = channels.reshape(len(channels), -1)
            means[name] = means.get(name, 0.0) + flat.sum(axis=1, dtype=np.float64)
            counts[name] = counts.get(name, 0) + flat.shape[1]
    return {
        name: OutputError(
            mean=means[name] / counts[name],
            relative=sums[_twin_output(name, "error")]
            / max(sums[_twin_output(name, "whole")], 1e-30),
        )
        for name in nodes
        if name in counts
    }


def channel_axis(node: NodeProto, rank: int) -> int:
    """Return the axis of a product's output that its channels lie on."""
    return 1 if node.op_type in {"Conv", "ConvTranspose"} else rank - 1


def _twin_output(node: str, kind: str) -> str:
    return f"{node}.{kind}.output"


def _add_twin(model: ModelProto, node: NodeProto, kind: str, weight: Array) -> None:
    """Append a copy of a product without bias that reads the same input and has other weights."""
    twin = model.graph.node.add()
    twin.CopyFrom(node)
    twin.name = f"{node.name}.{kind}"
    weight_name = f"{twin.name}.weight"
    set_initializer(model, weight_name, weight.astype(np.float32))
    twin.input[:] = [node.input[0], weight_name]
    twin.output[:] = [_twin_output(node.name, kind)]


def _values(model: ModelProto) -> int:
    """Return the values per sample of the largest tensors together, for bounding memory."""
    return sum(
        int(np.prod([max(1, dim.dim_value) for dim in info.type.tensor_type.shape.dim[1:]]))
        for info in model.graph.value_info
    )
