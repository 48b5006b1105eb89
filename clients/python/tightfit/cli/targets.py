"""`tightfit targets`: the devices that the server knows, and those that a user describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from tightfit import words
from tightfit.cli import exit_codes, options, tables
from tightfit.cli.option_groups import with_groups
from tightfit.cli.service import Service
from tightfit.errors import (
    AlreadyExistsError,
    InvalidInputError,
    PreconditionError,
    UnavailableError,
)
from tightfit.names import last_segment
from tightfit.quantities import format_bytes
from tightfit.result_file import target_content
from tightfit.target_file import placed, read_target_file, target_mapping
from tightfit.v1 import hardware_pb2, runner_pb2

app = typer.Typer(
    help="The devices that the server knows, and your own descriptions.", no_args_is_help=True
)

File = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="YAML file that describes a device.", show_default=False),
]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the device.", show_default=False)
]


@app.command("list")
@with_groups
def list_targets(
    *,
    core: Annotated[
        str, typer.Option("--core", metavar="TEXT", help="Only with this in the core's name.")
    ] = "",
    accelerator: Annotated[
        str,
        typer.Option(
            "--accelerator",
            metavar="TEXT",
            help="Only with this in the accelerator's name or kind.",
        ),
    ] = "",
    own: Annotated[bool, typer.Option("--own", help="Only those that you added.")] = False,
    service: Service,
    json_: options.Json = False,
) -> None:
    """List the devices by name."""
    with service.connected() as client:
        found = [
            _content(target)
            for target in client.list_targets(page_size=500)
            if core.lower() in target.spec.core
            and _has_accelerator(target.spec, accelerator)
            and (_is_own(target) or not own)
        ]
    if json_:
        print(json.dumps(found, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NAME", "CORE", "ACCELERATOR", "RAM", "FLASH", "RUNTIME", "EMULATOR"):
        table.add_column(heading, no_wrap=True)
    for spec in found:
        clock = f"{spec['clock_mhz']:g} MHz" if spec["clock_mhz"] else ""
        count = spec["core_count"] or 1
        table.add_row(
            spec["name"],
            f"{f'{count} x ' if count > 1 else ''}{spec['core']} {clock}".strip(),
            escape(spec["accelerator"]),
            format_bytes(spec["ram_bytes"] or 0),
            format_bytes(spec["flash_bytes"] or 0),
            escape(f"{spec['runtime']} {spec['runtime_version']}".strip()),
            spec["emulator"] or "none yet",
        )
    tables.print_wide(table)


@app.command("show")
@with_groups
def show_target(name: Name, service: Service, json_: options.Json = False) -> None:
    """Show a device as YAML, in the form that `--target FILE.yaml` takes."""
    with service.connected() as client:
        target = client.get_target(name)
    if json_:
        print(json.dumps(_content(target), indent=2))
        return
    content = target_mapping(target.spec)
    assumed = content.pop("assumed_fields", [])
    print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), end="")
    if assumed:
        print(f"# assumed from the classes of core and accelerator: {', '.join(assumed)}")
    print(f"# emulator: {target.emulator or 'none covers it yet'}")


@app.command("validate")
@with_groups
def validate_target(file: File, service: Service, json_: options.Json = False) -> None:
    """Check the description of a device, and say what it leaves to assumptions.

    Exit code 0: jobs can use it. 2: they cannot; the line, the field and the remedy are named.
    """
    try:
        target = _create(file, service, validate_only=True)
    except (InvalidInputError, AlreadyExistsError) as error:
        if not json_:
            raise
        problem = {"message": error.message, "field": error.field, "remedy": error.remedy}
        print(json.dumps({"valid": False, "error": problem, "target": None}, indent=2))
        raise typer.Exit(exit_codes.USAGE) from error
    if json_:
        content = {"valid": True, "error": None, "target": _content(target)}
        print(json.dumps(content, indent=2))
        return
    Console(highlight=False).print(f"[bold green]{escape(file.name)} is valid.[/bold green]")
    _say_what_is_assumed(target)


@app.command("add")
@with_groups
def add_target(file: File, service: Service, json_: options.Json = False) -> None:
    """Store the description of a device on the server, so that jobs can name it."""
    target = _create(file, service, validate_only=False)
    if json_:
        print(json.dumps(_content(target), indent=2))
        return
    print(f"added; use it as --target {last_segment(target.name)}")
    _say_what_is_assumed(target)


@app.command("delete")
@with_groups
def delete_target(name: Name, service: Service) -> None:
    """Delete a device that you added; jobs that were made for it keep it."""
    with service.connected() as client:
        client.delete_target(name)
    print(f"deleted {name}")


@app.command("calibrate")
@with_groups
def calibrate_target(
    *,
    name: Name,
    runner: Annotated[
        str,
        typer.Option(
            "--runner",
            metavar="NAME",
            help="Runner on the device that measures.",
            show_default=False,
        ),
    ],
    networks: Annotated[
        int,
        typer.Option(
            "--networks", metavar="N", min=32, max=1024, help="Networks per number format."
        ),
    ] = 400,
    keep_measurements: Annotated[
        bool,
        typer.Option(
            "--keep-measurements",
            help="Measure only files that the device's last calibration did not, and keep its "
            "measurements.",
        ),
    ] = False,
    service: Service,
    json_: options.Json = False,
) -> None:
    """Correct the estimates for a device by what a runner measures on it.

    A designed set of small networks is written, measured and fitted; from then on estimates and jobs
    of your project use the corrected emulator. Takes a second or two per network and number format.
    A call that breaks off goes on where it stopped when it is repeated. To measure more networks, or
    those that a newer version of tightfit writes otherwise, add `--keep-measurements`: with the same
    runner and the same version of its runtime, nothing is measured twice.
    """
    report = None
    with service.connected() as client:
        _check_runner(client.get_runner(runner))
        with Progress(console=Console(stderr=True), disable=json_) as progress:
            task = progress.add_task("calibrating", total=1.0)
            for step in client.calibrate_target(
                name, runner, network_count=networks, keep_measurements=keep_measurements
            ):
                progress.update(task, completed=step.fraction, description=escape(step.message))
                if step.HasField("report"):
                    report = step.report
    if report is None:
        raise UnavailableError(
            "the calibration ended without a result",
            remedy="repeat it; it goes on where it stopped",
        )
    if json_:
        print(json.dumps(MessageToDict(report, preserving_proto_field_name=True), indent=2))
        return
    _show_report(name, report)


def _check_runner(runner: runner_pb2.Runner) -> None:
    """Refuse a runner that cannot measure now: the networks would be written for nothing.

    Raises:
        PreconditionError: It is offline, or not believed at present.
    """
    states = runner_pb2.Runner.State
    if runner.state in (states.STATE_OFFLINE, states.STATE_QUARANTINED):
        name = last_segment(runner.name)
        word = states.Name(runner.state).removeprefix("STATE_").lower()
        raise PreconditionError(
            f"the runner {name} is {word}",
            field="--runner",
            remedy=f"`tightfit runners show {name}` says why",
        )


def _show_report(name: str, report: hardware_pb2.CalibrationReport) -> None:
    print(f"{name} is calibrated by {last_segment(report.runner)} with {report.runtime}.")
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ("FORMAT", "NETWORKS", "WITHIN 10 %", "MEDIAN ERROR", "P90", "BEFORE", "IN INTERVAL")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for item in report.quality:
        shares = (
            item.within_10_percent_ratio,
            item.median_error_ratio,
            item.p90_error_ratio,
            item.median_error_before_ratio,
            item.coverage_ratio,
        )
        table.add_row(
            words.number_format_word(item.number_format),
            str(item.network_count),
            *(f"{share:.1%}" for share in shares),
        )
    tables.print_wide(table)
    print("Each network was predicted from the others alone.")
    if report.skipped:
        print(f"{len(report.skipped)} networks have no measurement, the first: {report.skipped[0]}")


def _create(file: Path, service: Service, *, validate_only: bool) -> hardware_pb2.HardwareTarget:
    """Read a description and have the service check it.

    Raises:
        InvalidInputError: It cannot be used; names the line, the field and the remedy.
        AlreadyExistsError: Its name stands for another device.
    """
    spec = read_target_file(file)
    with service.connected() as client:
        try:
            return client.create_target(spec, validate_only=validate_only)
        except (InvalidInputError, AlreadyExistsError) as error:
            raise placed(error, file) from error


def _content(target: hardware_pb2.HardwareTarget) -> dict[str, Any]:
    return {
        **target_content(target.spec),
        "accelerator_rules": target_mapping(target.spec).get("accelerator"),
        "emulator": target.emulator,
        "own": _is_own(target),
    }


def _is_own(target: hardware_pb2.HardwareTarget) -> bool:
    return target.name.startswith("projects/")


def _has_accelerator(spec: hardware_pb2.HardwareSpec, text: str) -> bool:
    return text.lower() in f"{spec.accelerator.kind} {spec.accelerator.name}".lower()


def _say_what_is_assumed(target: hardware_pb2.HardwareTarget) -> None:
    assumed = ", ".join(target.spec.assumed_fields)
    if assumed:
        print(f"assumed, which widens the intervals of estimates: {assumed}")
    if not target.emulator:
        print("no emulator covers it yet: costs on it cannot be estimated")
