"""What exported TFLite and ONNX files say about themselves, read without any library for models."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tightfit.errors import InvalidInputError

RECIPE_KEY = "tightfit.recipe"
RECIPE_DIGEST_KEY = "tightfit.recipe_digest"
COMPRESSED = "zlib+base64:"
"""Begins values that are base64 of zlib of UTF-8."""
MOST_TEXT_BYTES = 64 << 20

_TFLITE_MAGIC = b"TFL3"
_TFLITE_ENTRY = b"tightfit"
_MODEL_BUFFERS, _MODEL_METADATA = 4, 6
_METADATA_NAME, _METADATA_BUFFER, _BUFFER_DATA = 0, 1, 0
_ONNX_METADATA_PROPS = 14
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a TFLite or ONNX file, empty where it has none of tightfit's.

    Values that were compressed are expanded. Keys are in `docs/formats.md`.

    Raises:
        InvalidInputError: The file cannot be read, is neither, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"cannot read {path}: {error.strerror or error}",
            field=str(path),
            remedy="check the path",
        ) from error
    try:
        found = _of_tflite(data) if is_tflite(data) else dict(_of_onnx(data))
        return {key: _expanded(value) for key, value in found.items()}
    except (struct.error, IndexError, TypeError, ValueError, zlib.error) as error:
        raise InvalidInputError(
            f"{path} is no TFLite or ONNX file, or damaged",
            field=str(path),
            remedy="give a model.tflite or model.onnx that `tightfit compress -o DIR` wrote",
        ) from error


def is_tflite(data: bytes) -> bool:
    """Whether the bytes start like a TFLite file."""
    return data[4:8] == _TFLITE_MAGIC


def _expanded(value: str) -> str:
    if not value.startswith(COMPRESSED):
        return value
    packed = base64.b64decode(value.removeprefix(COMPRESSED), validate=True)
    expander = zlib.decompressobj()
    text = expander.decompress(packed, MOST_TEXT_BYTES)
    if not expander.eof:
        raise ValueError("longer than any recipe")
    return text.decode()


def _of_tflite(data: bytes) -> dict[str, str]:
    file = _FlatBuffer(data)
    model = file.offset(0)
    for entry in file.tables(model, _MODEL_METADATA):
        if file.text(entry, _METADATA_NAME) != _TFLITE_ENTRY:
            continue
        place = file.field(entry, _METADATA_BUFFER)
        number = struct.unpack_from("<I", data, place)[0] if place else 0
        buffers = file.tables(model, _MODEL_BUFFERS)
        content: Any = json.loads(file.text(buffers[number], _BUFFER_DATA))
        if not isinstance(content, dict):
            raise TypeError("not an object")
        return {str(key): str(value) for key, value in content.items()}
    return {}


class _FlatBuffer:
    """The few things of the FlatBuffers format that lead to a metadata entry."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def offset(self, place: int) -> int:
        """Return where the offset at a place leads."""
        return place + int(struct.unpack_from("<I", self._data, place)[0])

    def field(self, table: int, number: int) -> int:
        """Return where a field of a table is, 0 where it is left out."""
        vtable = table - int(struct.unpack_from("<i", self._data, table)[0])
        if vtable < 0:
            raise ValueError("a table outside the file")
        size = struct.unpack_from("<H", self._data, vtable)[0]
        entry = 4 + 2 * number
        if entry + 2 > size:
            return 0
        inside = struct.unpack_from("<H", self._data, vtable + entry)[0]
        return table + int(inside) if inside else 0

    def _vector(self, table: int, number: int) -> tuple[int, int]:
        place = self.field(table, number)
        if not place:
            return 0, 0
        start = self.offset(place)
        count = int(struct.unpack_from("<I", self._data, start)[0])
        if start + 4 + count > len(self._data):
            raise ValueError("a vector beyond the end")
        return start + 4, count

    def tables(self, table: int, number: int) -> list[int]:
        """Return where the tables of a vector are."""
        start, count = self._vector(table, number)
        if start + 4 * count > len(self._data):
            raise ValueError("a vector beyond the end")
        return [self.offset(start + 4 * index) for index in range(count)]

    def text(self, table: int, number: int) -> bytes:
        """Return the bytes of a string or a vector of bytes."""
        start, count = self._vector(table, number)
        return self._data[start : start + count]


def _of_onnx(data: bytes) -> Iterator[tuple[str, str]]:
    for number, value in _fields(data):
        if number == _ONNX_METADATA_PROPS:
            entry = dict(_fields(value))
            yield entry.get(1, b"").decode(), entry.get(2, b"").decode()


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the length-delimited fields of a protobuf message."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            size, place = _varint(data, place)
            if place + size > len(data):
                raise ValueError("a field beyond the end")
            yield tag >> 3, data[place : place + size]
            place += size
        elif kind == 0:
            _, place = _varint(data, place)
        elif kind in _FIXED_BYTES:
            place += _FIXED_BYTES[kind]
        else:
            raise ValueError("not protobuf")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("not a varint")
