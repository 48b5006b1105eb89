"""The inference runtimes that may be installed on a device, behind one call: open a model, run it once."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Callable

from tightfit_runner.made_up import made_up

_MODULES = (
    # runtime, module, distribution, format
    ("litert", "ai_edge_litert", "ai-edge-litert", "tflite"),
    ("litert", "tflite_runtime", "tflite-runtime", "tflite"),
    ("onnxruntime", "onnxruntime", "onnxruntime", "onnx"),
)
_ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}

Run = Callable[[], object]


@dataclass(frozen=True)
class InstalledRuntime:
    """A runtime that is there."""

    name: str
    version: str
    formats: tuple[str, ...]


def installed() -> tuple[InstalledRuntime, ...]:
    """Return the runtimes that can be imported, one of each name; nothing is loaded."""
    found: dict[str, InstalledRuntime] = {}
    for name, module, distribution, format_ in _MODULES:
        if name in found or importlib.util.find_spec(module) is None:
            continue
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            version = ""
        found[name] = InstalledRuntime(name, version, (format_,))
    return tuple(found.values())


def open_model(runtime: str, path: Path, threads: int) -> Run:
    """Load a model, fill its inputs and return what runs it once.

    Unknown dimensions are taken as 1; inputs are seeded random numbers, because some kernels are faster
    on zeros.

    Raises:
        ValueError: No such runtime, or an input of a type that cannot be made up.
        Exception: What the runtime raises for files that it does not take.
    """
    if runtime == "litert":
        return _open_litert(path, threads)
    if runtime == "onnxruntime":
        return _open_onnxruntime(path, threads)
    raise ValueError(f"no runtime {runtime!r} is installed")


def load(runtime: str) -> None:
    """Import a runtime, so that its own memory is not counted as the model's."""
    if runtime == "litert":
        _litert()
    elif runtime == "onnxruntime":
        import onnxruntime  # noqa: F401


def onnxruntime_options(threads: int) -> Any:
    """Return how a session runs a model: on so many threads, operator by operator."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options


def onnxruntime_feeds(session: Any) -> dict[str, Any]:
    """Return made-up inputs of a session by name. Raises ValueError for a type that cannot be made up."""
    feeds = {}
    for value in session.get_inputs():
        if value.type not in _ONNX_TYPES:
            raise ValueError(f"input {value.name!r} has the type {value.type}")
        feeds[value.name] = made_up(value.shape, _ONNX_TYPES[value.type])
    return feeds


def _litert() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    return Interpreter


def _open_litert(path: Path, threads: int) -> Run:
    interpreter = _litert()(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], made_up(detail["shape"].tolist(), detail["dtype"]))
    run: Run = interpreter.invoke
    return run


def _open_onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), sess_options=onnxruntime_options(threads), providers=["CPUExecutionProvider"]
    )
    feeds = onnxruntime_feeds(session)

    def run() -> object:
        return session.run(None, feeds)

    return run
