"""Tests of reading metadata out of model files, against files that the service's libraries write."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import helper

from fakes.tflite_files import TfliteBuilder
from tightfit.errors import InvalidInputError
from tightfit.model_metadata import COMPRESSED, read_metadata
from tightfit_service.adapters.formats.tflite_file import TfliteFile

FACTS = {"tightfit.seed": "7", "tightfit.recipe": json.dumps({"steps": ["\u00e9"] * 50})}


def onnx_file(facts: dict[str, str]) -> bytes:
    node = helper.make_node("Relu", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, 1, [1, 2]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:]))
    for key, text in facts.items():
        model.metadata_props.add(key=key, value=text)
    return bytes(model.SerializeToString())


def tflite_file(facts: dict[str, str]) -> bytes:
    builder = TfliteBuilder()
    builder.constant(np.zeros((3, 4), dtype=np.float32), dtype="float32")
    builder.graph.inputs, builder.graph.outputs = [], []
    file = TfliteFile.__new__(TfliteFile)
    file.model, file.graph = builder.model, builder.graph
    entries = []
    for name, text in (("other", "x"), ("tightfit", json.dumps(facts))):
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(text.encode(), dtype=np.uint8)
        file.model.buffers.append(buffer)
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, len(file.model.buffers) - 1
        entries.append(entry)
    file.model.metadata = entries
    return file.to_bytes()


@pytest.mark.parametrize("write", [onnx_file, tflite_file])
def test_facts_come_back(write: object, tmp_path: Path) -> None:
    assert callable(write)
    path = tmp_path / "model"
    path.write_bytes(write(FACTS))
    assert read_metadata(path) == FACTS
    packed = base64.b64encode(zlib.compress(FACTS["tightfit.recipe"].encode())).decode()
    path.write_bytes(write({**FACTS, "tightfit.recipe": COMPRESSED + packed}))
    assert read_metadata(path) == FACTS


def test_files_of_other_origin_have_none(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_file({}))
    assert read_metadata(tmp_path / "model.onnx") == {}


def test_every_damaged_file_is_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "model"
    rng = np.random.default_rng(0)
    refused = 0
    for whole in (onnx_file(FACTS), tflite_file(FACTS)):
        for length in range(0, len(whole), 7):
            damaged = bytearray(whole[:length])
            if length:
                damaged[int(rng.integers(length))] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                read_metadata(path)
            except InvalidInputError:
                refused += 1
    assert refused > 50


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"not a model, but a long text")
    with pytest.raises(InvalidInputError, match="no TFLite or ONNX file"):
        read_metadata(tmp_path / "text")
    with pytest.raises(InvalidInputError, match="cannot read"):
        read_metadata(tmp_path / "missing")


def test_metadata_matches_what_onnx_itself_reads(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_file(FACTS))
    model = onnx.load_model(path)
    assert read_metadata(path) == {item.key: item.value for item in model.metadata_props}
