"""Calls that stream requests, made over the blocking stack from tests that are coroutines.

In grpc.aio a write that fails because the server has ended the call overwrites the status that says
why with INTERNAL, "Internal error from Core" (https://github.com/grpc/grpc/issues/36066); which of the
two a test sees would be left to chance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message


async def send(
    address: str,
    method: MethodDescriptor,
    requests: Iterable[Message],
    *,
    metadata: Sequence[tuple[str, str]] = (),
    deadline: float = 30,
) -> Message:
    """Send the requests and return the answer, of a stream of answers the first one.

    Raises:
        grpc.RpcError: The call ended with another status than OK.
    """
    return await asyncio.to_thread(_send, address, method, requests, metadata, deadline)


def _send(
    address: str,
    method: MethodDescriptor,
    requests: Iterable[Message],
    metadata: Sequence[tuple[str, str]],
    deadline: float,
) -> Message:
    with grpc.insecure_channel(address) as channel:
        path = f"/{method.containing_service.full_name}/{method.name}"
        parse = message_factory.GetMessageClass(method.output_type).FromString
        options: dict[str, Any] = {"metadata": tuple(metadata), "timeout": deadline}
        if method.server_streaming:
            call = channel.stream_stream(path, _serialized, parse)
            return next(call(iter(requests), **options))
        return channel.stream_unary(path, _serialized, parse)(iter(requests), **options)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()
