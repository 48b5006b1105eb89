"""Conversions of networks to TFLite, each made once for all tests of a run: one takes seconds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from onnx import ModelProto

from tightfit_service.adapters.formats import tflite_convert
from tightfit_service.adapters.formats.tflite_file import TfliteFile

Convert = Callable[[ModelProto], TfliteFile]


def converting_once(folder: Path) -> Convert:
    """Return `tflite_convert.convert` with a folder to keep what it made in, which processes may share."""

    def convert(model: ModelProto) -> TfliteFile:
        kept = folder / hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        if not kept.exists():
            made = tflite_convert.convert(model)
            turned = json.dumps(sorted(made.channels_last_outputs)).encode()
            being_written = kept.with_name(f"{kept.name}.{os.getpid()}")
            being_written.write_bytes(turned + b"\n" + made.to_bytes())
            being_written.replace(kept)
        turned, data = kept.read_bytes().split(b"\n", 1)
        file = TfliteFile(data)
        file.channels_last_outputs |= set(json.loads(turned))
        return file

    return convert
