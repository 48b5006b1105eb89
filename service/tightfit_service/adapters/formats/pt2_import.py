"""torch.export archives in: rebuilt without unpickling, translated to ONNX, proven against torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from tightfit_service.adapters.formats.departure import departure
from tightfit_service.adapters.formats.onnx_execution import (
    LIBRARY_ERRORS,
    relative_difference,
    run_working,
)
from tightfit_service.adapters.formats.onnx_import import BATCH_WAS_FIXED, OnnxImporter
from tightfit_service.adapters.formats.onnx_proof import PARITY_LIMIT
from tightfit_service.adapters.formats.pt2_archive import read_archive
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
from tightfit_service.graph.structure import first_line, graph_outputs

if TYPE_CHECKING:
    from tightfit_service.adapters.formats.pt2_program import Program

# pt2_translate loads torch's exporters, which takes seconds: only workers that get a .pt2 file wait.

_COMPARED_SAMPLES = 2


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
        from tightfit_service.adapters.formats.pt2_translate import translate

        program = self._program(data)
        imported = self._onnx.import_model(save_model(translate(program)))
        rng = np.random.default_rng(0)
        samples = [
            rng.uniform(0.0, 1.0, (_COMPARED_SAMPLES, *item.shape[1:])).astype(np.float32)
            for item in imported.inputs
        ]
        try:
            _compared(program, imported.graph, samples)
        except ParityError as error:
            raise invalid(error.message, remedy=error.remedy) from error
        found = [item for item in imported.warnings if item != BATCH_WAS_FIXED]
        if program.is_for_one_sample:
            found.append(BATCH_WAS_FIXED)
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
        from tightfit_service.adapters.formats.pt2_translate import rebuild

        return rebuild(archive, limits=self._limits)


def _compared(program: Program, graph: bytes, inputs: Sequence[FloatArray]) -> float:
    """Return the largest relative difference between the outputs of program and working graph."""
    if len(inputs) != len(program.input_shapes):
        raise invalid(
            f"the model has {len(program.input_shapes)} inputs, {len(inputs)} were given",
            remedy="give one array per input",
        )
    from tightfit_service.adapters.formats.pt2_translate import run_program

    working = load_model(graph)
    try:
        found = run_working(working, inputs)
    except LIBRARY_ERRORS as error:
        raise invalid(
            f"the imported graph does not run on these inputs: {first_line(error)}",
            remedy="check that torch runs the exported program on inputs of the declared shape",
        ) from error
    expected = run_program(program, inputs)
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
                f"program's has {reference.shape}{_departure(program, working, inputs)}",
                field="model",
                remedy="export the model with a free (dynamic) batch axis",
            )
        difference = relative_difference(reference, value)
        if difference > PARITY_LIMIT:
            raise ParityError(
                f"output {shown(name)} of the imported graph differs from the program's by "
                f"{difference:.3g} of its largest value (at most {PARITY_LIMIT:g} is rounding)"
                + _departure(program, working, inputs),
                field="model",
                remedy="report the model; one exported as ONNX may import correctly",
            )
        worst = max(worst, difference)
    return worst


def _departure(program: Program, working: ModelProto, inputs: Sequence[FloatArray]) -> str:
    """Return the end of a sentence that names the first node that differs from the program's."""
    from tightfit_service.adapters.formats.pt2_translate import computed_tensors

    first = [values[:1] for values in inputs]
    try:
        return departure(computed_tensors(program, first), working, first, limit=PARITY_LIMIT)
    except (InvalidModelError, *LIBRARY_ERRORS):
        return ""
