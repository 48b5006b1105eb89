"""Programs of torch.export run in torch, and translated to ONNX."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir
import onnxscript.optimizer
import torch
from onnx import ModelProto
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import fx
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from tightfit_service.adapters.formats.departure import ComputedTensor
from tightfit_service.adapters.formats.pt2_archive import Pt2Archive
from tightfit_service.adapters.formats.pt2_batch import with_free_batch
from tightfit_service.adapters.formats.pt2_program import Program, build_program
from tightfit_service.application.samples import FloatArray
from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.graph.model_file import ModelLimits, invalid
from tightfit_service.graph.structure import Array, first_line

_EXPORTED_OPSET = 18
"""The oldest that torch's translation writes."""
_SCOPES = "pkg.torch.onnx.name_scopes"
_NOISY_LOGGERS = (
    "torch.onnx",
    "torch.export",
    "torch.fx",
    "torch._subclasses",
    "torch._subclasses.fake_tensor",
    "torch._dynamo",
    "onnxscript",
    "onnx_ir",
)
_TORCH_LOCK = threading.Lock()
"""torch's exporter keeps global state."""


def rebuild(archive: Pt2Archive, *, limits: ModelLimits) -> Program:
    """Return the program of an archive.

    Raises:
        InvalidModelError: Anything about it that cannot be used, with the remedy.
    """
    try:
        with _alone():
            program = build_program(archive, limits=limits)
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


def translate(program: Program) -> ModelProto:
    """Return a program as ONNX with a free batch, nodes named by the modules they come from.

    Raises:
        InvalidModelError: torch has no translation for an operator in it.
    """
    try:
        with _alone():
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


def run_program(program: Program, inputs: Sequence[FloatArray]) -> list[Array]:
    """Return the outputs of a program in torch; run sample by sample where its batch is fixed at 1.

    Raises:
        InvalidModelError: It does not run on these inputs.
    """
    size = 1 if program.is_for_one_sample else len(inputs[0])
    try:
        with _alone(), torch.no_grad():
            module = program.exported.module()
            parts = [
                module(*(torch.from_numpy(x[start : start + size].copy()) for x in inputs))
                for start in range(0, len(inputs[0]), size)
            ]
        return [
            np.concatenate([part.numpy() for part in output]) for output in zip(*parts, strict=True)
        ]
    except Exception as error:
        # Operators raise whatever they do on a program that contradicts itself.
        raise _does_not_run(error) from error


def computed_tensors(program: Program, inputs: Sequence[FloatArray]) -> list[ComputedTensor]:
    """Return every tensor that a program's operators compute for one sample, in their order.

    Raises:
        InvalidModelError: It does not run on these inputs.
    """
    try:
        with _alone(), torch.no_grad():
            recorder = _Recorder(program.exported.module(check_guards=False))
            recorder.run(*(torch.from_numpy(values.copy()) for values in inputs))
    except Exception as error:
        # as in `run_program`
        raise _does_not_run(error) from error
    return recorder.seen


def _does_not_run(error: Exception) -> InvalidModelError:
    return invalid(
        f"torch does not run the program: {first_line(error)}",
        remedy="check that torch runs the exported program on inputs of the declared shape",
    )


class _Recorder(fx.Interpreter):
    """Runs a module node by node and keeps what the operators return."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(cast("fx.GraphModule", module))
        self.seen: list[ComputedTensor] = []

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; the name of the argument is the library's."""
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor):
            paths = [path for path, _ in (n.meta.get("nn_module_stack") or {}).values()]
            place = "/".join(item for item in (paths[-1] if paths else "", n.name) if item)
            kind = str(n.target).removeprefix("aten.")
            # the next operator may write into it
            value = result.detach().clone().numpy()
            self.seen.append(ComputedTensor(name=n.name, node=place, kind=kind, value=value))
        return result


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other threads out, and torch's notes about its own insides out of the log."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [item.level for item in loggers]
    with _TORCH_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for item in loggers:
            item.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for item, level in zip(loggers, levels, strict=True):
                item.setLevel(level)
