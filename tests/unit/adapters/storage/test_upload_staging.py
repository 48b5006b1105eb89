"""Unfinished uploads survive restarts, refuse what does not fit, and lose nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from tightfit_service.adapters.storage.upload_staging import FolderUploadStaging
from tightfit_service.application.ports import UploadTicket
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    IntegrityError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    ResourceExhaustedError,
)

DATA = bytes(range(256)) * 40


def ticket(data: bytes = DATA, **changes: Any) -> UploadTicket:
    values: dict[str, Any] = {
        "upload_id": "up",
        "project": "default",
        "kind": "model",
        "size_bytes": len(data),
        "digest": hashlib.sha256(data).hexdigest(),
        "display_name": "a model",
        **changes,
    }
    return UploadTicket(**values)


def test_bytes_arrive_in_parts_and_are_verified(tmp_path: Path) -> None:
    staging = FolderUploadStaging(root=tmp_path)
    assert staging.open(ticket()) == 0
    for start in range(0, len(DATA), 1000):
        staging.append("up", offset=start, data=DATA[start : start + 1000])
    assert staging.complete("up").read_bytes() == DATA
    staging.discard("up")
    with pytest.raises(NotFoundError):
        staging.find("up")
    assert not list(tmp_path.iterdir())


def test_an_upload_goes_on_after_a_restart(tmp_path: Path) -> None:
    before = FolderUploadStaging(root=tmp_path)
    before.open(ticket())
    before.append("up", offset=0, data=DATA[:3000])
    after = FolderUploadStaging(root=tmp_path)
    assert after.open(ticket()) == 3000
    assert after.find("up") == (ticket(), 3000)
    after.append("up", offset=3000, data=DATA[3000:])
    assert after.complete("up").read_bytes() == DATA


def test_a_wrong_offset_is_told_the_right_one(tmp_path: Path) -> None:
    staging = FolderUploadStaging(root=tmp_path)
    staging.open(ticket())
    staging.append("up", offset=0, data=DATA[:100])
    for offset in (0, 99, 101):
        with pytest.raises(PreconditionError, match="resume at 100"):
            staging.append("up", offset=offset, data=b"x")
    assert staging.find("up")[1] == 100


def test_more_bytes_than_announced_are_refused(tmp_path: Path) -> None:
    staging = FolderUploadStaging(root=tmp_path)
    staging.open(ticket())
    with pytest.raises(InvalidRequestError, match="announced"):
        staging.append("up", offset=0, data=DATA + b"x")


def test_other_bytes_than_announced_are_thrown_away(tmp_path: Path) -> None:
    staging = FolderUploadStaging(root=tmp_path)
    staging.open(ticket())
    staging.append("up", offset=0, data=DATA[::-1])
    with pytest.raises(IntegrityError):
        staging.complete("up")
    with pytest.raises(NotFoundError):
        staging.find("up")


def test_an_upload_that_is_not_whole_cannot_be_completed(tmp_path: Path) -> None:
    staging = FolderUploadStaging(root=tmp_path)
    staging.open(ticket())
    staging.append("up", offset=0, data=DATA[:10])
    with pytest.raises(PreconditionError, match="10 of"):
        staging.complete("up")


def test_an_id_is_not_reused_for_other_bytes(tmp_path: Path) -> None:
    staging = FolderUploadStaging(root=tmp_path)
    staging.open(ticket())
    with pytest.raises(AlreadyExistsError):
        staging.open(ticket(b"other"))


def test_there_must_be_room_for_what_is_announced(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhaustedError, match="free"):
        FolderUploadStaging(root=tmp_path).open(ticket(size_bytes=1 << 60))


def test_a_full_disk_keeps_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = FolderUploadStaging(root=tmp_path)
    staging.open(ticket())
    staging.append("up", offset=0, data=DATA[:5000])
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        real(descriptor, bytes(data)[:7], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ResourceExhaustedError, match="5000"):
        staging.append("up", offset=5000, data=DATA[5000:])
    monkeypatch.undo()
    assert FolderUploadStaging(root=tmp_path).find("up")[1] == 5000
    staging.append("up", offset=5000, data=DATA[5000:])
    assert staging.complete("up").read_bytes() == DATA
