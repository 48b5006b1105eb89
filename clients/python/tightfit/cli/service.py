"""Where the work is done: by a server, or by a service that runs here for one command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tightfit.cli.caller import CALLER
from tightfit.client import Client
from tightfit.connection import DEFAULT_SERVER
from tightfit.local_server import default_data_dir, local_server

_PANEL = "Where it runs"

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="TIGHTFIT_SERVER",
        metavar="HOST:PORT",
        help=f"Server to use.  [default: {DEFAULT_SERVER}]",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Service:
    """A server, or --local, which wins: the environment may name a server for all commands."""

    server: Server = None
    local: Annotated[
        bool,
        typer.Option(
            "--local", help="Run the service here, for this command only.", rich_help_panel=_PANEL
        ),
    ] = False
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            envvar="TIGHTFIT_DATA_DIR",
            metavar="DIR",
            help="State of the service with --local.  [default: ~/.local/share/tightfit]",
            rich_help_panel=_PANEL,
        ),
    ] = None

    @contextmanager
    def connected(self, *, show_log: bool = False) -> Iterator[Client]:
        """Yield a client of the server, or of a service that runs for as long, for who calls.

        Raises:
            InvalidInputError: The service is not installed beside the client.
            UnavailableError: The local service did not come up.
        """
        caller = CALLER.get()
        if not self.local:
            with Client(
                self.server or DEFAULT_SERVER,
                project=caller.project,
                credentials=caller.credentials(),
            ) as client:
                yield client
            return
        folder = self.data_dir or default_data_dir(os.environ)
        with (
            local_server(folder.resolve(), show_log=show_log) as address,
            Client(address, project=caller.project) as client,
        ):
            yield client
