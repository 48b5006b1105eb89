"""Plain JSON data as `google.protobuf.Struct`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value

_EXACT = 2.0**53
"""Below this every whole double is one integer."""


def struct_to_proto(data: Mapping[str, Any]) -> Struct:
    """Return a mapping of None, booleans, numbers, strings, sequences and mappings.

    Numbers become doubles, as in JSON: integers beyond 2**53 lose their last digits.
    """
    return Struct(fields={str(key): _value(value) for key, value in data.items()})


def struct_from_proto(message: Struct) -> dict[str, Any]:
    """Return the mapping that a Struct holds; whole numbers come back as int."""
    return {key: _plain(value) for key, value in message.fields.items()}


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return struct_from_proto(value.struct_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < _EXACT else number
    return None if kind in (None, "null_value") else getattr(value, kind)


def _value(data: Any) -> Value:
    if data is None:
        return Value(null_value=0)  # type: ignore[arg-type]  # NULL_VALUE, the only one
    if isinstance(data, bool):
        return Value(bool_value=data)
    if isinstance(data, (int, float)):
        return Value(number_value=data)
    if isinstance(data, str):
        return Value(string_value=str(data))
    if isinstance(data, Mapping):
        return Value(struct_value=struct_to_proto(data))
    if isinstance(data, Sequence):
        return Value(list_value=ListValue(values=[_value(item) for item in data]))
    raise TypeError(f"{type(data).__name__} is not plain data")
