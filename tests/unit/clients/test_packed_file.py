"""Tests of the decoder of packed files: what the format says by hand, and hostile bytes."""

from __future__ import annotations

import hashlib
import lzma
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.networks import NETWORKS
from tightfit.errors import (
    IntegrityError,
    InvalidInputError,
    ResourceExhaustedError,
    TightfitError,
)
from tightfit.packed_file import (
    HEADER,
    LZMA_FILTERS,
    SLOTS,
    byte_magnitudes,
    frequencies,
    is_packed,
    unpack,
)
from tightfit_service.adapters.formats.packed import pack
from tightfit_service.domain.hardware import ModelFormat

NETWORK = NETWORKS["plain_cnn"](0).SerializeToString()
PACKED = pack(NETWORK, ModelFormat.ONNX)
LIMIT = 1 << 20


def handmade(
    original: bytes,
    *,
    plan: bytes = b"\x00\x00",
    rest: bytes | None = None,
    words: bytes = b"",
    raw: bytes = b"",
    digest: bytes | None = None,
) -> bytes:
    """A packed file written from the description of the format, without the service's encoder."""
    rest = original if rest is None else rest
    text = lzma.compress(plan + rest, lzma.FORMAT_RAW, filters=LZMA_FILTERS)
    head = struct.pack(
        "<4sBBHI32s5I",
        b"TFPK", 1, 0, 0, len(original), digest or hashlib.sha256(original).digest(),
        len(plan), len(rest), len(text), len(words), len(raw),
    )  # fmt: skip
    return head + text + words + raw


def test_a_file_without_constants_is_its_rest() -> None:
    assert unpack(handmade(b"any bytes at all")) == b"any bytes at all"
    assert unpack(handmade(b"")) == b""


def test_raw_planes_are_woven_together() -> None:
    # one constant behind 2 bytes: 3 values of 2 bytes, others only, both planes raw
    plan = bytes([0, 1, 2, 3, 3, 2, 0, 0])
    packed = handmade(b"ab" + b"1a2b3c" + b"z", plan=plan, rest=b"abz", raw=b"123abc")
    assert unpack(packed) == b"ab1a2b3cz"


def test_a_single_value_needs_no_stream() -> None:
    plan = bytes([0, 1, 0, 5, 1, 2, 1]) + b"xy"
    assert unpack(handmade(b"xy" * 5, plan=plan, rest=b"")) == b"xy" * 5


def test_symbols_come_out_of_the_coder() -> None:
    # Two equally likely symbols: each is one bit of the state. Encoded here as the paper has it,
    # from the last symbol to the first, in whole numbers and without renormalisation in between.
    symbols = [1, 0, 1, 1, 0, 0, 1, 0]
    state = 1 << 16
    words: list[int] = []
    for symbol in reversed(symbols):
        if state >= (SLOTS // 2) << 18:
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // 8192) * SLOTS + state % 8192 + 8192 * symbol
    words += [state & 0xFFFF, state >> 16]
    body = struct.pack(f"<{len(words)}H", *words[::-1])
    table = bytes([1, 2, 1, 1])
    stream = bytes([4, 3, 0, 0, 1]) + bytes(33)
    plan = table + bytes([1, 0, 8, 1, 1, 2]) + b"NY" + stream
    original = bytes(b"NY"[symbol] for symbol in symbols)
    assert unpack(handmade(original, plan=plan, rest=b"", words=body)) == original


def test_frequencies_fill_all_slots_in_proportion() -> None:
    slots = frequencies(bytes([9, 0, 5, 1]))
    assert sum(slots) == SLOTS
    assert slots[1] == 0
    assert slots[0] / slots[2] == pytest.approx(2, rel=0.01)
    assert slots[2] / slots[3] == pytest.approx(2, rel=0.01)
    assert frequencies(bytes([1])) == [SLOTS]
    assert min(frequencies(bytes([64] + [1] * 255))) == 1


def test_magnitudes_of_bytes_are_those_of_int8() -> None:
    numbers = np.arange(256, dtype=np.uint8).view(np.int8).astype(int)
    expected = [0 if n == 0 else int(np.floor(np.log2(abs(n)))) + 1 for n in numbers]
    assert list(byte_magnitudes()) == expected


def test_what_is_packed_is_recognised() -> None:
    assert is_packed(PACKED)
    assert not is_packed(NETWORK)
    assert not is_packed(b"")


def test_other_files_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="not a packed model file"):
        unpack(NETWORK)


