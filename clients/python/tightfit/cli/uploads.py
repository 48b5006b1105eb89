"""`tightfit models` and `tightfit datasets`: what was uploaded to a server, and how room is made there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timezone
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from tightfit.cli import options, tables
from tightfit.cli.option_groups import with_groups
from tightfit.cli.service import Service
from tightfit.client import Client
from tightfit.names import last_segment
from tightfit.quantities import format_bytes, format_count
from tightfit.result_file import facts_content
from tightfit.timestamps import to_text
from tightfit.v1 import dataset_pb2, model_pb2

Uploaded = model_pb2.Model | dataset_pb2.Dataset
Id = Annotated[
    str, typer.Argument(metavar="ID", help="Id, as `list` shows it.", show_default=False)
]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What models and datasets have each of their own."""

    noun: str
    listed: Callable[[Client], Iterator[Uploaded]]
    found: Callable[[Client, str], Uploaded]
    deleted: Callable[[Client, str], None]
    about: Callable[[Mapping[str, Any]], str]
    """Says in a few words what the server found inside."""


def _about_model(facts: Mapping[str, Any]) -> str:
    counted = (("parameter_count", "parameters"), ("macs", "MACs"))
    return ", ".join(f"{format_count(facts[key])} {what}" for key, what in counted if key in facts)


def _about_dataset(facts: Mapping[str, Any]) -> str:
    manifest = facts.get("manifest", {})
    return ", ".join(manifest[key] for key in ("task", "metric") if key in manifest)


def _app(kind: Kind) -> typer.Typer:
    """Return the commands for one kind of upload."""
    noun = kind.noun
    app = typer.Typer(help=f"The {noun}s that were uploaded.", no_args_is_help=True)

    @app.command("list", help=f"List the {noun}s of the project, newest first.")
    @with_groups
    def list_(service: Service, json_: options.Json = False) -> None:
        with service.connected() as client:
            found = [_content(item) for item in kind.listed(client)]
        found.sort(key=lambda content: content["create_time"], reverse=True)
        if json_:
            print(json.dumps(found, indent=2))
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in (noun.upper(), "FILE", "SIZE", "UPLOADED", "CONTENT"):
            table.add_column(heading, no_wrap=True)
        for content in found:
            table.add_row(
                last_segment(content["name"]),
                escape(content["display_name"]),
                format_bytes(content["size_bytes"]),
                content["create_time"][:19].replace("T", " "),
                escape(kind.about(content["facts"])),
            )
        tables.print_wide(table)

    @app.command("show", help=f"Show what is known of a {noun}.")
    @with_groups
    def show(id_: Id, service: Service, json_: options.Json = False) -> None:
        with service.connected() as client:
            content = _content(kind.found(client, id_))
        if json_:
            print(json.dumps(content, indent=2))
        else:
            print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), end="")

    @app.command(
        "delete",
        help=f"Delete a {noun} that no unfinished job uses; results of earlier jobs stay.",
    )
    @with_groups
    def delete(id_: Id, service: Service) -> None:
        with service.connected() as client:
            kind.deleted(client, id_)
        print(f"{noun} {last_segment(id_)} is deleted")

    return app


def _content(item: Uploaded) -> dict[str, Any]:
    return {
        "name": item.name,
        "display_name": item.display_name,
        "digest": item.digest,
        "size_bytes": item.size_bytes,
        "create_time": to_text(item.create_time.ToDatetime(tzinfo=timezone.utc)),
        "facts": facts_content(item.facts),
    }


models = _app(
    Kind(
        noun="model",
        listed=lambda client: client.list_models(page_size=500),
        found=lambda client, model: client.get_model(model),
        deleted=lambda client, model: client.delete_model(model),
        about=_about_model,
    )
)
datasets = _app(
    Kind(
        noun="dataset",
        listed=lambda client: client.list_datasets(page_size=500),
        found=lambda client, dataset: client.get_dataset(dataset),
        deleted=lambda client, dataset: client.delete_dataset(dataset),
        about=_about_dataset,
    )
)
