"""Seeded damage to ONNX files: in their bytes, and in their structure behind an intact encoding."""

from __future__ import annotations

import random
from collections.abc import Callable

from onnx import ModelProto, TensorProto

_ODD_NUMBERS = (0, -1, 1, 2, 3, 7, 255, -128, 65_536, 2**31 - 1, -(2**31), 2**40, 2**62)


def damaged(model: ModelProto, seed: int) -> bytes:
    """Return the serialized model with one to three faults chosen by the seed."""
    rng = random.Random(seed)
    if rng.random() < 0.4:
        return damaged_bytes(model.SerializeToString(), rng)
    copy = ModelProto()
    copy.CopyFrom(model)
    for _ in range(rng.randrange(1, 4)):
        rng.choice(_FAULTS)(copy, rng)
    return copy.SerializeToString()


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one fault: bits, a cut, a copied, missing or added piece."""
    raw = bytearray(data)
    position = rng.randrange(len(raw))
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del raw[position:]
    elif kind == 2:
        source, length = rng.randrange(len(raw)), rng.randrange(1, 64)
        raw[position : position + length] = raw[source : source + length]
    elif kind == 3:
        del raw[position : position + rng.randrange(1, 16)]
    else:
        raw[position:position] = rng.randbytes(rng.randrange(1, 16))
    return bytes(raw)


def _attribute_number(model: ModelProto, rng: random.Random) -> None:
    attributes = [a for node in model.graph.node for a in node.attribute]
    if not attributes:
        return
    attribute = rng.choice(attributes)
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_ODD_NUMBERS)
    else:
        attribute.i = rng.choice(_ODD_NUMBERS)


def _attribute_length(model: ModelProto, rng: random.Random) -> None:
    attributes = [a for node in model.graph.node for a in node.attribute if a.ints]
    if attributes:
        attribute = rng.choice(attributes)
        if rng.random() < 0.5:
            del attribute.ints[-1]
        else:
            attribute.ints.append(rng.choice(_ODD_NUMBERS))


def _attribute_gone(model: ModelProto, rng: random.Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if nodes:
        node = rng.choice(nodes)
        del node.attribute[rng.randrange(len(node.attribute))]


def _other_operator(model: ModelProto, rng: random.Random) -> None:
    ops = "Conv Gemm MatMul Softmax Reshape Shape If Loop LSTM Concat Split Tile TopK Einsum Resize Pad"
    rng.choice(model.graph.node).op_type = rng.choice(ops.split())


def _edge(model: ModelProto, rng: random.Random) -> None:
    nodes = [node for node in model.graph.node if node.input]
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    node = rng.choice(nodes)
    node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "nowhere"])


def _edge_gone(model: ModelProto, rng: random.Random) -> None:
    node = rng.choice([node for node in model.graph.node if node.input])
    del node.input[rng.randrange(len(node.input))]


def _node_gone(model: ModelProto, rng: random.Random) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _node_twice(model: ModelProto, rng: random.Random) -> None:
    model.graph.node.append(rng.choice(model.graph.node))


def _tensor_shape(model: ModelProto, rng: random.Random) -> None:
    tensors = [t for t in model.graph.initializer if t.dims]
    if tensors:
        tensor = rng.choice(tensors)
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_ODD_NUMBERS)


def _tensor_squeezed(model: ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    if rng.random() < 0.5:
        tensor.dims.append(1)
    elif tensor.dims:
        product = 1
        for size in tensor.dims:
            product *= size
        if abs(product) < 2**63:
            del tensor.dims[:]
            tensor.dims.append(product)


def _tensor_type(model: ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.initializer).data_type = rng.randrange(0, 30)


def _tensor_values(model: ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    if tensor.data_type == TensorProto.INT64 and tensor.raw_data:
        raw = bytearray(tensor.raw_data)
        start = 8 * rng.randrange(len(raw) // 8)
        raw[start : start + 8] = rng.choice(_ODD_NUMBERS).to_bytes(8, "little", signed=True)
        tensor.raw_data = bytes(raw)


def _tensor_outside(model: ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def _input_shape(model: ModelProto, rng: random.Random) -> None:
    shape = rng.choice(model.graph.input).type.tensor_type.shape
    if shape.dim:
        rng.choice(shape.dim).dim_value = rng.choice(_ODD_NUMBERS)


def _input_type(model: ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.input).type.tensor_type.elem_type = rng.randrange(0, 30)


def _versions(model: ModelProto, rng: random.Random) -> None:
    if rng.random() < 0.5:
        model.ir_version = rng.choice(_ODD_NUMBERS)
    else:
        model.opset_import[0].version = rng.choice(_ODD_NUMBERS)


def _domain(model: ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.node).domain = rng.choice(["ai.onnx.ml", "com.microsoft", "nobody"])


_FAULTS: list[Callable[[ModelProto, random.Random], None]] = [
    _attribute_number,
    _attribute_length,
    _attribute_gone,
    _other_operator,
    _edge,
    _edge_gone,
    _node_gone,
    _node_twice,
    _tensor_shape,
    _tensor_squeezed,
    _tensor_type,
    _tensor_values,
    _tensor_outside,
    _input_shape,
    _input_type,
    _versions,
    _domain,
]
