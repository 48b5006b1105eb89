"""`tightfit audit`: who did what."""

from __future__ import annotations

import itertools
import json
from datetime import timezone
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from tightfit import timestamps
from tightfit.cli import options, tables
from tightfit.cli.service import Server, Service
from tightfit.v1 import access_pb2

_GOOD = ("OK", "STARTED")


def audit(
    all_projects: Annotated[
        bool, typer.Option("--all-projects", help="What was done in all projects, and in none.")
    ] = False,
    principal: Annotated[
        str,
        typer.Option(metavar="NAME", help="Only what this one did, such as key:4f1c9a0d2b7e6655."),
    ] = "",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Show at most so many.")] = 50,
    server: Server = None,
    json_: options.Json = False,
) -> None:
    """Show who did what in the project, newest first; for its admins."""
    with Service(server=server).connected() as client:
        events = client.list_audit_events(
            project="-" if all_projects else "", principal=principal, page_size=min(limit, 500)
        )
        found = [_content(event) for event in itertools.islice(events, limit)]
    if json_:
        print(json.dumps(found, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("TIME", "WHO", "CALLED", "RESOURCE", "OUTCOME", "FROM"):
        table.add_column(heading, no_wrap=True)
    for event in found:
        table.add_row(
            event["time"],
            Text(event["principal"]),
            event["method"].rpartition("/")[2],
            Text(event["resource"]),
            Text(event["code"], style="" if event["code"] in _GOOD else "red"),
            event["address"],
        )
    tables.print_wide(table)


def _content(event: access_pb2.AuditEvent) -> dict[str, Any]:
    return {
        "time": timestamps.to_text(event.event_time.ToDatetime(tzinfo=timezone.utc)),
        "principal": event.principal,
        "method": event.method,
        "resource": event.resource,
        "code": event.code,
        "request_id": event.request_id,
        "address": event.address,
    }
