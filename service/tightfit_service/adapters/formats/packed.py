"""Packed download files: model files with entropy-coded constants, restored bit by bit by the client.

The format and its decoder are `tightfit.packed_file`; `docs/packed-format.md` explains them. The
exported file itself is not changed by it: a device loads what the client has unpacked.
"""

from __future__ import annotations

import hashlib
import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tightfit import packed_file
from tightfit.packed_file import (
    BYTES,
    HEADER,
    LARGEST_MAGNITUDE,
    LEAST_STATE,
    LZMA_FILTERS,
    OTHERS,
    SLOT_BITS,
    VALUES,
    VALUES_AND_OTHERS,
    frequencies,
)
from tightfit_service.adapters.formats.packed_constants import StoredConstant, find_constants
from tightfit_service.adapters.formats.packed_model import (
    SHIFTS,
    SharedTables,
    StreamModel,
    best_stream,
    plain_stream,
)
from tightfit_service.application.ports import LayerSize
from tightfit_service.domain.errors import (
    IntegrityError,
    ResourceExhaustedError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.graph.fusion import PRODUCTS
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.structure import producers

_KINDS = {ModelFormat.ONNX: 1, ModelFormat.TFLITE: 2}
_MOST_BYTES = packed_file.DEFAULT_LIMIT_BYTES
_DENSE_BYTES = 48
"""Constants of one byte with more different values than this are coded as bytes."""
_LEAST_REPEATS = 6
"""A value that occurs less often is not worth its place in the code book."""
_QUICK_SHIFTS = (3,)
_PASSED_ON = frozenset({"Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose"})
"""What may lie between a stored weight and the node that multiplies by it."""
_RAW_SHARE = 0.985
"""Planes that shrink by less than this are stored as they are, which decodes at once."""


def pack(data: bytes, model_format: ModelFormat) -> bytes:
    """Return the packed form of a model file; `tightfit.packed_file.unpack` restores it.

    The result is unpacked again before it is returned. Deterministic.

    Raises:
        InvalidModelError: The file is said to be ONNX and is not.
        ResourceExhaustedError: Larger than clients unpack.
        IntegrityError: Unpacking did not give the file back, which would be an error here.
    """
    if len(data) > _MOST_BYTES:
        raise ResourceExhaustedError(
            f"the file has {len(data)} bytes, more than the {_MOST_BYTES} that clients unpack",
            field="model",
            remedy="download the file as it is",
        )
    coded = [
        item
        for stored in find_constants(data, model_format)
        if (item := _coded(stored, SHIFTS)).bits < 8 * len(_compressed(stored.values.tobytes()))
    ]
    candidates = [_file(data, [], model_format)]
    if coded:
        candidates.append(_file(data, coded, model_format))
    packed = min(candidates, key=len)
    if packed_file.unpack(packed) != data:
        raise IntegrityError(
            "the packed file does not give the model back",
            field="model",
            remedy="download the file as it is, and report the model",
        )
    return packed


def expected_bytes(data: bytes, model_format: ModelFormat) -> int:
    """Return about how many bytes `pack` makes of a file, in a fraction of its time.

    Tells files of one network apart, whose weights differ; by itself it is a few percent off.

    Raises:
        InvalidModelError: The file is said to be ONNX and is not.
    """
    bits, rest, taken = 0.0, bytearray(), 0
    for stored in find_constants(data, model_format):
        bits += _coded(stored, _QUICK_SHIFTS).bits
        rest.extend(data[taken : stored.start])
        taken = stored.end
    rest.extend(data[taken:])
    return HEADER.size + math.ceil(bits / 8) + len(_compressed(bytes(rest)))


def layer_sizes(data: bytes, model_format: ModelFormat) -> dict[str, LayerSize]:
    """Return about what the weight of each layer takes up in the packed form of a file, by node.

    Weights of less than 256 bytes are left out. A weight that several nodes read counts for each.

    Raises:
        InvalidModelError: The file is not ONNX.
        UnsupportedError: Another format.
    """
    if model_format is not ModelFormat.ONNX:
        raise UnsupportedError(
            f"the layers of a {model_format} file are not told apart",
            field="output_format",
            remedy="estimate them on the ONNX file of the same network",
        )
    constants = {stored.name: stored for stored in find_constants(data, model_format)}
    model = load_model(data)
    makers = producers(model.graph)
    found = {}
    for node in model.graph.node:
        if node.op_type not in PRODUCTS or len(node.input) < 2:
            continue
        name = node.input[1]
        while name in makers and makers[name].op_type in _PASSED_ON:
            name = makers[name].input[0]
        if name in constants:
            stored = constants[name]
            found[node.name] = LayerSize(
                packed_bytes=_coded(stored, _QUICK_SHIFTS).bits / 8,
                zeros=float(np.mean(stored.values == 0)),
            )
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Coded:
    """A constant with the way it will be coded; `planes` holds raw bytes or a model each."""

    stored: StoredConstant
    coding: int
    book: list[bytes] = field(default_factory=list)
    stream: StreamModel | None = None
    planes: list[StreamModel | bytes] = field(default_factory=list)

    @property
    def bits(self) -> float:
        """Expected size."""
        total = 8.0 * sum(len(value) for value in self.book) + 64.0
        if self.stream is not None:
            total += self.stream.bits
        return total + sum(
            8.0 * len(plane) if isinstance(plane, bytes) else plane.bits for plane in self.planes
        )


def _coded(stored: StoredConstant, shifts: Sequence[int]) -> _Coded:
    """Return the best coding of a constant; contexts of the given shifts are tried."""
    width = stored.values.dtype.itemsize
    words = np.ascontiguousarray(stored.values).view(f"u{width}")
    values, indices, counts = np.unique(words, return_inverse=True, return_counts=True)
    candidates = []
    if width == 1 and len(values) > _DENSE_BYTES:
        candidates.append(_as_bytes(stored, words, shifts))
    if len(values) <= 256:
        candidates.append(_as_values(stored, values, indices, shifts))
    if width > 1:
        repeated = np.flatnonzero(counts >= _LEAST_REPEATS)
        repeated = repeated[np.argsort(-counts[repeated], kind="stable")][:255]
        if 0 < len(repeated) < len(values):
            candidates.append(
                _as_values_and_others(stored, words, values, indices, repeated, shifts)
            )
        candidates.append(_Coded(stored=stored, coding=OTHERS, planes=_planes(words)))
    return min(candidates, key=lambda item: item.bits)


def _as_bytes(stored: StoredConstant, words: npt.NDArray[Any], shifts: Sequence[int]) -> _Coded:
    magnitudes = packed_file.byte_magnitudes()
    stream = best_stream(words, 256, magnitudes, stored.row_lengths, shifts)
    return _Coded(stored=stored, coding=BYTES, stream=stream)


def _as_values(
    stored: StoredConstant,
    values: npt.NDArray[Any],
    indices: npt.NDArray[Any],
    shifts: Sequence[int],
) -> _Coded:
    order, rank = _by_number(stored, values)
    stream = None
    if len(values) > 1:
        numbers = values[order].view(stored.values.dtype)
        symbols = rank[indices].astype(np.uint8)
        magnitudes = _magnitudes(numbers)
        stream = best_stream(symbols, len(values), magnitudes, stored.row_lengths, shifts)
    book = [value.tobytes() for value in values[order]]
    return _Coded(stored=stored, coding=VALUES, book=book, stream=stream)


def _as_values_and_others(
    stored: StoredConstant,
    words: npt.NDArray[Any],
    values: npt.NDArray[Any],
    indices: npt.NDArray[Any],
    repeated: npt.NDArray[Any],
    shifts: Sequence[int],
) -> _Coded:
    order, _ = _by_number(stored, values[repeated])
    chosen = repeated[order]
    rank = np.full(len(values), len(chosen))
    rank[chosen] = np.arange(len(chosen))
    symbols = rank[indices].astype(np.uint8)
    magnitudes = _magnitudes(values[chosen].view(stored.values.dtype))
    magnitudes += bytes([LARGEST_MAGNITUDE])
    stream = best_stream(symbols, len(chosen) + 1, magnitudes, stored.row_lengths, shifts)
    return _Coded(
        stored=stored,
        coding=VALUES_AND_OTHERS,
        book=[value.tobytes() for value in values[chosen]],
        stream=stream,
        planes=_planes(words[symbols == len(chosen)]),
    )


def _by_number(
    stored: StoredConstant, values: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the order of values as numbers, and the rank of each."""
    numbers = values.view(stored.values.dtype).astype(np.float64)
    order = np.argsort(numbers, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return order, rank


def _magnitudes(numbers: npt.NDArray[Any]) -> bytes:
    """Return the bits of each number's size against the largest, 0 for zero and 8 at most."""
    sizes = np.nan_to_num(np.abs(numbers.astype(np.float64)), nan=0.0, posinf=0.0)
    largest = sizes.max()
    if largest == 0:
        return bytes(len(sizes))
    return bytes(int(size).bit_length() for size in np.ceil(sizes * (127 / largest)))


def _planes(words: npt.NDArray[Any]) -> list[StreamModel | bytes]:
    """Return the bytes of the values, all first bytes first, as raw bytes where they are noise."""
    width = words.dtype.itemsize
    planes: list[StreamModel | bytes] = []
    for index in range(width):
        plane = np.ascontiguousarray(words.view(np.uint8)[index::width])
        model = plain_stream(plane, 256, packed_file.byte_magnitudes())
        planes.append(plane.tobytes() if model.bits > _RAW_SHARE * 8 * len(plane) else model)
    return planes


def _file(data: bytes, coded: Sequence[_Coded], model_format: ModelFormat) -> bytes:
    """Write the packed file with the given constants coded."""
    tables = SharedTables()
    described = bytearray(_varint(len(coded)))
    rest = bytearray()
    raw = bytearray()
    streams: list[tuple[StreamModel, npt.NDArray[np.int64]]] = []
    taken = 0

    def describe(model: StreamModel, *, with_magnitudes: bool) -> None:
        chosen = tables.join(model)
        streams.append((model, chosen))
        described.extend(_varint(model.period) + bytes([model.shift, model.start]))
        described.extend(model.magnitudes if with_magnitudes else b"")
        described.extend(b"".join(_varint(int(index)) for index in chosen))

    for item in coded:
        stored = item.stored
        described.extend(_varint(stored.start - taken) + _varint(len(stored.values)))
        described.append(item.coding)
        rest.extend(data[taken : stored.start])
        taken = stored.end
        if item.coding != BYTES:
            described.extend(_varint(stored.values.dtype.itemsize))
        if item.coding in {VALUES, VALUES_AND_OTHERS}:
            described.extend(_varint(len(item.book)) + b"".join(item.book))
        if item.stream is not None:
            describe(item.stream, with_magnitudes=item.coding != BYTES)
        for plane in item.planes:
            described.append(0 if isinstance(plane, bytes) else 1)
            if isinstance(plane, bytes):
                raw.extend(plane)
            else:
                describe(plane, with_magnitudes=False)
    rest.extend(data[taken:])
    levels = tables.levels()
    plan = _varint(len(levels)) + b"".join(_varint(len(item)) + item for item in levels)
    plan += bytes(described)
    text = _compressed(plan + bytes(rest))
    words = _encoded(streams, [frequencies(item) for item in levels])
    header = HEADER.pack(
        packed_file.MAGIC,
        packed_file.VERSION,
        _KINDS.get(model_format, 0),
        0,
        len(data),
        hashlib.sha256(data).digest(),
        len(plan),
        len(rest),
        len(text),
        len(words),
        len(raw),
    )
    return header + text + words + bytes(raw)


def _encoded(
    streams: Sequence[tuple[StreamModel, npt.NDArray[np.int64]]], tables: Sequence[list[int]]
) -> bytes:
    """Return the words of all streams: rANS works from the last symbol to the first."""
    state = LEAST_STATE
    words: list[int] = []
    for model, chosen in reversed(streams):
        slots = np.zeros((len(tables), 256), dtype=np.int64)
        for index in set(chosen.tolist()):
            slots[index, : len(tables[index])] = tables[index]
        firsts = np.cumsum(slots, axis=1) - slots
        used = chosen[model.contexts()]
        counts = slots[used, model.symbols][::-1].tolist()
        offsets = firsts[used, model.symbols][::-1].tolist()
        for count, offset in zip(counts, offsets, strict=True):
            if state >= count << (32 - SLOT_BITS):
                words.append(state & 0xFFFF)
                state >>= 16
            quotient, remainder = divmod(state, count)
            state = (quotient << SLOT_BITS) + remainder + offset
    if not streams:
        return b""
    words.extend((state & 0xFFFF, state >> 16))
    return np.array(words[::-1], dtype="<u2").tobytes()


def _compressed(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=LZMA_FILTERS)


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 128:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])
