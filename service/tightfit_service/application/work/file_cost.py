"""The unit of work that has an exported file costed by the compiler of its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tightfit_service.application.ports import DeviceCompiler, WorkHandler
from tightfit_service.application.units.kinds import UnitContext, UnitKind
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat


@dataclass(frozen=True, kw_only=True)
class FileCostTask:
    """What is to be costed besides the input `file`, and by what.

    Attributes:
        compiler: Name of the compiler.
        version: Its version where the server runs: figures of another one are not taken for its own.
        model_format: Of the file.
        target: What it is for.
        estimate: An emulator's estimate of the network, whose layers the figures are told by.
    """

    compiler: str
    version: str
    model_format: ModelFormat
    target: HardwareSpec
    estimate: CostEstimate


FILE_COST = UnitKind("file_cost", FileCostTask, CostEstimate)


@dataclass(frozen=True, kw_only=True)
class FileCostWork:
    """Has files costed; composed in the worker process.

    Attributes:
        compilers: By name.
        files: Returns the file that a compiler takes, from an artifact of a format.
    """

    compilers: Mapping[str, DeviceCompiler]
    files: Mapping[ModelFormat, Callable[[bytes], bytes]]

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handler by the kind of unit it runs."""
        return {FILE_COST.name: FILE_COST.handler(self.run)}

    def run(self, task: FileCostTask, context: UnitContext) -> CostEstimate:
        """Return the compiler's figures of the input `file`.

        Raises:
            InvalidModelError: The compiler does not take the file.
            UnsupportedError: The compiler is not installed here, or in another version than in the
                server, or the network is not for the target.
        """
        compiler = self.compilers[task.compiler]
        if compiler.version != task.version:
            raise UnsupportedError(
                f"a worker has {compiler.name} {compiler.version or 'not'} installed and the server "
                f"{task.version}",
                field="hardware_target",
                remedy=f"{compiler.remedy} in the same version for all workers",
            )
        # trials have told their whole progress by then
        context.on_progress(1.0, f"costing the file by {compiler.name}")
        data = self.files[task.model_format](context.read("file"))
        return compiler.refine(data, task.target, task.estimate)
