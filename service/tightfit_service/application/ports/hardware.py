"""Targets and what a network costs on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from tightfit_service.application.ports.records import Page
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator


class Emulator(Protocol):
    """Predicts what a network costs on a target without the device. Pure and fast (milliseconds)."""

    @property
    def name(self) -> str:
        """Short name for provenance and metrics."""
        ...

    def supports(self, target: HardwareSpec) -> bool:
        """Whether this emulator has a model for the target's core class."""
        ...

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        """Return the cost of a whole network. `file_bytes` is the exported file's size where known."""
        ...

    def operator_cost(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        """Return the cost of one operator.

        The sum over a network plus a constant gives `estimate`'s value; on targets with an accelerator
        calls and transfers come on top, which depend on how the network is parted.
        """
        ...

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        """Return memory that cannot be done without, per schedule point.

        Its maximum is `estimate`'s peak RAM value, or less than that where a runtime takes more if there is
        room, such as for weights that it fetches ahead.
        """
        ...


class FileEmulator(Protocol):
    """Knows more of a quantized TFLite file than of its network: the tools of a target's own runtime.

    Takes seconds and starts processes.
    """

    @property
    def name(self) -> str:
        """Short name for provenance."""
        ...

    def supports(self, target: HardwareSpec) -> bool:
        """Whether the tool is installed and made for the target."""
        ...

    def refine(self, data: bytes, target: HardwareSpec, cost: CostEstimate) -> CostEstimate:
        """Return the estimate with what the tool knows better.

        Raises:
            InvalidModelError: The tool does not take the file.
            UnsupportedError: The file's network is not for this target.
        """
        ...


class DeviceCompiler(FileEmulator, Protocol):
    """A compiler that files for a target go through, and that says what they cost there.

    What it says is taken for the cost of a file, and the plan of a search is brought to it.
    """

    @property
    def version(self) -> str:
        """Version that is installed; empty where none is."""
        ...

    @property
    def remedy(self) -> str:
        """How to install it."""
        ...

    def covers(self, target: HardwareSpec) -> bool:
        """Whether it compiles for the target, installed or not."""
        ...


class TargetCatalogue(Protocol):
    """The named hardware targets."""

    def get(self, name: str) -> HardwareSpec:
        """Return a target.

        Raises:
            NotFoundError: No such target; the remedy offers the nearest names.
        """
        ...

    def list(self) -> Sequence[HardwareSpec]:
        """Return all targets by name."""
        ...

    def complete(self, partial: Mapping[str, Any]) -> HardwareSpec:
        """Return a full spec from a partial description, the rest taken from the core's class.

        Keys are those of `HardwareSpec`, nested as in the catalogue's YAML files.

        Raises:
            InvalidTargetError: Unknown keys, impossible figures, or a core that no class describes.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """A target that a project described; its name is that of the spec."""

    project: str
    spec: HardwareSpec
    create_time: datetime


class TargetStore(Protocol):
    """The targets that projects described."""

    def add_target(self, record: TargetRecord) -> TargetRecord:
        """Store a record; one of the same project, name and description is returned unchanged.

        Raises:
            AlreadyExistsError: The project has that name for another description.
        """
        ...

    def get_target(self, project: str, name: str) -> TargetRecord:
        """Return a record.

        Raises:
            NotFoundError: The project has no target of that name.
        """
        ...

    def list_targets(self, project: str, page: Page) -> Sequence[TargetRecord]:
        """Return records by name, those after `page.after`."""
        ...

    def delete_target(self, project: str, name: str) -> None:
        """Remove a record.

        Raises:
            NotFoundError: The project has no target of that name.
        """
        ...
