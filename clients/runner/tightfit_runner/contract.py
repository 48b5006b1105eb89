"""The contract with the server, as message classes made from its descriptors.

Generated stubs demand a protobuf and a gRPC as new as their generator, which do not exist for the
oldest Python that devices run. Descriptors do not: any protobuf from 4.25 on reads them.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, Callable

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTOCOL_VERSION = 1
PACKAGE = "tightfit.v1"
DESCRIPTORS = "contract.binpb"
_STATUS_PACKAGE = "google.rpc"

_FIELD = descriptor_pb2.FieldDescriptorProto


def _status_file() -> descriptor_pb2.FileDescriptorProto:
    """Return the part of google/rpc/status.proto and error_details.proto that errors travel in."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tightfit_runner/status.proto", package=_STATUS_PACKAGE, syntax="proto3"
    )
    shapes: dict[str, dict[str, tuple[int, Any]]] = {
        "Packed": {"type_url": (1, _FIELD.TYPE_STRING), "value": (2, _FIELD.TYPE_BYTES)},
        "Status": {"message": (2, _FIELD.TYPE_STRING), "details": (3, "Packed")},
        "Entry": {"key": (1, _FIELD.TYPE_STRING), "value": (2, _FIELD.TYPE_STRING)},
        "ErrorInfo": {"reason": (1, _FIELD.TYPE_STRING), "metadata": (3, "Entry")},
    }
    for name, fields in shapes.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number, label=_FIELD.LABEL_OPTIONAL)
            if isinstance(kind, str):
                added.type = _FIELD.TYPE_MESSAGE
                added.type_name = f".{_STATUS_PACKAGE}.{kind}"
                added.label = _FIELD.LABEL_REPEATED
            else:
                added.type = kind
    return file


def _pool() -> descriptor_pool.DescriptorPool:
    data = resources.files("tightfit_runner").joinpath(DESCRIPTORS).read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.AddSerializedFile(file.SerializeToString())
    pool.AddSerializedFile(_status_file().SerializeToString())
    return pool


_POOL = _pool()


def message(name: str, package: str = PACKAGE) -> Any:
    """Return the class of a message of the contract by its name."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{package}.{name}"))


def enum_number(enum: str, value: str) -> int:
    """Return the number of an enum's value: `enum_number("ModelFormat", "MODEL_FORMAT_ONNX")`."""
    return int(_POOL.FindEnumTypeByName(f"{PACKAGE}.{enum}").values_by_name[value].number)


ConnectRunnerRequest = message("ConnectRunnerRequest")
ConnectRunnerResponse = message("ConnectRunnerResponse")
ReadArtifactRequest = message("ReadArtifactRequest")
ReadArtifactResponse = message("ReadArtifactResponse")
_Status = message("Status", _STATUS_PACKAGE)
_ErrorInfo = message("ErrorInfo", _STATUS_PACKAGE)

FORMATS = {
    "tflite": enum_number("ModelFormat", "MODEL_FORMAT_TFLITE"),
    "onnx": enum_number("ModelFormat", "MODEL_FORMAT_ONNX"),
}


def connect_runner(channel: grpc.Channel) -> Callable[..., Any]:
    """Return RunnerService.ConnectRunner."""
    return channel.stream_stream(
        f"/{PACKAGE}.RunnerService/ConnectRunner",
        request_serializer=ConnectRunnerRequest.SerializeToString,
        response_deserializer=ConnectRunnerResponse.FromString,
    )


def read_artifact(channel: grpc.Channel) -> Callable[..., Any]:
    """Return ArtifactService.ReadArtifact."""
    return channel.unary_stream(
        f"/{PACKAGE}.ArtifactService/ReadArtifact",
        request_serializer=ReadArtifactRequest.SerializeToString,
        response_deserializer=ReadArtifactResponse.FromString,
    )


def reason_and_remedy(error: Any) -> tuple[str, str]:
    """Return what a gRPC error carries: the server's stable reason and what it says to do; "" where it says neither."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in _Status.FromString(value).details:
                if detail.type_url.endswith("google.rpc.ErrorInfo"):
                    info = _ErrorInfo.FromString(detail.value)
                    facts = {entry.key: entry.value for entry in info.metadata}
                    return info.reason, facts.get("remedy", "")
    return "", ""
