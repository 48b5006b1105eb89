"""The literal ONNX graph of a TFLite file: which operators are translated, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnx import ModelProto, helper, numpy_helper

from tightfit_service.adapters.formats import (
    tflite_rules_movement,
    tflite_rules_products,
    tflite_rules_values,
    tflite_rules_windows,
)
from tightfit_service.adapters.formats.tflite_reader import TfliteGraph, TfliteOperator
from tightfit_service.adapters.formats.tflite_rules_windows import Dilation, find_dilations
from tightfit_service.adapters.formats.tflite_translation import (
    TranslatedOperator,
    Translation,
    UntranslatableError,
    onnx_type,
)
from tightfit_service.graph.model_file import invalid, shown
from tightfit_service.graph.structure import Shape, tensor_shapes

_OPSET = 17
_IR = 8
_LISTED = 8

RULES: Mapping[str, Callable[[Translation, TfliteOperator], None]] = {
    **tflite_rules_movement.RULES,
    **tflite_rules_products.RULES,
    **tflite_rules_values.RULES,
    **tflite_rules_windows.RULES,
}
"""How each kind of operator is translated."""

COMPILED_BY_VELA = "ethos-u"
"""The custom operator that holds a network for Ethos-U, its weights included."""

_WEIGHTED = frozenset(tflite_rules_products.RULES) | {
    COMPILED_BY_VELA,
    "CONV_2D",
    "CONV_3D",
    "DEPTHWISE_CONV_2D",
    "TRANSPOSE_CONV",
    "BIDIRECTIONAL_SEQUENCE_LSTM",
    "LSTM",
    "RNN",
    "SVDF",
}
"""Operators that hold what was learned: behind one that cannot be translated, these are needed."""


@dataclass(frozen=True, kw_only=True)
class LiteralGraph:
    """A TFLite graph and the ONNX graph that computes its tensors one by one.

    Attributes:
        names: The ONNX name of each tensor that is translated.
        translated: The nodes of each operator, in order.
        operators: Indices of the operators of the file that the outputs need.
        outputs: Tensors that are the outputs: the file's, or those before what was left out.
        shapes: Shapes of all ONNX tensors at batch 1.
        left_out: What could not be translated at the end of the graph, for messages.
    """

    source: TfliteGraph
    model: ModelProto
    names: Mapping[int, str]
    translated: tuple[TranslatedOperator, ...]
    operators: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: Mapping[str, Shape]
    left_out: tuple[str, ...]


def literal_graph(graph: TfliteGraph) -> LiteralGraph:
    """Translate a graph.

    Operators without translation at its end (decoding of boxes, suppression of doubles) are left
    out; the graph then ends in what they read.

    Raises:
        InvalidModelError: Operators that ONNX lacks have learned layers behind them; lists them.
            Or tensors are not of the shapes that the file declares.
    """
    translation = Translation(graph)
    dilations = find_dilations(graph)
    lost: set[int] = set()
    failures: list[str] = []
    skipped: list[TfliteOperator] = []
    kept: list[TfliteOperator] = []
    for operator in _needed(graph):
        if not lost.isdisjoint(operator.inputs):
            skipped.append(operator)
            lost.update(operator.outputs)
            continue
        try:
            translation.translate(operator, _rule(operator, dilations))
        except UntranslatableError as error:
            failures.append(_described(graph, operator, str(error)))
            skipped.append(operator)
            lost.update(operator.outputs)
        else:
            kept.append(operator)
    outputs = _outputs(graph, translation, lost, skipped)
    if failures and (not outputs or any(item.kind in _WEIGHTED for item in skipped)):
        listed = "; ".join(failures[:_LISTED])
        more = f"; and {len(failures) - _LISTED} more" if len(failures) > _LISTED else ""
        raise invalid(
            f"operators that cannot be translated to ONNX: {listed}{more}",
            remedy="replace these operators in the model, or convert the part before them",
        )
    model = _model(graph, translation, outputs)
    return LiteralGraph(
        source=graph,
        model=model,
        names=translation.names,
        translated=tuple(translation.translated),
        operators=tuple(item.index for item in kept),
        outputs=outputs,
        shapes=_checked_shapes(graph, translation, model),
        left_out=tuple(failures),
    )


def _needed(graph: TfliteGraph) -> list[TfliteOperator]:
    """Return the operators that the outputs depend on, in order."""
    wanted = set(graph.outputs)
    alive = []
    for operator in reversed(graph.operators):
        if not wanted.isdisjoint(operator.outputs):
            alive.append(operator)
            wanted.update(operator.inputs)
    return alive[::-1]


def _rule(
    operator: TfliteOperator, dilations: Mapping[int, Dilation]
) -> Callable[[Translation, TfliteOperator], None]:
    """Return how an operator is translated; one that cannot be gets a rule that says so."""
    index = operator.index
    for dilation in dilations.values():
        if index == dilation.first:
            return _handed_through
        if index == dilation.last:
            return lambda t, op: _joined(t, op, dilation.first)
    if index in dilations:
        windows = {
            "CONV_2D": tflite_rules_windows.conv_2d,
            "DEPTHWISE_CONV_2D": tflite_rules_windows.depthwise_conv_2d,
        }[operator.kind]
        return lambda t, op: windows(t, op, dilations[index])
    if operator.is_custom or operator.kind not in RULES:
        return _refused
    return RULES[operator.kind]


def _handed_through(t: Translation, op: TfliteOperator) -> None:
    t.bind(op, t.node("Identity", [t.read(op)]))


def _joined(t: Translation, op: TfliteOperator, first: int) -> None:
    _handed_through(t, op)
    t.absorb(first)


def _refused(_: Translation, op: TfliteOperator) -> None:
    if op.is_custom and op.kind == COMPILED_BY_VELA:
        raise UntranslatableError(
            "it holds commands that Vela compiled for Ethos-U; upload the file that they were compiled from"
        )
    raise UntranslatableError("it is a custom operator" if op.is_custom else "")


def _described(graph: TfliteGraph, operator: TfliteOperator, reason: str) -> str:
    where = f"operator {operator.index}"
    if operator.outputs:
        where += f" ({shown(graph.tensors[operator.outputs[0]].name)})"
    return f"{shown(operator.kind)} at {where}" + (f": {reason}" if reason else "")


def _outputs(
    graph: TfliteGraph,
    translation: Translation,
    lost: set[int],
    skipped: list[TfliteOperator],
) -> tuple[int, ...]:
    """Return the outputs that are left, then the tensors that the operators left out read."""
    computed = {item for done in translation.translated for item in done.outputs}
    ends = [item for item in graph.outputs if item not in lost]
    for operator in skipped:
        ends.extend(item for item in operator.inputs if item in computed)
    return tuple(dict.fromkeys(ends))


def _model(graph: TfliteGraph, translation: Translation, outputs: tuple[int, ...]) -> ModelProto:
    names = translation.names
    for index in outputs:
        if index not in names:
            raise invalid(
                f"output {shown(graph.tensors[index].name)} is computed by nothing",
                remedy="the file is damaged: convert or upload it again",
            )
    nodes = [node for item in translation.translated for node in item.nodes]
    read = {name for node in nodes for name in node.input} | {names[i] for i in outputs}
    values = {
        index: helper.make_tensor_value_info(
            names[index],
            onnx_type(graph.tensors[index]),
            graph.tensors[index].shape,
        )
        for index in (*graph.inputs, *outputs)
    }
    return helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [values[index] for index in dict.fromkeys(graph.inputs)],
            [values[index] for index in outputs],
            [
                numpy_helper.from_array(value, name)
                for name, value in translation.constants.items()
                if name in read
            ],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
    )


def _checked_shapes(
    graph: TfliteGraph, translation: Translation, model: ModelProto
) -> Mapping[str, Shape]:
    """Return all shapes, and refuse a file whose declared shapes are not what it computes.

    TFLite's kernels trust some of them, so that they must be right before one runs.
    """
    inferred = tensor_shapes(model)
    shapes = dict(inferred)
    for item in translation.translated:
        for index in item.outputs:
            name, declared = translation.names[index], graph.tensors[index].shape
            if inferred.setdefault(name, declared) != declared:
                raise invalid(
                    f"tensor {shown(graph.tensors[index].name)} is declared as {declared}, but "
                    f"operator {item.operator.index} ({item.operator.kind}) computes "
                    f"{inferred[name]}",
                    remedy="the file is damaged, or its sizes are free: convert it with fixed sizes",
                )
            shapes[name] = declared
    missing = next(
        (name for node in model.graph.node for name in node.output if name not in shapes), None
    )
    if missing is not None:
        raise invalid(
            f"the size of tensor {shown(missing)} is not known before the model runs",
            remedy="convert the model with fixed sizes",
        )
    return shapes
