"""Fetching model files: by digest, resumed after a break, never used unless whole."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, Callable

import grpc

from tightfit_runner.contract import ReadArtifactRequest
from tightfit_runner.failures import MeasurementError

MAX_BYTES = 2 << 30
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


def fetch(
    read: Callable[..., Any],
    name: str,
    destination: Path,
    *,
    metadata: Any = None,
    timeout_seconds: float = 120.0,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Write an artifact's bytes to a file and check them against the digest in its name.

    Raises:
        MeasurementError: Of kind FETCH_FAILED, with the reason.
    """
    digest = name.rpartition("/")[2]
    wait = FIRST_WAIT_SECONDS
    sha = hashlib.sha256()
    with destination.open("wb") as file:
        for attempt in range(ATTEMPTS):
            try:
                request = ReadArtifactRequest(name=name, offset=file.tell())
                for piece in read(request, metadata=metadata, timeout=timeout_seconds):
                    file.write(piece.data)
                    sha.update(piece.data)
                    if file.tell() > MAX_BYTES:
                        raise MeasurementError("FETCH_FAILED", f"more than {MAX_BYTES} bytes")
                break
            except grpc.RpcError as error:
                if error.code() not in _PASSING or attempt == ATTEMPTS - 1:
                    reason = f"{error.code().name}: {error.details()}"
                    raise MeasurementError("FETCH_FAILED", reason) from error
                sleep(wait)
                wait *= 2
    if sha.hexdigest() != digest:
        raise MeasurementError("FETCH_FAILED", "the bytes do not have the digest of their name")
