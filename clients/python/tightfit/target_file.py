"""Descriptions of devices in YAML, which may be partial, as messages of the contract."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tightfit.dataset_file import load_yaml_mapping
from tightfit.errors import InvalidInputError
from tightfit.v1 import hardware_pb2

_ENUM_PREFIXES = {"number_formats": "NUMBER_FORMAT_", "output_format": "MODEL_FORMAT_"}


def is_target_file(text: str) -> bool:
    """Whether a target option names a file rather than a target of the catalogue."""
    return text.endswith((".yaml", ".yml")) or "/" in text


def read_target_file(path: Path) -> hardware_pb2.HardwareSpec:
    """Read a device description.

    Raises:
        InvalidInputError: Not readable, an unknown key (the nearest known one is named), or a value
            of the wrong kind.
    """
    content = load_yaml_mapping(path, what="a hardware description")
    _check_keys(content, hardware_pb2.HardwareSpec.DESCRIPTOR, path=path, at="")
    prepared = dict(content)
    for key, prefix in _ENUM_PREFIXES.items():
        if key in prepared:
            prepared[key] = _enum_names(prepared[key], prefix)
    try:
        spec = json_format.ParseDict(prepared, hardware_pb2.HardwareSpec())
    except json_format.ParseError as error:
        raise InvalidInputError(
            f"{path.name} has a value that cannot be used: {error}",
            field=str(path),
            remedy="compare it with `tightfit targets show NAME --yaml`",
        ) from error
    if not spec.core:
        raise InvalidInputError(
            f"{path.name} names no core",
            field=f"{path.name}: core",
            remedy="add a core class such as `core: cortex-m7`; all else may be left out",
        )
    if not spec.name:
        spec.name = path.stem
    return spec


def target_mapping(spec: hardware_pb2.HardwareSpec) -> dict[str, Any]:
    """Return a device description as the mapping that its YAML file holds."""
    content: dict[str, Any] = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    content["number_formats"] = [
        name.removeprefix("NUMBER_FORMAT_").lower() for name in content.get("number_formats", [])
    ]
    if "output_format" in content:
        content["output_format"] = content["output_format"].removeprefix("MODEL_FORMAT_").lower()
    for key in ("ram_bytes", "flash_bytes", "cache_bytes"):
        # JSON writes 64-bit numbers as text
        if key in content.get("memory", {}):
            content["memory"][key] = int(content["memory"][key])
    return content


def _enum_names(value: Any, prefix: str) -> Any:
    if isinstance(value, list):
        return [_enum_names(item, prefix) for item in value]
    return f"{prefix}{str(value).upper()}"


def _check_keys(content: Mapping[Any, Any], message: Descriptor, *, path: Path, at: str) -> None:
    known: dict[str, FieldDescriptor] = {field.name: field for field in message.fields}
    for key, value in content.items():
        name = f"{at}{key}"
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            listed = f"known keys: {', '.join(known)}"
            raise InvalidInputError(
                f"unknown key {str(key)!r}",
                field=f"{path.name}: {name}",
                remedy=f"did you mean {near[0]!r}?" if near else listed,
            )
        nested = known[key].message_type
        if nested is None:
            continue
        if not isinstance(value, Mapping):
            raise InvalidInputError(
                f"{name} holds no keys and values",
                field=f"{path.name}: {name}",
                remedy=f"write its fields below it: {', '.join(f.name for f in nested.fields)}",
            )
        _check_keys(value, nested, path=path, at=f"{name}.")
