"""What every `UploadStaging` does: unfinished uploads survive restarts, refuse what does not fit, lose nothing."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from typing import Any

import pytest

from fakes.s3_stores import Uploads
from tightfit_service.application.ports import UploadTicket
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    IntegrityError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)

DATA = bytes(range(256)) * 40
LARGE = os.urandom(1 << 20) * 21


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


def send(uploads: Uploads, data: bytes, *, start: int = 0, step: int = 1 << 20) -> None:
    for at in range(start, len(data), step):
        uploads.staging.append("default", "up", offset=at, data=data[at : at + step])


def stored(uploads: Uploads, data: bytes) -> bytes:
    return b"".join(uploads.artifacts.of("default").read(hashlib.sha256(data).hexdigest()))


@pytest.mark.parametrize(("data", "step"), [(DATA, 1000), (LARGE, 1 << 20), (LARGE, 3 << 20)])
def test_bytes_that_arrive_in_parts_become_an_artifact(
    uploads: Uploads, data: bytes, step: int
) -> None:
    assert uploads.staging.open(ticket(data)) == 0
    send(uploads, data, step=step)
    uploads.staging.complete("default", "up")
    assert stored(uploads, data) == data
    uploads.staging.discard("default", "up")
    with pytest.raises(NotFoundError):
        uploads.staging.find("default", "up")
    assert stored(uploads, data) == data


def test_completing_again_after_a_lost_answer_does_no_harm(uploads: Uploads) -> None:
    uploads.staging.open(ticket())
    send(uploads, DATA)
    for _ in range(2):
        uploads.staging.complete("default", "up")
    assert stored(uploads, DATA) == DATA


def test_an_upload_goes_on_elsewhere_where_the_first_committed(uploads: Uploads) -> None:
    uploads.staging.open(ticket())
    uploads.staging.append("default", "up", offset=0, data=DATA[:3000])
    assert uploads.staging.flush("default", "up") == 3000
    other = uploads.reopen()
    assert other.open(ticket()) == 3000
    assert other.find("default", "up") == (ticket(), 3000)
    other.append("default", "up", offset=3000, data=DATA[3000:])
    other.complete("default", "up")
    assert stored(uploads, DATA) == DATA


def test_what_died_with_a_replica_is_sent_again(uploads: Uploads) -> None:
    """Bytes that were taken, but not committed, are lost with the process: the size says so."""
    uploads.staging.open(ticket(LARGE))
    sent = (10 << 20) + 17
    for at in range(0, sent, 1 << 20):
        part = LARGE[at : min(at + (1 << 20), sent)]
        uploads.staging.append("default", "up", offset=at, data=part)
    other = uploads.reopen()
    _, committed = other.find("default", "up")
    assert committed == sent if uploads.finds_partial else 0 <= committed <= sent
    try:
        other.append("default", "up", offset=committed, data=LARGE[committed:])
    except PreconditionError:
        # the last piece of the first one has only just been committed; clients ask again as well
        _, committed = other.find("default", "up")
        other.append("default", "up", offset=committed, data=LARGE[committed:])
    other.complete("default", "up")
    assert stored(uploads, LARGE) == LARGE


def test_a_wrong_offset_is_told_the_right_one(uploads: Uploads) -> None:
    uploads.staging.open(ticket())
    uploads.staging.append("default", "up", offset=0, data=DATA[:100])
    uploads.staging.flush("default", "up")
    for offset in (0, 99, 101):
        with pytest.raises(PreconditionError, match="resume at 100"):
            uploads.staging.append("default", "up", offset=offset, data=b"x")
    assert uploads.staging.find("default", "up")[1] == 100


def test_more_bytes_than_announced_are_refused(uploads: Uploads) -> None:
    uploads.staging.open(ticket())
    with pytest.raises(InvalidRequestError, match="announced"):
        uploads.staging.append("default", "up", offset=0, data=DATA + b"x")


@pytest.mark.parametrize("reopens", [False, True])
def test_other_bytes_than_announced_are_thrown_away(uploads: Uploads, reopens: bool) -> None:
    uploads.staging.open(ticket())
    send(uploads, DATA[::-1])
    uploads.staging.flush("default", "up")
    staging = uploads.reopen() if reopens else uploads.staging
    with pytest.raises(IntegrityError):
        staging.complete("default", "up")
    with pytest.raises(NotFoundError):
        staging.find("default", "up")
    assert uploads.artifacts.of("default").size(ticket().digest) is None


def test_an_upload_that_is_not_whole_cannot_be_completed(uploads: Uploads) -> None:
    uploads.staging.open(ticket())
    uploads.staging.append("default", "up", offset=0, data=DATA[:10])
    with pytest.raises(PreconditionError, match="10 of"):
        uploads.staging.complete("default", "up")


def test_an_id_is_not_reused_for_other_bytes(uploads: Uploads) -> None:
    uploads.staging.open(ticket())
    with pytest.raises(AlreadyExistsError):
        uploads.staging.open(ticket(b"other"))


def test_projects_may_use_the_same_id(uploads: Uploads) -> None:
    """Clients derive the id from the digest: another project's upload must neither show nor disturb."""
    uploads.staging.open(ticket())
    uploads.staging.append("default", "up", offset=0, data=DATA[:10])
    with pytest.raises(NotFoundError):
        uploads.staging.find("other", "up")
    assert uploads.staging.open(ticket(b"other", project="other")) == 0
    uploads.staging.append("other", "up", offset=0, data=b"other")
    uploads.staging.complete("other", "up")
    uploads.staging.append("default", "up", offset=10, data=DATA[10:])
    uploads.staging.complete("default", "up")
    assert stored(uploads, DATA) == DATA


def test_an_unknown_upload_has_nothing_committed(uploads: Uploads) -> None:
    assert uploads.staging.flush("default", "nothing") == 0
    uploads.staging.discard("default", "nothing")


def test_uploads_that_nobody_goes_on_with_are_given_up(uploads: Uploads) -> None:
    uploads.staging.open(ticket())
    uploads.staging.append("default", "up", offset=0, data=DATA[:100])
    uploads.staging.flush("default", "up")
    assert uploads.staging.expire(older_than=timedelta(hours=1)) == 0
    assert uploads.staging.find("default", "up")[1] == 100
    # the clock of the store may be ahead of ours by some seconds
    ago = timedelta(seconds=-60)
    assert uploads.staging.expire(older_than=ago, dry_run=True) == 1
    assert uploads.staging.find("default", "up")[1] == 100
    assert uploads.staging.expire(older_than=ago) == 1
    with pytest.raises(NotFoundError):
        uploads.staging.find("default", "up")
    assert uploads.staging.expire(older_than=ago) == 0


def test_an_upload_that_was_finished_elsewhere_is_not_gone_on_with(uploads: Uploads) -> None:
    uploads.staging.open(ticket())
    uploads.staging.append("default", "up", offset=0, data=DATA[:100])
    uploads.staging.flush("default", "up")
    other = uploads.reopen()
    other.append("default", "up", offset=100, data=DATA[100:])
    other.complete("default", "up")
    other.discard("default", "up")
    with pytest.raises(NotFoundError):
        uploads.staging.find("default", "up")
    with pytest.raises(NotFoundError):
        uploads.staging.complete("default", "up")
    assert uploads.staging.open(ticket()) == 0
    send(uploads, DATA)
    uploads.staging.complete("default", "up")
