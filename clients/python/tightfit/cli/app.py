"""The command's entry: its commands put together, and errors turned into messages and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tightfit.cli import (
    apply,
    audit,
    auth,
    check,
    compress,
    doctor,
    estimate,
    exit_codes,
    jobs,
    recipe,
    runners,
    serve,
    targets,
    unpack,
    uploads,
    verify,
)
from tightfit.cli.caller import CALLER, Caller
from tightfit.cli.option_groups import with_groups
from tightfit.cli.usage import USAGE_ERROR, explained
from tightfit.errors import TightfitError

app = typer.Typer(
    name="tightfit",
    help="Compress trained models to fit a device's budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_MODELS, _DEVICES, _SERVERS = "Models", "Devices", "Servers"

app.command("compress", rich_help_panel=_MODELS)(compress.compress)
app.command("check", rich_help_panel=_MODELS)(check.check)
app.command("estimate", rich_help_panel=_MODELS)(estimate.estimate)
app.command("apply", rich_help_panel=_MODELS)(apply.apply)
app.command("unpack", rich_help_panel=_MODELS)(unpack.unpack)
app.command("verify", rich_help_panel=_MODELS)(verify.verify)
app.add_typer(recipe.app, name="recipe", rich_help_panel=_MODELS)
app.add_typer(targets.app, name="targets", rich_help_panel=_DEVICES)
app.add_typer(runners.app, name="runners", rich_help_panel=_DEVICES)
app.command("doctor", rich_help_panel=_SERVERS)(doctor.doctor)
app.command("audit", rich_help_panel=_SERVERS)(audit.audit)
app.add_typer(jobs.app, name="jobs", rich_help_panel=_SERVERS)
app.add_typer(uploads.models, name="models", rich_help_panel=_SERVERS)
app.add_typer(uploads.datasets, name="datasets", rich_help_panel=_SERVERS)
app.add_typer(auth.app, name="auth", rich_help_panel=_SERVERS)
app.command(
    "serve",
    rich_help_panel=_SERVERS,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(serve.serve)


def _show_version(wanted: bool) -> None:
    if wanted:
        from tightfit import __version__

        print(f"tightfit {__version__}")
        raise typer.Exit


@app.callback()
@with_groups
def root(
    *,
    caller: Caller,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Compress trained models to fit a device's budget."""
    del version
    CALLER.set(caller)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: Arguments after the command's name; those of the process when None.
    """
    try:
        code = app(
            args=list(arguments) if arguments is not None else None,
            prog_name="tightfit",
            # errors of the parser are shown here, as all others are
            standalone_mode=False,
        )
    except TightfitError as error:
        show_error(error)
        return exit_codes.code_for_error(error)
    except USAGE_ERROR as error:
        if (refusal := explained(error)) is not None:
            show_error(refusal)
        return exit_codes.USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else exit_codes.OK
    return code if isinstance(code, int) else exit_codes.OK


def show_error(error: TightfitError) -> None:
    """Print what is wrong, where, and what to do about it, to stderr."""
    console = Console(stderr=True, highlight=False)
    where = f" [dim]({escape(error.field)})[/dim]" if error.field else ""
    console.print(f"[bold red]error:[/bold red] {escape(error.message)}{where}", soft_wrap=True)
    if error.remedy:
        console.print(f"  [bold]try:[/bold] {escape(error.remedy)}", soft_wrap=True)
    if error.request_id and exit_codes.code_for_error(error) != exit_codes.USAGE:
        console.print(f"  [dim]the server's log has more under {escape(error.request_id)}[/dim]")
