"""The nodes that a factorized layer becomes, and the work that they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto

from tightfit_service.domain.network import Operator, OperatorKind
from tightfit_service.graph.structure import Shape, attribute, set_attribute
from tightfit_service.passes.observed_inputs import explicit_pads


@dataclass(frozen=True, kw_only=True, eq=False)
class Link:
    """One layer of a chain: its node (inputs and weights to be filled in) and its weight's shape."""

    node: NodeProto
    shape: Shape


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """The layers that replace one, in the order of computation; the last one keeps its name."""

    links: tuple[Link, ...]


def chain_of(node: NodeProto, shape: Shape, method: str, ranks: Sequence[int]) -> Chain:
    """Return the chain that a method makes of a layer.

    Args:
        node: Gemm, MatMul or ungrouped Conv.
        shape: Of its weight as (out, in, *kernel).
        method: `svd`, `spatial` or `tucker2`.
        ranks: One rank, or (r_in, r_out) for tucker2.
    """
    out, inner, *kernel = shape
    ones = (1,) * len(kernel)
    if not kernel:
        return Chain(links=_dense_links(node, out, inner, ranks[0]))
    if method == "svd":
        return Chain(
            links=(
                Link(node=_inner(node, "reduce"), shape=(ranks[0], inner, *kernel)),
                _pointwise(node, (out, ranks[0], *ones), last=True),
            )
        )
    if method == "spatial":
        height, width = kernel
        return Chain(
            links=(
                Link(node=_part(node, 0, last=False), shape=(ranks[0], inner, height, 1)),
                Link(node=_part(node, 1, last=True), shape=(out, ranks[0], 1, width)),
            )
        )
    return Chain(
        links=(
            _pointwise(node, (ranks[0], inner, *ones), last=False),
            Link(node=_inner(node, "core"), shape=(ranks[1], ranks[0], *kernel)),
            _pointwise(node, (out, ranks[1], *ones), last=True),
        )
    )


def chain_operators(operator: Operator, chain: Chain, source: Shape) -> tuple[Operator, ...]:
    """Return the operators that a runtime executes instead of the layer's one, counts exact.

    Args:
        operator: The layer's operator in the profile.
        chain: What replaces it.
        source: Shape of what its node reads in the graph.
    """
    result: list[Operator] = []
    size, tensor = tuple(source[2:]), operator.inputs
    for index, link in enumerate(chain.links):
        is_first, is_last = index == 0, index == len(chain.links) - 1
        out, inner, *kernel = link.shape
        if kernel:
            size = _output_size(link.node, size, kernel)
            positions = math.prod(size)
        else:
            positions = math.prod(source[:-1])
        outputs = operator.outputs if is_last else (f"{link.node.name}_out",)
        weights = math.prod(link.shape)
        result.append(
            replace(
                operator,
                node=link.node.name,
                kind=OperatorKind.CONV if kernel else operator.kind,
                op_type=link.node.op_type,
                inputs=tensor,
                outputs=outputs,
                macs=positions * weights,
                in_channels=inner,
                out_channels=out,
                in_size=operator.in_size if is_first else result[-1].out_size,
                out_size=size if kernel else operator.out_size,
                kernel=tuple(kernel),
                stride=tuple(attribute(link.node, "strides") or (1,) * len(kernel)),
                dilation=tuple(attribute(link.node, "dilations") or ()),
                weight_count=weights,
                bias_count=operator.bias_count if is_last else 0,
                fused=operator.fused if is_last else (),
            )
        )
        tensor = outputs
    return tuple(result)


def _output_size(node: NodeProto, size: Shape, kernel: Sequence[int]) -> Shape:
    strides = attribute(node, "strides") or [1] * len(kernel)
    dilations = attribute(node, "dilations") or [1] * len(kernel)
    begins, ends = explicit_pads(node, size, kernel)
    return tuple(
        (whole + begin + end - dilation * (taps - 1) - 1) // stride + 1
        for whole, begin, end, dilation, taps, stride in zip(
            size, begins, ends, dilations, kernel, strides, strict=True
        )
    )


def _dense_links(node: NodeProto, out: int, inner: int, rank: int) -> tuple[Link, ...]:
    first = NodeProto(op_type=node.op_type, name=f"{node.name}.reduce")
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        set_attribute(first, "transB", 1)
    first.output.append("")
    return (
        Link(node=first, shape=(rank, inner)),
        Link(node=_copy(node), shape=(out, rank)),
    )


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _inner(node: NodeProto, suffix: str) -> NodeProto:
    """Return the layer's node with its kernel, steps and pads, without its bias."""
    copy = _copy(node)
    copy.name = f"{node.name}.{suffix}"
    del copy.input[2:]
    return copy


def _pointwise(node: NodeProto, shape: Shape, *, last: bool) -> Link:
    """Return a 1x1 convolution without steps or pads; the last one keeps name, bias and output."""
    copy = _copy(node)
    kept = [item for item in node.attribute if item.name == "group"]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    set_attribute(copy, "kernel_shape", [1] * (len(shape) - 2))
    if not last:
        copy.name = f"{node.name}.reduce"
        del copy.input[2:]
    return Link(node=copy, shape=shape)


def _part(node: NodeProto, axis: int, *, last: bool) -> NodeProto:
    """Return a two-dimensional layer's node with kernel, steps and pads along one axis only."""
    copy = _copy(node)
    for name, neutral in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 0)):
        value = attribute(node, name)
        if value is not None:
            own = [item if i % 2 == axis else neutral for i, item in enumerate(value)]
            set_attribute(copy, name, own)
    if not last:
        copy.name = f"{node.name}.vertical"
        del copy.input[2:]
    return copy
