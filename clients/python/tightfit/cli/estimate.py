"""`tightfit estimate`: what a model costs on a device as it is."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tightfit.cli import options, tables
from tightfit.cli.inputs import check_files
from tightfit.cli.option_groups import with_groups
from tightfit.cli.service import Service
from tightfit.errors import InvalidInputError
from tightfit.quantities import format_bytes, format_count, format_latency
from tightfit.result_file import cost_content, target_content
from tightfit.v1 import hardware_pb2, metrics_pb2
from tightfit.words import number_format_word

DEFAULT_BATTERY_V = 3.0
"""Of a lithium coin cell over most of its life."""
_USAGE = "Usage: figures derived at a frame rate"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is estimated: a model, or a network of a table of layers."""

    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="ONNX, TFLite or .pt2 file.", show_default=False),
    ] = None
    layers: Annotated[
        Path | None,
        typer.Option(
            "--layers",
            metavar="CSV",
            help="Table of layers instead of a model: op, in_h, in_w, in_c, out_h, out_w, out_c, macs, ... "
            "Empty cells are derived where they follow from the others, and refused where not.",
        ),
    ] = None
    network: Annotated[
        str, typer.Option(metavar="NAME", help="Which network of the table (its column `model`).")
    ] = ""

    def read(self) -> tuple[Path, str]:
        """Return the file that describes the network and, if it is a table of layers, its text.

        Raises:
            InvalidInputError: There is no file or there are two, it cannot be read, or the table
                has no network of this name.
        """
        model, layers, network = self.model, self.layers, self.network
        if (model is None) == (layers is None):
            raise InvalidInputError(
                "a model file or --layers is needed" if model is None else "there are two networks",
                field="--layers",
                remedy="give a model file or --layers FILE, not both",
            )
        if model is not None:
            if network:
                raise InvalidInputError(
                    "--network chooses from a table of layers",
                    field="--network",
                    remedy="leave it out",
                )
            check_files(model)
            return model, ""
        assert layers is not None
        try:
            text = layers.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"{layers} cannot be read: {getattr(error, 'strerror', None) or error}",
                field="--layers",
                remedy="give a CSV file",
            ) from error
        return layers, _only(text, network) if network else text


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How often the model runs, and from which battery."""

    fps: Annotated[
        float | None,
        typer.Option(
            metavar="N", help="Inferences per second: duty cycle and power.", rich_help_panel=_USAGE
        ),
    ] = None
    battery_mah: Annotated[
        float | None,
        typer.Option(
            metavar="MAH", help="Charge of the battery in mAh, with --fps.", rich_help_panel=_USAGE
        ),
    ] = None
    battery_v: Annotated[
        float | None,
        typer.Option(
            metavar="V",
            help="Mean voltage of the battery in V.  [default: 3.0]",
            rich_help_panel=_USAGE,
        ),
    ] = None

    def message(self) -> hardware_pb2.Usage | None:
        """Return the usage as the service takes it; None where none is given.

        Raises:
            InvalidInputError: A battery without a frame rate.
        """
        if self.fps is None:
            if self.battery_mah is not None or self.battery_v is not None:
                raise InvalidInputError(
                    "a battery lasts as long as the frame rate lets it",
                    field="--fps",
                    remedy="give the inferences per second, such as --fps 1",
                )
            return None
        is_usual = bool(self.battery_mah) and self.battery_v is None
        return hardware_pb2.Usage(
            frames_per_second=self.fps,
            battery_mah=self.battery_mah or 0.0,
            battery_v=DEFAULT_BATTERY_V if is_usual else self.battery_v or 0.0,
        )


@with_groups
def estimate(
    *,
    target: options.Target,
    source: Source,
    runtime: Annotated[
        str,
        typer.Option(metavar="NAME[@VERSION]", help="Runtime instead of the target's own."),
    ] = "",
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Show the cost of each layer.")
    ] = False,
    usage: Usage,
    service: Service,
    json_: options.Json = False,
) -> None:
    """Predict what a model costs on a device, as it is, in each number format.

    Example: `tightfit estimate model.onnx --target nucleo-h7a3zi-q --per-layer --local`

    Every figure comes with its 90 % interval, and with where it comes from.
    """
    file, table = source.read()
    wanted = options.target_of(target)
    used = usage.message()
    other = _runtime(runtime)
    with service.connected() as client:
        name = "" if table else client.upload_model(file).name
        response = client.estimate(name, wanted, layer_table=table, runtime=other, usage=used)
    content = _content(response, file)
    if json_:
        print(json.dumps(content, indent=2))
    else:
        _show(content, per_layer=per_layer)


def _show(content: Mapping[str, Any], *, per_layer: bool) -> None:
    console = Console(highlight=False)
    console.print(tables.estimates(content))
    first = next(iter(content["estimates"].values()), None)
    if first is None:
        console.print("This target offers no number format that can be estimated.")
        return
    if per_layer:
        for name, cost in content["estimates"].items():
            console.print(_layers(name, cost["layers"]))
    for name, cost in content["estimates"].items():
        if cost["duty_cycle"]:
            console.print(f"{name}: {_duty_text(cost['duty_cycle'])}", markup=False)
    for note in (first["duty_cycle"] or {}).get("notes", ()):
        console.print(f"note: {note}", markup=False)
    _print_notes(console, content["estimates"])


def _print_notes(console: Console, estimates: Mapping[str, Mapping[str, Any]]) -> None:
    """Print warnings and provenance once each, with the number formats that they hold for."""
    lines: dict[tuple[str, str], list[str]] = {}
    for name, cost in estimates.items():
        for warning in cost["warnings"]:
            lines.setdefault((f"note: {warning}", ""), []).append(name)
        share = f"{cost['confidence'] * 100:.0f} % intervals" if cost["confidence"] else "intervals"
        lines.setdefault((f"{share}, {cost['provenance']}", "dim"), []).append(name)
    for (text, style), names in sorted(lines.items(), key=lambda item: item[0][1]):
        prefix = "" if len(names) == len(estimates) else f"{', '.join(names)}: "
        console.print(f"{prefix}{text}", style=style or None, markup=False)


def _only(text: str, network: str) -> str:
    """Return the rows of one network, with the heading."""
    rows = list(csv.reader(io.StringIO(text)))
    heading = [name.strip() for name in rows[0]] if rows else []
    column = heading.index("model") if "model" in heading else None
    names = {row[column] for row in rows[1:] if len(row) > column} if column is not None else set()
    if network not in names:
        near = difflib.get_close_matches(network, sorted(names), n=3)
        raise InvalidInputError(
            f"the table has no network {network!r}",
            field="--network",
            remedy=f"did you mean {', '.join(near)}?" if near else "look at its column `model`",
        )
    kept = [row for row in rows[1:] if len(row) > (column or 0) and row[column or 0] == network]
    out = io.StringIO()
    csv.writer(out).writerows([rows[0], *kept])
    return out.getvalue()


def _runtime(text: str) -> hardware_pb2.Runtime | None:
    """Return the runtime of NAME[@VERSION], or None for the target's own."""
    name, at, version = text.partition("@")
    if not text:
        return None
    if not name.strip() or (at and not version.strip()):
        raise InvalidInputError(
            f"{text!r} is not NAME or NAME@VERSION",
            field="--runtime",
            remedy="write it like X-CUBE-AI@10.0",
        )
    return hardware_pb2.Runtime(name=name.strip(), version=version.strip())


