"""`tightfit targets`: the devices that the server knows."""

from __future__ import annotations

import json
from typing import Annotated

import typer
import yaml
from rich.table import Table

from tightfit.cli import options, tables
from tightfit.quantities import format_bytes
from tightfit.result_file import target_content
from tightfit.target_file import target_mapping

app = typer.Typer(help="The devices that the server knows.", no_args_is_help=True)


@app.command("list")
def list_targets(
    server: options.Server = None,
    local: options.Local = False,
    data_dir: options.DataDir = None,
    json_: options.Json = False,
) -> None:
    """List the devices by name."""
    with options.connected(server, local=local, data_dir=data_dir) as client:
        found = [target_content(target.spec) for target in client.list_targets()]
    if json_:
        print(json.dumps(found, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NAME", "CORE", "RAM", "FLASH", "RUNTIME"):
        table.add_column(heading, no_wrap=True)
    for spec in found:
        clock = f"{spec['clock_mhz']:g} MHz" if spec["clock_mhz"] else ""
        count = spec["core_count"] or 1
        table.add_row(
            spec["name"],
            f"{f'{count} x ' if count > 1 else ''}{spec['core']} {clock}".strip(),
            format_bytes(spec["ram_bytes"] or 0),
            format_bytes(spec["flash_bytes"] or 0),
            f"{spec['runtime']} {spec['runtime_version']}".strip(),
        )
    tables.print_wide(table)


@app.command("show")
def show_target(
    name: Annotated[str, typer.Argument(help="Name of the device.")],
    server: options.Server = None,
    local: options.Local = False,
    data_dir: options.DataDir = None,
    json_: options.Json = False,
) -> None:
    """Show a device as YAML, in the form that `--target FILE.yaml` takes."""
    with options.connected(server, local=local, data_dir=data_dir) as client:
        spec = client.get_target(name).spec
    if json_:
        print(json.dumps(target_content(spec), indent=2))
        return
    content = target_mapping(spec)
    assumed = content.pop("assumed_fields", [])
    print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), end="")
    if assumed:
        print(f"# assumed from the class of the core: {', '.join(assumed)}")
