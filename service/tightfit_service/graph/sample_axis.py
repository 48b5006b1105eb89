"""A graph for one sample that is being rewritten for many: where in each tensor the samples lie.

Files with a fixed batch of 1 spell it out in shapes, drop it, or merge it with other axes. Here each
tensor of such a graph gets a *place* for the samples: an axis of size 1 that they take, or a new
axis in front of all others. Which of both follows from the operators; every rule computes for each
sample what the graph computed for one (the idea is that of `vmap` in JAX, with fewer axes added).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from tightfit_service.graph.structure import (
    Array,
    Shape,
    graph_inputs,
    graph_outputs,
    initializers,
    replace_nodes,
    set_attribute,
    set_initializer,
    unique_name,
)

FRONT = -1
"""The place in front of all axes."""
_SAMPLES = -1
"""Stands for the number of samples in a layout; Reshape understands it."""

Layout = tuple[int, ...]


class NoPlaceError(Exception):
    """The batch cannot be followed through a node; the text says why."""


def layout_of(shape: Shape, place: int) -> Layout:
    """Return the sizes of a tensor whose samples lie at a place, `-1` for the samples."""
    if place == FRONT:
        return (_SAMPLES, *shape)
    return (*shape[:place], _SAMPLES, *shape[place + 1 :])


def moved(axes: Iterable[int], place: int) -> list[int]:
    """Return axes as they are numbered once the samples lie at a place."""
    return [axis + 1 for axis in axes] if place == FRONT else list(axes)


class SampleAxes:
    """The rewritten graph as far as it has come.

    Attributes:
        shapes: Shapes of the original's tensors, at batch 1.
        constants: Initializers by name.
        opset: Version of the standard operators.
    """

    def __init__(self, model: ModelProto, shapes: Mapping[str, Shape], opset: int) -> None:
        self.shapes = shapes
        self.constants = initializers(model)
        self.opset = opset
        self._nodes: list[NodeProto] = []
        self._added: dict[str, Array] = {}
        self._places: dict[str, int] = {}
        self._homes: dict[str, tuple[Layout, str]] = {}
        self._views: dict[tuple[str, Layout], str] = {}
        self._taken = set(self.constants) | set(graph_inputs(model))
        self._taken |= {name for node in model.graph.node for name in node.output}
        self._node_names = {node.name for node in model.graph.node}
        for name in graph_inputs(model):
            self.define(name, name, 0)

    def finish(self, model: ModelProto) -> None:
        """Write the nodes and constants into the model; outputs have the samples along axis 0.

        Raises:
            NoPlaceError: An output is the same for all samples, or has another size along axis 0.
        """
        for name in graph_outputs(model):
            if not self.has_samples(name) or self.shapes[name][:1] != (1,):
                raise NoPlaceError(f"output {name!r} has no batch axis")
            found = self.view(name, 0)
            if found != name:
                self._free_name(name)
                self.emit_plain("Identity", [found], result=name)
        replace_nodes(model.graph, self._nodes)
        for name, value in self._added.items():
            set_initializer(model, name, value)

    def _free_name(self, name: str) -> None:
        """Rename what is computed under an output's name, in another layout than the output's."""
        other = unique_name(f"{name}.inner", self._taken)
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, item in enumerate(names):
                    if item == name:
                        names[index] = other

    # -- tensors -----------------------------------------------------------------------------------

    def has_samples(self, name: str) -> bool:
        """Whether a tensor differs between samples."""
        return name in self._places

    def place(self, name: str) -> int:
        """Return where the samples of a tensor lie."""
        return self._places[name]

    def place_beside(self, name: str, axes: Iterable[int]) -> int:
        """Return where a tensor's samples may lie while an operator works along some axes."""
        return FRONT if self._places[name] in axes else self._places[name]

    def home(self, name: str) -> tuple[Layout, str]:
        """Return the layout in which a tensor is computed, and its name in the new graph."""
        return self._homes[name]

    def define(self, name: str, physical: str, place: int) -> None:
        """State that `physical` is the tensor `name` with its samples at a place."""
        layout = layout_of(self.shapes[name], place)
        self._places[name] = place
        self._homes[name] = (layout, physical)
        self._views[name, layout] = physical

    def view(self, name: str, place: int) -> str:
        """Return a tensor with its samples at a place."""
        return self._arranged(name, layout_of(self.shapes[name], place))

    def aligned(self, name: str, rank: int, place: int) -> str:
        """Return a tensor that broadcasts to `rank` axes, its samples at a place among those."""
        shape = self.shapes[name]
        if not self.has_samples(name):
            return name
        missing = rank - len(shape)
        if place == FRONT:
            return self._arranged(name, (_SAMPLES, *(1,) * missing, *shape))
        if place >= missing:
            return self.view(name, place - missing)
        return self._arranged(name, (_SAMPLES, *(1,) * (missing - place - 1), *shape))

    def _arranged(self, name: str, wanted: Layout) -> str:
        """Return a tensor in a layout that has the same sizes, but for some of 1, in the same order."""
        if (name, wanted) in self._views:
            return self._views[name, wanted]
        layout, physical = self._homes[name]
        at, outside = layout.index(_SAMPLES), math.prod(wanted[: wanted.index(_SAMPLES)])
        if math.prod(layout[:at]) != outside:
            rest = layout[:at] + layout[at + 1 :]
            to = next(i for i in range(len(rest) + 1) if math.prod(rest[:i]) == outside)
            axes = [axis for axis in range(len(layout)) if axis != at]
            order = [*axes[:to], at, *axes[to:]]
            physical = self.emit_plain("Transpose", [physical], perm=order)
            layout = tuple(layout[axis] for axis in order)
        if layout != wanted:
            physical = self.reshaped(physical, layout, wanted)
        self._views[name, wanted] = physical
        return physical

    def reshaped(self, physical: str, layout: Layout, wanted: Layout) -> str:
        """Return a tensor of the new graph in another layout of the same memory.

        In one of both the samples may be joined with what each of them has several of.
        """
        target = list(wanted)
        at = wanted.index(_SAMPLES)
        if layout.index(_SAMPLES) == at and math.prod(layout) == math.prod(wanted):
            target[at] = 0
        return self.emit_plain("Reshape", [physical, self.sizes(f"{physical}.shape", target)])

    def common_place(self, names: Iterable[str], rank: int, *, barred: Iterable[int] = ()) -> int:
        """Return the place at which operands that broadcast to `rank` axes meet with least work.

        Args:
            names: The operands, those without samples included.
            rank: Number of axes of the result.
            barred: Axes of the result that the operator itself works along.
        """
        names = [name for name in names if name]
        wishes: Counter[int] = Counter()
        for name in names:
            if self.has_samples(name):
                missing = rank - len(self.shapes[name])
                # In front of a tensor of fewer axes may be an axis of the result.
                wishes[self.place(name) + missing if missing else self.place(name)] += 1
        bars = set(barred)
        for place, _ in wishes.most_common():
            if place == FRONT:
                return FRONT
            if place not in bars and all(self._is_one(name, place, rank) for name in names):
                return place
        return FRONT

    def _is_one(self, name: str, axis: int, rank: int) -> bool:
        shape = self.shapes[name]
        place = axis - (rank - len(shape))
        return place < 0 or shape[place] == 1

    # -- nodes -------------------------------------------------------------------------------------

    def keep(self, node: NodeProto) -> None:
        """Take a node over that is the same for all samples."""
        self._nodes.append(node)

    def emit(
        self,
        node: NodeProto,
        inputs: Sequence[str],
        places: int | Sequence[int],
        **attributes: object,
    ) -> None:
        """Copy a node with other inputs and attributes.

        Args:
            node: The original's.
            inputs: Names in the new graph.
            places: Where the samples of its outputs lie: of each, or of all of them.
            **attributes: Those that change.
        """
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(inputs)
        for name, value in attributes.items():
            set_attribute(copy, name, value)
        self._nodes.append(copy)
        each = [places] * len(node.output) if isinstance(places, int) else places
        for name, place in zip(node.output, each, strict=True):
            if name:
                self.define(name, name, place)

    def emit_plain(
        self, kind: str, inputs: Sequence[str], *, result: str = "", **attributes: Any
    ) -> str:
        """Add a node of one output and return the name of that."""
        result = result or unique_name(f"{inputs[0]}.{kind.lower()}", self._taken)
        name = unique_name(f"{result}/{kind}", self._node_names)
        self._nodes.append(helper.make_node(kind, inputs, [result], name=name, **attributes))
        return result

    def sizes(self, stem: str, values: Sequence[int] | Array) -> str:
        """Return the name of a new constant of integers."""
        return self.constant(stem, np.asarray(values, dtype=np.int64))

    def constant(self, stem: str, value: Array) -> str:
        """Return the name of a new constant."""
        name = unique_name(stem, self._taken)
        self._added[name] = np.ascontiguousarray(value).reshape(value.shape)
        return name