def _duty(duty: hardware_pb2.DutyCycle) -> dict[str, Any]:
    def figure(estimate: metrics_pb2.Estimate) -> dict[str, float]:
        return {"value": estimate.value, "low": estimate.low, "high": estimate.high}

    return {
        "duty": figure(duty.duty),
        "mean_power_mw": figure(duty.mean_power_mw),
        "battery_hours": figure(duty.battery_hours) if duty.HasField("battery_hours") else None,
        "notes": list(duty.notes),
    }


def _duty_text(duty: Mapping[str, Any]) -> str:
    share, power = duty["duty"], duty["mean_power_mw"]
    text = (
        f"busy {share['value']:.3g} of the time ({share['low']:.3g} to {share['high']:.3g}), "
        f"mean power {power['value']:.3g} mW ({power['low']:.3g} to {power['high']:.3g})"
    )
    if hours := duty["battery_hours"]:
        text += (
            f", battery {hours['value']:.3g} h ({hours['low']:.3g} to {hours['high']:.3g}), "
            f"about {hours['value'] / 24:.3g} days"
        )
    return text


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
                "duty_cycle": _duty(item.duty_cycle) if item.HasField("duty_cycle") else None,
                "layers": [
                    {
                        "node": layer.node,
                        "op_type": layer.op_type,
                        "macs": layer.macs,
                        "estimated_latency_ms": layer.estimated_latency_ms,
                        "estimated_energy_mj": layer.estimated_energy_mj,
                        "weight_bytes": layer.weight_bytes,
                        "provenance": layer.provenance,
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
    is_told = any(layer["provenance"] for layer in layers)
    if is_told:
        table.add_column("source")
    for layer in layers:
        table.add_row(
            layer["node"],
            layer["op_type"],
            format_count(layer["macs"]),
            format_latency(layer["estimated_latency_ms"]),
            format_bytes(layer["weight_bytes"]),
            *([layer["provenance"]] if is_told else []),
        )
    return table
