"""The costs of a job's files by the compiler of their target, and of plans brought to its figures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from tightfit_service.application.costs.correction import Compiled, corrected
from tightfit_service.application.costs.costing import CostModel
from tightfit_service.application.ports import QuantizationSettings, WorkResult, WorkUnit
from tightfit_service.application.work.file_cost import FILE_COST, FileCostTask
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import (
    CancelledError,
    PreconditionError,
    TightfitError,
    UnavailableError,
)
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat
from tightfit_service.domain.network import NetworkProfile
from tightfit_service.domain.quantities import Interval

COMPILED_FORMATS = (ModelFormat.TFLITE, ModelFormat.C_ARRAY, ModelFormat.VELA)
"""Formats of artifacts that hold a file which compilers take."""

TIMEOUT_SECONDS = 900.0

LEAST_RAM_BYTES = 1
"""What compilers are told where a network is to take as little RAM as it can."""

NOT_THE_FILES = (CancelledError, PreconditionError, UnavailableError)
"""Errors that say nothing about the file: the job was taken away, or a store is."""

Run = Callable[[WorkUnit], Awaitable[WorkResult]]


async def compiled_cost(
    costs: CostModel,
    estimate: CostEstimate,
    *,
    run: Run,
    project: str,
    digest: str,
    model_format: ModelFormat,
    label: str,
) -> tuple[CostEstimate | None, str]:
    """Return what the target's compiler says of a file, or None and in words why it says nothing.

    Both are empty where the target has no compiler that is known here.

    Args:
        costs: Of the target.
        estimate: By an emulator: its layers are those that the figures are told by.
        run: Runs a unit of work, or finds its result remembered.
        project: Whose file it is.
        digest: Of the file.
        model_format: Of the file.
        label: Of the unit.
    """
    compiler = costs.compiler
    if compiler is None:
        return None, ""
    if not compiler.supports(costs.target):
        return None, f"{compiler.name} is not installed where this service runs: {compiler.remedy}"
    if model_format not in COMPILED_FORMATS:
        return None, f"{compiler.name} does not read files in {model_format}"
    unit = FILE_COST.unit(
        FileCostTask(
            compiler=compiler.name,
            version=compiler.version,
            model_format=model_format,
            target=costs.target,
            estimate=estimate,
        ),
        project=project,
        inputs={"file": digest},
        label=label,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    try:
        return FILE_COST.outcome(await run(unit)), ""
    except NOT_THE_FILES:
        raise
    except TightfitError as error:
        return None, f"{compiler.name} gave no figures: {error.message}"


def within_ram(target: HardwareSpec, ram_bytes: int | None) -> HardwareSpec:
    """Return the target with no more RAM than that: compilers trade memory for time, and have to know."""
    if ram_bytes is None or ram_bytes >= target.memory.ram_bytes:
        return target
    return replace(target, memory=replace(target.memory, ram_bytes=max(LEAST_RAM_BYTES, ram_bytes)))


class FileCosting:
    """Costs the files of one job. Used by the task that owns the job.

    The first file that a compiler says something of, that of the quantized-only model, brings the costs
    that plans are made with to its figures; that of a narrower network tells how they change with width.
    """

    def __init__(
        self,
        plain: CostModel,
        *,
        run: Run,
        project: str,
        label: str,
        model_format: ModelFormat,
        ram_bytes: int | None = None,
    ) -> None:
        """Keep what files are costed with.

        Args:
            plain: Costs of the target before any file is known.
            run: Runs a unit of work, or finds its result remembered.
            project: Whose files they are.
            label: Names the job in the units of work.
            model_format: Of the files.
            ram_bytes: The budget's limit, which a compiler is to keep within.
        """
        self._room = ""
        if plain.compiler is not None:
            limited = within_ram(plain.target, ram_bytes)
            if limited is not plain.target:
                room = limited.memory.ram_bytes
                self._room = (
                    ", compiled for the least RAM"
                    if room == LEAST_RAM_BYTES
                    else f", compiled to keep within {room} bytes of RAM as far as it can"
                )
            plain = replace(plain, target=limited)
        self._plain = plain
        self._planned = plain
        self._whole: Compiled | None = None
        self._run = run
        self._project = project
        self._label = label
        self._format = model_format

    @property
    def costs(self) -> CostModel:
        """What networks are costed by that no file was made of."""
        return self._planned

    @property
    def has_learned(self) -> bool:
        """Whether a compiler has said something of the quantized-only model."""
        return self._whole is not None

    async def of_file(
        self,
        profile: NetworkProfile,
        quantization: QuantizationSettings,
        *,
        file_bytes: int,
        digest: str,
    ) -> tuple[CostEstimate, tuple[str, ...]]:
        """Return the cost of an exported file, and what a user should know about where it is from.

        Where the compiler gives no figures that is the estimate of the network, with its emulator's
        interval.

        Args:
            profile: The network, at any precision.
            quantization: Number formats of the file.
            file_bytes: What a device stores of it.
            digest: Of the artifact.
        """
        estimate = self._plain.estimate(
            profile,
            quantization.number_format,
            file_bytes=file_bytes,
            node_formats=quantization.node_formats,
        )
        cost, problem = await compiled_cost(
            self._plain,
            estimate,
            run=self._run,
            project=self._project,
            digest=digest,
            model_format=self._format,
            label=f"{self._label} {FILE_COST.name}",
        )
        if cost is not None:
            return cost, (f"cost by {cost.compiler}, for the exported file{self._room}",)
        compiler = self._plain.compiler
        # that none is installed is said once for all trials
        if compiler is None or not compiler.supports(self._plain.target):
            return estimate, ()
        planned = self._planned.estimate(
            profile, quantization.number_format, node_formats=quantization.node_formats
        )
        said = f"cost estimated from the network, not from the file: {problem}"
        return _as_uncertain(planned, estimate, said), (said,)

    def learn(
        self, profile: NetworkProfile, quantization: QuantizationSettings, cost: CostEstimate
    ) -> None:
        """Bring plans to what the compiler said of the quantized-only model.

        A cost that an emulator made instead of it changes nothing.
        """
        if not cost.compiler:
            return
        self._whole = self._compiled(profile, quantization, cost)
        self._plan_by(self._whole, None)

    async def learn_narrow(
        self, profile: NetworkProfile, quantization: QuantizationSettings, *, digest: str
    ) -> str:
        """Bring plans also to what the compiler says of a narrower network; return why it says nothing.

        Args:
            profile: The narrower network, at any precision.
            quantization: Number formats of its file.
            digest: Of its TFLite file.
        """
        if self._whole is None:
            return "the compiler gave no figures of the quantized model"
        estimate = self._plain.estimate(
            profile, quantization.number_format, node_formats=quantization.node_formats
        )
        cost, problem = await compiled_cost(
            self._plain,
            estimate,
            run=self._run,
            project=self._project,
            digest=digest,
            model_format=ModelFormat.TFLITE,
            label=f"{self._label} narrow {FILE_COST.name}",
        )
        if cost is None:
            return problem
        self._plan_by(self._whole, self._compiled(profile, quantization, cost))
        return ""

    def _compiled(
        self, profile: NetworkProfile, quantization: QuantizationSettings, cost: CostEstimate
    ) -> Compiled:
        network = self._plain.at(profile, quantization.number_format, quantization.node_formats)
        return Compiled(network=network, cost=cost)

    def _plan_by(self, whole: Compiled, narrow: Compiled | None) -> None:
        emulator = corrected(self._plain.emulator, self._plain.target, whole, narrow)
        self._planned = replace(self._plain, emulator=emulator)


def _as_uncertain(planned: CostEstimate, estimate: CostEstimate, said: str) -> CostEstimate:
    """Return a planned cost with the intervals of an emulator, which knows no compiler's figures."""
    return replace(
        planned,
        latency_ms=_around(planned.latency_ms, estimate.latency_ms),
        energy_mj=_around(planned.energy_mj, estimate.energy_mj),
        peak_ram_bytes=_around(planned.peak_ram_bytes, estimate.peak_ram_bytes),
        flash_bytes=_around(planned.flash_bytes, estimate.flash_bytes),
        warnings=(*estimate.warnings, said),
        compiler="",
    )


def _around(planned: Interval, estimate: Interval) -> Interval:
    if estimate.value <= 0:
        return planned
    return estimate.scaled(planned.value / estimate.value)
