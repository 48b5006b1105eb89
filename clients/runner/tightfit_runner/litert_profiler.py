"""LiteRT's profiler, which its Python package does not offer: the C interface of its library, by ctypes.

The library of the wheels is the same code as the interpreter's; it exports the functions of
`litert/c/*.h` as `VERS_1.0`. Numbers and structures below are those of these headers. It belongs into a
process of its own: what a future library changes may end it.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tightfit_runner.made_up import made_up

_CPU = 1
"""kLiteRtHwAcceleratorCpu."""
_ONLY_ACCELERATORS, _LEAST_SEVERITY = 24, 25
"""kLiteRtEnvOptionTagAutoRegisterAccelerators, kLiteRtEnvOptionTagMinLoggerSeverity."""
_INTEGER = 2
"""kLiteRtAnyTypeInt."""
_ERRORS = 3
"""LITERT_ERROR, a severity."""
_FOR_WRITING = 1
"""kLiteRtTensorBufferLockModeWrite."""
_OPERATOR, _DELEGATED_OPERATOR = 1 << 1, 1 << 3
"""OPERATOR_INVOKE_EVENT, and DELEGATE_PROFILED_OPERATOR_INVOKE_EVENT for those that a delegate runs."""
_DELEGATE = "Delegate"
"""In the name of the operator that stands for all that a delegate runs."""
_TYPES = {
    1: "float32",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float16",
}
_Pointer = ctypes.c_void_p


class _Value(ctypes.Structure):
    """LiteRtAny; its union is as wide as an integer."""

    _fields_ = (("kind", ctypes.c_int), ("integer", ctypes.c_int64))


class _EnvironmentOption(ctypes.Structure):
    """LiteRtEnvOption."""

    _fields_ = (("tag", ctypes.c_int), ("value", _Value))


class _TensorType(ctypes.Structure):
    """LiteRtRankedTensorType; the rank is in the low seven bits."""

    _fields_ = (
        ("element", ctypes.c_int),
        ("rank_and_mark", ctypes.c_uint32),
        ("dimensions", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.dimensions[: self.rank_and_mark & 0x7F])


class _Event(ctypes.Structure):
    """ProfiledEventData."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start_micros", ctypes.c_uint64),
        ("micros", ctypes.c_uint64),
        ("memory", ctypes.c_size_t * 6),
        ("metadata", ctypes.c_uint64 * 2),
        ("source", ctypes.c_int),
    )


@contextlib.contextmanager
def opened(path: Path, threads: int) -> Iterator[ProfiledModel]:
    """Give a model that tells what its operators took.

    Raises:
        ValueError: There is no such library, or it does not take the model.
    """
    with contextlib.ExitStack() as stack:
        yield ProfiledModel(_library(), path, threads, stack)


