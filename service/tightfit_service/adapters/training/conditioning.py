"""Makes a graph trainable without changing what it computes, and takes that back exactly afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

EPSILON = 1e-5
"""Of inserted BatchNorms; the usual value."""

_SUFFIX = "/recovery_bn"
_PRODUCERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_LINEAR = {"Add", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"}

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class InsertedNorm:
    """A BatchNorm that was put behind a producer for training only.

    Attributes:
        producer: Node whose output is normalised.
        tensor: The producer's output as it was named before; the BatchNorm's output bears it now.
        weight: Initializer that folding back scales.
        channel_axis: Axis of the output channels in `weight`.
        bias: Initializer that folding back shifts, or "" where the producer has none.
        is_bias_after: The bias is the constant of an Add that follows, outside the BatchNorm.
        is_bias_shared: Other nodes read the bias too, so folding back makes a new one.
    """

    producer: str
    tensor: str
    weight: str
    channel_axis: int
    bias: str
    is_bias_after: bool
    is_bias_shared: bool

    @property
    def parameters(self) -> tuple[str, str, str, str]:
        """Initializers of the BatchNorm: scale, shift, mean, variance."""
        stem = f"{self.tensor}{_SUFFIX}"
        return f"{stem}/scale", f"{stem}/shift", f"{stem}/mean", f"{stem}/variance"

    @property
    def raw(self) -> str:
        """Name of the producer's own output while the BatchNorm is there."""
        return f"{self.tensor}{_SUFFIX}/raw"


