"""Reads per-layer tables of networks and tables of measured devices into the values that emulators price."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from tightfit_service.domain.layer_cells import Row
from tightfit_service.domain.layer_table import LayerTable, parse_layer_tables
from tightfit_service.domain.network import OperatorKind

MLPERF_TASK_MODELS: Mapping[str, str] = {
    "ic": "ic_resnet8",
    "vww": "vww_mobilenetv1_025",
    "kws": "kws_dscnn",
    "ad": "ad_autoencoder",
    "sww": "sww_streaming_wakeword",
}
"""Layer table of each MLPerf Tiny task."""


def read_layer_tables(paths: Iterable[Path]) -> dict[str, LayerTable]:
    """Return the networks of layer tables by name; a name in two files is taken from the first."""
    tables: dict[str, LayerTable] = {}
    for path in paths:
        for name, table in parse_layer_tables(path.read_text(encoding="utf-8")).items():
            tables.setdefault(name, table)
    return tables


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


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row({k: (v or "").strip() for k, v in row.items() if isinstance(k, str)})
            for row in csv.DictReader(file)
        ]
