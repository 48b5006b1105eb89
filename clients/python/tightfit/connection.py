"""How the client connects: channel options, which calls gRPC repeats by itself, and patience."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import grpc

from tightfit.credentials import Credentials
from tightfit.errors import LimitExceededError, TightfitError

DEFAULT_SERVER = "localhost:50051"
DEFAULT_PROJECT = "default"
_IDEMPOTENT = {
    "tightfit.v1.ModelService": ("StartModelUpload", "GetModelUpload", "GetModel", "ListModels"),
    "tightfit.v1.DatasetService": (
        "StartDatasetUpload",
        "GetDatasetUpload",
        "GetDataset",
        "ListDatasets",
    ),
    "tightfit.v1.HardwareService": (
        "GetHardwareTarget",
        "ListHardwareTargets",
        "EstimateModel",
    ),
    # CreateJob is safe to repeat because the client gives every call a request_id
    "tightfit.v1.CompressionService": (
        "CreateJob",
        "GetJob",
        "ListJobs",
        "CancelJob",
        "CheckJob",
        "ListTrials",
        "GetTrial",
    ),
    "tightfit.v1.ArtifactService": ("GetArtifact", "CreateDownloadUrl"),
    "tightfit.v1.DiagnosticsService": ("Diagnose",),
    "tightfit.v1.RunnerService": ("GetRunner", "ListRunners"),
    "tightfit.v1.AccessService": (
        "GetCaller",
        "ListApiKeys",
        "RevokeApiKey",
        "ListAuditEvents",
    ),
}
SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": service, "method": method}
                    for service, methods in _IDEMPOTENT.items()
                    for method in methods
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    # a server that stops resets calls that have arrived and were not begun:
                    # gRPC tells these as CANCELLED
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
    }
)
_CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", SERVICE_CONFIG),
    # a restarted server is found again within seconds, not after gRPC's two minutes
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # a watch may be silent for minutes: probes keep it open through NATs and notice a dead server
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # jobs with thousands of layers and trials exceed gRPC's 4 MiB
    ("grpc.max_receive_message_length", 64 << 20),
)


def open_channel(server: str, credentials: Credentials) -> grpc.Channel:
    """Return a channel for blocking calls.

    Raises:
        InvalidInputError: A file cannot be read, or a token would travel in plain text.
    """
    credentials.check(server)
    tls = credentials.channel_credentials()
    if tls is None:
        return grpc.insecure_channel(server, options=_CHANNEL_OPTIONS)
    return grpc.secure_channel(server, tls, options=_CHANNEL_OPTIONS)


def open_aio_channel(server: str, credentials: Credentials) -> grpc.aio.Channel:
    """Return a channel for asyncio calls. Raises as `open_channel`."""
    credentials.check(server)
    tls = credentials.channel_credentials()
    if tls is None:
        return grpc.aio.insecure_channel(server, options=_CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(server, tls, options=_CHANNEL_OPTIONS)


@dataclass(frozen=True)
class Patience:
    """How long broken streams and calls beyond a limit are repeated before the caller gets the error.

    Attributes:
        first_seconds: Wait before the first attempt; doubles with each one that brings nothing.
        most_seconds: Longest wait between two attempts, unless the server asks for a longer one.
        total_seconds: Sum of the waits without any progress after which the client gives up.
    """

    first_seconds: float = 0.2
    most_seconds: float = 5.0
    total_seconds: float = 120.0


class Backoff:
    """Counts the waits since the last progress. Not safe for several threads."""

    def __init__(self, patience: Patience) -> None:
        """Begin with no wait spent."""
        self._patience = patience
        self._delay = patience.first_seconds
        self._spent = 0.0

    def progressed(self) -> None:
        """Forget the waits: something arrived."""
        self._delay = self._patience.first_seconds
        self._spent = 0.0

    def delay_after(self, error: TightfitError) -> float:
        """Return the seconds to wait before the next attempt, spread so that clients do not move in step.

        They are no fewer than the server asks for. Who asks again and again all the same waits longer and
        longer: the server tells everybody the same delay, however many have to share what comes then.

        Raises:
            TightfitError: `error` itself, when patience is used up or shorter than what is asked for.
        """
        asked = error.retry_seconds if isinstance(error, LimitExceededError) else 0.0
        delay = max(self._delay, asked)
        if self._spent >= self._patience.total_seconds or asked > self._patience.total_seconds:
            raise error
        self._spent += delay
        self._delay = min(2 * self._delay, self._patience.most_seconds)
        spread = random.uniform(0.8, 1.2)  # noqa: S311  # jitter, not a secret
        return max(delay * spread, asked)
