"""What runs in worker processes; the heavy libraries are loaded here and nowhere in the server."""

from __future__ import annotations

from pathlib import Path

from tightfit_service.application.ports import WorkHandler
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.settings import Settings


def run_worker(settings: Settings) -> None:
    """Run units of work until the server closes the channel."""
    from tightfit_service.adapters.execution.worker import serve as serve_units

    serve_units(handler_table(settings))


def pack_file(source: Path, destination: Path) -> tuple[int, int]:
    """Write the packed form of a model file, and return the sizes of both in bytes.

    Raises:
        TightfitError: The file is not what it is called, or too large.
        OSError: A file cannot be read or written.
    """
    from tightfit_service.adapters.formats.packed import pack

    data = source.read_bytes()
    kinds = {".onnx": ModelFormat.ONNX, ".tflite": ModelFormat.TFLITE}
    packed = pack(data, kinds.get(source.suffix.lower(), ModelFormat.EXECUTORCH))
    destination.write_bytes(packed)
    return len(data), len(packed)


def handler_table(settings: Settings) -> dict[str, WorkHandler]:
    """Return everything that a worker can run, by the kind of unit."""
    from tightfit_service.bootstrap.handlers import compose_handlers

    return compose_handlers(settings)
