"""torch.export archives in: rebuilt without unpickling, translated to ONNX, proven against torch."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import onnx_ir
import onnxscript.optimizer
import torch
from onnx import ModelProto
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from tightfit_service.adapters.formats.onnx_execution import relative_difference, run_working
from tightfit_service.adapters.formats.onnx_import import PARITY_LIMIT, OnnxImporter
from tightfit_service.adapters.formats.pt2_archive import read_archive
from tightfit_service.adapters.formats.pt2_batch import with_free_batch
from tightfit_service.adapters.formats.pt2_program import Program, build_program
from tightfit_service.application.ports import ImportedModel
from tightfit_service.application.samples import FloatArray
from tightfit_service.domain.errors import InvalidModelError, ParityError
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.graph.model_file import (
    DEFAULT_LIMITS,
    ModelLimits,
    invalid,
    load_model,
    save_model,
    shown,
)
from tightfit_service.graph.structure import Array, first_line, graph_outputs

_EXPORTED_OPSET = 18
"""The oldest that torch's translation writes."""
_SCOPES = "pkg.torch.onnx.name_scopes"
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
_COMPARED_SAMPLES = 2
_TORCH_LOCK = threading.Lock()
"""torch's exporter keeps global state."""


class Pt2Importer:
    """Implements `application.ports.ModelImporter` for `.pt2` files of torch.export; thread-safe.

    Nothing of an archive is unpickled or executed but ATen operators on tensors. Hostile operators
    can still crash torch's kernels: such files belong into a process with limits.
    """

    def __init__(self, *, limits: ModelLimits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._onnx = OnnxImporter(limits=limits)

    def import_model(self, data: bytes) -> ImportedModel:
        """Check, translate and normalise a program, and compare it with torch on two random samples.

        Raises:
            InvalidModelError: Anything about the file that cannot be used, with the remedy.
        """
        program = self._program(data)
        translated = _translated(program)
        imported = self._onnx.import_model(save_model(translated))
        rng = np.random.default_rng(0)
        samples = [
            rng.uniform(0.0, 1.0, (_COMPARED_SAMPLES, *item.shape[1:])).astype(np.float32)
            for item in imported.inputs
        ]
        try:
            _compared(program, imported.graph, samples)
        except ParityError as error:
            raise invalid(error.message, remedy=error.remedy) from error
        found = list(imported.warnings)
        if program.device:
            found.append(f"the program was exported on {program.device} and is read as one on CPU")
        return dataclasses.replace(imported, source_format=ModelFormat.PT2, warnings=tuple(found))

    def check_parity(self, original: bytes, graph: bytes, inputs: Sequence[FloatArray]) -> float:
        """Run the program in torch and the graph in onnxruntime; return the largest relative difference.

        `inputs` holds one batch of float32 values per model input, in order. Differences are
        relative to the largest absolute value of each output.

        Raises:
            InvalidModelError: One of the two does not run.
            ParityError: They differ by more than float32 rounding explains; says where and how much.
        """
        return _compared(self._program(original), graph, inputs)

    def _program(self, data: bytes) -> Program:
        archive = read_archive(data, limits=self._limits)
        try:
            with _TORCH_LOCK, _quiet():
                program = build_program(archive, limits=self._limits)
        except InvalidModelError:
            raise
        except Exception as error:
            # torch's deserializer and verifier raise whatever their asserts and lookups do.
            raise invalid(
                f"torch cannot rebuild the program: {first_line(error)}",
                remedy="check that torch.export.load(path) reads the file, and export it again",
            ) from error
        if not program.input_shapes:
            raise invalid("the model has no inputs", remedy="export the model with its inputs")
        return program


def _translated(program: Program) -> ModelProto:
    """Return the program as ONNX, its nodes named by the paths of the modules they come from."""
    try:
        with _TORCH_LOCK, _quiet():
            written = torch.onnx.export(
                _with_free_batch(program),
                (),
                dynamo=True,
                input_names=program.input_names,
                opset_version=_EXPORTED_OPSET,
                # The optimizer folds BatchNorm, which recovery training still needs.
                optimize=False,
                verbose=False,
            )
            translated = cast("ONNXProgram", written).model
            onnxscript.optimizer.fold_constants(translated, onnx_shape_inference=True)
            RemoveUnusedNodesPass()(translated)
            model = onnx_ir.to_proto(translated)
    except Exception as error:
        # The translation raises whatever its parts do; the first line names operator and node.
        raise invalid(
            f"torch cannot translate the program to ONNX: {_cause(error)}",
            remedy="export the network with standard operators, or send it as ONNX",
        ) from error
    _name_nodes(model)
    return model


def _with_free_batch(program: Program) -> ExportedProgram:
    """Return the program with a free batch; as it came, where its batch is not 1 or cannot be freed."""
    if not program.is_for_one_sample:
        return program.exported
    try:
        return with_free_batch(program.exported)
    except Exception:  # noqa: BLE001 - what torch's tracing raises is not documented
        # The import of the ONNX graph tries again, and tells what stands against it.
        return program.exported


def _cause(error: Exception) -> str:
    """Return the first line of the innermost error, which says what is wrong."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(error)


def _name_nodes(model: ModelProto) -> None:
    """Name nodes `module.path/operator`; in one path, equal operators are numbered in order."""
    seen: dict[str, int] = {}
    for index, node in enumerate(model.graph.node):
        noted = {item.key: item.value for item in node.metadata_props}.get(_SCOPES, "")
        # A list of paths from the root to the module, and the name of the operator at its end.
        paths = [item.replace("\\", "") for item in re.findall(r"'([^']*)'", noted)][:-1]
        stem = "/".join(item for item in (paths[-1] if paths else "", node.op_type) if item)
        seen[stem] = seen.get(stem, 0) + 1
        node.name = stem if seen[stem] == 1 else f"{stem}_{seen[stem]}"
        if not paths and not noted:
            node.name = f"{node.op_type}_{index}"


def _compared(program: Program, graph: bytes, inputs: Sequence[FloatArray]) -> float:
    """Return the largest relative difference between the outputs of program and working graph."""
    if len(inputs) != len(program.input_shapes):
        raise invalid(
            f"the model has {len(program.input_shapes)} inputs, {len(inputs)} were given",
            remedy="give one array per input",
        )
    working = load_model(graph)
    try:
        found = run_working(working, inputs)
        expected = _run(program, inputs)
    except Exception as error:
        # torch raises whatever its parts do on a program that contradicts itself.
        raise invalid(
            f"the model does not run on these inputs: {first_line(error)}",
            remedy="check that torch runs the exported program on inputs of the declared shape",
        ) from error
    if len(expected) != len(found):
        raise invalid(
            f"the program returns {len(expected)} tensors, {len(found)} of them different",
            remedy="let forward() return each tensor once",
        )
    worst = 0.0
    for name, reference, value in zip(graph_outputs(working), expected, found, strict=True):
        if reference.shape != value.shape:
            raise ParityError(
                f"output {shown(name)} of the imported graph has shape {value.shape}, the "
                f"program's has {reference.shape}",
                field="model",
                remedy="export the model with a free (dynamic) batch axis",
            )
        difference = relative_difference(reference, value)
        if difference > PARITY_LIMIT:
            raise ParityError(
                f"output {shown(name)} of the imported graph differs from the program's by "
                f"{difference:.3g} of its largest value (at most {PARITY_LIMIT:g} is rounding)",
                field="model",
                remedy="report the model; one exported as ONNX may import correctly",
            )
        worst = max(worst, difference)
    return worst


def _run(program: Program, inputs: Sequence[FloatArray]) -> list[Array]:
    """Return the outputs of the program: sample by sample where its batch is fixed at 1."""
    with _TORCH_LOCK, _quiet(), torch.no_grad():
        module = program.exported.module()
        size = 1 if program.is_for_one_sample else len(inputs[0])
        parts = [
            module(*(torch.from_numpy(x[start : start + size].copy()) for x in inputs))
            for start in range(0, len(inputs[0]), size)
        ]
    return [
        np.concatenate([part.numpy() for part in output]) for output in zip(*parts, strict=True)
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's notes about its own insides out of the log."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [item.level for item in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for item in loggers:
            item.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for item, level in zip(loggers, levels, strict=True):
                item.setLevel(level)
