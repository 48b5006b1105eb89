"""Graphs with QDQ pairs as torch modules in the form that ExecuTorch's backends know."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, NodeProto
from torch.ao.quantization.fx import _decomposed  # noqa: F401  # registers the operators used below

from tightfit_service.adapters.training.module import build_module
from tightfit_service.adapters.training.node_view import NodeView, Value
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.graph.model_file import copy_model, save_model
from tightfit_service.graph.structure import (
    attribute,
    consumers,
    initializers,
    producers,
    remove_dead_code,
    replace_nodes,
    set_attribute,
    set_initializer,
)

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_OPERATORS = torch.ops.quantized_decomposed


@dataclass(frozen=True, kw_only=True)
class _Activation:
    """An activation tensor's integers: one scale and zero point."""

    scale: float
    zero_point: int


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """A weight's integers: the buffer that holds them, scales per channel of an axis."""

    slot: str
    axis: int


class QuantizedModule(torch.nn.Module):
    """Computes what a QDQ graph computes, with `quantized_decomposed` operators around its nodes.

    That is the form in which PyTorch's own quantizer (torchao pt2e) hands graphs to backends: weights
    as int8 constants with a dequantization, activations quantized where they are made. Biases
    are float; backends round them to the product of both scales, as the graph has it.
    """

    def __init__(self, model: ModelProto) -> None:
        """Take the pairs off the graph and keep their figures.

        Raises:
            UnsupportedError: Integers that are no int8, or an operator without a rule; names it.
        """
        super().__init__()
        self._edges: dict[tuple[str, int], _Activation | _Weight] = {}
        self._ends: dict[str, _Activation] = {}
        self._inner = build_module(save_model(self._stripped(model)))

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the graph on inputs of the shapes it declares; returns all outputs."""
        rounded: dict[tuple[int, _Activation], torch.Tensor] = {}
        kept: list[Value] = []

        def as_read(value: Value | None, kind: _Activation) -> torch.Tensor:
            assert isinstance(value, torch.Tensor)
            kept.append(value)  # an id means something only as long as its tensor lives
            key = (id(value), kind)
            limits = (-128, 127, torch.int8)
            if key not in rounded:
                rounded[key] = _OPERATORS.quantize_per_tensor(
                    value, kind.scale, kind.zero_point, *limits
                )
            result: torch.Tensor = _OPERATORS.dequantize_per_tensor(
                rounded[key], kind.scale, kind.zero_point, *limits
            )
            return result

        def before(node: NodeView, args: list[Value | None]) -> None:
            for place, value in enumerate(args):
                kind = self._edges.get((node.name, place))
                if isinstance(kind, _Activation):
                    args[place] = as_read(value, kind)
                elif kind is not None:
                    args[place] = self._weight(kind)

        names = self._inner.output_names
        outputs = self._inner.run_to(names, *inputs, before_node=before)
        return tuple(
            as_read(value, self._ends[name]) if name in self._ends else value
            for name, value in zip(names, outputs, strict=True)
        )

    def _weight(self, kind: _Weight) -> torch.Tensor:
        values, scales, zeros = (getattr(self, f"{kind.slot}_{part}") for part in _PARTS)
        result: torch.Tensor = _OPERATORS.dequantize_per_channel(
            values, scales, zeros, kind.axis, -127, 127, torch.int8
        )
        return result

    def _stripped(self, model: ModelProto) -> ModelProto:
        """Return the graph without pairs, weights as the floats that their integers stand for."""
        values = initializers(model)
        made_by, readers = producers(model.graph), consumers(model.graph)
        result = copy_model(model)
        source: dict[str, str] = {}
        turned: set[str] = set()
        kinds: dict[str, _Activation | _Weight] = {}
        for node in model.graph.node:
            if node.op_type != _DEQUANTIZE:
                continue
            output, inner = node.output[0], node.input[0]
            if inner in values:
                read_by = readers.get(output, [])
                floats = _floats(node, values)
                if _is_turned(output, read_by):
                    turned.add(output)
                    floats = np.ascontiguousarray(floats.T)
                set_initializer(result, output, floats)
                if values[inner].dtype == np.int8 and all(
                    _takes_integers(item, output, turned) for item in read_by
                ):
                    kinds[output] = self._kept_weight(node, values, is_turned=output in turned)
            else:
                kinds[output] = _activation(node, values)
                source[output] = made_by[inner].input[0]
        nodes: list[NodeProto] = []
        for node in result.graph.node:
            if node.op_type in {_QUANTIZE, _DEQUANTIZE}:
                continue
            for place, name in enumerate(node.input):
                if name in kinds:
                    self._edges[node.name or node.output[0], place] = kinds[name]
                node.input[place] = source.get(name, name)
            if turned & set(node.input):
                set_attribute(node, "transB", 1)
            nodes.append(node)
        self._rename_ends(result, nodes, source, kinds)
        replace_nodes(result.graph, nodes)
        remove_dead_code(result)
        return result

    def _rename_ends(
        self,
        model: ModelProto,
        nodes: list[NodeProto],
        source: Mapping[str, str],
        kinds: Mapping[str, _Activation | _Weight],
    ) -> None:
        """Let nodes write graph outputs themselves where a pair stood between."""
        for output in model.graph.output:
            if output.name not in source:
                continue
            kind, inner = kinds[output.name], source[output.name]
            assert isinstance(kind, _Activation)
            self._ends[output.name] = kind
            for node in nodes:
                for names in (node.input, node.output):
                    for place, name in enumerate(names):
                        if name == inner:
                            names[place] = output.name

    def _kept_weight(
        self,
        node: NodeProto,
        values: Mapping[str, npt.NDArray[np.generic]],
        *,
        is_turned: bool,
    ) -> _Weight:
        integers = np.array(values[node.input[0]])
        scales = np.atleast_1d(np.array(values[node.input[1]], dtype=np.float32))
        axis = int(attribute(node, "axis", 1)) % integers.ndim if len(scales) > 1 else 0
        if is_turned:
            integers, axis = np.ascontiguousarray(integers.T), 1 - axis
        kind = _Weight(slot=f"weight_{len(list(self.buffers()))}", axis=axis)
        count = integers.shape[axis]
        parts = (
            torch.from_numpy(integers),
            torch.from_numpy(np.broadcast_to(scales, (count,)).copy()),
            torch.zeros(count, dtype=torch.int64),
        )
        for part, value in zip(_PARTS, parts, strict=True):
            self.register_buffer(f"{kind.slot}_{part}", value)
        return kind


_PARTS = ("values", "scales", "zeros")


def _is_turned(weight: str, readers: list[NodeProto]) -> bool:
    """Whether a weight's only reader has it as (inputs, outputs), where backends want the reverse."""
    if len(readers) != 1 or readers[0].op_type != "Gemm":
        return False
    return readers[0].input[1] == weight and not attribute(readers[0], "transB", 0)


