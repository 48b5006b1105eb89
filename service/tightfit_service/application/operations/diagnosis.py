"""A look at the deployment itself: what the service stands on, whether it holds, and what to do where not."""

from __future__ import annotations

import asyncio
import enum
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from tightfit_service.application.ports import ArtifactStores, Clock
from tightfit_service.application.ports.diagnosis import DatabaseProbe
from tightfit_service.domain.addresses import is_loopback
from tightfit_service.domain.errors import TightfitError
from tightfit_service.domain.job import JobState

CHECK_SECONDS = 25.0
"""A check that takes longer has failed."""
SKEW_WARNING_SECONDS, SKEW_FAILED_SECONDS = 2.0, 30.0
"""Between this machine's clock and the database's; leases are compared across machines."""
DISK_WARNING_BYTES, DISK_FAILED_BYTES = 5 << 30, 512 << 20
"""Free below the data folder: a unit of work may write its inputs, outputs and caches there."""
EXPIRY_WARNING = timedelta(days=14)
WAIT_WARNING_SECONDS = 3_600.0


class Outcome(enum.StrEnum):
    """Whether something has to be done."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one look at one thing; the message is for people, the remedy says what to do."""

    subject: str
    outcome: Outcome
    message: str
    remedy: str = ""


Check = Callable[[], Awaitable[Finding]]
"""Looks at one thing. A TightfitError that it raises means that it failed."""


