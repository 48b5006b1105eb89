"""Tests of TFLite files as objects: what a round trip keeps, and how constants are laid out."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from fakes.tflite_files import TfliteBuilder, image_sum
from tightfit_service.adapters.formats.tflite_file import TfliteFile


def test_a_round_trip_keeps_the_bytes() -> None:
    data = image_sum((4, 4, 3), np.arange(6).reshape(2, 3))
    assert TfliteFile(data).to_bytes() == data
    assert data[4:8] == b"TFL3"


def test_constants_are_aligned_to_sixteen_bytes() -> None:
    data = image_sum((4, 4, 3), np.arange(6).reshape(2, 3))
    model = schema.Model.GetRootAs(data, 0)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    starts = [item._tab.Vector(item._tab.Offset(4)) for item in buffers if item.DataLength()]
    assert len(starts) == 3
    assert all(start % 16 == 0 for start in starts)


def test_dead_parts_go_and_equal_constants_are_kept_once() -> None:
    builder = TfliteBuilder()
    source = builder.tensor([1, 2])
    used = builder.dense(builder.dense(source, np.eye(2)), np.eye(2))
    builder.dense(source, np.full((7, 2), 3.0))
    file = TfliteFile(builder.build([source], [used]))
    before = len(file.to_bytes())
    file.remove_dead()
    assert len(file.operators("FULLY_CONNECTED")) == 2
    # The empty buffer, one matrix, one bias.
    assert len(file.model.buffers) == 3
    assert len(file.to_bytes()) < before


def test_constants_behind_the_flatbuffer_are_read() -> None:
    file = TfliteFile(image_sum((4, 4, 3), np.arange(6).reshape(2, 3)))
    weights = file.operators("FULLY_CONNECTED")[0].inputs[1]
    buffer = file.model.buffers[file.graph.tensors[weights].buffer]
    values = bytes(buffer.data)
    plain = file.to_bytes()
    buffer.data = None
    stub = file.to_bytes()
    builder_offset = len(stub) + 64
    moved = TfliteFile(stub)
    entry = moved.model.buffers[moved.graph.tensors[weights].buffer]
    entry.offset, entry.size = builder_offset, len(values)
    import flatbuffers  # type: ignore[import-untyped]  # ships no types

    packer = flatbuffers.Builder(1024)
    packer.Finish(moved.model.Pack(packer), file_identifier=b"TFL3")
    outside = bytes(packer.Output())
    padded = outside + b"\0" * (builder_offset - len(outside)) + values
    assert TfliteFile(padded).to_bytes() == plain
