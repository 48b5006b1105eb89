"""The command `python -m tightfit_service`: serve, be a worker, pack a file, show public keys."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from tightfit_service import audit_command, quota_command
from tightfit_service.command_line import make_parser
from tightfit_service.domain.errors import TightfitError
from tightfit_service.settings import Settings, load_settings

USAGE_ERROR = 2
UNAVAILABLE = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for usage, 5 when the server cannot start."""
    arguments = make_parser().parse_args(argv)
    names = {field.name for field in fields(Settings)}
    given = {key: value for key, value in vars(arguments).items() if key in names}
    try:
        settings = load_settings(given)
    except TightfitError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_ERROR
    from tightfit_service import bootstrap

    code = _without_serving(arguments, settings)
    if code is not None:
        return code
    if arguments.command == "worker":
        bootstrap.run_worker(settings)
        return 0
    try:
        if arguments.command == "migrate":
            bootstrap.migrate(settings)
        else:
            asyncio.run(
                bootstrap.serve(
                    settings, ready_file=arguments.ready_file, parent_pid=arguments.parent_pid
                )
            )
    except TightfitError as error:
        sys.stderr.write(f"{error}\n")
        return UNAVAILABLE
    return 0


def _without_serving(arguments: argparse.Namespace, settings: Settings) -> int | None:
    """Run a command that does its work at once; return its exit code, None for those that serve."""
    commands: dict[str, Callable[[], int]] = {
        "pack": lambda: _pack(arguments.file, arguments.output),
        "doctor": lambda: _doctor(settings),
        "public-keys": lambda: _public_keys(settings),
        "create-admin-key": lambda: _create_admin_key(
            settings, name=arguments.name, valid_days=arguments.valid_days
        ),
        "gc": lambda: _collect(settings, dry_run=arguments.dry_run),
        "quota": lambda: _operate(quota_command.run, settings, arguments),
        "audit": lambda: _operate(audit_command.run, settings, arguments),
    }
    command = commands.get(arguments.command)
    return None if command is None else command()


def _collect(settings: Settings, *, dry_run: bool) -> int:
    from tightfit_service import bootstrap

    try:
        report = bootstrap.collect(settings, dry_run=dry_run)
    except TightfitError as error:
        sys.stderr.write(f"{error}\n")
        return UNAVAILABLE
    would = "would be " if dry_run else ""
    sys.stdout.write(
        f"{would}set aside: {report.set_aside_count} artifacts, {report.set_aside_bytes} bytes\n"
        f"{would}purged: {report.purged_count} artifacts, {report.purged_bytes} bytes\n"
        f"{would}restored: {report.restored_count} artifacts\n"
        f"{would}given up: {report.expired_uploads} uploads\n"
        f"{would}forgotten: {report.expired_results} cached results\n"
        f"{would}deleted: {report.expired_jobs} jobs\n"
    )
    return 0


def _operate(
    run: Callable[[Settings, argparse.Namespace], None],
    settings: Settings,
    arguments: argparse.Namespace,
) -> int:
    try:
        run(settings, arguments)
    except (TightfitError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_ERROR
    return 0


def _create_admin_key(settings: Settings, *, name: str, valid_days: float) -> int:
    from tightfit_service import bootstrap

    try:
        token = bootstrap.create_admin_key(settings, display_name=name, valid_days=valid_days)
    except TightfitError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_ERROR
    sys.stderr.write("This key opens everything and is not shown again:\n")
    sys.stdout.write(f"{token}\n")
    return 0


def _doctor(settings: Settings) -> int:
    from tightfit_service import bootstrap

    bootstrap.configure_logging(settings)
    findings = asyncio.run(bootstrap.diagnose(settings))
    for finding in findings:
        sys.stdout.write(f"{finding.outcome:8} {finding.subject}: {finding.message}\n")
        if finding.remedy:
            sys.stdout.write(f"{'':8} try: {finding.remedy}\n")
    return int(any(finding.outcome == "failed" for finding in findings))


def _pack(source: Path, destination: Path) -> int:
    from tightfit_service import bootstrap

    try:
        original, packed = bootstrap.pack_file(source, destination)
    except (TightfitError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_ERROR
    sys.stdout.write(
        f"{destination}: {packed} bytes, {original / packed:.2f} times smaller; "
        f"restore it with `tightfit unpack`\n"
    )
    return 0


def _public_keys(settings: Settings) -> int:
    from tightfit_service import bootstrap

    keys = bootstrap.public_keys(settings)
    if not keys:
        sys.stderr.write(f"no server has signed anything in {settings.data_dir} yet\n")
        return USAGE_ERROR
    sys.stdout.write(keys.decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
