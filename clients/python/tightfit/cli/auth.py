"""`tightfit auth`: who may use a server."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from tightfit import timestamps
from tightfit.cli import options, tables
from tightfit.cli.service import Server, Service
from tightfit.errors import InvalidInputError
from tightfit.names import last_segment, project_name
from tightfit.quantities import parse_duration_s
from tightfit.v1 import access_options_pb2, access_pb2
from tightfit.words import check_word

app = typer.Typer(help="API keys: who may use a server, and for what.", no_args_is_help=True)
_ROLES = ("viewer", "submitter", "admin", "runner")
_ALL_PROJECTS = ("*", "-")
_STYLES = {"active": "green", "expired": "dim", "revoked": "red"}
_FOREVER = "never"


@app.command("create")
def create(
    grant: Annotated[
        list[str],
        typer.Option(
            metavar="PROJECT=ROLE",
            help="What it is good for; repeat for several. Roles: viewer, submitter, admin, runner. "
            "'*' stands for all projects.",
        ),
    ],
    name: Annotated[str, typer.Option(metavar="TEXT", help="What it is for, for people.")] = "",
    expires: Annotated[
        str, typer.Option(metavar="90d|12h|never", help="How long it is good.")
    ] = "90d",
    server: Server = None,
    json_: options.Json = False,
) -> None:
    """Make an API key and show its token, once."""
    wanted = access_pb2.ApiKey(display_name=name, grants=[grant_of(text) for text in grant])
    if expires != _FOREVER:
        seconds = parse_duration_s(expires, option="--expires")
        wanted.expire_time.FromDatetime(datetime.now(timezone.utc) + timedelta(seconds=seconds))
    with Service(server=server).connected() as client:
        made = client.create_api_key(wanted)
    if json_:
        print(json.dumps({**_content(made.api_key), "token": made.token}, indent=2))
        return
    print("This token is not shown again. Keep it like a password.", file=sys.stderr)
    print(made.token)


@app.command("list")
def list_keys(server: Server = None, json_: options.Json = False) -> None:
    """List the keys that you may revoke, ended ones too."""
    with Service(server=server).connected() as client:
        found = [_content(key) for key in client.list_api_keys()]
    if json_:
        print(json.dumps(found, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("KEY", "STATE", "GOOD FOR", "NAME", "BY", "EXPIRES", "LAST USED"):
        table.add_column(heading, no_wrap=True)
    for content in found:
        table.add_row(
            content["id"],
            Text(content["state"], style=_STYLES[content["state"]]),
            ", ".join(content["grants"]),
            Text(content["display_name"]),
            content["creator"],
            content["expire_time"] or _FOREVER,
            content["last_use_time"] or "never",
        )
    tables.print_wide(table)


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, not its token.")],
    server: Server = None,
) -> None:
    """End a key; it is refused everywhere within seconds."""
    with Service(server=server).connected() as client:
        ended = client.revoke_api_key(key)
    print(f"{last_segment(ended.name)} is revoked")


@app.command("whoami")
def whoami(server: Server = None, json_: options.Json = False) -> None:
    """Show who the server takes you for, and what you may do."""
    with Service(server=server).connected() as client:
        caller = client.get_caller()
    grants = _grants(caller.grants)
    if json_:
        content = {
            "principal": caller.principal,
            "grants": grants,
            "expire_time": _time(caller, "expire_time"),
        }
        print(json.dumps(content, indent=2))
        return
    print(caller.principal)
    for text in grants:
        print(f"  {text}")


def grant_of(text: str) -> access_pb2.RoleGrant:
    """Return the grant that `PROJECT=ROLE` spells.

    Raises:
        InvalidInputError: It spells none.
    """
    project, equals, role = text.rpartition("=")
    if not equals or not project:
        raise InvalidInputError(
            f"{text!r} is no grant",
            field="--grant",
            remedy="write PROJECT=ROLE, such as vision=submitter",
        )
    check_word(role, _ROLES, field="--grant")
    return access_pb2.RoleGrant(
        project=project_name("-" if project in _ALL_PROJECTS else project),
        role=access_options_pb2.Role.Value(f"ROLE_{role.upper()}"),
    )


def _content(key: access_pb2.ApiKey) -> dict[str, Any]:
    return {
        "id": last_segment(key.name),
        "state": _state(key),
        "display_name": key.display_name,
        "grants": _grants(key.grants),
        "creator": key.creator,
        **{
            name: _time(key, name)
            for name in ("create_time", "expire_time", "last_use_time", "revoke_time")
        },
    }


def _state(key: access_pb2.ApiKey) -> str:
    if key.HasField("revoke_time"):
        return "revoked"
    is_over = key.HasField("expire_time") and (
        key.expire_time.ToDatetime(tzinfo=timezone.utc) <= datetime.now(timezone.utc)
    )
    return "expired" if is_over else "active"


def _grants(grants: Any) -> list[str]:
    return [
        f"{'*' if last_segment(grant.project) == '-' else last_segment(grant.project)}="
        f"{access_options_pb2.Role.Name(grant.role).removeprefix('ROLE_').lower()}"
        for grant in grants
    ]


def _time(message: Any, name: str) -> str | None:
    if not message.HasField(name):
        return None
    return timestamps.to_text(getattr(message, name).ToDatetime(tzinfo=timezone.utc))
