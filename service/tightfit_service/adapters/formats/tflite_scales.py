"""Scales of a TFLite file's tensors: which share one, and what it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_kernels import EIGHT_BITS, KERNELS
from tightfit_service.application.data.activation_ranges import TensorRange
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.graph.quantized_tensors import FIXED_SCALES
from tightfit_service.graph.rounding import IntegerScale, activation_scale, centred

FLOATS = frozenset({NumberFormat.FLOAT32, NumberFormat.FLOAT16})
FINEST_SUMMAND = 2.0**-9
"""Of the steps of a sum in 8 bits; what is below rounds to nothing, and XNNPACK leaves sums of what is finer than
2 ** -10 to a plain loop."""


class ScaleGroups:
    """Tensors of a float file in groups of one scale, as integer kernels pass them on.

    The groups are those of `graph.quantized_tensors`, found in the file's own operators, and so are
    those that are centred.
    """

    def __init__(self, file: TfliteFile, formats: Sequence[NumberFormat]) -> None:
        """Unite what operators with integer formats tie together; `formats` is in schedule order."""
        self._file = file
        self._parent: dict[int, int] = {}
        self._fixed: dict[int, str] = {}
        self.sources: set[int] = set()
        """Tensors whose ranges decide those of their groups."""
        tied: set[int] = set()
        centred_inputs: list[int] = []
        for operator, number_format in zip(file.graph.operators, formats, strict=True):
            kernel = KERNELS.get(file.operator_name(operator))
            outputs = [int(item) for item in operator.outputs]
            if number_format in FLOATS or kernel is None:
                continue
            if kernel.centred is not None and number_format in EIGHT_BITS:
                centred_inputs.append(int(operator.inputs[kernel.centred]))
            if kernel.scale in FIXED_SCALES:
                for item in outputs:
                    self._fixed[self._root(item)] = kernel.scale
                tied.update(outputs)
            elif kernel.scale in {"input", "all"}:
                self._tie(operator, is_joint=kernel.scale == "all")
                tied.update(outputs)
        inputs = (int(item) for item in file.graph.inputs)
        made = (int(item) for operator in file.graph.operators for item in operator.outputs)
        for item in (*inputs, *made):
            if is_float(file, item) and item not in tied:
                self.sources.add(item)
        self._centred = {self._root(item) for item in centred_inputs}
        decided = {self._root(item) for item in self.sources} | set(self._fixed)
        # What joins only tensors of fixed scales, and different ones, has a range of its own.
        self.sources.update(item for item in tied if self._root(item) not in decided)

    def ranges(
        self, calibrated: Mapping[int, TensorRange], given: Mapping[int, TensorRange]
    ) -> dict[int, TensorRange]:
        """Return the range of each group by its root: the union of what is known of its members.

        Where a range is given for a member, only given ones count: training has chosen them.
        """
        chosen: dict[int, list[TensorRange]] = defaultdict(list)
        named = {self._root(item) for item in given}
        for item, span in given.items():
            chosen[self._root(item)].append(span)
        for item, span in calibrated.items():
            if item in self.sources and self._root(item) not in named:
                chosen[self._root(item)].append(span)
        for operator in self._file.graph.operators:
            name = self._file.operator_name(operator)
            if name == "PADV2" or KERNELS.get(name) is None or KERNELS[name].scale != "all":
                continue
            root = self._root(int(operator.outputs[0]))
            for item in operator.inputs:
                value = self._file.constant(int(item))
                if value is None or value.dtype != np.float32:
                    continue
                # a maximum begins with minus infinity, which is stored as the least there is
                value = value[np.isfinite(value)]
                if value.size:
                    span = TensorRange(low=float(value.min()), high=float(value.max()))
                    chosen[root].append(span)
        found = {
            root: TensorRange(
                low=min(0.0, *(span.low for span in spans)),
                high=max(0.0, *(span.high for span in spans)),
            )
            for root, spans in chosen.items()
        }
        for root, least in self._summands(found):
            found[root] = widened(found[root], least)
        return found

    def _summands(self, found: Mapping[int, TensorRange]) -> Iterator[tuple[int, float]]:
        """Yield what only a sum of computed tensors reads, with the least span that its kernels take it in."""
        for operator in self._file.operators("ADD", "SUB"):
            total = found.get(self._root(int(operator.outputs[0])))
            for item in (int(item) for item in operator.inputs):
                is_own = item in self.sources and not self._file.is_output(item)
                alone = is_own and self._file.consumers(item) == [operator]
                if total is not None and alone and self._root(item) in found:
                    yield self._root(item), (total.high - total.low) * FINEST_SUMMAND

    def scale(
        self, tensor: int, ranges: Mapping[int, TensorRange], *, bits: int
    ) -> IntegerScale | None:
        """Return the scale of a tensor, None where nothing is known of its values."""
        root = self._root(tensor)
        fixed = self._fixed.get(root)
        if fixed:
            return FIXED_SCALES[fixed][bits]
        span = ranges.get(root)
        if span is None:
            return None
        low, high = span.low, span.high
        if root in self._centred:
            low, high = centred(low, high)
        return activation_scale(low, high, bits=bits)

    def _tie(self, operator: object, *, is_joint: bool) -> None:
        inputs = [
            int(item)
            for item in operator.inputs  # type: ignore[attr-defined]
            if item >= 0 and is_float(self._file, int(item)) and not self._is_constant(int(item))
        ]
        outputs = [int(item) for item in operator.outputs]  # type: ignore[attr-defined]
        kinds = {self._fixed.get(self._root(item)) for item in inputs}
        is_alike = len(kinds) == 1
        for item in inputs if is_joint else inputs[:1]:
            # What has a scale of its own is rescaled before it is joined with others.
            if is_alike or not is_joint or self._root(item) not in self._fixed:
                for output in outputs:
                    self._unite(item, output)

    def _is_constant(self, tensor: int) -> bool:
        return self._file.constant(tensor) is not None

    def _root(self, tensor: int) -> int:
        while self._parent.setdefault(tensor, tensor) != tensor:
            tensor = self._parent[tensor]
        return tensor

    def _unite(self, first: int, second: int) -> None:
        one, other = self._root(first), self._root(second)
        if one == other or (one in self._fixed and other in self._fixed):
            return
        if other in self._fixed:
            one, other = other, one
        self._parent[other] = one


def widened(span: TensorRange, least: float) -> TensorRange:
    """Return a range that spans at least so much, longer at its farther end."""
    missing = max(least - (span.high - span.low), 0.0)
    if span.high >= -span.low:
        return TensorRange(low=span.low, high=span.high + missing)
    return TensorRange(low=span.low - missing, high=span.high)


def is_float(file: TfliteFile, tensor: int) -> bool:
    """Whether a tensor holds float32."""
    return bool(file.graph.tensors[tensor].type == schema.TensorType.FLOAT32)
