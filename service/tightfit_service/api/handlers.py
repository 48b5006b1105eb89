"""Handlers of methods in gRPC's four forms, for interceptors that wrap them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc


def form_of(handler: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what makes a handler of the same form, and what the handler does."""
    if handler.response_streaming:
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler, handler.stream_stream
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary
