"""Requests for jobs: examined before a job is made of them, and answered with the preflight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tightfit_service.application.assets.imported_models import ImportedModel, ImportedModels
from tightfit_service.application.assets.library import DATASET
from tightfit_service.application.costs.models import CostModels
from tightfit_service.application.course.download_limit import check_packable, download_notes
from tightfit_service.application.course.preflight import check_report
from tightfit_service.application.course.teaching import find_teachers
from tightfit_service.application.hardware.library import HardwareLibrary
from tightfit_service.application.ports import AssetStore
from tightfit_service.application.recipes.techniques import check_techniques, check_writable
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.application.use_cases import CheckReport, JobRequest
from tightfit_service.application.work.baseline import BASELINE, BaselineTask
from tightfit_service.application.work.checks import (
    CHECK_DATASET,
    CHECK_RECIPE,
    CHECK_TIMEOUT_SECONDS,
    CheckDatasetTask,
    CheckRecipeTask,
)
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.errors import (
    InvalidBudgetError,
    InvalidModelError,
    InvalidRequestError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat
from tightfit_service.domain.job import JobSpec, PreflightNote
from tightfit_service.domain.measurement import Verification
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.recipe import Recipe

EXPORTABLE = (
    ModelFormat.TFLITE,
    ModelFormat.ONNX,
    ModelFormat.C_ARRAY,
    ModelFormat.OPENVINO,
    ModelFormat.EXECUTORCH,
    ModelFormat.VELA,
)


@dataclass(frozen=True, kw_only=True)
class OutputFormats:
    """What this server can write.

    Attributes:
        missing_extras: What to install for formats whose libraries this server does not have.
        target_checks: Raise TightfitError for targets that nothing can be written for in a format.
    """

    missing_extras: Mapping[ModelFormat, str] = field(default_factory=dict)
    target_checks: Mapping[ModelFormat, Callable[[HardwareSpec], object]] = field(
        default_factory=dict
    )

    def chosen(self, asked: ModelFormat | None, target: HardwareSpec) -> ModelFormat:
        """Return the format to write for the target: the one asked for, or that of its runtime.

        Raises:
            InvalidRequestError: It is not one that is exported.
            UnsupportedError: What writes it is not installed here.
            TightfitError: It cannot be written for the target.
        """
        output_format = asked or target.output_format
        if output_format not in EXPORTABLE:
            raise InvalidRequestError(
                f"{output_format} is not a format that is exported",
                field="output_format",
                remedy=f"choose one of {', '.join(EXPORTABLE)}",
            )
        if output_format in self.missing_extras:
            raise UnsupportedError(
                f"what writes {output_format} is not installed where this server runs",
                field="output_format",
                remedy=f"install {self.missing_extras[output_format]} there, or choose tflite or onnx",
            )
        if output_format in self.target_checks:
            self.target_checks[output_format](target)
        return output_format


class JobRequests:
    """Examines requests; nothing is trained, and what was examined once is remembered."""

    def __init__(
        self,
        *,
        hardware: HardwareLibrary,
        costs: CostModels,
        models: ImportedModels,
        records: AssetStore,
        units: CachedUnits,
        formats: OutputFormats,
    ) -> None:
        """Keep what requests are looked up in, and what runs the checks of files."""
        self._hardware = hardware
        self._costs = costs
        self._models = models
        self._records = records
        self._units = units
        self._formats = formats

    async def spec(self, project: str, request: JobRequest) -> JobSpec:
        """Return what the job would be about; all that can be known without running anything long is checked.

        Raises:
            TightfitError: Something that the request names does not exist or cannot be used, or its
                parts do not go together; the field and the remedy say which.
        """
        target = await self._hardware.resolve(project, request.target)
        await self._costs.of_project(project, target)
        output_format = self._formats.chosen(request.output_format, target)
        model = await self._models.named(project, request.model)
        _check_trainable(model.facts)
        dataset_digest = await self._checked_dataset(project, request, model)
        teachers = await find_teachers(
            request.teachers, project=project, model=model, models=self._models
        )
        _check_consistent(request, target)
        check_packable(request, output_format)
        techniques = check_techniques(request.techniques)
        if request.recipe is not None:
            request.recipe.check_fits(model.facts.architecture)
            check_writable(request.recipe, output_format)
            await self._check_recipe(project, request.recipe, model)
        return JobSpec(
            model_digest=model.digest,
            model_name=request.model,
            target=target,
            budget=request.budget,
            dataset_digest=dataset_digest,
            dataset_name=request.dataset,
            objective=request.objective,
            search_limits=request.search_limits,
            output_format=output_format,
            seed=request.seed,
            techniques=techniques,
            verification=request.verification,
            recipe=request.recipe,
            priority=request.priority,
            teachers=teachers,
            importance=request.importance,
            packed=request.packed,
            runner_labels=request.runner_labels,
        )

    async def preflight(self, project: str, request: JobRequest) -> CheckReport:
        """Return costs by estimate, and the accuracy of the model as it came where there is a dataset.

        Raises:
            TightfitError: Something that the request names does not exist or cannot be used.
        """
        target = await self._hardware.resolve(project, request.target)
        costs = await self._costs.of_project(project, target)
        model = await self._models.named(project, request.model)
        dataset_digest = await self._checked_dataset(project, request, model)
        await find_teachers(request.teachers, project=project, model=model, models=self._models)
        accuracy = None
        if dataset_digest is not None:
            accuracy = await self._accuracy(project, model, dataset_digest)
        report = check_report(request, costs=costs, facts=model.facts, accuracy=accuracy)
        if request.budget.limit_of(Quantity.DOWNLOAD) is None:
            return report
        notes = await download_notes(
            self._units.run, project=project, graph_digest=model.graph_digest, target=target
        )
        unknown = PreflightNote(
            code="DOWNLOAD_UNKNOWN",
            message="no estimate tells what a file packs to: a search finds out whether the limit on "
            "the download is met",
        )
        return replace(report, notes=(*report.notes, unknown, *notes))

    async def _check_recipe(self, project: str, recipe: Recipe, model: ImportedModel) -> None:
        await self._units.run(
            CHECK_RECIPE.unit(
                CheckRecipeTask(recipe=recipe),
                project=project,
                inputs={"graph": model.graph_digest},
                timeout_seconds=CHECK_TIMEOUT_SECONDS,
                label="recipe against model",
            )
        )

    async def _checked_dataset(
        self, project: str, request: JobRequest, model: ImportedModel
    ) -> str | None:
        """Return the digest of the dataset, whose samples the model takes; None without one."""
        if not request.dataset:
            return None
        dataset = await asyncio.to_thread(
            self._records.get_asset, project, DATASET, request.dataset
        )
        await self._units.run(
            CHECK_DATASET.unit(
                CheckDatasetTask(model=model.facts),
                project=project,
                inputs={"dataset": dataset.digest, "graph": model.graph_digest},
                timeout_seconds=CHECK_TIMEOUT_SECONDS,
                label="dataset against model",
            )
        )
        return dataset.digest

    async def _accuracy(
        self, project: str, model: ImportedModel, dataset_digest: str
    ) -> Accuracy | None:
        """Return the accuracy of the model as it came, as a job would measure it; a job finds it known."""
        unit = BASELINE.unit(
            BaselineTask(model=model.facts),
            project=project,
            inputs={
                "model": model.digest,
                "graph": model.graph_digest,
                "dataset": dataset_digest,
            },
            timeout_seconds=CHECK_TIMEOUT_SECONDS,
            label="accuracy of the model as it came",
        )
        return BASELINE.outcome(await self._units.run(unit)).accuracy


def _check_trainable(model: ModelFacts) -> None:
    """Refuse a model whose weights cannot be changed.

    Raises:
        InvalidModelError: It is quantized.
    """
    if model.is_quantized:
        raise InvalidModelError(
            "the model is quantized already; its rounding cannot be trained or pruned away",
            field="model",
            remedy="send the float model that it was made from; this one can be estimated",
        )


def _check_consistent(request: JobRequest, target: HardwareSpec) -> None:
    """Refuse budgets that contradict themselves or the objective.

    Raises:
        InvalidBudgetError: A cost is the objective without an accuracy limit, or a limit exceeds
            what the target has.
        InvalidRequestError: The size of the download is the objective, or labels of runners are given
            where nothing is to be measured.
    """
    if request.objective.quantity is Quantity.DOWNLOAD:
        raise InvalidRequestError(
            "the size of the download can be limited, and is no objective",
            field="objective.quantity",
            remedy="limit it by --max-download, and let the search keep the accuracy",
        )
    if request.runner_labels and request.verification is Verification.NONE:
        raise InvalidRequestError(
            "labels of runners are given, but nothing is to be measured",
            field="runner_labels",
            remedy="ask for --verify if-available or required, or leave the labels out",
        )
    has_accuracy = any(c.quantity is Quantity.ACCURACY for c in request.budget.constraints)
    if request.objective.quantity is not Quantity.ACCURACY and not has_accuracy:
        raise InvalidBudgetError(
            f"minimising {request.objective.quantity} without an accuracy limit ends in an empty model",
            field="budget.min_accuracy",
            remedy="add --min-accuracy or --max-accuracy-drop",
        )
    capacity = {
        Quantity.RAM: target.memory.ram_bytes,
        Quantity.SIZE: target.memory.flash_bytes,
    }
    for constraint in request.budget.constraints:
        room = capacity.get(constraint.quantity)
        if room is not None and constraint.limit is not None and constraint.limit > room:
            raise InvalidBudgetError(
                f"{constraint.field_name} is {constraint.limit:.0f} bytes, but {target.name} has {room}",
                field=constraint.field_name,
                remedy="lower the limit or choose a target with more memory",
            )
