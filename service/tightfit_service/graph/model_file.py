"""Reading and writing serialized ONNX models, bounded before anything is allocated for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from tightfit_service.domain.errors import InvalidModelError

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """How large a model may be; what exceeds a limit is refused before it is unpacked."""

    file_bytes: int = 512 * MIB
    node_count: int = 20_000
    tensor_count: int = 50_000
    tensor_elements: int = 1 << 28
    rank: int = 12
    subgraph_depth: int = 4
    name_characters: int = 8_192


DEFAULT_LIMITS = ModelLimits()

# Bits per element of the types that ONNX packs tighter than a byte.
_SUBBYTE_BITS: dict[int, int] = {
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.UINT2: 2,
    TensorProto.INT2: 2,
}


def load_model(data: bytes, *, limits: ModelLimits = DEFAULT_LIMITS) -> ModelProto:
    """Parse a serialized model and hold it against the limits; nothing outside `data` is read.

    Raises:
        InvalidModelError: Not ONNX, truncated, larger than a limit, or with external data.
    """
    if not data:
        raise invalid("the model file is empty", remedy="upload the whole .onnx file")
    if len(data) > limits.file_bytes:
        raise invalid(
            f"the model file has {len(data)} bytes, more than the {limits.file_bytes} allowed",
            remedy="send a smaller model",
        )
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise invalid(
            "the file is not an ONNX model, or it is truncated",
            remedy="export the model again and compare the size of the upload",
        ) from error
    if not model.HasField("graph") or not model.opset_import:
        raise invalid(
            "the file is not an ONNX model: it has no graph or names no operator set",
            remedy="send a file that onnx.checker accepts",
        )
    check_bounds(model, limits=limits)
    return model


def save_model(model: ModelProto) -> bytes:
    """Serialize a model; equal models give equal bytes.

    Raises:
        InvalidModelError: It does not fit into one file (2 GiB is what the format can hold).
    """
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise invalid(
            "the model does not fit into one ONNX file", remedy="send a smaller model"
        ) from error


def copy_model(model: ModelProto) -> ModelProto:
    """Return a deep copy, for transformations that leave their argument alone."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def check_bounds(model: ModelProto, *, limits: ModelLimits = DEFAULT_LIMITS) -> None:
    """Check counts, names, nesting and every stored tensor without unpacking any.

    Raises:
        InvalidModelError: Names what exceeds which limit.
    """
    node_count = 0
    tensor_count = 0
    _check_names((item.domain for item in model.opset_import), limits)
    bodies: list[tuple[GraphProto | onnx.FunctionProto, int]] = [
        (model.graph, 0),
        *((function, 0) for function in model.functions),
    ]
    while bodies:
        body, depth = bodies.pop()
        if depth > limits.subgraph_depth:
            raise invalid(
                f"subgraphs are nested deeper than {limits.subgraph_depth} levels",
                remedy="export the model without nested control flow",
            )
        node_count += len(body.node)
        _within("nodes", node_count, limits.node_count)
        _check_names(_names_of(body), limits)
        for node in body.node:
            _check_names(_names_of_node(node), limits)
        tensors = list(_stored_tensors(body))
        tensor_count += len(tensors)
        _within("stored tensors", tensor_count, limits.tensor_count)
        for tensor in tensors:
            check_tensor(tensor, limits=limits)
        for node in body.node:
            _check_sizes(node)
            bodies.extend((inner, depth + 1) for inner in subgraphs(node))


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that a control-flow node holds in its attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def check_tensor(tensor: TensorProto, *, limits: ModelLimits = DEFAULT_LIMITS) -> None:
    """Check that a stored tensor is bounded, inside the file, and has the data its shape announces.

    Raises:
        InvalidModelError: Names the tensor.
    """
    _check_names(iter((tensor.name,)), limits)
    label = f"tensor {shown(tensor.name)}"
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise invalid(
            f"{label} is stored outside the model file (external data)",
            remedy="save the model as one file: onnx.save(model, path, save_as_external_data=False)",
        )
    if tensor.HasField("segment"):
        raise invalid(f"{label} is stored in segments", remedy="save the tensor whole")
    if len(tensor.dims) > limits.rank:
        raise invalid(
            f"{label} has {len(tensor.dims)} axes, more than {limits.rank}",
            remedy="export the model again",
        )
    if any(dim < 0 for dim in tensor.dims):
        raise invalid(f"{label} has a negative dimension", remedy="export the model again")
    elements = math.prod(tensor.dims)
    if elements > limits.tensor_elements:
        raise invalid(
            f"{label} has {elements} elements, more than {limits.tensor_elements}",
            remedy="send a smaller model",
        )
    if tensor.data_type not in _KNOWN_TYPES:
        raise invalid(
            f"{label} has the unknown element type {tensor.data_type}",
            remedy="export the model with a published ONNX version",
        )
    if tensor.HasField("raw_data"):
        bits = _SUBBYTE_BITS.get(tensor.data_type)
        if bits is None:
            bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if tensor.data_type != TensorProto.STRING and len(tensor.raw_data) != -(
            -elements * bits // 8
        ):
            raise invalid(
                f"{label} announces {elements} elements but stores {len(tensor.raw_data)} bytes",
                remedy="the file is damaged: export or upload it again",
            )


