"""Networks described by a table of their layers (CSV), for estimates without the model file.

The columns are those of the layer tables of public model zoos: `model`, `layer`, `op` (TensorFlow Lite
operator), `in_h`, `in_w`, `in_c`, `out_h`, `out_w`, `out_c`, `kernel_h`, `kernel_w`, `stride`, `macs`, `weights`,
`biases`, `activation_in_bytes_int8`, `const_bytes`, `dtype`. Of what a row leaves out, `layer_cells` says what follows
from the rest; nothing is taken for zero.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.domain.layer_cells import Row, completed, count
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

KINDS: Mapping[str, tuple[OperatorKind, str]] = {
    "CONV_2D": (OperatorKind.CONV, "Conv"),
    "DEPTHWISE_CONV_2D": (OperatorKind.DEPTHWISE_CONV, "Conv"),
    "TRANSPOSE_CONV": (OperatorKind.TRANSPOSED_CONV, "ConvTranspose"),
    "FULLY_CONNECTED": (OperatorKind.DENSE, "Gemm"),
    "BATCH_MATMUL": (OperatorKind.MATMUL, "MatMul"),
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
    "TANH": (OperatorKind.ACTIVATION, "Tanh"),
    "HARD_SWISH": (OperatorKind.ACTIVATION, "HardSwish"),
    "LEAKY_RELU": (OperatorKind.ACTIVATION, "LeakyRelu"),
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
    "SPLIT": (OperatorKind.SLICE, "Split"),
}
"""Kind and ONNX name of TensorFlow Lite's operators; others cost as copies."""
REQUIRED = ("op", "in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "macs")
_WEIGHTED = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"}
)
_SHAPE_ARITHMETIC = frozenset({"SHAPE", "PACK", "TILE"})
_WEIGHTLESS = frozenset(KINDS) - _WEIGHTED | _SHAPE_ARITHMETIC
_TWO_INPUTS = frozenset({"ADD", "MUL", "SUB"})


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """A network read from its layer table."""

    profile: NetworkProfile
    const_bytes: int
    """Constant bytes of the int8 file: weights, biases and tables."""


def parse_layer_tables(text: str) -> dict[str, LayerTable]:
    """Return the networks of a layer table by name, in the order of the table.

    Raises:
        InvalidModelError: A column or a cell is missing, a cell is no such number, or there is no layer.
    """
    try:
        return _parse(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise InvalidModelError(
            f"the layer table is not CSV: {error}",
            field="layers",
            remedy="write plain cells, one line per layer, separated by commas",
        ) from error


def _parse(reader: csv.DictReader[str]) -> dict[str, LayerTable]:
    columns = [name.strip() for name in reader.fieldnames or () if name]
    for name in REQUIRED:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            raise InvalidModelError(
                f"the layer table has no column {name!r}",
                field=f"layers.{name}",
                remedy=f"rename {near[0]!r}" if near else "give the columns " + ", ".join(REQUIRED),
            )
    rows: dict[str, list[Row]] = defaultdict(list)
    for line, raw in enumerate(reader, start=2):
        row = Row({k.strip(): (v or "").strip() for k, v in raw.items() if isinstance(k, str)})
        rows[row["model"]].append(completed(row, line, weightless=_WEIGHTLESS))
    if not rows:
        raise InvalidModelError(
            "the layer table has no layer", field="layers", remedy="write one row per layer"
        )
    return {name: _table(layers) for name, layers in rows.items()}


def parse_one_network(text: str) -> NetworkProfile:
    """Return the network of a table that holds one.

    Raises:
        InvalidModelError: The table cannot be used, or holds several networks.
    """
    tables = parse_layer_tables(text)
    if len(tables) > 1:
        some = ", ".join(list(tables)[:4])
        raise InvalidModelError(
            f"the layer table holds {len(tables)} networks: {some}, ...",
            field="layers.model",
            remedy="send the rows of one (`tightfit estimate --network NAME`)",
        )
    return next(iter(tables.values())).profile


def _table(rows: Sequence[Row]) -> LayerTable:
    """Connect the layers of one network: tables name no tensors, so inputs are found by shape."""
    first = rows[0]
    tensors: dict[str, tuple[int, ...]] = {"input": _shape(first, "in")}
    readers: dict[str, int] = {"input": 0}
    producer_inputs: dict[str, tuple[str, ...]] = {"input": ()}
    operators: list[Operator] = []
    for i, row in enumerate(rows):
        if row["op"] in _SHAPE_ARITHMETIC or (
            row["op"] == "STRIDED_SLICE" and row["dtype"] == "INT32"
        ):
            continue
        output = f"{row['op'].lower()}_{row['layer'] or i}"
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


def _shape(row: Row, side: str) -> tuple[int, ...]:
    return (1, count(row[f"{side}_c"]), count(row[f"{side}_h"]), count(row[f"{side}_w"]))


def _inputs(
    row: Row,
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
    read_bytes = count(row["activation_in_bytes_int8"]) or 2 * math.prod(wanted)
    if row["op"] == "MUL" or read_bytes < 2 * math.prod(wanted):
        # The gate of a squeeze-and-excite block: one value per channel.
        gates = [n for n in recent if math.prod(tensors[n]) == wanted[1] and n != main]
        return (main, gates[0]) if gates else (main,)
    # A shortcut never starts inside the branch that it bypasses.
    skips = [n for n in same[1:] if n not in producer_inputs[main]]
    unread = [n for n in skips if readers[n] == 0]
    return (main, (unread or skips or same[1:] or [main])[0])


def _concat_inputs(
    row: Row, tensors: dict[str, tuple[int, ...]], readers: Mapping[str, int]
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


def _operator(row: Row, node: str, inputs: tuple[str, ...]) -> Operator:
    kind, op_type = KINDS.get(row["op"], (OperatorKind.OTHER, row["op"]))
    channels = count(row["in_c"])
    dense = kind is OperatorKind.DENSE
    flat = math.prod(_shape(row, "in"))
    stride = count(row["stride"])
    kernel = (count(row["kernel_h"]), count(row["kernel_w"]))
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
        kernel=() if dense else kernel,
        stride=() if dense else (stride, stride),
        groups=channels if kind is OperatorKind.DEPTHWISE_CONV else 1,
        weight_count=count(row["weights"]),
        bias_count=count(row["biases"]),
    )
