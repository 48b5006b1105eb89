"""What sparsity and clustering would make of a trained network's packed file, found out in a worker.

Each strength of either pass is a level, and so is leaving it out. Files grow smaller with both, so for
each number of clusters the fewest zeros that reach the aim are found by interpolation. Sizes are
those of files that were exported without training, which moves them by little, and are estimated, for
packing takes longer. The files are ONNX whatever is asked for: weights are rounded alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tightfit_service.application.model_facts import ModelFacts
from tightfit_service.application.ports import (
    DownloadPass,
    PassContext,
    ProgressCallback,
    QuantizationSettings,
    WorkHandler,
)
from tightfit_service.application.recipe_steps import (
    CLUSTERING_STEP,
    SPARSITY_STEP,
    quantization_of,
)
from tightfit_service.application.recipe_work import RecipeWork
from tightfit_service.application.unit_data import (
    SENSITIVITY_SAMPLES,
    Splits,
    UnitData,
    accuracy_of,
    few,
)
from tightfit_service.application.unit_kinds import UnitContext, UnitKind
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.errors import (
    InvalidModelError,
    InvalidRequestError,
    ParityError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.recipe import PassStep, Recipe

_FORMAT = ModelFormat.ONNX
_CALIBRATION_SAMPLES = 16

SizeEstimator = Callable[[bytes, ModelFormat], int]
"""About the size of the packed form of a file, bytes."""

_Parameters = Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class DownloadNotesTask:
    """What the techniques (passes for the download) would bring on a target."""

    target: HardwareSpec
    techniques: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DownloadReasons:
    """Why techniques bring less than could be hoped for: sentences by their names."""

    reasons: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class DownloadOptionsTask:
    """A finished trial whose packed file is to become smaller.

    Attributes:
        recipe: The trial's.
        techniques: The passes that may be used.
        packed_bytes: What the trial's packed file has now.
        aim_bytes: What it is to have.
    """

    model: ModelFacts
    recipe: Recipe
    target: HardwareSpec
    techniques: tuple[str, ...]
    packed_bytes: int
    aim_bytes: int


@dataclass(frozen=True, kw_only=True)
class DownloadOption:
    """One way to make a trained network's packed file smaller, and what it is predicted to do.

    Attributes:
        sparsity: Parameters of that pass; None leaves it out.
        clustering: Parameters of that pass; None leaves it out.
        download_bytes: Size of the packed file.
        error: Relative squared error of the weights, in [0, 1]: the mean over the layers that it changes.
        lost: Accuracy (fraction) that it loses on selection samples without any training, against the
            network as it is; None where there is nothing to measure it with.
        label: A few words for people.
    """

    sparsity: Mapping[str, Any] | None
    clustering: Mapping[str, Any] | None
    download_bytes: int
    error: float
    lost: float | None
    label: str

    @property
    def harm(self) -> float:
        """What options are ranked by: accuracy lost without training tells strong ones no longer apart."""
        return self.error + (self.lost or 0.0)

    @property
    def steps(self) -> tuple[PassStep, ...]:
        """The steps that make it, zeros before clusters: what is zero belongs to no cluster."""
        chosen = ((SPARSITY_STEP, self.sparsity), (CLUSTERING_STEP, self.clustering))
        return tuple(
            PassStep(pass_name=name, parameters=parameters)
            for name, parameters in chosen
            if parameters is not None
        )


@dataclass(frozen=True, kw_only=True)
class DownloadOffer:
    """The options that are predicted to reach an aim, those that do least harm first.

    `least` is the smallest file that could be made; None where the passes can do nothing here.
    """

    options: tuple[DownloadOption, ...] = ()
    least: DownloadOption | None = None


DOWNLOAD_NOTES = UnitKind("download_notes", DownloadNotesTask, DownloadReasons)
DOWNLOAD_OPTIONS = UnitKind("download_options", DownloadOptionsTask, DownloadOffer)


def with_shared_scales(settings: QuantizationSettings) -> QuantizationSettings:
    """Return how clustered weights are exported: with one scale per tensor equal values stay equal.

    Where weights have 4 bits, that would cost more accuracy than equal values are worth.
    """
    used = {settings.number_format, *settings.node_formats.values()}
    return settings if NumberFormat.INT4 in used else replace(settings, per_channel=False)


@dataclass(frozen=True, kw_only=True)
class DownloadWork:
    """The handlers; composed in the worker process."""

    data: UnitData
    recipes: RecipeWork
    passes: Mapping[str, DownloadPass]
    """Sparsity and clustering, by their names."""
    expected_bytes: SizeEstimator
    """Of packed files."""

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handlers by the kind of unit they run."""
        return {
            DOWNLOAD_NOTES.name: DOWNLOAD_NOTES.handler(self.notes),
            DOWNLOAD_OPTIONS.name: DOWNLOAD_OPTIONS.handler(self.options),
        }

    def notes(self, task: DownloadNotesTask, context: UnitContext) -> DownloadReasons:
        """Say what the passes do not bring to the input `graph` on a target."""
        graph = context.read("graph")
        return DownloadReasons(
            reasons={
                name: tuple(self.passes[name].applies_to(graph, task.target))
                for name in task.techniques
            }
        )

    def options(self, task: DownloadOptionsTask, context: UnitContext) -> DownloadOffer:
        """Find what brings a finished trial's packed file to a size.

        Inputs: `graph`, `start` (the trial's float graph), and `dataset` unless there is none.
        """
        recipe = task.recipe
        splits = Splits.of(self.data.open(task.model, context), recipe.steps)
        start, settings = context.read("start"), quantization_of(recipe)
        levels = {
            name: self.passes[name].strengths(start, task.target, settings.number_format)
            for name in task.techniques
        }
        grid = _Grid(
            recipes=self.recipes,
            passes=self.passes,
            expected_bytes=self.expected_bytes,
            start=start,
            splits=splits,
            settings=settings,
            seed=recipe.seed,
            zeros=(None, *levels.get(SPARSITY_STEP, ())),
            clusters=(None, *levels.get(CLUSTERING_STEP, ())),
            packed_bytes=task.packed_bytes,
            on_progress=context.on_progress,
        )
        return grid.offer(task.aim_bytes)


