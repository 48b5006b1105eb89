"""What the checks of a deployment find, on parts that are well, worn or broken."""

from __future__ import annotations

import asyncio
import shutil
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from fakes.artifacts import InMemoryArtifactStores
from fakes.clock import FakeClock
from tightfit_service.adapters.storage.database import open_database, upgrade
from tightfit_service.adapters.storage.database_probe import SqlDatabaseProbe
from tightfit_service.application.operations.diagnosis import (
    Diagnosis,
    Exposure,
    Finding,
    Outcome,
    certificate_finding,
    deployment_checks,
    skew_finding,
)
from tightfit_service.domain.errors import UnavailableError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
OPEN = Exposure(listen="0.0.0.0:50051")


class _RealClock(FakeClock):
    def now(self) -> datetime:
        return datetime.now(UTC)


async def _findings(
    tmp_path: Path, *, exposure: Exposure = OPEN, spoil: str = "", clock: FakeClock | None = None
) -> dict[str, Finding]:
    engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    upgrade(engine)
    if spoil:
        with engine.begin() as connection:
            connection.execute(text(spoil))

    async def workers() -> None:
        raise UnavailableError("no worker starts", remedy="check the installation")

    used = clock or _RealClock()
    checks = deployment_checks(
        database=SqlDatabaseProbe(engine=engine),
        artifacts=InMemoryArtifactStores(),
        clock=used,
        data_dir=tmp_path,
        exposure=exposure,
        versions={"numpy": "2.4"},
        signing_key_id=lambda: "abcd",
        workers=workers,
    )
    found = await Diagnosis(checks, clock=used).run()
    engine.dispose()
    return {finding.subject: finding for finding in found}


async def test_a_deployment_that_is_well(tmp_path: Path) -> None:
    found = await _findings(tmp_path)

    for subject in ("database", "clock", "queue", "artifacts", "signing key", "versions"):
        assert found[subject].outcome is Outcome.OK, found[subject]
    assert found["database"].message.startswith("SQLite 3")
    assert found["queue"].message == "0 queued, 0 running"
    assert found["versions"].message == "numpy 2.4"
    assert found["workers"].outcome is Outcome.FAILED
    assert found["workers"].remedy == "check the installation"


async def test_a_schema_of_another_version_is_found(tmp_path: Path) -> None:
    found = await _findings(tmp_path, spoil="UPDATE alembic_version SET version_num = 'r0000'")

    assert found["database"].outcome is Outcome.FAILED
    assert "r0000" in found["database"].message
    assert "migrate" in found["database"].remedy


async def test_a_clock_that_is_off_is_found(tmp_path: Path) -> None:
    found = await _findings(tmp_path, clock=FakeClock(start=NOW))

    assert found["clock"].outcome is Outcome.FAILED
    assert "time synchronisation" in found["clock"].remedy


@pytest.mark.parametrize(
    ("exposure", "outcome", "words"),
    [
        (Exposure(listen="127.0.0.1:1"), Outcome.OK, "this machine only"),
        (Exposure(listen="[::1]:1"), Outcome.OK, "this machine only"),
        (OPEN, Outcome.WARNING, "nobody is asked who he is and calls are in plain text"),
        (Exposure(listen="[::]:1", has_tls=True), Outcome.WARNING, "nobody is asked"),
        (Exposure(listen="0.0.0.0:1", asks_who_calls=True), Outcome.WARNING, "plain text"),
        (
            Exposure(listen="0.0.0.0:1", has_tls=True, asks_who_calls=True),
            Outcome.OK,
            "asks for credentials",
        ),
    ],
)
async def test_a_port_that_is_open_to_all_is_found(
    tmp_path: Path, exposure: Exposure, outcome: Outcome, words: str
) -> None:
    finding = (await _findings(tmp_path, exposure=exposure))["access"]

    assert finding.outcome is outcome
    assert words in finding.message


async def test_certificates_are_looked_at(tmp_path: Path) -> None:
    end = datetime.now(UTC) + timedelta(days=3, hours=1)
    exposure = Exposure(listen="0.0.0.0:1", certificates={"server": lambda: end})

    finding = (await _findings(tmp_path, exposure=exposure))["server certificate"]

    assert finding.outcome is Outcome.WARNING
    assert "in 3 days" in finding.message


@pytest.mark.parametrize(
    ("free", "outcome"),
    [(10 << 30, Outcome.OK), (1 << 30, Outcome.WARNING), (1 << 20, Outcome.FAILED)],
)
async def test_a_disk_that_is_nearly_full_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, outcome: Outcome
) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024  # as shutil's
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, free))

    assert (await _findings(tmp_path))["disk"].outcome is outcome


async def test_a_check_that_hangs_does_not_hold_up_the_others() -> None:
    async def hangs() -> Finding:
        await asyncio.sleep(3600)
        raise AssertionError

    async def fine() -> Finding:
        return Finding(subject="b", outcome=Outcome.OK, message="fine")

    found = await Diagnosis({"a": hangs, "b": fine}, clock=FakeClock(), seconds=0.05).run()

    assert [(finding.subject, finding.outcome) for finding in found] == [
        ("a", Outcome.FAILED),
        ("b", Outcome.OK),
    ]


@pytest.mark.parametrize(
    ("left", "outcome"),
    [
        (timedelta(days=90), Outcome.OK),
        (timedelta(days=13), Outcome.WARNING),
        (timedelta(0), Outcome.FAILED),
        (timedelta(days=-1), Outcome.FAILED),
    ],
)
def test_certificates_by_their_ends(left: timedelta, outcome: Outcome) -> None:
    assert certificate_finding("c", NOW + left, NOW).outcome is outcome


@pytest.mark.parametrize(
    ("seconds", "outcome"),
    [(0.5, Outcome.OK), (-5, Outcome.WARNING), (60, Outcome.FAILED), (-60, Outcome.FAILED)],
)
def test_clocks_by_their_difference(seconds: float, outcome: Outcome) -> None:
    assert skew_finding("clock", seconds, between="two clocks").outcome is outcome
