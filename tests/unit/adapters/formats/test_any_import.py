"""Files are told apart by what they start with; those of no use are named, with what to send instead."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fakes.networks import NETWORKS
from fakes.tflite_operators import OPERATORS
from tightfit_service.adapters.formats.any_import import AnyImporter, recognised_format
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.formats.tflite_import import TfliteImporter
from tightfit_service.application.ports import ImportedModel
from tightfit_service.application.samples import FloatArray
from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.domain.hardware import ModelFormat

importer = AnyImporter({ModelFormat.ONNX: OnnxImporter(), ModelFormat.TFLITE: TfliteImporter()})


class Pt2Importer:
    """Stands for the importer of exported programs."""

    def import_model(self, data: bytes) -> ImportedModel:
        raise LookupError(len(data))

    def check_parity(self, original: bytes, graph: bytes, inputs: Sequence[FloatArray]) -> float:
        return 0.25


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as writer:
        for name in names:
            writer.writestr(name, b"contents")
    return file.getvalue()


def checkpoint(*, legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (NETWORKS["mlp"](0).SerializeToString(), ModelFormat.ONNX),
        (OPERATORS["dense"](), ModelFormat.TFLITE),
    ],
    ids=["onnx", "tflite"],
)
def test_each_format_goes_to_its_importer(data: bytes, expected: ModelFormat) -> None:
    model = importer.import_model(data)
    assert model.source_format is expected
    rng = np.random.default_rng(0)
    inputs = [rng.uniform(0, 1, (2, *i.shape[1:])).astype(np.float32) for i in model.inputs]
    assert importer.check_parity(data, model.graph, inputs) < 1e-5


def test_archives_of_exported_programs_go_to_theirs() -> None:
    chosen = AnyImporter({ModelFormat.PT2: Pt2Importer()})
    data = archive("net/models/model.json", "net/data/weights/w.pt", "net/byteorder")
    assert recognised_format(data) is ModelFormat.PT2
    with pytest.raises(LookupError):
        chosen.import_model(data)
    assert chosen.check_parity(data, b"", []) == 0.25


def test_formats_without_an_importer_are_named_with_those_that_are_offered() -> None:
    with pytest.raises(InvalidModelError, match="a pt2 model") as caught:
        importer.import_model(archive("net/models/model.json"))
    assert caught.value.remedy == "send one of: onnx, tflite"
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    ("data", "what", "remedy"),
    [
        (b"", "empty", "upload the whole file"),
        (checkpoint(legacy=True), "a Python pickle", "torch.onnx.export"),
        (checkpoint(legacy=False), "a PyTorch checkpoint", "torch.onnx.export"),
        (pickle.dumps([1], protocol=4), "a Python pickle", "torch.onnx.export"),
        (archive("net/constants.pkl", "net/data.pkl"), "TorchScript", "torch.onnx.export"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "Keras", "from_keras_model"),
        (archive("config.json", "model.weights.h5"), "a Keras model", "from_keras_model"),
        (b"\x08\x01\x12\x90\x05\x0a\x20\x12\x05serve", "SavedModel", "from_saved_model"),
        (archive("net/saved_model.pb"), "SavedModel", "from_saved_model"),
        (archive("a")[:-8], "damaged or truncated zip", "torch.export.save"),
        (b"\x30\x00\x00\x00ET12" + b"\0" * 64, "ExecuTorch", "the .pt2 or ONNX"),
        (b"\x1f\x8b\x08" + b"\0" * 64, "gzip", "inside it"),
        (b"<?xml version='1.0'?><net/>", "XML", "ONNX or TFLite"),
        (b"hello, this is no model at all", "not an ONNX model", ""),
    ],
    # bytes do not name a test: an archive has the time in it
    ids=[
        "nothing",
        "old checkpoint",
        "checkpoint",
        "pickle",
        "TorchScript",
        "HDF5",
        "Keras",
        "SavedModel file",
        "SavedModel archive",
        "half an archive",
        "ExecuTorch",
        "gzip",
        "XML",
        "text",
    ],
)
def test_other_files_are_named(data: bytes, what: str, remedy: str) -> None:
    with pytest.raises(InvalidModelError) as caught:
        importer.import_model(data)
    assert what in caught.value.message
    assert caught.value.field == "model"
    assert caught.value.remedy
    assert remedy in caught.value.remedy
