"""Reads per-layer tables of networks and tables of measured devices into the values that emulators price."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

MLPERF_TASK_MODELS: Mapping[str, str] = {
    "ic": "ic_resnet8",
    "vww": "vww_mobilenetv1_025",
    "kws": "kws_dscnn",
    "ad": "ad_autoencoder",
    "sww": "sww_streaming_wakeword",
}
"""Layer table of each MLPerf Tiny task."""

_KINDS: Mapping[str, tuple[OperatorKind, str]] = {
    "CONV_2D": (OperatorKind.CONV, "Conv"),
    "DEPTHWISE_CONV_2D": (OperatorKind.DEPTHWISE_CONV, "Conv"),
    "TRANSPOSE_CONV": (OperatorKind.TRANSPOSED_CONV, "ConvTranspose"),
    "FULLY_CONNECTED": (OperatorKind.DENSE, "Gemm"),
    "AVERAGE_POOL_2D": (OperatorKind.POOL, "AveragePool"),
    "MAX_POOL_2D": (OperatorKind.POOL, "MaxPool"),
    "MEAN": (OperatorKind.GLOBAL_POOL, "GlobalAveragePool"),
    "REDUCE_MAX": (OperatorKind.GLOBAL_POOL, "GlobalMaxPool"),
    "ADD": (OperatorKind.ELEMENTWISE, "Add"),
    "MUL": (OperatorKind.ELEMENTWISE, "Mul"),
    "SUB": (OperatorKind.ELEMENTWISE, "Sub"),
    "QUANTIZE": (OperatorKind.ELEMENTWISE, "QuantizeLinear"),
    "DEQUANTIZE": (OperatorKind.ELEMENTWISE, "DequantizeLinear"),
    "MINIMUM": (OperatorKind.ELEMENTWISE, "Min"),
    "MAXIMUM": (OperatorKind.ELEMENTWISE, "Max"),
    "LOGISTIC": (OperatorKind.ACTIVATION, "Sigmoid"),
    "RELU": (OperatorKind.ACTIVATION, "Relu"),
    "RELU6": (OperatorKind.ACTIVATION, "Clip"),
    "SOFTMAX": (OperatorKind.SOFTMAX, "Softmax"),
    "CONCATENATION": (OperatorKind.CONCAT, "Concat"),
    "PAD": (OperatorKind.PAD, "Pad"),
    "TRANSPOSE": (OperatorKind.TRANSPOSE, "Transpose"),
    "RESHAPE": (OperatorKind.RESHAPE, "Reshape"),
    "RESIZE_BILINEAR": (OperatorKind.RESIZE, "Resize"),
    "RESIZE_NEAREST_NEIGHBOR": (OperatorKind.RESIZE, "Resize"),
    "STRIDED_SLICE": (OperatorKind.SLICE, "Slice"),
    "SLICE": (OperatorKind.SLICE, "Slice"),
}
_SHAPE_ARITHMETIC = frozenset({"SHAPE", "PACK", "TILE"})
_TWO_INPUTS = frozenset({"ADD", "MUL", "SUB"})


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """A network read from its layer table."""

    profile: NetworkProfile
    const_bytes: int
    """Constant bytes of the int8 file: weights, biases and tables."""


def read_layer_tables(paths: Iterable[Path]) -> dict[str, LayerTable]:
    """Return the networks of layer tables by name; a name in two files is taken from the first."""
    tables: dict[str, LayerTable] = {}
    for path in paths:
        rows: dict[str, list[Row]] = defaultdict(list)
        for row in read_rows(path):
            rows[row["model"]].append(row)
        for name, layers in rows.items():
            tables.setdefault(name, _table(layers))
    return tables


def _table(rows: Sequence[Mapping[str, str]]) -> LayerTable:
    """Connect the layers of one network: tables name no tensors, so inputs are found by shape."""
    first = rows[0]
    tensors: dict[str, tuple[int, ...]] = {"input": _shape(first, "in")}
    readers: dict[str, int] = {"input": 0}
    producer_inputs: dict[str, tuple[str, ...]] = {"input": ()}
    operators: list[Operator] = []
    for row in rows:
        if row["op"] in _SHAPE_ARITHMETIC or (
            row["op"] == "STRIDED_SLICE" and row["dtype"] == "INT32"
        ):
            continue
        output = f"{row['op'].lower()}_{row['layer']}"
        inputs = _inputs(row, tensors, readers, producer_inputs)
        for name in inputs:
            readers[name] += 1
        tensors[output] = _shape(row, "out")
        readers[output] = 0
        producer_inputs[output] = inputs
        operators.append(_operator(row, output, inputs))
    outputs = tuple(name for name, count in readers.items() if count == 0 and name != "input")
    profile = NetworkProfile(
        operators=tuple(operators), tensors=tensors, inputs=("input",), outputs=outputs
    )
    return LayerTable(profile=profile, const_bytes=sum(count(row["const_bytes"]) for row in rows))


def _shape(row: Mapping[str, str], side: str) -> tuple[int, ...]:
    return (1, count(row[f"{side}_c"]), count(row[f"{side}_h"]), count(row[f"{side}_w"]))


def _inputs(
    row: Mapping[str, str],
    tensors: dict[str, tuple[int, ...]],
    readers: Mapping[str, int],
    producer_inputs: Mapping[str, tuple[str, ...]],
) -> tuple[str, ...]:
    recent = list(reversed(tensors))
    if row["op"] == "CONCATENATION":
        return _concat_inputs(row, tensors, readers)
    wanted = _shape(row, "in")
    same = [name for name in recent if tensors[name] == wanted] or [
        name for name in recent if math.prod(tensors[name]) == math.prod(wanted)
    ]
    main = same[0] if same else recent[0]
    if row["op"] not in _TWO_INPUTS:
        return (main,)
    if row["op"] == "MUL" or count(row["activation_in_bytes_int8"]) < 2 * math.prod(wanted):
        # The gate of a squeeze-and-excite block: one value per channel.
        gates = [n for n in recent if math.prod(tensors[n]) == wanted[1] and n != main]
        return (main, gates[0]) if gates else (main,)
    # A shortcut never starts inside the branch that it bypasses.
    skips = [n for n in same[1:] if n not in producer_inputs[main]]
    unread = [n for n in skips if readers[n] == 0]
    return (main, (unread or skips or [main])[0])


def _concat_inputs(
    row: Mapping[str, str], tensors: dict[str, tuple[int, ...]], readers: Mapping[str, int]
) -> tuple[str, ...]:
    wanted = math.prod(_shape(row, "out"))
    chosen: list[str] = []
    for name in reversed(tensors):
        size = math.prod(tensors[name])
        if readers[name] == 0 and size <= wanted:
            chosen.append(name)
            wanted -= size
        if wanted == 0:
            break
    return tuple(reversed(chosen)) or (next(reversed(tensors)),)


def _operator(row: Mapping[str, str], node: str, inputs: tuple[str, ...]) -> Operator:
    kind, op_type = _KINDS.get(row["op"], (OperatorKind.OTHER, row["op"]))
    channels = count(row["in_c"])
    dense = kind is OperatorKind.DENSE
    flat = math.prod(_shape(row, "in"))
    stride = count(row["stride"]) or 1
    return Operator(
        node=node,
        kind=kind,
        op_type=op_type,
        inputs=inputs,
        outputs=(node,),
        macs=count(row["macs"]),
        in_channels=flat if dense else channels,
        out_channels=count(row["out_c"]),
        in_size=() if dense else (count(row["in_h"]), count(row["in_w"])),
        out_size=() if dense else (count(row["out_h"]), count(row["out_w"])),
        kernel=() if dense else (count(row["kernel_h"]), count(row["kernel_w"])),
        stride=() if dense else (stride, stride),
        groups=channels if kind is OperatorKind.DEPTHWISE_CONV else 1,
        weight_count=count(row["weights"]),
        bias_count=count(row["biases"]),
    )


def with_head(table: LayerTable, params: float) -> LayerTable:
    """Return the network with its last dense layer as wide as its parameter count says.

    Tables of measurements name a network trained for other classes like the one it was taken from.
    """
    operators = list(table.profile.operators)
    heads = [i for i, op in enumerate(operators) if op.kind is OperatorKind.DENSE]
    if not heads:
        return table
    head = operators[heads[-1]]
    counted = sum(op.weight_count + op.bias_count for op in operators)
    more = round((params - counted) / (head.in_channels + 1))
    width = head.out_channels + more
    if (
        more == 0
        or width < 2
        or abs(counted + more * (head.in_channels + 1) - params) > 0.02 * params
    ):
        return table
    operators[heads[-1]] = replace(
        head,
        out_channels=width,
        macs=head.in_channels * width,
        weight_count=head.in_channels * width,
        bias_count=width,
    )
    return LayerTable(
        profile=replace(table.profile, operators=tuple(operators)),
        const_bytes=table.const_bytes + more * (head.in_channels + 4),
    )


def number(text: str | None) -> float | None:
    """Return the number in a table's cell, or None where it is empty or not a finite number."""
    try:
        value = float(text) if text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def count(text: str) -> int:
    """Return the whole number in a table's cell, 0 where there is none."""
    return round(number(text) or 0)


class Row(dict[str, str]):
    """A row of a table; columns that the table lacks are empty."""

    def __missing__(self, key: str) -> str:
        return ""


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row({k: (v or "").strip() for k, v in row.items() if isinstance(k, str)})
            for row in csv.DictReader(file)
        ]
