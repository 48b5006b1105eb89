"""The importer that tells formats apart by what a file starts with."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence

from tightfit_service.adapters.formats.pt2_archive import open_archive
from tightfit_service.adapters.formats.tflite_reader import is_tflite
from tightfit_service.application.ports import ImportedModel, ModelImporter
from tightfit_service.application.samples import FloatArray
from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.graph.model_file import invalid

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_AS_ONNX = "torch.onnx.export(model, example_inputs, path)"
_FOREIGN: Mapping[bytes, tuple[str, str]] = {
    b"\x80\x02": ("a Python pickle (.pth, .pkl)", f"load it and export the network: {_AS_ONNX}"),
    b"\x80\x03": ("a Python pickle (.pth, .pkl)", f"load it and export the network: {_AS_ONNX}"),
    b"\x80\x04": ("a Python pickle (.pth, .pkl)", f"load it and export the network: {_AS_ONNX}"),
    b"\x80\x05": ("a Python pickle (.pth, .pkl)", f"load it and export the network: {_AS_ONNX}"),
    b"\x89HDF\r\n\x1a\n": (
        "an HDF5 file, such as Keras writes (.h5)",
        "convert it: tf.lite.TFLiteConverter.from_keras_model(model).convert()",
    ),
    b"\x1f\x8b": ("a gzip archive", "send the model file inside it"),
    b"\x93NUMPY": ("a NumPy array", "send the network as ONNX, TFLite or .pt2"),
    b"<?xml": (
        "XML, such as half of an OpenVINO model",
        "send the ONNX or TFLite file it came from",
    ),
    b"\x7fELF": ("a program", "send the network as ONNX, TFLite or .pt2"),
}
"""What other files start with: what they are, and what to send instead."""
_PROGRAM_IDENTIFIERS = (b"ET12", b"ET13")
"""Bytes 4 to 8 of ExecuTorch programs."""
_SAVED_MODEL_TAGS = (b"serve", b"saved_model_main_op", b"__saved_model_init_op")
_SAVED_MODEL_WINDOW = 1 << 16


class AnyImporter:
    """Implements `application.ports.ModelImporter` by handing each file to its format's importer."""

    def __init__(self, importers: Mapping[ModelFormat, ModelImporter]) -> None:
        """Keep the importers; formats without one are refused by name."""
        self._importers = dict(importers)

    def import_model(self, data: bytes) -> ImportedModel:
        """Import a file by the importer of its format.

        Raises:
            InvalidModelError: The file is of no format that there is an importer for; says what it
                is, where that can be told, and what to send instead.
        """
        return self._importer(data).import_model(data)

    def check_parity(self, original: bytes, graph: bytes, inputs: Sequence[FloatArray]) -> float:
        """Compare a file with its working graph by the importer of its format.

        Raises:
            InvalidModelError: The file is of no known format, or does not run.
            ParityError: They differ by more than rounding explains.
        """
        return self._importer(original).check_parity(original, graph, inputs)

    def _importer(self, data: bytes) -> ModelImporter:
        found = recognised_format(data)
        importer = self._importers.get(found)
        if importer is None:
            offered = ", ".join(sorted(self._importers))
            raise invalid(
                f"the file is a {found} model, which is not taken in",
                remedy=f"send one of: {offered}",
            )
        return importer


def recognised_format(data: bytes) -> ModelFormat:
    """Return the format of a model file by its first bytes; what is not recognised may be ONNX.

    Raises:
        InvalidModelError: It is a file of another kind.
    """
    if not data:
        raise invalid("the model file is empty", remedy="upload the whole file")
    if is_tflite(data):
        return ModelFormat.TFLITE
    if data.startswith(_ZIP):
        return _format_of_archive(data)
    for start, (what, remedy) in _FOREIGN.items():
        if data.startswith(start):
            raise _foreign(what, remedy)
    if data[4:8] in _PROGRAM_IDENTIFIERS:
        raise _foreign("an ExecuTorch program (.pte)", "send the .pt2 or ONNX file it came from")
    if data[:1] == b"\x08" and _is_saved_model(data):
        raise _foreign(
            "a TensorFlow SavedModel (saved_model.pb)",
            "convert its folder: tf.lite.TFLiteConverter.from_saved_model(path).convert()",
        )
    return ModelFormat.ONNX


def _format_of_archive(data: bytes) -> ModelFormat:
    """Tell archives of torch.export from those that other tools write."""
    try:
        with open_archive(data) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise invalid(
            "the file is a damaged or truncated zip archive",
            remedy="write the .pt2 file again (torch.export.save) and upload all of it",
        ) from error
    tails = {name.rsplit("/", 1)[-1] for name in names}
    if "config.json" in tails and any(name.endswith(".weights.h5") for name in tails):
        raise _foreign(
            "a Keras model (.keras)",
            "convert it: tf.lite.TFLiteConverter.from_keras_model(model).convert()",
        )
    if "saved_model.pb" in tails:
        raise _foreign(
            "a zipped TensorFlow SavedModel",
            "convert its folder: tf.lite.TFLiteConverter.from_saved_model(path).convert()",
        )
    is_exported = any("models/" in name or "serialized_exported_program" in name for name in names)
    if "constants.pkl" in tails and not is_exported:
        raise _foreign("a TorchScript archive (torch.jit.save)", f"export the network: {_AS_ONNX}")
    if "data.pkl" in tails and not is_exported:
        raise _foreign(
            "a PyTorch checkpoint (torch.save), which holds weights without the network",
            f"load it and export the network: {_AS_ONNX}",
        )
    return ModelFormat.PT2


def _is_saved_model(data: bytes) -> bool:
    """Whether a protobuf message is a SavedModel: schema version 1 (field 1), MetaGraphs (field 2).

    An ONNX file starts with field 1 too, its IR version; its field 2 is the producer's name.
    """
    if data[1:3] != b"\x01\x12":
        return False
    window = data[:_SAVED_MODEL_WINDOW] + data[-_SAVED_MODEL_WINDOW:]
    return any(tag in window for tag in _SAVED_MODEL_TAGS) or b"Placeholder" in window


def _foreign(what: str, remedy: str) -> InvalidModelError:
    return invalid(f"the file is {what}, which is not taken in", remedy=remedy)