class ProfiledModel:
    """A compiled model with its inputs filled."""

    def __init__(
        self, library: ctypes.CDLL, path: Path, threads: int, stack: contextlib.ExitStack
    ) -> None:
        """Load it; use `opened`."""
        self._call, self._stack = _Calls(library), stack
        self._kept: list[Any] = []
        self._environment = self._environment_of_cpu()
        model = self._made("Model", "CreateModelFromFile", self._environment, str(path).encode())
        options = self._options(threads)
        self._compiled = self._made(
            "CompiledModel", "CreateCompiledModel", self._environment, model, options
        )
        number = ctypes.c_size_t()
        self._call("GetMainModelSubgraphIndex", model, ctypes.byref(number))
        graph = self._call.found("GetModelSubgraph", model, number)
        self._inputs = self._buffers(graph, "Input")
        self._outputs = self._buffers(graph, "Output")
        self._profiler = self._call.found("CompiledModelGetProfiler", self._compiled)

    def run(self) -> None:
        """Run once, and remember the events of this run alone."""
        call = self._call
        call("ResetProfiler", self._profiler)
        call("StartProfiler", self._profiler)
        call(
            "RunCompiledModel",
            self._compiled,
            ctypes.c_size_t(0),
            ctypes.c_size_t(len(self._inputs)),
            self._inputs,
            ctypes.c_size_t(len(self._outputs)),
            self._outputs,
        )
        call("StopProfiler", self._profiler)

    def events(self) -> list[tuple[str, int]]:
        """Return the kinds of the operators of the last run, with whole microseconds."""
        count = ctypes.c_int()
        self._call("GetNumProfilerEvents", self._profiler, ctypes.byref(count))
        events = (_Event * count.value)()
        self._call("GetProfilerEvents", self._profiler, count, events)
        named = [
            ((event.tag or b"").decode(errors="replace"), int(event.micros))
            for event in events
            if event.kind in (_OPERATOR, _DELEGATED_OPERATOR)
        ]
        return [(kind, micros) for kind, micros in named if _DELEGATE not in kind]

    def _environment_of_cpu(self) -> _Pointer:
        options = (_EnvironmentOption * 2)(
            _EnvironmentOption(_ONLY_ACCELERATORS, _Value(_INTEGER, _CPU)),
            _EnvironmentOption(_LEAST_SEVERITY, _Value(_INTEGER, _ERRORS)),
        )
        return self._made("Environment", "CreateEnvironment", len(options), options)

    def _options(self, threads: int) -> _Pointer:
        options = self._made("Options", "CreateOptions")
        self._call("SetOptionsHardwareAccelerators", options, _CPU)
        # the payload belongs to this object, so there is nothing to be freed
        release = ctypes.CFUNCTYPE(None, _Pointer)(lambda _: None)
        self._kept.append(release)
        for name, text in (
            (b"runtime_options_string", b"enable_profiling = true\n"),
            (b"xnnpack", b"num_threads = %d\n" % threads),
        ):
            payload = ctypes.create_string_buffer(text)
            self._kept.append(payload)
            opaque = self._call.found(
                "CreateOpaqueOptions", name, ctypes.cast(payload, _Pointer), release
            )
            self._call("AddOpaqueOptions", options, opaque)
        return options

    def _buffers(self, graph: _Pointer, side: str) -> Any:
        """Return the buffers of all inputs, filled, or of all outputs."""
        count = ctypes.c_size_t()
        self._call(f"GetNumSubgraph{side}s", graph, ctypes.byref(count))
        buffers = []
        for place in range(count.value):
            number = ctypes.c_size_t(place)
            tensor = self._call.found(f"GetSubgraph{side}", graph, number)
            kind = _TensorType()
            self._call("GetRankedTensorType", tensor, ctypes.byref(kind))
            needs = self._call.found(
                f"GetCompiledModel{side}BufferRequirements",
                self._compiled,
                ctypes.c_size_t(0),
                number,
            )
            buffer = self._made(
                "TensorBuffer",
                "CreateManagedTensorBufferFromRequirements",
                self._environment,
                ctypes.byref(kind),
                needs,
            )
            if side == "Input":
                self._fill(buffer, kind)
            buffers.append(buffer)
        return (_Pointer * len(buffers))(*(buffer.value for buffer in buffers))

    def _fill(self, buffer: _Pointer, kind: _TensorType) -> None:
        if kind.element not in _TYPES:
            raise ValueError(f"inputs of LiteRT's type {kind.element} cannot be made up")
        data = np.ascontiguousarray(made_up(kind.shape, _TYPES[kind.element])).tobytes()
        size = ctypes.c_size_t()
        self._call("GetTensorBufferPackedSize", buffer, ctypes.byref(size))
        if size.value != len(data):
            raise ValueError(f"an input of {size.value} bytes has the shape {kind.shape}")
        place = _Pointer()
        self._call("LockTensorBuffer", buffer, ctypes.byref(place), _FOR_WRITING)
        assert place.value is not None
        ctypes.memmove(place.value, data, len(data))
        self._call("UnlockTensorBuffer", buffer)

    def _made(self, what: str, function: str, *arguments: Any) -> _Pointer:
        """Return an object of the library, which goes when the model does."""
        made = self._call.found(function, *arguments)
        self._stack.callback(self._call.release, f"Destroy{what}", made)
        return made


class _Calls:
    """Calls functions of the library, and raises what they answer."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function. Raises ValueError if it fails."""
        status = self._function(name)(*arguments)
        if status != 0:
            raise ValueError(f"LiteRt{name} answers {status}")

    def found(self, name: str, *arguments: Any) -> _Pointer:
        """Return the object that a function hands out through its last argument."""
        result = _Pointer()
        self(name, *arguments, ctypes.byref(result))
        return result

    def release(self, name: str, item: _Pointer) -> None:
        """Give an object back."""
        self._function(name)(item)

    def _function(self, name: str) -> Any:
        try:
            return getattr(self._library, f"LiteRt{name}")
        except AttributeError:
            raise ValueError(f"this LiteRT has no LiteRt{name}") from None


def _library() -> ctypes.CDLL:
    try:
        import ai_edge_litert

        return ctypes.CDLL(str(Path(ai_edge_litert.__file__).with_name("libLiteRt.so")))
    except (ImportError, OSError) as error:
        raise ValueError(f"this LiteRT has no library with a profiler: {error}") from error
