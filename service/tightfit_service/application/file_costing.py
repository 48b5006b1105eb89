"""The costs of a job's files by the compiler of their target, and of plans brought to its figures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from tightfit_service.application.cost_correction import corrected
from tightfit_service.application.costing import CostModel
from tightfit_service.application.file_cost_work import FILE_COST, FileCostTask
from tightfit_service.application.ports import QuantizationSettings, WorkResult, WorkUnit
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import (
    CancelledError,
    PreconditionError,
    TightfitError,
    UnavailableError,
)
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.network import NetworkProfile
from tightfit_service.domain.quantities import Interval

COMPILED_FORMATS = (ModelFormat.TFLITE, ModelFormat.C_ARRAY, ModelFormat.VELA)
"""Formats of artifacts that hold a file which compilers take."""

TIMEOUT_SECONDS = 900.0

_NOT_THE_COMPILERS = (CancelledError, PreconditionError, UnavailableError)
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
    except _NOT_THE_COMPILERS:
        raise
    except TightfitError as error:
        return None, f"{compiler.name} gave no figures: {error.message}"


class FileCosting:
    """Costs the files of one job. Used by the task that owns the job.

    The first file that a compiler says something of, that of the quantized-only model, brings the costs
    that plans are made with to its figures.
    """

    def __init__(
        self, plain: CostModel, *, run: Run, project: str, label: str, model_format: ModelFormat
    ) -> None:
        """Keep what files are costed with; `label` names the job in the units of work."""
        self._plain = plain
        self._planned = plain
        self._run = run
        self._project = project
        self._label = label
        self._format = model_format

    @property
    def costs(self) -> CostModel:
        """What networks are costed by that no file was made of."""
        return self._planned

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
            return cost, (f"cost by {cost.compiler}, for the exported file",)
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
        """Bring plans to what the compiler said of a file; an emulator's cost changes nothing."""
        if not cost.compiler:
            return
        network = self._plain.at(profile, quantization.number_format, quantization.node_formats)
        emulator = corrected(self._plain.emulator, network, self._plain.target, cost)
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
