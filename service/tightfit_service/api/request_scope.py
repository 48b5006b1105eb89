"""Which projects a request is about, read from the resource names in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from google.api import (  # type: ignore[import-untyped]  # ships no types
    field_behavior_pb2,
    resource_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_COLLECTION = "projects"
_FIRST = ("parent", "name")
"""Of the fields of a request, those that say what it is about; others name what it uses besides."""


def project_of(message: Message) -> str:
    """Return the id of the project that a request is about, "" where it names none.

    Of a stream, the first message says it: its header or its hello has the name.
    """
    return next(iter(_projects(message)), "")


def projects_of(message: Message) -> tuple[str, ...]:
    """Return the ids of all projects that names in a request point into, each once, the main one first.

    The names are those of all fields that are annotated as references to resources, in nested messages
    too. Whether a name is well-formed is for the servicer to say; here `projects/x/anything` is of `x`.
    """
    return tuple(dict.fromkeys(_projects(message)))


def resource_of(message: Message) -> str:
    """Return the name that a request is about, "" where it has none: its parent or name, or the first reference."""
    return next((name for name in _names(message) if name), "")


def _projects(message: Message) -> Iterator[str]:
    for name in _names(message):
        collection, slash, rest = name.partition("/")
        if collection == _COLLECTION and slash:
            yield rest.partition("/")[0]


def _names(message: Message) -> Iterator[str]:
    own, nested = _fields(message.DESCRIPTOR)
    for field in own:
        value = getattr(message, field.name)
        if field.is_repeated:
            yield from value
        else:
            yield value
    for field in nested:
        value = getattr(message, field.name)
        if field.is_repeated:
            for item in value:
                yield from _names(item)
        elif message.HasField(field.name):
            yield from _names(value)


@cache
def _fields(
    descriptor: Descriptor,
) -> tuple[tuple[FieldDescriptor, ...], tuple[FieldDescriptor, ...]]:
    """Return the fields of a message type that hold names, and those that hold messages with names."""
    own = [field for field in descriptor.fields if _is_reference(field)]
    own.sort(key=lambda field: _FIRST.index(field.name) if field.name in _FIRST else len(_FIRST))
    nested = [
        field
        for field in descriptor.fields
        if field.message_type is not None
        and not field.message_type.GetOptions().map_entry
        and _is_input(field)
        and _reaches_reference(field.message_type)
    ]
    return tuple(own), tuple(nested)


def _reaches_reference(descriptor: Descriptor) -> bool:
    pending, seen = [descriptor], {descriptor.full_name}
    while pending:
        for field in pending.pop().fields:
            if _is_reference(field):
                return True
            inner = field.message_type
            if inner is not None and _is_input(field) and inner.full_name not in seen:
                seen.add(inner.full_name)
                pending.append(inner)
    return False


def _is_reference(field: FieldDescriptor) -> bool:
    return (
        field.type == FieldDescriptor.TYPE_STRING
        and field.GetOptions().HasExtension(resource_pb2.resource_reference)
        and _is_input(field)
    )


def _is_input(field: FieldDescriptor) -> bool:
    behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return field_behavior_pb2.OUTPUT_ONLY not in behaviors
