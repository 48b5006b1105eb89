"""`tightfit serve`: hands over to the service."""

from __future__ import annotations

import os

import typer

from tightfit.local_server import service_command, service_environment


def serve(context: typer.Context) -> None:
    """Run the service until it is stopped; options are those of `tightfit-service serve`."""
    command = [*service_command(), "serve", *context.args]
    # replaces this process, so that signals and the exit code are the service's own
    os.execve(command[0], command, service_environment(os.environ))  # noqa: S606  # no shell is wanted
