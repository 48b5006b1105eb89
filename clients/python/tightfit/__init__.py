"""Thin Python client and command line of tightfit."""

from tightfit.aio import AsyncClient
from tightfit.client import Client
from tightfit.connection import Patience
from tightfit.credentials import Credentials
from tightfit.errors import (
    AccessError,
    AlreadyExistsError,
    CancelledError,
    IntegrityError,
    InvalidInputError,
    LimitExceededError,
    NotFoundError,
    PreconditionError,
    ResourceExhaustedError,
    ServerError,
    TightfitError,
    UnavailableError,
    UnsupportedError,
)
from tightfit.report import render_report, write_report
from tightfit.result_file import build_result
from tightfit.specs import compression_spec
from tightfit.target_file import read_target_file
from tightfit.v1.budget_pb2 import Budget
from tightfit.v1.hardware_pb2 import HardwareSpec

__version__ = "0.1.0"

__all__ = [
    "AccessError",
    "AlreadyExistsError",
    "AsyncClient",
    "Budget",
    "CancelledError",
    "Client",
    "Credentials",
    "HardwareSpec",
    "IntegrityError",
    "InvalidInputError",
    "LimitExceededError",
    "NotFoundError",
    "Patience",
    "PreconditionError",
    "ResourceExhaustedError",
    "ServerError",
    "TightfitError",
    "UnavailableError",
    "UnsupportedError",
    "build_result",
    "compression_spec",
    "read_target_file",
    "render_report",
    "write_report",
]