def insert_batch_norms(graph: bytes, *, logits: str) -> tuple[bytes, tuple[InsertedNorm, ...]]:
    """Return the graph with a BatchNorm behind every weighted node that has none, and where they are.

    Convolutions and dense layers get one, except the layer that computes `logits`, weights used
    twice, and outputs that the graph shows. The new BatchNorms are neutral (scale 1, shift 0, mean 0,
    variance 1); the caller sets them from data.
    """
    model = onnx.load_model_from_string(graph)
    norms = _candidates(model, logits)
    result: list[onnx.NodeProto] = []
    for node in model.graph.node:
        result.append(node)
        norm = norms.get(node.name)
        if norm is None:
            continue
        weight = next(t for t in model.graph.initializer if t.name == norm.weight)
        node.output[0] = norm.raw
        result.append(
            helper.make_node(
                "BatchNormalization",
                [norm.raw, *norm.parameters],
                [norm.tensor],
                name=f"{node.name}{_SUFFIX}",
                epsilon=EPSILON,
            )
        )
        for name, value in zip(norm.parameters, (1.0, 0.0, 0.0, 1.0 - EPSILON), strict=True):
            array = np.full(weight.dims[norm.channel_axis], value, dtype=np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    _replace_nodes(model, result)
    return model.SerializeToString(), tuple(norms.values())


def fold_inserted(graph: bytes, inserted: tuple[InsertedNorm, ...]) -> bytes:
    """Return the graph with inserted BatchNorms folded into their producers: the same nodes as before.

    A producer without any bias gets one.
    """
    model = onnx.load_model_from_string(graph)
    tensors = {t.name: t for t in model.graph.initializer}
    by_name = {node.name: node for node in model.graph.node}
    gone: set[str] = set()
    for norm in inserted:
        node = by_name[norm.producer]
        scale, shift, mean, variance = (_read(tensors[name]) for name in norm.parameters)
        factor = scale / np.sqrt(variance + EPSILON)
        weight = _read(tensors[norm.weight])
        shape = [1] * weight.ndim
        shape[norm.channel_axis] = -1
        _store(tensors[norm.weight], weight * factor.reshape(shape))
        if norm.is_bias_after:
            old = tensors[norm.bias]
            moved = (shift - mean * factor).reshape(list(old.dims))
            _store(old, _read(old) + moved)
        else:
            own = _read(tensors[norm.bias]).reshape(-1) if norm.bias else 0.0
            folded = (own - mean) * factor + shift
            if norm.bias and not norm.is_bias_shared:
                _store(tensors[norm.bias], folded)
            else:
                name = f"{norm.producer}/bias"
                kind = helper.tensor_dtype_to_np_dtype(tensors[norm.weight].data_type)
                model.graph.initializer.append(numpy_helper.from_array(folded.astype(kind), name))
                del node.input[2:]
                node.input.append(name)
        node.output[0] = norm.tensor
        gone.update({f"{norm.producer}{_SUFFIX}", *norm.parameters})
    _replace_nodes(model, [node for node in model.graph.node if node.name not in gone])
    kept = [t for t in model.graph.initializer if t.name not in gone]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model.SerializeToString()


def input_layers(graph: bytes) -> tuple[str, ...]:
    """Return the weights that alone meet the graph's input, or nothing where something else does.

    Dividing the input by a number and multiplying these weights by it changes nothing: movement and
    zero padding are all that lies between.
    """
    model = onnx.load_model_from_string(graph)
    initializers = {t.name: t for t in model.graph.initializer}
    inputs = [i.name for i in model.graph.input if i.name not in initializers]
    if len(inputs) != 1:
        return ()
    uses = Counter(name for node in model.graph.node for name in node.input)
    reached, weights = {inputs[0]}, []
    for node in model.graph.node:
        if not reached & set(node.input):
            continue
        if node.op_type in _LINEAR - {"Add"} and node.input[0] in reached:
            reached.add(node.output[0])
        elif (
            node.op_type in _PRODUCERS
            and node.input[0] in reached
            and node.input[1] in initializers
            and uses[node.input[1]] == 1
        ):
            weights.append(node.input[1])
        else:
            return ()
    return tuple(weights)


def _candidates(model: onnx.ModelProto, logits: str) -> dict[str, InsertedNorm]:
    """Return by producer where a BatchNorm goes."""
    initializers = {t.name: t for t in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    ranks = _ranks(model)
    shown = {output.name for output in model.graph.output} | _before_logits(model, logits)
    found: dict[str, InsertedNorm] = {}
    for node in model.graph.node:
        axis = output_axis(node)
        if axis is None or node.input[1] not in initializers or uses[node.input[1]] != 1:
            continue
        tensor = node.output[0]
        readers = [n for n in model.graph.node if tensor in n.input]
        if (
            tensor in shown
            or not readers
            or any(n.op_type == "BatchNormalization" for n in readers)
        ):
            continue
        weight = initializers[node.input[1]]
        if node.op_type == "MatMul" and (len(weight.dims) != 2 or ranks.get(tensor) != 2):
            continue
        own = node.input[2] if len(node.input) > 2 else ""
        if own and own not in initializers:
            continue
        after = "" if own else _bias_after(readers, tensor, initializers, weight.dims[axis], uses)
        if node.op_type == "MatMul" and not after:
            continue
        found[node.name] = InsertedNorm(
            producer=node.name,
            tensor=tensor,
            weight=node.input[1],
            channel_axis=axis,
            bias=own or after,
            is_bias_after=bool(after),
            # one number for all channels broadcasts, but cannot be shifted per channel
            is_bias_shared=bool(own)
            and (uses[own] > 1 or list(initializers[own].dims) != [weight.dims[axis]]),
        )
    return found


def output_axis(node: onnx.NodeProto) -> int | None:
    """Return the axis of the output channels in the weight, or None where no BatchNorm can be folded."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose" and attributes.get("group", 1) == 1:
        return 1
    if node.op_type == "MatMul":
        return 1
    is_plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
    if node.op_type == "Gemm" and is_plain and not attributes.get("transA", 0):
        return 0 if attributes.get("transB", 0) else 1
    return None


def _bias_after(
    readers: list[onnx.NodeProto],
    tensor: str,
    initializers: dict[str, onnx.TensorProto],
    channels: int,
    uses: Counter[str],
) -> str:
    """Return the per-channel constant that a following Add brings, or "" where there is none."""
    if len(readers) != 1 or readers[0].op_type != "Add":
        return ""
    other = next((name for name in readers[0].input if name != tensor), "")
    constant = initializers.get(other)
    if constant is None or uses[other] != 1 or channels == 1:
        return ""
    lengths = [n for n in constant.dims if n != 1]
    return other if lengths == [channels] else ""


def _before_logits(model: onnx.ModelProto, logits: str) -> set[str]:
    """Return the tensors from which only bias and movement lead to the logits."""
    final = {logits}
    for node in reversed(model.graph.node):
        if node.op_type in _LINEAR and final & set(node.output):
            final.update(node.input)
    return final


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    inferred = shape_inference.infer_shapes(model).graph
    return {v.name: len(v.type.tensor_type.shape.dim) for v in inferred.value_info}


def _replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _read(tensor: onnx.TensorProto) -> Vector:
    return numpy_helper.to_array(tensor).astype(np.float64)


def _store(tensor: onnx.TensorProto, value: Vector) -> None:
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(numpy_helper.from_array(value.astype(kind), tensor.name))
