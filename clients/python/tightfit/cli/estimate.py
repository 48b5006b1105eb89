"""`tightfit estimate`: what a model costs on a device as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tightfit.cli import options, tables
from tightfit.quantities import format_bytes, format_count, format_latency
from tightfit.result_file import cost_content, target_content
from tightfit.v1 import hardware_pb2
from tightfit.words import number_format_word


def estimate(
    model: Annotated[Path, typer.Argument(help="ONNX, TFLite or .pt2 file.", show_default=False)],
    target: options.Target,
    layers: Annotated[bool, typer.Option("--layers", help="Show the cost of each layer.")] = False,
    server: options.Server = None,
    local: options.Local = False,
    data_dir: options.DataDir = None,
    json_: options.Json = False,
) -> None:
    """Predict what a model costs on a device, as it is, in each number format."""
    wanted = options.target_of(target)
    with options.connected(server, local=local, data_dir=data_dir) as client:
        uploaded = client.upload_model(model)
        response = client.estimate(uploaded.name, wanted)
    content = _content(response, model)
    if json_:
        print(json.dumps(content, indent=2))
        return
    console = Console(highlight=False)
    console.print(tables.estimates(content))
    first = next(iter(content["estimates"].values()), None)
    if first is None:
        console.print("This target offers no number format that can be estimated.")
        return
    if layers:
        for name, cost in content["estimates"].items():
            console.print(_layers(name, cost["layers"]))
    for warning in first["warnings"]:
        console.print(f"note: {warning}", markup=False)
    share = f"{first['confidence'] * 100:.0f} % intervals" if first["confidence"] else "intervals"
    console.print(f"{share}, {first['provenance']}", style="dim", markup=False)


def _content(response: hardware_pb2.EstimateModelResponse, model: Path) -> dict[str, Any]:
    return {
        "model": {"file": model.name},
        "target": target_content(response.target),
        "estimates": {
            number_format_word(item.number_format): {
                **cost_content(item.cost),
                "peak_node": item.cost.peak_node,
                "provenance": item.cost.provenance,
                "confidence": item.cost.confidence,
                "warnings": list(item.cost.warnings),
                "layers": [
                    {
                        "node": layer.node,
                        "op_type": layer.op_type,
                        "macs": layer.macs,
                        "estimated_latency_ms": layer.estimated_latency_ms,
                        "estimated_energy_mj": layer.estimated_energy_mj,
                        "weight_bytes": layer.weight_bytes,
                    }
                    for layer in item.cost.layers
                ],
            }
            for item in response.estimates
        },
    }


def _layers(number_format: str, layers: list[dict[str, Any]]) -> Table:
    table = Table(title=number_format, title_justify="left", box=None, header_style="bold")
    table.add_column("layer")
    table.add_column("operator")
    for heading in ("MACs", "latency", "weights"):
        table.add_column(heading, justify="right")
    for layer in layers:
        table.add_row(
            layer["node"],
            layer["op_type"],
            format_count(layer["macs"]),
            format_latency(layer["estimated_latency_ms"]),
            format_bytes(layer["weight_bytes"]),
        )
    return table
