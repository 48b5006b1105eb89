"""The command `tightfit-runner`: its options, and how it ends."""

from __future__ import annotations

import argparse
import configparser
import dataclasses
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import grpc

from tightfit_runner import __version__
from tightfit_runner.agent import Agent, Backend, Identity, RefusedError
from tightfit_runner.board import SerialBoard
from tightfit_runner.credentials import Credentials
from tightfit_runner.device import Device, this_device
from tightfit_runner.failures import MeasurementError, SettingsError
from tightfit_runner.measurement import LocalMachine
from tightfit_runner.meters import Meter
from tightfit_runner.settings import board_settings, meter_of, read_settings

OK, USAGE, REFUSED = 0, 2, 4
TOKEN_VARIABLE = "TIGHTFIT_TOKEN"  # noqa: S105  # the name of a variable
_CHANNEL_OPTIONS = (
    # through NATs, and to notice a dead server
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # the agent waits between its attempts itself
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent; return the exit status: 0 stopped, 2 usage, 4 refused by the server."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        device, backend = _backend(options.config)
        if options.describe:
            print(json.dumps(dataclasses.asdict(device), indent=2))
            return OK
        credentials = _credentials(options)
        credentials.check(options.server)
        agent = Agent(
            Identity(
                project=options.project,
                name=options.name,
                device=device,
                labels=_labels(options.labels),
                targets=tuple(options.target),
            ),
            backend,
            _channel_of(options.server, credentials),
            token=credentials.token,
        )
    except (SettingsError, MeasurementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    try:
        agent.run()
    except RefusedError as error:
        print(f"error: the server refuses this runner: {error}", file=sys.stderr)
        return REFUSED
    return OK


def _backend(config: Path | None) -> tuple[Device, Backend]:
    parser = read_settings(config) if config is not None else configparser.ConfigParser()
    board = board_settings(parser)
    meter = meter_of(parser, is_board=board is not None)
    if board is not None:
        return _with_meter(board.device, meter), SerialBoard(board, meter=meter)
    device = this_device()
    versions = {runtime.name: runtime.version for runtime in device.runtimes}
    return _with_meter(device, meter), LocalMachine(versions=versions, meter=meter)


def _with_meter(device: Device, meter: Meter | None) -> Device:
    if meter is None:
        return device
    return dataclasses.replace(device, sensors=(*device.sensors, f"energy:{meter.name}"))


def _credentials(options: Any) -> Credentials:
    def path(text: str) -> Any:
        return Path(text) if text else None

    return Credentials(
        tls=options.tls,
        ca=path(options.tls_ca),
        certificate=path(options.tls_cert),
        key=path(options.tls_key),
        token_text=options.token or os.environ.get(TOKEN_VARIABLE, ""),
        token_file=path(options.token_file),
    )


def _channel_of(server: str, credentials: Credentials) -> Callable[[], grpc.Channel]:
    def open_channel() -> grpc.Channel:
        # Read for every attempt: certificates are renewed while the agent runs.
        tls = credentials.channel_credentials()
        if tls is None:
            return grpc.insecure_channel(server, options=_CHANNEL_OPTIONS)
        return grpc.secure_channel(server, tls, options=_CHANNEL_OPTIONS)

    return open_channel


def _labels(texts: Sequence[str]) -> dict[str, str]:
    labels = {}
    for text in ",".join(texts).split(","):
        key, equals, value = text.partition("=")
        if not text:
            continue
        if not equals or not key:
            raise SettingsError(f"--labels {text!r}: write KEY=VALUE[,KEY=VALUE...]")
        labels[key.strip()] = value.strip()
    return labels


def _default_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-.") or "runner"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tightfit-runner",
        description="Measure models on this device, or on a board behind it, for a tightfit server.",
    )
    parser.add_argument(
        "--server",
        metavar="HOST:PORT",
        default=os.environ.get("TIGHTFIT_SERVER") or "localhost:50051",
    )
    parser.add_argument("--project", default="default", help="project that may use this device")
    parser.add_argument("--name", default=_default_name(), help="name of this runner (host name)")
    parser.add_argument("--token", help=f"for the server; better {TOKEN_VARIABLE} or --token-file")
    parser.add_argument("--token-file", metavar="FILE", help="file that holds the token")
    parser.add_argument("--tls", action="store_true", help="connect by TLS")
    parser.add_argument("--tls-ca", metavar="FILE", help="certificates to trust; implies --tls")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate to show; with --tls-key")
    parser.add_argument("--tls-key", metavar="FILE", help="key of that certificate")
    parser.add_argument(
        "--labels", metavar="KEY=VALUE", action="append", default=[], help="labels jobs can ask for"
    )
    parser.add_argument(
        "--target",
        metavar="NAME",
        action="append",
        default=[],
        help="target that this device is; without it the device is matched by what it is",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="INI file with [board] and [energy]"
    )
    parser.add_argument("--describe", action="store_true", help="show what this device is, and end")
    parser.add_argument("--version", action="version", version=f"tightfit-runner {__version__}")
    return parser
