"""Descriptions of devices in YAML, which may be partial, as messages of the contract."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tightfit.errors import InvalidInputError, TightfitError
from tightfit.v1 import hardware_pb2
from tightfit.yaml_file import load_yaml_mapping

_ENUM_PREFIXES = {"number_formats": "NUMBER_FORMAT_", "output_format": "MODEL_FORMAT_"}
_PATH_IN_ERROR = re.compile(r" at HardwareSpec\.(\w+(?:\.\w+)*)")
_FIELD_IN_ERROR = re.compile(r"Failed to parse (\w+) field")
_FIELD_OF_SERVER = "target."

_Error = TypeVar("_Error", bound=TightfitError)


def is_target_file(text: str) -> bool:
    """Whether a target option names a file rather than a target of the catalogue."""
    return text.endswith((".yaml", ".yml")) or "/" in text


def read_target_file(path: Path) -> hardware_pb2.HardwareSpec:
    """Read a device description.

    Raises:
        InvalidInputError: Not readable, an unknown key (the nearest known one is named), or a value
            of the wrong kind. Names the line.
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
            field=_place(path, _key_in(str(error))),
            remedy="compare it with `tightfit targets show NAME`",
        ) from error
    if not spec.core:
        raise InvalidInputError(
            f"{path.name} names no core",
            field=_place(path, "core"),
            remedy="add a core class such as `core: cortex-m7`; all else may be left out",
        )
    if not spec.name:
        spec.name = path.stem
    return spec


def placed(error: _Error, path: Path) -> _Error:
    """Return what the service says of a description with the place in the file that it is about."""
    if not error.field.startswith(_FIELD_OF_SERVER):
        return error
    return type(error)(
        error.message,
        field=_place(path, error.field.removeprefix(_FIELD_OF_SERVER)),
        remedy=error.remedy,
        reason=error.reason,
        request_id=error.request_id,
    )


def target_mapping(spec: hardware_pb2.HardwareSpec) -> dict[str, Any]:
    """Return a device description as the mapping that its YAML file holds."""
    content: dict[str, Any] = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    content["number_formats"] = [
        name.removeprefix("NUMBER_FORMAT_").lower() for name in content.get("number_formats", [])
    ]
    if "output_format" in content:
        content["output_format"] = content["output_format"].removeprefix("MODEL_FORMAT_").lower()
    for group in ("memory", "accelerator"):
        for key, value in content.get(group, {}).items():
            if key.endswith("_bytes"):
                # JSON writes 64-bit numbers as text
                content[group][key] = int(value)
    return content


def line_of(path: Path, key: str) -> int | None:
    """Return the line, from 1, of a key such as `memory.ram_bytes`, or of the nearest one above it.

    None where not even its first part is in the file, or the file cannot be read.
    """
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    line = None
    for part in key.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        found = next((pair for pair in pairs if pair[0].value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _key_in(parse_error: str) -> str:
    """Return the key that protobuf's JSON parser speaks of, "" where it names none."""
    found = _PATH_IN_ERROR.search(parse_error)
    return found[1] if found else ".".join(_FIELD_IN_ERROR.findall(parse_error))


def _place(path: Path, key: str) -> str:
    line = line_of(path, key)
    where = path.name if line is None else f"{path.name}:{line}"
    return f"{where}: {key}" if key else where


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
                field=_place(path, name),
                remedy=f"did you mean {near[0]!r}?" if near else listed,
            )
        nested = known[key].message_type
        if nested is None or value is None:
            continue
        if not isinstance(value, Mapping):
            inner = "" if _is_map(nested) else ", ".join(f.name for f in nested.fields)
            raise InvalidInputError(
                f"{name} holds no keys and values",
                field=_place(path, name),
                remedy=f"write its fields below it: {inner or 'int8: 4'}",
            )
        if not _is_map(nested):
            _check_keys(value, nested, path=path, at=f"{name}.")


def _is_map(message: Descriptor) -> bool:
    return message.GetOptions().map_entry
