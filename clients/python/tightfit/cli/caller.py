"""Who calls, in which project: the options before the command, which hold for whatever it does."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from tightfit.connection import DEFAULT_PROJECT
from tightfit.credentials import Credentials

_PANEL = "Who calls: before the command"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A project, and what shows the server who works in it."""

    project: Annotated[
        str,
        typer.Option(
            envvar="TIGHTFIT_PROJECT",
            metavar="NAME",
            help="Project that models, datasets and jobs belong to.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULT_PROJECT
    tls: Annotated[
        bool,
        typer.Option(
            "--tls", envvar="TIGHTFIT_TLS", help="Connect by TLS.", rich_help_panel=_PANEL
        ),
    ] = False
    ca_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TIGHTFIT_CA_FILE",
            metavar="PEM",
            help="Authorities to trust instead of the system's; implies --tls.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    cert_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TIGHTFIT_CERT_FILE",
            metavar="PEM",
            help="Certificate to show to the server; implies --tls.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TIGHTFIT_KEY_FILE",
            metavar="PEM",
            help="Key of that certificate.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    token: Annotated[
        str,
        typer.Option(
            envvar="TIGHTFIT_TOKEN",
            metavar="TOKEN",
            help="API key or token of an identity provider. Other users of this machine can read it "
            "here: better TIGHTFIT_TOKEN or --token-file.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = field(default="", repr=False)
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TIGHTFIT_TOKEN_FILE",
            metavar="FILE",
            help="File that holds the token; read again for every call.",
            rich_help_panel=_PANEL,
        ),
    ] = None

    def credentials(self) -> Credentials:
        """Return what a connection shows of the caller."""
        return Credentials(
            tls=self.tls,
            ca_file=self.ca_file,
            cert_file=self.cert_file,
            key_file=self.key_file,
            token=self.token,
            token_file=self.token_file,
        )


CALLER: ContextVar[Caller] = ContextVar("caller")
"""Who calls; set before any command runs."""
