"""Plain JSON data as `google.protobuf.Struct`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value


def struct_to_proto(data: Mapping[str, Any]) -> Struct:
    """Return a mapping of None, booleans, numbers, strings, sequences and mappings.

    Numbers become doubles, as in JSON: integers beyond 2**53 lose their last digits.
    """
    return Struct(fields={str(key): _value(value) for key, value in data.items()})


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