def test_a_later_version_is_named() -> None:
    with pytest.raises(InvalidInputError, match="version 9") as caught:
        unpack(PACKED[:4] + b"\x09" + PACKED[5:])
    assert "update" in caught.value.remedy


def test_a_wrong_digest_is_told() -> None:
    with pytest.raises(IntegrityError, match="sha-256"):
        unpack(handmade(b"abc", digest=bytes(32)))


def test_large_originals_are_refused_before_anything_is_unpacked() -> None:
    with pytest.raises(ResourceExhaustedError, match=str(len(NETWORK))):
        unpack(PACKED, limit_bytes=len(NETWORK) - 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"plan": bytes([0, 1, 0, 3, 3, 1, 0]), "rest": b"", "raw": b"ab"},  # raw bytes missing
        {"plan": bytes([0, 1, 0, 3, 3, 1, 0]), "rest": b"", "raw": b"abcd"},  # raw bytes left
        {"plan": b"\x00\x00\x00"},  # plan left
        {"plan": b"\x00"},  # plan short
        {"plan": bytes([0, 1, 9, 3, 3, 1, 0]), "rest": b"", "raw": b"abc"},  # outside the rest
        {"plan": bytes([0, 1, 0, 4, 3, 1, 0]), "rest": b"", "raw": b"abcd"},  # longer than declared
        {"plan": bytes([0, 1, 0, 1, 3, 3, 0, 0, 0]), "rest": b"", "raw": b"abc"},  # no such width
        {"plan": bytes([0, 1, 0, 3, 7, 1, 0]), "rest": b"", "raw": b"abc"},  # no such coding
        {
            "plan": bytes([0, 1, 0, 3, 1, 1, 2]) + b"ab" + bytes([3, 0, 0, 0, 0]) + bytes(33),
            "rest": b"",
        },  # no tables
        {"plan": bytes([1, 1, 99, 0])},  # no such level
        {"plan": bytes([1, 0, 0])},  # empty table
        {"plan": b"\xff" * 12},  # endless number
        {"words": b"\x02\x00\x00\x00"},  # words left
        {"words": b"\x01"},  # half a word
        {"rest": b"abcd"},  # more rest than original
    ],
)
def test_contradictions_are_damage(fields: dict[str, bytes]) -> None:
    with pytest.raises(InvalidInputError, match="damaged"):
        unpack(handmade(b"abc", **fields))


def test_an_lzma_bomb_is_cut_off() -> None:
    text = lzma.compress(bytes(20 << 20), lzma.FORMAT_RAW, filters=LZMA_FILTERS)
    head = HEADER.pack(b"TFPK", 1, 0, 0, 100, bytes(32), 2, 100, len(text), 0, 0)
    with pytest.raises(InvalidInputError, match="damaged"):
        unpack(head + text)


@given(end=st.integers(0, len(PACKED) - 1))
@settings(max_examples=60, deadline=None)
def test_truncated_files_are_refused(end: int) -> None:
    with pytest.raises(InvalidInputError):
        unpack(PACKED[:end])


@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(PACKED) - 1), st.integers(1, 255)), min_size=1, max_size=4
    )
)
@settings(max_examples=150, deadline=None)
def test_changed_bytes_never_pass_and_never_crash(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(PACKED)
    for position, value in changes:
        damaged[position] ^= value
    try:
        restored = unpack(bytes(damaged), limit_bytes=LIMIT)
    except TightfitError:
        return
    # changes that undo one another, or of bytes that carry nothing, such as the kind
    assert restored == NETWORK


@given(plan=st.binary(max_size=200), words=st.binary(max_size=40), raw=st.binary(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_plan_is_followed_or_refused(plan: bytes, words: bytes, raw: bytes) -> None:
    packed = handmade(bytes(600), plan=plan, rest=b"", words=words, raw=raw)
    with pytest.raises(TightfitError):
        unpack(packed, limit_bytes=LIMIT)
