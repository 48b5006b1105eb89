"""`tightfit doctor`: whether a deployment is well, and what to do where it is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape

from tightfit.cli import exit_codes, options
from tightfit.cli.option_groups import with_groups
from tightfit.cli.service import Service
from tightfit.deployment import FAILED, OK, WARNING, Finding, examine

_STYLES = {OK: "green", WARNING: "yellow", FAILED: "bold red"}


@with_groups
def doctor(service: Service, json_: options.Json = False) -> None:
    """Check a deployment from both ends, and say what to do; exits with 1 when something failed."""
    with service.connected() as client:
        found = list(examine(client, client.credentials))
    if json_:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        _show(found)
    if any(finding.outcome == FAILED for finding in found):
        raise typer.Exit(exit_codes.NOT_SOUND)


def _show(found: Sequence[Finding]) -> None:
    console = Console(highlight=False)
    width = max(len(finding.subject) for finding in found)
    for finding in found:
        style = _STYLES[finding.outcome]
        console.print(
            f"[{style}]{finding.outcome:4}[/{style}]  [dim]{finding.side}[/dim]  "
            f"{escape(finding.subject):{width}}  {escape(finding.message)}",
            soft_wrap=True,
        )
        if finding.remedy:
            console.print(
                f"{'':{width + 16}}[bold]try:[/bold] {escape(finding.remedy)}", soft_wrap=True
            )
