"""Packed model files: what the service packs for download, restored here bit by bit.

A packed file holds one model file (TFLite, ONNX or any other). Large constants are cut out of it and
entropy-coded; what is left of the file is compressed with LZMA. It is the third stage of Deep Compression
(Han et al., ICLR 2016) with range asymmetric numeral systems (Duda, arXiv:1311.2540) in place of Huffman
codes, and contexts in place of relative indices: how likely a zero is, follows from how large the values
before it in its row and above it in its column were. `docs/packed-format.md` has the same in prose.

All integers are little-endian; a varint is a base-128 number, lowest seven bits first.

    header   magic "TFPK", version u8, kind u8 (0 other, 1 ONNX, 2 TFLite), reserved u16 = 0,
             size of the original u32, sha-256 of the original (32 bytes),
             then five sizes u32: plan, rest, compressed plan and rest, words, raw bytes
    text     plan and rest, one raw LZMA1 stream (lc 3, lp 0, pb 2, dictionary 16 MiB)
    words    16-bit words of the entropy coder
    raw      bytes that are noise

    plan     varint count of tables, then each:
                 varint count of symbols (1 to 256), a level (u8) per symbol; see `frequencies`
             varint count of constants, then each, in the order of the file:
                 varint bytes of the rest before it, varint count of elements, coding u8:
                 0  one byte an element, the symbol is the byte; then a stream
                 1  varint width in bytes, varint count of values (1 to 256), these values;
                    then a stream if there are several
                 2  as 1, with one symbol more (the last) that stands for any other value;
                    then a stream, then planes
                 3  varint width; then planes
             planes: the remaining values, split by byte: per byte of the width a u8,
                 0 for raw bytes, 1 for a stream of bytes with the symbol being the byte
             stream: varint period (length of a row), shift u8, start u8,
                 magnitudes (u8 a symbol; not for coding 0 and planes, where they follow from the byte),
                 table (varint) of each of the 33 contexts
"""

from __future__ import annotations

import hashlib
import lzma
import struct
from dataclasses import dataclass

from tightfit.errors import IntegrityError, InvalidInputError, ResourceExhaustedError

MAGIC = b"TFPK"
VERSION = 1
HEADER = struct.Struct("<4sBBHI32s5I")
DEFAULT_LIMIT_BYTES = 512 << 20

SLOT_BITS = 14
SLOTS = 1 << SLOT_BITS
"""Frequencies of a table sum up to this."""
LEAST_STATE = 1 << 16
"""State of the coder at both ends; in between it has 17 to 32 bits."""
CONTEXT_SHIFT = 3
CONTEXT_COUNT = 33
LARGEST_MAGNITUDE = 8
MAGNITUDE_STEP = 16
LARGEST_STATE = LARGEST_MAGNITUDE * MAGNITUDE_STEP
LARGEST_SHIFT = 7
LARGEST_LEVEL = 64
MOST_TABLES = 256
WIDTHS = (1, 2, 4, 8)
LZMA_FILTERS = [
    {"id": lzma.FILTER_LZMA1, "dict_size": 16 << 20, "lc": 3, "lp": 0, "pb": 2, "preset": 9}
]

BYTES, VALUES, VALUES_AND_OTHERS, OTHERS = range(4)
"""The codings of a constant."""

_QUARTER_OCTAVES = (16, 19, 23, 27)
_FIELD = "packed file"


def is_packed(data: bytes) -> bool:
    """Whether the bytes start like a packed file."""
    return data[: len(MAGIC)] == MAGIC