def _takes_integers(node: NodeProto, weight: str, turned: Collection[str]) -> bool:
    """Whether a weight stays integers for this reader; else it becomes the floats they stand for."""
    if node.op_type == "Gemm":
        return weight in turned or bool(attribute(node, "transB", 0))
    return bool(node.op_type == "Conv")


def _activation(node: NodeProto, values: Mapping[str, npt.NDArray[np.generic]]) -> _Activation:
    zero_point = values[node.input[2]] if len(node.input) > 2 else np.zeros((), dtype=np.uint8)
    if zero_point.dtype != np.int8 or zero_point.size != 1:
        raise UnsupportedError(
            f"ExecuTorch files have activations in int8, not in {zero_point.dtype}",
            field="quantization.number_format",
            remedy="use int8 or float32, or export as ONNX",
        )
    scale = float(np.asarray(values[node.input[1]], dtype=np.float32).reshape(()))
    return _Activation(scale=scale, zero_point=int(zero_point.reshape(())))


def _floats(
    node: NodeProto, values: Mapping[str, npt.NDArray[np.generic]]
) -> npt.NDArray[np.float32]:
    integers = np.asarray(values[node.input[0]], dtype=np.float32)
    scale = np.asarray(values[node.input[1]], dtype=np.float32)
    zero = np.asarray(values[node.input[2]], dtype=np.float32) if len(node.input) > 2 else scale * 0
    if scale.ndim and scale.size > 1:
        shape = [1] * integers.ndim
        shape[int(attribute(node, "axis", 1))] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((integers - zero) * scale, dtype=np.float32)
