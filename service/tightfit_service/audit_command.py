"""The command `tightfit-service audit`: old events of the audit log go to an archive, for operators."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.settings import Settings

STANDARD_OUTPUT = "-"

LEAST_DAYS = {"export": 0.0, "expire": 1.0}
"""What somebody did just now is not dropped by the one who did it."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    audit = commands.add_parser("audit", help="hand old events of the audit log to an archive")
    actions = audit.add_subparsers(dest="action", required=True)
    for action, text in (
        ("export", "write old events as lines of JSON, and keep them"),
        ("expire", "write old events as lines of JSON, and drop what is written"),
    ):
        parser = actions.add_parser(action, help=text)
        parser.add_argument("--data-dir", type=Path, help="folder of all state")
        parser.add_argument("--database-url", help="SQLAlchemy URL of the database")
        parser.add_argument(
            "--older-than-days",
            type=float,
            required=True,
            metavar="N",
            help=f"events of before so many days; at least {LEAST_DAYS[action]:g}",
        )
        parser.add_argument(
            "-o",
            "--output",
            required=True,
            metavar="FILE",
            help=f"a file that does not exist yet, or {STANDARD_OUTPUT} for the standard output",
        )


def run(settings: Settings, arguments: argparse.Namespace) -> None:
    """Carry the command out and say on standard error what was done.

    Raises:
        TightfitError: The arguments are unfit, or the database cannot be used.
        OSError: The file cannot be written.
    """
    # only here: the parser needs none of it, and every other command pays for imports
    from tightfit_service.adapters.storage.sql_audit_retention import SqlAuditRetention
    from tightfit_service.application.access.audit_retention import AuditArchive
    from tightfit_service.bootstrap import SystemClock, open_records, operator_name

    days, action = arguments.older_than_days, arguments.action
    if not LEAST_DAYS[action] <= days <= 36_500:
        raise InvalidRequestError(
            f"{days:g} days are no age of events to {action}",
            field="--older-than-days",
            remedy=f"give a number from {LEAST_DAYS[action]:g} to 36500",
        )
    clock = SystemClock()
    before = clock.now() - timedelta(days=days)
    engine = open_records(settings)
    try:
        archive = AuditArchive(
            store=SqlAuditRetention(engine=engine), clock=clock, operator=operator_name()
        )
        with _opened(arguments.output) as write:
            hand_over = archive.expire if action == "expire" else archive.export
            count = hand_over(write, before=before)
    finally:
        engine.dispose()
    done = "written and dropped" if action == "expire" else "written"
    sys.stderr.write(f"{done}: {count} events of before {before:%Y-%m-%d %H:%M} UTC\n")


@contextmanager
def _opened(output: str) -> Iterator[Callable[[bytes], None]]:
    """Yield what writes to the output so that it outlives a power cut, where it is a file."""
    if output == STANDARD_OUTPUT:

        def pass_on(data: bytes) -> None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

        yield pass_on
        return
    # who called what is not for everybody on this machine
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:

        def write(data: bytes) -> None:
            file.write(data)
            file.flush()
            os.fsync(descriptor)

        yield write