class Diagnosis:
    """Makes all checks at once; each has its time, so that one that hangs does not hide the others."""

    def __init__(
        self, checks: Mapping[str, Check], *, clock: Clock, seconds: float = CHECK_SECONDS
    ) -> None:
        """Keep the checks by what they look at."""
        self._checks = checks
        self._clock = clock
        self._seconds = seconds

    def now(self) -> datetime:
        """Return the clock of this server."""
        return self._clock.now()

    async def run(self) -> Sequence[Finding]:
        """Return what was found, in the order of the checks."""
        return await asyncio.gather(
            *(self._run(subject, check) for subject, check in self._checks.items())
        )

    async def _run(self, subject: str, check: Check) -> Finding:
        try:
            async with asyncio.timeout(self._seconds):
                return await check()
        except TightfitError as error:
            return Finding(
                subject=subject,
                outcome=Outcome.FAILED,
                message=error.message,
                remedy=error.remedy or "see the log of the server",
            )
        except TimeoutError:
            return Finding(
                subject=subject,
                outcome=Outcome.FAILED,
                message=f"no answer within {self._seconds:g} s",
                remedy="see whether what it stands on is overloaded, or cut off by the network",
            )


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How the service can be reached.

    Attributes:
        listen: `host:port` of the gRPC port.
        has_tls: Whether the port speaks TLS.
        asks_who_calls: Whether calls need credentials.
        certificates: Ends of the certificates in use, read when they are asked for.
    """

    listen: str
    has_tls: bool = False
    asks_who_calls: bool = False
    certificates: Mapping[str, Callable[[], datetime]] = field(default_factory=dict)


def deployment_checks(
    *,
    database: DatabaseProbe,
    artifacts: ArtifactStores,
    clock: Clock,
    data_dir: Path,
    exposure: Exposure,
    versions: Mapping[str, str],
    signing_key_id: Callable[[], str],
    workers: Callable[[], Awaitable[None]] | None,
) -> Mapping[str, Check]:
    """Return the checks of a server, by subject.

    Args:
        database: Of this server.
        artifacts: Of this server.
        clock: This machine's.
        data_dir: Where the server keeps its files.
        exposure: How it can be reached.
        versions: Of what computes results, by package.
        signing_key_id: Id of the key that signs results.
        workers: Raises unless units can be run now; None where this process runs none.
    """
    checks: dict[str, Check] = {
        "database": _in_thread(lambda: _database(database)),
        "clock": _in_thread(lambda: _clock(database, clock)),
        "queue": _in_thread(lambda: _queue(database)),
        "artifacts": _in_thread(lambda: _artifacts(artifacts)),
        "disk": _in_thread(lambda: _disk(data_dir)),
        "signing key": _in_thread(
            lambda: _ok("signing key", f"results are signed with key {signing_key_id()}")
        ),
        "access": _in_thread(lambda: _access(exposure)),
    }
    for name, end in exposure.certificates.items():
        checks[f"{name} certificate"] = _in_thread(partial(_certificate, name, end, clock))
    if workers is not None:
        checks["workers"] = _workers(workers)
    checks["versions"] = _in_thread(
        lambda: _ok(
            "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
        )
    )
    return checks


def certificate_finding(subject: str, end: datetime, now: datetime) -> Finding:
    """Return whether a certificate is valid for long enough."""
    left = end - now
    when = f"{end:%Y-%m-%d %H:%M} UTC"
    if left <= timedelta(0):
        return Finding(
            subject=subject,
            outcome=Outcome.FAILED,
            message=f"expired on {when}",
            remedy="renew it; the server reads a changed file without a restart",
        )
    if left < EXPIRY_WARNING:
        return Finding(
            subject=subject,
            outcome=Outcome.WARNING,
            message=f"expires on {when}, in {left.days} days",
            remedy="renew it; the server reads a changed file without a restart",
        )
    return _ok(subject, f"valid until {when}")


def skew_finding(subject: str, seconds: float, *, between: str) -> Finding:
    """Return whether two clocks agree well enough; `seconds` may be negative."""
    message = f"{between} differ by {abs(seconds):.1f} s"
    remedy = "let time synchronisation (chrony, systemd-timesyncd) run on both machines"
    if abs(seconds) > SKEW_FAILED_SECONDS:
        return Finding(subject=subject, outcome=Outcome.FAILED, message=message, remedy=remedy)
    if abs(seconds) > SKEW_WARNING_SECONDS:
        return Finding(subject=subject, outcome=Outcome.WARNING, message=message, remedy=remedy)
    return _ok(subject, message)


def _database(database: DatabaseProbe) -> Finding:
    kind, schema = database.describe(), database.schema()
    if schema.present != schema.expected:
        return Finding(
            subject="database",
            outcome=Outcome.FAILED,
            message=f"{kind} has schema {schema.present}; this version works on {schema.expected}",
            remedy="run `tightfit-service migrate`, or the version of tightfit that the schema is of",
        )
    return _ok("database", f"{kind}, schema {schema.present}")


def _clock(database: DatabaseProbe, clock: Clock) -> Finding:
    before = clock.now()
    there = database.queue().now
    after = clock.now()
    # a database that tells whole seconds is up to one behind, and was asked somewhere in between
    early, late = (there - after).total_seconds(), (there - before).total_seconds() + 1.0
    skew = early if early > 0 else min(late, 0.0)
    return skew_finding("clock", skew, between="this machine's clock and the database's")


def _certificate(name: str, end: Callable[[], datetime], clock: Clock) -> Finding:
    return certificate_finding(f"{name} certificate", end(), clock.now())


def _queue(database: DatabaseProbe) -> Finding:
    view = database.queue()
    counts = ", ".join(f"{view.counts.get(s, 0)} {s}" for s in (JobState.QUEUED, JobState.RUNNING))
    if view.oldest_create_time is None:
        return _ok("queue", counts)
    waits = (view.now - view.oldest_create_time).total_seconds()
    message = f"{counts}; the oldest has waited for {max(0.0, waits):.0f} s"
    if waits < WAIT_WARNING_SECONDS:
        return _ok("queue", message)
    return Finding(
        subject="queue",
        outcome=Outcome.WARNING,
        message=message,
        remedy="allow more jobs at a time, more workers or more replicas",
    )


def _artifacts(artifacts: ArtifactStores) -> Finding:
    artifacts.check()
    return _ok("artifacts", "a file was written, read and removed")


def _disk(data_dir: Path) -> Finding:
    free = shutil.disk_usage(data_dir).free
    message = f"{free / (1 << 30):.1f} GiB free below the data folder"
    if free >= DISK_WARNING_BYTES:
        return _ok("disk", message)
    return Finding(
        subject="disk",
        outcome=Outcome.WARNING if free >= DISK_FAILED_BYTES else Outcome.FAILED,
        message=message,
        remedy="enlarge the volume, or delete jobs and models that nobody needs",
    )


def _access(exposure: Exposure) -> Finding:
    host = exposure.listen.rpartition(":")[0].strip("[]")
    if is_loopback(host):
        return _ok("access", f"{exposure.listen} is reached from this machine only")
    missing = []
    if not exposure.asks_who_calls:
        missing.append("nobody is asked who he is")
    if not exposure.has_tls:
        missing.append("calls are in plain text")
    if not missing:
        return _ok("access", f"{exposure.listen} has TLS and asks for credentials")
    return Finding(
        subject="access",
        outcome=Outcome.WARNING,
        message=f"{exposure.listen} is open to the network: {' and '.join(missing)}",
        remedy="set up TLS and access control, or leave both to a mesh that brings them",
    )


def _workers(check_workers: Callable[[], Awaitable[None]]) -> Check:
    async def check() -> Finding:
        await check_workers()
        return _ok("workers", "units of work can be run")

    return check


def _in_thread(look: Callable[[], Finding]) -> Check:
    async def check() -> Finding:
        return await asyncio.to_thread(look)

    return check


def _ok(subject: str, message: str) -> Finding:
    return Finding(subject=subject, outcome=Outcome.OK, message=message)
