"""Seeded requests of every method, filled from their descriptors with what nobody should send."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_INTEGERS = (0, -1, 1, 2, 255, 65_536, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63), 2**63 - 1)
_FLOATS = (0.0, -0.0, -1.0, 0.5, 1.0, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan)
HOSTILE_TEXTS = (
    "",
    "/",
    "..",
    "../../etc/passwd",
    "projects/../models/x",
    "projects/default/models/../../../../etc/passwd",
    "projects/default/artifacts/..%2f..%2fetc%2fpasswd",
    "projects/default/models/tightfit-escaped",
    "projects/.hidden/models/x",
    "projects/~/models/x",
    "projects//jobs/",
    "projects/default/jobs/\x00",
    "projects/default/jobs/\u202e",
    "projects/default/uploads/../../tightfit-escaped",
    "hardwareTargets/../../../etc/passwd",
    "hardwareTargets/nucleo-h743zi2",
    "/tmp/tightfit-escaped",
    "'; DROP TABLE jobs;--",
    "${jndi:ldap://x}",
    "{0.__class__.__mro__}",
    "%s%n%x",
    "a" * 100_000,
    "projects/" + "a/" * 10_000,
    "\U0001f4a5" * 50,
    "\r\nx-injected: 1",
)
_MOST_DEPTH = 6


def random_message(
    descriptor: Descriptor, rng: random.Random, names: Sequence[str], *, depth: int = 0
) -> Any:
    """Return a message with about half of its fields set to odd values.

    Args:
        descriptor: Of the message.
        rng: Every choice is drawn from it.
        names: Names of resources that exist, used now and then so that requests get far.
        depth: How deep the message lies in the request.
    """
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if rng.random() < 0.5 or (depth >= _MOST_DEPTH and field.message_type is not None):
            continue
        _fill(message, field, rng, names, depth)
    return message


def _fill(
    message: Message,
    field: FieldDescriptor,
    rng: random.Random,
    names: Sequence[str],
    depth: int,
) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (
            field.message_type.fields_by_name["key"],
            field.message_type.fields_by_name["value"],
        )
        target = getattr(message, field.name)
        for _ in range(rng.randrange(4)):
            name = _scalar(key, rng, names)
            if value.message_type is not None:
                target[name].CopyFrom(
                    random_message(value.message_type, rng, names, depth=depth + 1)
                )
            else:
                target[name] = _scalar(value, rng, names)
    elif field.is_repeated:
        count = rng.choice([1, 2, 3, 200]) if depth < 2 else 1
        if field.message_type is not None:
            count = min(count, 3)
        for _ in range(count):
            if field.message_type is not None:
                getattr(message, field.name).append(
                    random_message(field.message_type, rng, names, depth=depth + 1)
                )
            else:
                getattr(message, field.name).append(_scalar(field, rng, names))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(
            random_message(field.message_type, rng, names, depth=depth + 1)
        )
    else:
        setattr(message, field.name, _scalar(field, rng, names))


def _scalar(field: FieldDescriptor, rng: random.Random, names: Sequence[str]) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice([0, 1, 100, 65_536]))
        return rng.choice(names) if rng.random() < 0.5 else rng.choice(HOSTILE_TEXTS)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice(_FLOATS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if field.enum_type is not None:
        return rng.choice([*field.enum_type.values_by_number, 99, 2**31 - 1])
    low, high = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }[kind]
    return rng.choice([value for value in _INTEGERS if low <= value <= high])
