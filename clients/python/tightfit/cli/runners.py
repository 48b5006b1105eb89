"""`tightfit runners`: the devices that measure for a server."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text

from tightfit.cli import options, tables
from tightfit.cli.option_groups import with_groups
from tightfit.cli.service import Service
from tightfit.names import last_segment
from tightfit.quantities import format_duration
from tightfit.v1 import hardware_pb2, runner_pb2

app = typer.Typer(help="The devices that measure for a server.", no_args_is_help=True)
_STYLES = {"idle": "green", "busy": "cyan", "offline": "dim", "quarantined": "bold red"}


@app.command("list")
@with_groups
def list_runners(service: Service, json_: options.Json = False) -> None:
    """List the runners by name, those that have left too."""
    with service.connected() as client:
        found = [_content(runner) for runner in client.list_runners()]
    if json_:
        print(json.dumps(found, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("RUNNER", "STATE", "DEVICE", "RUNTIMES", "TARGETS", "MEASURED", "SEEN"):
        table.add_column(heading, no_wrap=True)
    for content in found:
        device = content["device"]
        table.add_row(
            content["name"],
            Text(content["state"], style=_STYLES.get(content["state"], "")),
            f"{device['core_count']} x {device['core']}",
            ", ".join(f"{r['name']} {r['version']}".strip() for r in device["runtimes"]),
            ", ".join(content["targets"]),
            str(content["measurement_count"]),
            _ago(content["last_seen_time"]),
        )
    tables.print_wide(table)


@app.command("show")
@with_groups
def show_runner(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the runner.")],
    service: Service,
    json_: options.Json = False,
) -> None:
    """Show what a runner is, what it does now, and why where that needs saying."""
    with service.connected() as client:
        content = _content(client.get_runner(name))
    if json_:
        print(json.dumps(content, indent=2))
    else:
        print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), end="")


def _content(runner: runner_pb2.Runner) -> dict[str, Any]:
    device = runner.device
    return {
        "name": last_segment(runner.name),
        "state": runner_pb2.Runner.State.Name(runner.state).removeprefix("STATE_").lower(),
        "state_reason": runner.state_reason,
        "agent_version": runner.agent_version,
        "last_seen_time": runner.last_seen_time.ToDatetime(tzinfo=timezone.utc).isoformat(
            timespec="seconds"
        ),
        "targets": list(runner.targets),
        "labels": dict(sorted(runner.labels.items())),
        "measurement_count": runner.measurement_count,
        "failure_count": runner.failure_count,
        "device": {
            "display_name": device.display_name,
            "core": device.core,
            "core_count": device.core_count,
            "clock_mhz": device.clock_mhz if device.HasField("clock_mhz") else None,
            "isa_features": list(device.isa_features),
            "ram_bytes": device.ram_bytes,
            "operating_system": device.operating_system,
            "runtimes": [
                {
                    "name": runtime.name,
                    "version": runtime.version,
                    "formats": [
                        hardware_pb2.ModelFormat.Name(value).removeprefix("MODEL_FORMAT_").lower()
                        for value in runtime.formats
                    ],
                }
                for runtime in device.runtimes
            ],
            "sensors": list(device.sensors),
        },
    }


def _ago(time: str) -> str:
    seconds = (datetime.now(timezone.utc) - datetime.fromisoformat(time)).total_seconds()
    return f"{format_duration(max(0.0, seconds))} ago"
