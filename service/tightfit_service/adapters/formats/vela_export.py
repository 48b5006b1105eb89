"""Compiler of TFLite files for Ethos-U: Vela's file beside the one it was made of, checked against it.

Nothing here executes the compiled file: it holds commands for the processor in one custom operator. What it
computes is what the file computes that it was made of, as far as its kernels are the reference ones: Arm
tests that the operators of Ethos-U agree bit by bit with TensorFlow Lite's reference kernels (README of Vela
3.12, "TensorFlow Support", https://review.mlplatform.org/plugins/gitiles/ml/ethos-u/ethos-u-vela/).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.emulators.tflite_operators import NPU_CODE
from tightfit_service.adapters.emulators.vela import VelaCompiler
from tightfit_service.adapters.emulators.vela_report import VelaReport
from tightfit_service.adapters.formats.file_set import join_files, split_files
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.application.ports import ExportedModel
from tightfit_service.domain.errors import ParityError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat

COMPILED_NAME = "model_vela.tflite"
SOURCE_NAME = "model.tflite"

_IDENTIFIER = b"TFL3"
_IDENTIFIER_PLACE = slice(4, 8)
_BROKEN = (struct.error, TypeError, ValueError, IndexError, KeyError, AttributeError)


class VelaFileCompiler:
    """Compiles TFLite files by Vela (`ports.FileCompiler`).

    The result is an archive of `model_vela.tflite`, which goes onto the device and is what counts as
    size, and `model.tflite`, which it was made of and which accuracy is measured on. Vela takes the
    metadata over.
    """

    def __init__(self, *, vela: VelaCompiler) -> None:
        """Keep the compiler."""
        self._vela = vela

    @property
    def source_format(self) -> ModelFormat:
        """Format of the files that it compiles."""
        return ModelFormat.TFLITE

    def compile(self, exported: ExportedModel, target: HardwareSpec) -> ExportedModel:
        """Compile a file for the target's Ethos-U, configured as its estimates are.

        Raises:
            InvalidModelError: Vela does not compile the file.
            ParityError: The compiled file has other inputs or outputs, or nothing for Ethos-U.
            UnsupportedError: The target has no Ethos-U that Vela knows, Vela is not installed, or
                no operator of the file runs on Ethos-U.
        """
        report = self._vela.compile(exported.data, target)
        compiled = check_compiled(exported.data, report.compiled)
        return replace(
            exported,
            data=join_files({COMPILED_NAME: report.compiled, SOURCE_NAME: exported.data}),
            format=ModelFormat.VELA,
            device_bytes=len(report.compiled),
            notes=(*exported.notes, *_notes(compiled, report, target)),
        )


def source_in(data: bytes) -> bytes:
    """Return the file that was compiled, from an archive that `VelaFileCompiler` wrote.

    Raises:
        InvalidModelError: Not such an archive.
    """
    return split_files(data, (COMPILED_NAME, SOURCE_NAME))[SOURCE_NAME]


def check_compiled(source: bytes, compiled: bytes) -> TfliteFile:
    """Return a compiled file, read; inputs and outputs are those of its source.

    Raises:
        ParityError: It is no TFLite file, has no operator of Ethos-U, or has other inputs or
            outputs: their number, a shape, a type, a scale or a zero point.
    """
    try:
        if compiled[_IDENTIFIER_PLACE] != _IDENTIFIER:
            raise ValueError("no TFLite file")
        file = TfliteFile(compiled)
    except _BROKEN as error:
        raise _wrong("is no TFLite file") from error
    if NPU_CODE not in [code.customCode for code in file.model.operatorCodes]:
        raise _wrong("has no operator of Ethos-U")
    given = TfliteFile(source)
    for side in ("inputs", "outputs"):
        expected, found = _tensors(given, side), _tensors(file, side)
        if len(expected) != len(found):
            raise _wrong(f"has {len(found)} {side} instead of {len(expected)}")
        for place, (before, after) in enumerate(zip(expected, found, strict=True)):
            if _signature(before) != _signature(after):
                raise _wrong(
                    f"has {_words(after)} as {side[:-1]} {place} instead of {_words(before)}"
                )
    return file


def _notes(compiled: TfliteFile, report: VelaReport, target: HardwareSpec) -> Iterator[str]:
    yield (
        f"accuracy is that of {SOURCE_NAME}, which was compiled: nothing here executes {COMPILED_NAME}, "
        "and Arm tests that what Vela makes computes the same bits as TensorFlow Lite's reference kernels"
    )
    yield (
        f"Vela's own figures of {COMPILED_NAME}: {report.latency_ms:.3g} ms on "
        f"{target.accelerator.name if target.accelerator else 'Ethos-U'}, {report.ram_bytes:.0f} bytes "
        f"of RAM, {report.flash_bytes:.0f} bytes of constants and commands in flash; it was told to keep "
        f"within {target.memory.ram_bytes} bytes of RAM"
    )
    left = Counter(name for item in compiled.graph.operators if (name := _on_core(compiled, item)))
    if left:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(left.items()))
        yield f"operators that stay on the {target.core}: {listed}"
    room = target.memory.flash_bytes
    if len(report.compiled) > room:
        yield f"{COMPILED_NAME} takes {len(report.compiled)} bytes, and the flash has {room}"


def _on_core(file: TfliteFile, operator: Any) -> str:
    """Return the name of an operator that Ethos-U does not run, empty for its own."""
    code = file.model.operatorCodes[operator.opcodeIndex]
    if code.customCode == NPU_CODE:
        return ""
    return (
        code.customCode.decode(errors="replace")
        if code.customCode
        else file.operator_name(operator)
    )


def _tensors(file: TfliteFile, side: str) -> Sequence[Any]:
    return [file.graph.tensors[index] for index in getattr(file.graph, side)]


def _signature(tensor: Any) -> tuple[Any, ...]:
    quantization = tensor.quantization
    return (
        _numbers(tensor.shape),
        int(tensor.type),
        _numbers(quantization.scale if quantization else None),
        _numbers(quantization.zeroPoint if quantization else None),
    )


def _numbers(values: Any) -> tuple[float, ...]:
    return () if values is None else tuple(np.asarray(values).ravel().tolist())


def _words(tensor: Any) -> str:
    shape, kind, scales, zero_points = _signature(tensor)
    names = {value: name for name, value in vars(schema.TensorType).items()}
    return (
        f"{names.get(kind, kind)} {list(shape)} of scale {list(scales)}, zero {list(zero_points)}"
    )


def _wrong(what: str) -> ParityError:
    return ParityError(
        f"the file that Vela compiled {what}",
        field="output_format",
        remedy="export as tflite, and report it with the version of Vela",
    )