def invalid(message: str, *, remedy: str) -> InvalidModelError:
    """Return the error that refuses an uploaded model."""
    return InvalidModelError(message, field="model", remedy=remedy)


def shown(name: str) -> str:
    """Return a name from a model for a message: quoted, printable and not longer than a line."""
    text = name if len(name) <= 80 else f"{name[:60]}...{name[-16:]}"
    return f'"{"".join(c if c.isprintable() else "?" for c in text)}"'


_LARGEST_SIZE = 1 << 20
_LEAST = {
    "kernel_shape": 1,
    "strides": 1,
    "dilations": 1,
    "group": 1,
    "blocksize": 1,
    "hidden_size": 1,
    "num_outputs": 1,
    "output_padding": 0,
    "output_shape": 0,
    "pads": -_LARGEST_SIZE,
}
_KNOWN_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}


def _within(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise invalid(
            f"the model has more than {limit} {what}", remedy="send a smaller or simplified model"
        )


def _stored_tensors(body: GraphProto | onnx.FunctionProto) -> Iterator[TensorProto]:
    if isinstance(body, GraphProto):
        yield from body.initializer
        for sparse in body.sparse_initializer:
            raise invalid(
                f"tensor {shown(sparse.values.name)} is stored sparse",
                remedy="save the model with dense initializers",
            )
    for node in body.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise invalid(
                    f"node {shown(node.name)} holds a sparse tensor",
                    remedy="save the model with dense constants",
                )


def _check_sizes(node: NodeProto) -> None:
    """Refuse windows and steps that no network has: onnx and onnxruntime compute with them unchecked."""
    for attribute in node.attribute:
        low = _LEAST.get(attribute.name)
        if low is None:
            continue
        single = attribute.type == AttributeProto.INT
        for value in (attribute.i,) if single else attribute.ints:
            if not low <= value <= _LARGEST_SIZE:
                raise invalid(
                    f"{attribute.name} of node {shown(node.name)} is {value}, "
                    f"outside [{low}, {_LARGEST_SIZE}]",
                    remedy="the file is damaged: export or upload it again",
                )


def _names_of(body: GraphProto | onnx.FunctionProto) -> Iterator[str]:
    yield body.name
    if isinstance(body, GraphProto):
        for value in (*body.input, *body.output, *body.value_info):
            yield value.name
            yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
        yield from (tensor.name for tensor in body.initializer)
    else:
        yield from (body.domain, *body.input, *body.output, *body.attribute)


def _names_of_node(node: NodeProto) -> Iterator[str]:
    yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    yield from (attribute.name for attribute in node.attribute)


def _check_names(names: Iterator[str], limits: ModelLimits) -> None:
    for name in names:
        # protobuf hands out text fields that are not UTF-8 as bytes
        if not isinstance(name, str):
            raise invalid(
                f"a name in the file is not text: {name!r:.80}",
                remedy="the file is damaged: export or upload it again",
            )
        if len(name) > limits.name_characters:
            raise invalid(
                f"a name has more than {limits.name_characters} characters: {shown(name)}",
                remedy="shorten the names before export",
            )
