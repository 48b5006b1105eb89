"""Reads the details of errors off gRPC calls."""

from __future__ import annotations

from typing import TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # ships no types
from grpc_status import rpc_status

M = TypeVar("M", bound=Message)


def details_of(error: grpc.RpcError, kind: type[M]) -> list[M]:
    """Return the details of one kind."""
    status = rpc_status.from_call(error)
    found = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


def info_of(error: grpc.RpcError) -> tuple[str, dict[str, str]]:
    """Return the reason and the metadata of the error's ErrorInfo, of which there is exactly one."""
    (info,) = details_of(error, error_details_pb2.ErrorInfo)
    assert info.domain == "tightfit.dev"
    return info.reason, dict(info.metadata)
