"""The commands of `tightfit-service` and their options; an option that is named like a setting sets it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from tightfit_service import __version__, audit_command, quota_command

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  # has no public name


def make_parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(
        prog="tightfit-service", description="Compresses trained models to fit a device's budget."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_serving(commands)
    _add_keys(commands)
    _add_upkeep(commands)
    quota_command.add_parser(commands)
    audit_command.add_parser(commands)
    doctor = commands.add_parser(
        "doctor", help="check what a server with these settings stands on, without starting one"
    )
    _add_state(doctor)
    pack = commands.add_parser("pack", help="pack a model file for download")
    pack.add_argument("file", type=Path, help="model file of any format")
    pack.add_argument("-o", "--output", type=Path, required=True, help="where the packed file goes")
    return parser


def _add_serving(commands: Commands) -> None:
    serve = commands.add_parser("serve", help="serve gRPC until stopped by SIGTERM or SIGINT")
    serve.add_argument(
        "--listen", help="address of the gRPC port (host:port, port 0 takes a free one)"
    )
    serve.add_argument(
        "--metrics-listen", help="address of the Prometheus port; empty turns it off"
    )
    _add_state(serve, database="SQLAlchemy URL; SQLite below the data folder by default")
    serve.add_argument("--worker-count", type=int, help="worker processes")
    serve.add_argument("--concurrent-jobs", type=int, help="jobs that run at a time")
    serve.add_argument("--log-format", choices=("json", "console"), help="form of the log")
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    serve.add_argument(
        "--ready-file", type=Path, help="file to write the addresses to, as JSON, once serving"
    )
    serve.add_argument(
        "--parent-pid",
        type=int,
        help="stop when this process is gone (for servers started by a tool)",
    )
    worker = commands.add_parser("worker", help="run units of work for a server (started by it)")
    worker.add_argument("--data-dir", type=Path, help="folder of the caches")


def _add_keys(commands: Commands) -> None:
    keys = commands.add_parser(
        "public-keys", help="print the public keys that signed results can be verified with"
    )
    keys.add_argument("--data-dir", type=Path, help="folder of all state")
    admin = commands.add_parser(
        "create-admin-key",
        help="make an API key that opens everything, in the database, and show it once",
    )
    _add_state(admin, database="SQLAlchemy URL; SQLite in the data folder by default")
    admin.add_argument("--name", default="first admin", help="what it is for")
    admin.add_argument(
        "--valid-days", type=float, default=0.0, help="when it ends; it does not by default"
    )


def _add_upkeep(commands: Commands) -> None:
    migrate = commands.add_parser("migrate", help="bring the database up to date, and end")
    _add_state(migrate)
    gc = commands.add_parser("gc", help="collect artifacts and uploads that nothing refers to")
    _add_state(gc)
    gc.add_argument("--dry-run", action="store_true", help="say what would go, and change nothing")


def _add_state(
    parser: argparse.ArgumentParser,
    *,
    database: str = "SQLAlchemy URL; SQLite below the data folder",
) -> None:
    """Add the options that say where a deployment keeps its state."""
    parser.add_argument("--data-dir", type=Path, help="folder of all state")
    parser.add_argument("--database-url", help=database)
