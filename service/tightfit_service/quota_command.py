"""The command `tightfit-service quota`: what projects may use, for operators."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path

from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.quota import Quota, QuotaOverrides, Usage
from tightfit_service.settings import Settings

DEFAULT = "default"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    quota = commands.add_parser("quota", help="show or set what a project may use")
    actions = quota.add_subparsers(dest="action", required=True)
    for action, text in (("show", "print quota and use"), ("set", "change the quota")):
        parser = actions.add_parser(action, help=text)
        parser.add_argument("project", help="the segment after `projects/`")
        parser.add_argument("--data-dir", type=Path, help="folder of all state")
        parser.add_argument("--database-url", help="SQLAlchemy URL of the database")
        if action == "set":
            for field in fields(QuotaOverrides):
                parser.add_argument(
                    f"--{field.name.replace('_', '-')}",
                    metavar="N",
                    help="a number, 0 for no limit, `default` for that of the deployment",
                )


def run(settings: Settings, arguments: argparse.Namespace) -> None:
    """Carry the command out and print what holds now.

    Raises:
        TightfitError: A number cannot be read, or the database cannot be used.
    """
    # only here: the parser needs none of it, and every other command pays for imports
    from tightfit_service.adapters.storage.sql_access import SqlAuditStore
    from tightfit_service.adapters.storage.sql_quotas import SqlQuotaStore
    from tightfit_service.application.access.audit import operator_event
    from tightfit_service.bootstrap import (
        SystemClock,
        default_quota,
        open_records,
        operator_name,
    )

    given = {f.name: getattr(arguments, f.name, None) for f in fields(QuotaOverrides)}
    changes = {name: _limit(name, text) for name, text in given.items() if text is not None}
    engine = open_records(settings)
    try:
        store = SqlQuotaStore(engine=engine)
        overrides = store.get_quota(arguments.project)
        if changes:
            overrides = replace(overrides, **changes)
            store.set_quota(arguments.project, overrides)
            told = operator_event(
                now=SystemClock().now(),
                operator=operator_name(),
                command="quota set",
                project=arguments.project,
                resource=f"projects/{arguments.project}",
            )
            SqlAuditStore(engine=engine).append_events([told])
        usage = store.get_usage(arguments.project)
    finally:
        engine.dispose()
    sys.stdout.write(_table(default_quota(settings), overrides, usage))


def _limit(name: str, text: str) -> int | None:
    if text == DEFAULT:
        return None
    if not text.isdecimal():
        raise InvalidRequestError(
            f"{text!r} is no limit",
            field=f"--{name.replace('_', '-')}",
            remedy="give a whole number, 0 for no limit, or `default`",
        )
    return int(text)


def _table(default: Quota, overrides: QuotaOverrides, usage: Usage) -> str:
    quota = default.with_overrides(overrides)
    lines = [f"{'':<14}{'limit':>20}{'in use':>20}"]
    for field in fields(quota):
        limit = getattr(quota, field.name)
        text = str(limit) if limit else "none"
        if getattr(overrides, field.name) is None:
            text += " (default)"
        used = str(getattr(usage, field.name, "per job"))
        lines.append(f"{field.name.replace('_', ' '):<14}{text:>20}{used:>20}")
    return "\n".join(lines) + "\n"
