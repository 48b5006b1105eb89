"""A torch module that executes a working graph, its parameters bound to the float initializers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tightfit_service.adapters.training.frozen import FrozenNode, run_static, single_node_model
from tightfit_service.adapters.training.node_view import NodeView, RunState, StaticArray, Value
from tightfit_service.adapters.training.operators import RULES
from tightfit_service.adapters.training.parameters import FLOATS, KEEPS_DATA, trained_names
from tightfit_service.domain.errors import UnsupportedError

_FROM_NUMBERS = {"ConstantOfShape", "EyeLike", "Range"}
"""Operators that make tables of a few numbers, which are no weights even where they are floats."""


NodeHook = Callable[[NodeView, list["Value | None"]], None]


class GraphModule(torch.nn.Module):
    """Executes an ONNX graph; built by `build_module`.

    `forward` takes the graph's inputs in order and returns its outputs: a tensor, or a tuple where
    there are several. Control flow depends on static values only, so `torch.export` can trace it.
    Float initializers that are weights are parameters, other float constants and BatchNorm statistics
    are buffers; `value_of` finds them by initializer name. In training mode BatchNorm uses the batch's
    statistics, and updates the running ones with `run_state.momentum`.

    Nodes that torch cannot express run in onnxruntime, as constants to the gradient: what lies
    behind them is trained, what lies before them alone stays as it is. `frozen_nodes` names them.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Take the graph apart.

        Raises:
            UnsupportedError: An operator has no rule, and no weight could be trained behind it;
                names node and operator.
        """
        super().__init__()
        graph = model.graph
        self.run_state = RunState()
        self.input_names = _input_names(graph)
        self.output_names = [output.name for output in graph.output]
        constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        nodes = _without_constant_nodes(graph, constants)
        opset = max(
            (o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=1
        )
        trained = trained_names(nodes, constants, self.input_names)
        shared = _shared_statistics(nodes)
        self._slots: dict[str, str] = {}
        self._static: dict[str, StaticArray] = {}
        self._nodes: list[tuple[NodeView, tuple[str, ...], tuple[str, ...]]] = []
        self._evaluators: dict[str, ReferenceEvaluator] = {}
        self._opsets = list(model.opset_import)
        self._frozen: dict[str, FrozenNode] = {}
        self._originals: dict[str, onnx.NodeProto] = {}
        for name, value in constants.items():
            self._add_constant(name, value, is_trained=name in trained)
        known = set(self._static)
        for node in nodes:
            view = _view(node, opset, constants)
            names = _own_statistics(node, shared)
            for new, old in zip(names, node.input, strict=True):
                if new != old and new not in self._slots:
                    self._add_constant(new, constants[old], is_trained=False)
            self._add_node(node, view, names, constants, known)
        self._last_use = self._find_last_uses()
        if self._frozen:
            self._check_trainable()

    @property
    def frozen_nodes(self) -> Mapping[str, str]:
        """Nodes that no gradient passes, known so far, with their operator types.

        Forms of operators that have a rule are met when they are first run.
        """
        return {view.name: view.op_type for view, _, _ in self._nodes if view.name in self._frozen}

    def value_of(self, initializer: str) -> torch.Tensor | None:
        """Return the parameter or buffer of an initializer, or None where it is not held as a tensor."""
        slot = self._slots.get(initializer)
        if slot is None:
            return None
        value = getattr(self, slot)
        assert isinstance(value, torch.Tensor)
        return value

    def statistics(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return running mean and variance of every BatchNorm, in graph order."""
        found = []
        for view, inputs, _ in self._nodes:
            if view.op_type == "BatchNormalization":
                mean, variance = self.value_of(inputs[3]), self.value_of(inputs[4])
                assert mean is not None
                assert variance is not None
                found.append((mean, variance))
        return found

    def weighted_nodes(self) -> list[tuple[NodeView, bool]]:
        """Return nodes whose second input is a weight as it stands, and whether a BatchNorm follows."""
        normalised = {
            names_in[0] for view, names_in, _ in self._nodes if view.op_type == "BatchNormalization"
        }
        return [
            (view, names_out[0] in normalised)
            for view, names_in, names_out in self._nodes
            if len(names_in) > 1 and 1 in view.constants and names_in[1] in self._slots
        ]

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the graph on inputs of the shapes it declares, samples first."""
        values = self.run_to(self.output_names, *inputs)
        return values[0] if len(values) == 1 else tuple(values)

    def run_to(
        self,
        names: list[str],
        *inputs: torch.Tensor,
        before_node: NodeHook | None = None,
    ) -> list[torch.Tensor]:
        """Run the graph as far as needed and return the tensors of the given names.

        `before_node` is called with each node and its inputs, which it may replace in place.
        """
        values: dict[str, Value] = dict(zip(self.input_names, inputs, strict=True))
        wanted = set(names)
        self.run_state.training = self.training
        for index, (view, names_in, names_out) in enumerate(self._nodes):
            args = [self._value(name, values) if name else None for name in names_in]
            if before_node is not None:
                before_node(view, args)
            result = self._evaluate(view, names_in, args)
            outputs = result if isinstance(result, tuple) else (result,)
            values.update((name, v) for name, v in zip(names_out, outputs, strict=False) if name)
            for name in self._last_use[index]:
                if name not in wanted:
                    values.pop(name, None)
            if wanted and wanted <= values.keys():
                break
        return [_as_tensor(self._value(name, values)) for name in names]

    def _value(self, name: str, values: Mapping[str, Value]) -> Value:
        if name in values:
            return values[name]
        slot = self._slots.get(name)
        if slot is not None:
            value = getattr(self, slot)
            assert isinstance(value, torch.Tensor)
            return value
        return self._static[name]

    def _evaluate(
        self, view: NodeView, names: tuple[str, ...], args: list[Value | None]
    ) -> Value | tuple[Value, ...]:
        evaluator = self._evaluators.get(view.name)
        if evaluator is not None:
            feeds = {
                f"i{i}": view.constants[i] if isinstance(a, torch.Tensor) else a
                for i, a in enumerate(args)
                if a is not None
            }
            return tuple(np.asarray(v) for v in evaluator.run(None, feeds))
        if view.name not in self._frozen:
            try:
                return RULES[view.op_type](view, args, self.run_state)
            except UnsupportedError as error:
                if torch.compiler.is_exporting():
                    raise
                self._freeze(view, error)
        return run_static(view, self._frozen[view.name], names, args)

    def _freeze(self, view: NodeView, why: UnsupportedError) -> None:
        """Hand a node to onnxruntime from now on.

        Raises:
            UnsupportedError: `why`, where no weight could be trained any more.
        """
        self._frozen[view.name] = FrozenNode(self._originals[view.name], self._opsets)
        try:
            self._check_trainable()
        except UnsupportedError:
            raise why from None

    def _check_trainable(self) -> None:
        """See that the gradient reaches a weight, if there are any.

        Raises:
            UnsupportedError: It does not; names the last node in its way.
        """
        weights = {n for n, slot in self._slots.items() if slot in self._parameters}
        reached = set(self.output_names)
        last: NodeView | None = None
        for view, names_in, names_out in reversed(self._nodes):
            if not reached & set(names_out):
                continue
            if view.name in self._frozen:
                last = last or view
            else:
                reached.update(names_in)
        if weights and not weights & reached and last is not None:
            raise last.unsupported("it has no rule for training, and all weights lie before it")

    def _add_constant(self, name: str, value: StaticArray, *, is_trained: bool) -> None:
        if value.dtype not in FLOATS:
            self._static[name] = value
            return
        slot = f"value_{len(self._slots)}"
        data = torch.from_numpy(np.array(value, dtype=np.float32))
        if is_trained:
            self.register_parameter(slot, torch.nn.Parameter(data))
        else:
            self.register_buffer(slot, data)
        self._slots[name] = slot

    def _add_node(
        self,
        node: onnx.NodeProto,
        view: NodeView,
        names: tuple[str, ...],
        constants: dict[str, StaticArray],
        known: set[str],
    ) -> None:
        """Append a node; one whose inputs are all constants is computed now, shapes stay symbolic."""
        given = [n for n in names if n]
        is_static = (
            bool(given)
            and (any(n in known for n in given) or view.op_type in _FROM_NUMBERS)
            and all(n in known or n in constants for n in given)
            and not (view.op_type in KEEPS_DATA and given[0] not in known)
        )
        if is_static:
            evaluator = ReferenceEvaluator(_positional_model(node, self._opsets))
            if all(n in constants for n in given):
                feeds = {f"i{i}": constants[n] for i, n in enumerate(names) if n}
                for name, value in zip(node.output, evaluator.run(None, feeds), strict=True):
                    constants[name] = self._static[name] = np.asarray(value)
                known.update(node.output)
                return
            self._evaluators[view.name] = evaluator
        elif view.op_type not in RULES:
            frozen = self._frozen[view.name] = FrozenNode(node, self._opsets)
            names = frozen.input_names
        if is_static or view.op_type in {"Shape", "Size"}:
            known.update(node.output)
        self._originals[view.name] = node
        self._nodes.append((view, names, tuple(node.output)))

    def _find_last_uses(self) -> list[list[str]]:
        """Return per node the tensors that nobody needs after it, so that memory is freed early."""
        last: dict[str, int] = {}
        for index, (_, inputs, _) in enumerate(self._nodes):
            last.update(dict.fromkeys(inputs, index))
        freed: list[list[str]] = [[] for _ in self._nodes]
        for name, index in last.items():
            if name and name not in self.output_names:
                freed[index].append(name)
        return freed


def build_module(graph: bytes) -> GraphModule:
    """Return a torch module that computes what the graph computes, in inference mode.

    Raises:
        UnsupportedError: An operator has no rule; names node and operator.
    """
    return GraphModule(onnx.load_model_from_string(graph)).eval()


def write_back(graph: bytes, module: GraphModule) -> bytes:
    """Return the graph with the module's parameters and BatchNorm statistics as its initializers.

    Types of the initializers stay as they were; nodes, inputs and outputs do not change, save that
    BatchNorms which shared their statistics get their own.
    """
    model = onnx.load_model_from_string(graph)
    constants = {t.name: t for t in model.graph.initializer}
    shared = _shared_statistics(list(model.graph.node))
    for node in model.graph.node:
        for i, new in enumerate(_own_statistics(node, shared)):
            if new != node.input[i]:
                copy = model.graph.initializer.add()
                copy.CopyFrom(constants[node.input[i]])
                copy.name = node.input[i] = new
    for initializer in model.graph.initializer:
        value = module.value_of(initializer.name)
        if value is None:
            continue
        kind = helper.tensor_dtype_to_np_dtype(initializer.data_type)
        array = value.detach().cpu().numpy().astype(kind)
        initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    return model.SerializeToString()


def _input_names(graph: onnx.GraphProto) -> list[str]:
    initializers = {t.name for t in graph.initializer}
    return [i.name for i in graph.input if i.name not in initializers]


def _without_constant_nodes(
    graph: onnx.GraphProto, constants: dict[str, StaticArray]
) -> list[onnx.NodeProto]:
    """Move the values of Constant nodes to `constants` and return the other nodes."""
    nodes = []
    for node in graph.node:
        if node.op_type != "Constant":
            nodes.append(node)
            continue
        value = _attribute(node.attribute[0])
        if isinstance(value, str | bytes):
            raise UnsupportedError(
                f"node '{node.name}' (Constant) holds text", field="model", remedy="remove the node"
            )
        kind = np.float32 if node.attribute[0].name.startswith("value_float") else None
        constants[node.output[0]] = np.asarray(value, dtype=kind)
    return nodes


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [text.decode() for text in value]
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value


def _view(node: onnx.NodeProto, opset: int, constants: Mapping[str, StaticArray]) -> NodeView:
    domain = "" if node.domain in {"", "ai.onnx"} else f"{node.domain}."
    view = NodeView(
        name=node.name or node.output[0],
        op_type=f"{domain}{node.op_type}",
        opset=opset,
        attributes={a.name: _attribute(a) for a in node.attribute},
        output_count=len([o for o in node.output if o]),
    )
    fixed = {i: constants[n] for i, n in enumerate(node.input) if n in constants}
    return replace(view, constants=fixed)


def _shared_statistics(nodes: list[onnx.NodeProto]) -> set[str]:
    """Return running statistics that several BatchNorms read: each must have its own to be trained."""
    seen: set[str] = set()
    shared: set[str] = set()
    for node in nodes:
        if node.op_type == "BatchNormalization":
            for name in node.input[3:5]:
                (shared if name in seen else seen).add(name)
    return shared


def _own_statistics(node: onnx.NodeProto, shared: set[str]) -> tuple[str, ...]:
    """Return the node's input names, shared statistics replaced by names of its own."""
    names = list(node.input)
    if node.op_type == "BatchNormalization":
        for position in (3, 4):
            if names[position] in shared:
                names[position] = f"{names[position]}/{node.name or node.output[0]}"
    return tuple(names)


def _positional_model(
    node: onnx.NodeProto, opsets: Sequence[onnx.OperatorSetIdProto]
) -> onnx.ModelProto:
    """Return a model of one node with inputs i0, i1, ... for the reference evaluator."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend(f"i{i}" if name else "" for i, name in enumerate(node.input))
    return single_node_model(copy, opsets, [name for name in copy.input if name])


def _as_tensor(value: Value) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