def unpack(data: bytes, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> bytes:
    """Return the model file that was packed, exactly as it was.

    Every size that the file declares is checked before memory is taken for it; time and memory are in
    proportion to the size of the original, which `limit_bytes` bounds.

    Raises:
        InvalidInputError: Not a packed file, a later version, truncated or damaged.
        ResourceExhaustedError: The original is larger than `limit_bytes`.
        IntegrityError: The restored bytes are not those that were packed.
    """
    header = _Header.read(data, limit_bytes)
    plan, rest, words, raw = header.sections(data)
    reader = _Reader(plan)
    decoder = _Decoder(words, raw)
    tables = [_Table.read(reader) for _ in range(reader.count(MOST_TABLES))]
    parts: list[bytes] = []
    taken = restored = 0
    for _ in range(reader.count(len(plan))):
        gap = reader.count(len(rest) - taken)
        parts.append(rest[taken : taken + gap])
        taken += gap
        room = header.original_size - len(rest) - restored
        constant = decoder.constant(_Constant.read(reader, tables, room))
        parts.append(constant)
        restored += len(constant)
    parts.append(rest[taken:])
    if not reader.is_done or not decoder.is_done or restored + len(rest) != header.original_size:
        raise _damaged()
    original = b"".join(parts)
    if hashlib.sha256(original).digest() != header.digest:
        raise IntegrityError(
            "the restored model is not the one that was packed (sha-256 differs)",
            field=_FIELD,
            remedy="download the file again",
        )
    return original


def frequencies(levels: bytes) -> list[int]:
    """Return how many of the 16384 slots each symbol has, from its level.

    Level 0 is a symbol that does not occur; four levels are a factor of two. The most frequent symbol
    (the first of them) takes what rounding leaves.

    Raises:
        InvalidInputError: No symbol occurs, or a level is out of range.
    """
    if not any(levels) or max(levels) > LARGEST_LEVEL:
        raise _damaged()
    weights = [
        _QUARTER_OCTAVES[(level - 1) & 3] << ((level - 1) >> 2) if level else 0 for level in levels
    ]
    total = sum(weights)
    slots = [max(1, weight * SLOTS // total) if weight else 0 for weight in weights]
    slots[slots.index(max(slots))] += SLOTS - sum(slots)
    return slots


def byte_magnitudes() -> bytes:
    """Return the magnitude of each byte read as int8: the bits that its absolute value takes."""
    return bytes(abs(value - 256 if value > 127 else value).bit_length() for value in range(256))


def _damaged() -> InvalidInputError:
    return InvalidInputError(
        "the packed file is damaged or truncated",
        field=_FIELD,
        remedy="download the file again",
    )


@dataclass(frozen=True)
class _Header:
    original_size: int
    digest: bytes
    plan_size: int
    rest_size: int
    text_size: int
    words_size: int
    raw_size: int

    @classmethod
    def read(cls, data: bytes, limit_bytes: int) -> _Header:
        """Read the header and hold its sizes against the file's and one another."""
        if not is_packed(data):
            raise InvalidInputError(
                "not a packed model file", field=_FIELD, remedy="give a file that tightfit packed"
            )
        if len(data) < HEADER.size:
            raise _damaged()
        _, version, _, _, *fields = HEADER.unpack_from(data)
        if version != VERSION:
            raise InvalidInputError(
                f"the file has version {version} of the packed format, this client reads {VERSION}",
                field=_FIELD,
                remedy="update the tightfit client",
            )
        header = cls(*fields)
        if header.original_size > limit_bytes:
            raise ResourceExhaustedError(
                f"the packed model has {header.original_size} bytes, more than {limit_bytes}",
                field=_FIELD,
                remedy="raise the limit if you trust the file",
            )
        behind = header.text_size + header.words_size + header.raw_size
        if (
            HEADER.size + behind != len(data)
            or header.rest_size > header.original_size
            or header.raw_size > header.original_size
            # a plan is tables and code books, which never outgrow what they describe by more
            or header.plan_size > 4 * header.original_size + 4096
        ):
            raise _damaged()
        return header

    def sections(self, data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
        """Return plan, rest, words and raw bytes."""
        words_at = HEADER.size + self.text_size
        raw_at = words_at + self.words_size
        size = self.plan_size + self.rest_size
        try:
            expander = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_FILTERS)
            # one byte more than declared, so that the end of the stream is reached or it is too long
            text = expander.decompress(data[HEADER.size : words_at], max_length=size + 1)
        except (lzma.LZMAError, EOFError) as error:
            raise _damaged() from error
        if len(text) != size or not expander.eof or expander.unused_data:
            raise _damaged()
        return text[: self.plan_size], text[self.plan_size :], data[words_at:raw_at], data[raw_at:]


class _Reader:
    """Reads the plan; every number is held against the most that it may be."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_done(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        end = self._at + count
        if end > len(self._data):
            raise _damaged()
        part = self._data[self._at : end]
        self._at = end
        return part

    def byte(self, most: int) -> int:
        """Return a byte of at most that value."""
        return _at_most(self.take(1)[0], most)

    def count(self, most: int) -> int:
        """Return a varint of at most that value."""
        value = 0
        for shift in range(0, 42, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return _at_most(value, most)
        raise _damaged()


def _at_most(value: int, most: int) -> int:
    if value > most:
        raise _damaged()
    return value


@dataclass(frozen=True)
class _Table:
    """The symbols in proportion to their frequency: which one has a slot, how many, from where on."""

    symbols: bytes
    counts: list[int]
    firsts: list[int]

    @classmethod
    def read(cls, reader: _Reader) -> _Table:
        counts = frequencies(reader.take(reader.count(256)))
        if min(counts) < 0:
            raise _damaged()
        return cls(
            symbols=b"".join(bytes([symbol]) * count for symbol, count in enumerate(counts)),
            counts=counts,
            firsts=[sum(counts[:symbol]) for symbol in range(len(counts))],
        )


@dataclass(frozen=True)
class _Stream:
    """How a sequence of symbols is coded: rows of `period` symbols, one table per context."""

    period: int
    shift: int
    start: int
    magnitudes: list[int]
    tables: list[_Table]

    @classmethod
    def read(
        cls, reader: _Reader, tables: list[_Table], count: int, magnitudes: bytes | None, room: int
    ) -> _Stream:
        """Read a stream of `count` different symbols, of at most `room` symbols altogether."""
        period = reader.count(room)
        shift, start = reader.byte(LARGEST_SHIFT), reader.byte(LARGEST_STATE)
        sizes = reader.take(count) if magnitudes is None else magnitudes
        _at_most(max(sizes), LARGEST_MAGNITUDE)
        chosen = [reader.count(len(tables) - 1) for _ in range(CONTEXT_COUNT)]
        if period == 0 or any(len(tables[index].counts) > count for index in chosen):
            raise _damaged()
        return cls(
            period=period,
            shift=shift,
            start=start,
            magnitudes=[size * MAGNITUDE_STEP for size in sizes],
            tables=[tables[index] for index in chosen],
        )


@dataclass(frozen=True)
class _Constant:
    """A constant as the plan describes it; `others` is how values beside `values` are told."""

    count: int
    width: int
    values: list[bytes]
    stream: _Stream | None
    others: list[_Stream | None] | None

    @classmethod
    def read(cls, reader: _Reader, tables: list[_Table], room: int) -> _Constant:
        """Read a constant that has at most `room` bytes."""
        count, coding = reader.count(room), reader.byte(OTHERS)
        if count == 0:
            raise _damaged()
        signed = byte_magnitudes()
        stream: _Stream | None
        if coding == BYTES:
            values = [bytes([value]) for value in range(256)]
            stream = _Stream.read(reader, tables, 256, signed, count)
            return cls(count, 1, values, stream, None)
        width = reader.count(max(WIDTHS))
        if width not in WIDTHS or count * width > room:
            raise _damaged()
        values = []
        if coding != OTHERS:
            values = [reader.take(width) for _ in range(reader.count(256))]
        symbols = len(values) + (coding == VALUES_AND_OTHERS)
        if coding != OTHERS and not (values and symbols <= 256):
            raise _damaged()
        stream = _Stream.read(reader, tables, symbols, None, count) if symbols > 1 else None
        if coding == VALUES:
            return cls(count, width, values, stream, None)
        planes = [
            _Stream.read(reader, tables, 256, signed, count) if reader.byte(1) else None
            for _ in range(width)
        ]
        return cls(count, width, values, stream, planes)


class _Decoder:
    """Turns words and raw bytes into constants; one state runs through all of them."""

    def __init__(self, words: bytes, raw: bytes) -> None:
        if len(words) % 2:
            raise _damaged()
        self._words = struct.unpack(f"<{len(words) // 2}H", words)
        self._raw = raw
        self._raw_at = 0
        self._state, self._position = LEAST_STATE, 0
        if words:
            if len(words) < 4:
                raise _damaged()
            self._state, self._position = self._words[0] << 16 | self._words[1], 2
        if self._state < LEAST_STATE:
            raise _damaged()

    @property
    def is_done(self) -> bool:
        """Whether everything was used up, and the coder is back where the encoder began."""
        return (
            self._state == LEAST_STATE
            and self._position == len(self._words)
            and self._raw_at == len(self._raw)
        )

    def constant(self, constant: _Constant) -> bytes:
        """Return the bytes of the next constant."""
        if constant.stream is None:
            symbols = bytes(constant.count)
        else:
            symbols = self._symbols(constant.stream, constant.count)
        if constant.others is None:
            if constant.width == 1:
                table = b"".join(constant.values)
                return symbols.translate(table + bytes(256 - len(table)))
            return b"".join([constant.values[symbol] for symbol in symbols])
        other = len(constant.values)
        count, width = symbols.count(other), constant.width
        packed = bytearray(count * width)
        for index, stream in enumerate(constant.others):
            packed[index::width] = self._plane(stream, count)
        if count == constant.count:
            return bytes(packed)
        rest = iter([bytes(packed[at : at + width]) for at in range(0, len(packed), width)])
        return b"".join(
            [next(rest) if symbol == other else constant.values[symbol] for symbol in symbols]
        )

    def _plane(self, stream: _Stream | None, count: int) -> bytes:
        if stream is not None:
            return self._symbols(stream, count)
        plane = self._raw[self._raw_at : self._raw_at + count]
        if len(plane) != count:
            raise _damaged()
        self._raw_at += count
        return plane

    def _symbols(self, stream: _Stream, count: int) -> bytes:
        """Return the next symbols; this loop is where the time goes."""
        if count % stream.period:
            raise _damaged()
        tables = [(table.symbols, table.counts, table.firsts) for table in stream.tables]
        magnitudes, shift = stream.magnitudes, stream.shift
        state, position, words = self._state, self._position, self._words
        columns = [stream.start] * stream.period
        result = bytearray(count)
        at = 0
        try:
            for _ in range(count // stream.period):
                before = stream.start
                for column, above in enumerate(columns):
                    symbol_of, counts, firsts = tables[(before + above) >> CONTEXT_SHIFT]
                    slot = state & (SLOTS - 1)
                    symbol = symbol_of[slot]
                    state = counts[symbol] * (state >> SLOT_BITS) + slot - firsts[symbol]
                    if state < LEAST_STATE:
                        state = state << 16 | words[position]
                        position += 1
                    result[at] = symbol
                    at += 1
                    magnitude = magnitudes[symbol]
                    before += (magnitude - before) >> shift
                    columns[column] = above + ((magnitude - above) >> shift)
        except IndexError as error:
            raise _damaged() from error
        self._state, self._position = state, position
        return bytes(result)