_Place = tuple[int, int]
"""Level of clustering, level of sparsity; 0 leaves a pass out."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """An exported file and about the size of its packed form, infinite where it cannot be exported."""

    data: bytes
    packed_bytes: float


@dataclass(kw_only=True)
class _Grid:
    """All pairs of levels of one network; files are made when they are asked for."""

    recipes: RecipeWork
    passes: Mapping[str, DownloadPass]
    expected_bytes: SizeEstimator
    start: bytes
    splits: Splits
    settings: QuantizationSettings
    seed: int
    zeros: tuple[_Parameters, ...]
    clusters: tuple[_Parameters, ...]
    packed_bytes: int
    on_progress: ProgressCallback
    _files: dict[_Place, _File] = field(default_factory=dict)
    _sparse: dict[int, bytes] = field(default_factory=dict)
    _accuracies: dict[_Place, float | None] = field(default_factory=dict)

    def offer(self, aim: int) -> DownloadOffer:
        """Return the options that reach the aim."""
        reached: list[_Place] = []
        most = len(self.zeros) - 1
        for level in range(len(self.clusters)):
            fewest = self._fewest_zeros(level, most, aim)
            if fewest is None:
                continue
            reached.append((level, fewest))
            most = fewest
            if fewest == 0:  # fewer clusters would lose more for nothing
                break
        changed = [self._option(place) for place in reached if place != (0, 0)]
        made = [place for place in self._files if place != (0, 0)]
        least = min(made, key=self._size, default=None)
        return DownloadOffer(
            options=tuple(sorted(changed, key=lambda option: option.harm)),
            least=None if least is None or math.isinf(self._size(least)) else self._option(least),
        )

    def _fewest_zeros(self, level: int, most: int, aim: int) -> int | None:
        """Return the lowest level of sparsity up to `most` that reaches the aim; None where none does."""
        if self._size((level, 0)) <= aim:
            return 0
        while most > 0 and math.isinf(self._size((level, most))):
            most -= 1
        if self._size((level, most)) > aim:
            return None
        low, high = 0, most
        while high - low > 1:
            above, below = self._size((level, low)), self._size((level, high))
            share = 0.5 if math.isinf(above) else (above - aim) / (above - below)
            middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
            if self._size((level, middle)) <= aim:
                high = middle
            else:
                low = middle
        return high

    def _size(self, place: _Place) -> float:
        """Return the predicted size: the trial's file less what these files lose by the change."""
        return self._file(place).packed_bytes + self.packed_bytes - self._file((0, 0)).packed_bytes

    def _file(self, place: _Place) -> _File:
        if place not in self._files:
            total = len(self.zeros) * len(self.clusters)
            self.on_progress(
                len(self._files) / total, f"exporting: {self._label(place) or 'as it is'}"
            )
            self._files[place] = self._made(place)
        return self._files[place]

    def _made(self, place: _Place) -> _File:
        calibration = self.splits.get(SplitName.CALIBRATION)
        # ranges of activations take the same few bytes however they are found
        settings = replace(self.settings, method="minmax")
        if place[0]:
            settings = with_shared_scales(settings)
        try:
            exported = self.recipes.exporters[_FORMAT].export(
                self._changed(place),
                calibration=None if calibration is None else few(calibration, _CALIBRATION_SAMPLES),
                settings=settings,
                metadata={},
            )
        except (InvalidModelError, InvalidRequestError, ParityError, UnsupportedError):
            if place == (0, 0):
                raise
            # so much was taken away that the file no longer computes what the graph does
            return _File(data=b"", packed_bytes=math.inf)
        size = self.expected_bytes(exported.data, _FORMAT)
        return _File(data=exported.data, packed_bytes=float(size))

    def _changed(self, place: _Place) -> bytes:
        return self._applied(self._with_zeros(place[1]), CLUSTERING_STEP, self.clusters[place[0]])

    def _with_zeros(self, level: int) -> bytes:
        if level not in self._sparse:
            self._sparse[level] = self._applied(self.start, SPARSITY_STEP, self.zeros[level])
        return self._sparse[level]

    def _applied(self, graph: bytes, name: str, parameters: _Parameters) -> bytes:
        if parameters is None:
            return graph
        step = PassStep(pass_name=name, parameters=parameters)
        return self.recipes.steps.apply(graph, step, self._context)

    @property
    def _context(self) -> PassContext:
        return PassContext(calibration=self.splits.get(SplitName.CALIBRATION), seed=self.seed)

    def _error(self, place: _Place) -> float:
        """Return the mean relative error of the changed weights; that of clusters is of what is not zero."""
        zeros, clusters = (
            {} if parameters is None else self.passes[name].errors(graph, parameters, self._context)
            for name, graph, parameters in (
                (SPARSITY_STEP, self.start, self.zeros[place[1]]),
                (CLUSTERING_STEP, self._with_zeros(place[1]), self.clusters[place[0]]),
            )
        )
        nodes = zeros.keys() | clusters.keys()
        left = [
            (1 - zeros.get(node, 0.0)) * (1 - clusters.get(node, 0.0)) for node in sorted(nodes)
        ]
        return 1 - math.fsum(left) / len(left) if left else 0.0

    def _lost(self, place: _Place) -> float | None:
        before, after = self._accuracy((0, 0)), self._accuracy(place)
        return None if before is None or after is None else max(0.0, before - after)

    def _accuracy(self, place: _Place) -> float | None:
        if place not in self._accuracies:
            self._accuracies[place] = self._measured(place)
        return self._accuracies[place]

    def _measured(self, place: _Place) -> float | None:
        selection = self.splits.get(SplitName.SELECTION)
        if selection is None or not self._file(place).data:
            return None
        sample = few(selection, SENSITIVITY_SAMPLES)
        evaluator = self.recipes.evaluators[_FORMAT]
        found = accuracy_of(evaluator, self._file(place).data, sample)
        return None if found is None else found.value

    def _option(self, place: _Place) -> DownloadOption:
        level, sparse = place
        return DownloadOption(
            sparsity=self.zeros[sparse],
            clustering=self.clusters[level],
            download_bytes=math.ceil(self._size(place)),
            error=self._error(place),
            lost=self._lost(place),
            label=self._label(place),
        )

    def _label(self, place: _Place) -> str:
        level, sparse = place
        parts = (
            _words(SPARSITY_STEP, self.zeros[sparse]),
            _words(CLUSTERING_STEP, self.clusters[level]),
        )
        return ", ".join(filter(None, parts))


def _words(name: str, parameters: _Parameters) -> str:
    """Return a pass and its strength, which is that of all its nodes, in a few words."""
    if parameters is None:
        return ""
    choice: Mapping[str, Any] = next(iter(parameters["nodes"].values()))
    numbers = [
        f"{key} {value:g}" for key, value in choice.items() if isinstance(value, int | float)
    ]
    return " ".join([name, *numbers])
