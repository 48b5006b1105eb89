"""What sparsity and clustering would make of a trained network's packed file, found out in a worker.

Each strength of either pass is a level, and so is leaving it out. Files grow smaller with both, so for
each number of clusters the fewest zeros that reach the aim are found by interpolation: the same in
all layers. Where it was measured what each layer bears, a choice by layer is offered beside these. Sizes
are those of files that were exported without training, which moves them by little; those of the choice
by layer are corrected by packing its file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tightfit_service.application.ports import (
    DownloadPass,
    LayerSizes,
    ProgressCallback,
    WorkHandler,
)
from tightfit_service.application.recipes.steps import (
    CLUSTERING_STEP,
    SPARSITY_STEP,
    quantization_of,
)
from tightfit_service.application.units.kinds import UnitContext, UnitKind
from tightfit_service.application.work.data import Splits, UnitData
from tightfit_service.application.work.download_files import (
    UNCHANGED,
    ChangedFiles,
    Parameters,
    SizeEstimator,
    WeightChanges,
    losses_of_layers,
    mean_error,
)
from tightfit_service.application.work.download_layers import (
    NOT_MEASURED,
    Assignment,
    LayerStudy,
    choose_ways,
)
from tightfit_service.application.work.download_study import (
    Strengths,
    measured_levels,
    study_layers,
)
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.recipe import RecipeWork
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.recipe import PassStep, Recipe

_CORRECTIONS = 3
"""Files of a choice by layer that are made at most: each corrects what the next is predicted to pack to."""
_CLOSE_ENOUGH = 0.97
"""Of the aim; a choice that packs to less takes more away than it has to."""


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
        layers: What was measured of its layers.
    """

    model: ModelFacts
    recipe: Recipe
    target: HardwareSpec
    techniques: tuple[str, ...]
    packed_bytes: int
    aim_bytes: int
    layers: LayerStudy = NOT_MEASURED


@dataclass(frozen=True, kw_only=True)
class DownloadLayersTask:
    """A finished trial whose layers are to be measured one by one.

    Attributes:
        recipe: The trial's.
        techniques: The passes that may be used.
        packed_bytes: What the trial's packed file has now.
        max_seconds: For which it may be measured.
    """

    model: ModelFacts
    recipe: Recipe
    target: HardwareSpec
    techniques: tuple[str, ...]
    packed_bytes: int
    max_seconds: float


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
        layer_losses: Sum of what its layers lose each by itself, a fraction; None where that was not
            measured.
    """

    sparsity: Parameters
    clustering: Parameters
    download_bytes: int
    error: float
    lost: float | None
    label: str
    layer_losses: float | None = None

    @property
    def harm(self) -> float:
        """What options are ranked by: accuracy lost without training tells strong ones no longer apart."""
        change = self.error if self.layer_losses is None else self.layer_losses
        return change + (self.lost or 0.0)

    @property
    def steps(self) -> tuple[PassStep, ...]:
        """The steps that make it."""
        return WeightChanges(sparsity=self.sparsity, clustering=self.clustering).steps


@dataclass(frozen=True, kw_only=True)
class DownloadOffer:
    """The options that are predicted to reach an aim, those that do least harm first.

    `least` is the smallest file that could be made; None where the passes can do nothing here.
    """

    options: tuple[DownloadOption, ...] = ()
    least: DownloadOption | None = None


DOWNLOAD_NOTES = UnitKind("download_notes", DownloadNotesTask, DownloadReasons)
DOWNLOAD_LAYERS = UnitKind("download_layers", DownloadLayersTask, LayerStudy)
DOWNLOAD_OPTIONS = UnitKind("download_options", DownloadOptionsTask, DownloadOffer)


@dataclass(frozen=True, kw_only=True)
class DownloadWork:
    """The handlers; composed in the worker process."""

    data: UnitData
    recipes: RecipeWork
    passes: Mapping[str, DownloadPass]
    """Sparsity and clustering, by their names."""
    expected_bytes: SizeEstimator
    """Of packed files."""
    layer_sizes: LayerSizes
    """In packed files."""

    def table(self) -> Mapping[str, WorkHandler]:
        """Return the handlers by the kind of unit they run."""
        return {
            DOWNLOAD_NOTES.name: DOWNLOAD_NOTES.handler(self.notes),
            DOWNLOAD_LAYERS.name: DOWNLOAD_LAYERS.handler(self.layers),
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

    def layers(self, task: DownloadLayersTask, context: UnitContext) -> LayerStudy:
        """Measure what zeros and shared values cost each layer of a finished trial, as far as time goes.

        Inputs: `graph`, `start` (the trial's float graph), and `dataset` unless there is none.
        """
        began = time.monotonic()
        files, strengths = self._opened(task, context)
        total = sum(
            len(levels[level]["nodes"])
            for levels in strengths.values()
            for level in measured_levels(len(levels))
        )
        done: list[str] = []

        def on_layer(text: str) -> None:
            done.append(text)
            context.on_progress(min(1.0, len(done) / max(1, total)), text)

        return study_layers(
            files,
            strengths,
            self.layer_sizes,
            has_time=lambda: time.monotonic() - began < task.max_seconds,
            on_layer=on_layer,
        )

    def options(self, task: DownloadOptionsTask, context: UnitContext) -> DownloadOffer:
        """Find what brings a finished trial's packed file to a size.

        Inputs: `graph`, `start` (the trial's float graph), and `dataset` unless there is none.
        """
        files, strengths = self._opened(task, context)
        grid = LevelGrid(
            files=files,
            strengths=strengths,
            study=task.layers,
            on_progress=context.on_progress,
        )
        return grid.offer(task.aim_bytes)

    def _opened(
        self, task: DownloadLayersTask | DownloadOptionsTask, context: UnitContext
    ) -> tuple[ChangedFiles, Strengths]:
        """Return the files of a trial's network, and what each pass can do to it."""
        recipe, start = task.recipe, context.read("start")
        settings = quantization_of(recipe)
        files = ChangedFiles(
            recipes=self.recipes,
            passes=self.passes,
            expected_bytes=self.expected_bytes,
            start=start,
            splits=Splits.of(self.data.open(task.model, context), recipe.steps),
            settings=settings,
            seed=recipe.seed,
            packed_bytes=task.packed_bytes,
        )
        strengths = {
            name: self.passes[name].strengths(start, task.target, settings.number_format)
            for name in task.techniques
        }
        return files, strengths


_Place = tuple[int, int]
"""Level of clustering, level of sparsity; 0 leaves a pass out."""


@dataclass(kw_only=True)
class LevelGrid:
    """All pairs of levels of one network, the same in all layers; and what is chosen by layer."""

    files: ChangedFiles
    strengths: Strengths
    study: LayerStudy
    on_progress: ProgressCallback
    _made: set[_Place] = field(default_factory=set)

    def offer(self, aim: int) -> DownloadOffer:
        """Return the options that reach the aim."""
        reached: list[_Place] = []
        most = len(self.strengths.get(SPARSITY_STEP, ()))
        for level in range(1 + len(self.strengths.get(CLUSTERING_STEP, ()))):
            fewest = self._fewest_zeros(level, most, aim)
            if fewest is None:
                continue
            reached.append((level, fewest))
            most = fewest
            if fewest == 0:  # fewer clusters would lose more for nothing
                break
        found = [self._changes(place) for place in reached if place != (0, 0)]
        least = min(self._made - {(0, 0)}, key=lambda p: (self._size(p), p), default=None)
        options = [self._option(changes, self.files.size(changes)) for changes in found]
        by_layer = self._by_layer(aim)
        if by_layer is not None and by_layer not in found:
            options.append(self._option(by_layer, self.files.packed_size(by_layer)))
        return DownloadOffer(
            options=tuple(sorted(options, key=lambda option: option.harm)),
            least=None
            if least is None or math.isinf(self._size(least))
            else self._option(self._changes(least), self._size(least)),
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
        if place not in self._made:
            self._made.add(place)
            self._tell(self._changes(place))
        return self.files.size(self._changes(place))

    def _changes(self, place: _Place) -> WeightChanges:
        levels = {CLUSTERING_STEP: place[0], SPARSITY_STEP: place[1]}
        return WeightChanges.of(
            {name: self.strengths[name][level - 1] for name, level in levels.items() if level}
        )

    def _by_layer(self, aim: int) -> WeightChanges | None:
        """Return the choice by layer that loses least of those that reach the aim; None where none does.

        What layers take up is known one by one and estimated for pairs, so the file is made and packed,
        and the next choice has as much room less as that was larger than predicted.
        """
        best: tuple[float, WeightChanges] | None = None
        rest, error = self.files.packed_bytes - self.study.packed_bytes, 0.0
        for _ in range(_CORRECTIONS):
            chosen = choose_ways(self.study.layers, aim - rest - error)
            if chosen is None:
                break
            changes = self._assigned(chosen)
            self._tell(changes)
            size = self.files.packed_size(changes)
            if math.isinf(size):
                break
            if size <= aim and changes != UNCHANGED and (best is None or chosen.loss < best[0]):
                best = chosen.loss, changes
            found = size - rest - chosen.packed_bytes
            if found == error or _CLOSE_ENOUGH * aim <= size <= aim:
                break
            error = found
        return None if best is None else best[1]

    def _assigned(self, chosen: Assignment) -> WeightChanges:
        """Return the parameters of both passes for ways by layer."""
        return WeightChanges.of(
            {
                name: {"nodes": nodes} if nodes else None
                for name, levels in self.strengths.items()
                for nodes in [
                    {
                        node: levels[way.levels[name]]["nodes"][node]
                        for node, way in chosen.ways.items()
                        if name in way.levels
                    }
                ]
            }
        )

    def _option(self, changes: WeightChanges, size: float) -> DownloadOption:
        errors = self.files.errors(changes)
        return DownloadOption(
            sparsity=changes.sparsity,
            clustering=changes.clustering,
            download_bytes=math.ceil(size),
            error=mean_error(errors),
            lost=self.files.lost(changes),
            label=self._label(changes),
            layer_losses=losses_of_layers(self.study, errors),
        )

    def _label(self, changes: WeightChanges) -> str:
        layers = {node for known in self.strengths.values() for p in known for node in p["nodes"]}
        return changes.label(layer_count=len(layers))

    def _tell(self, changes: WeightChanges) -> None:
        total = math.prod(1 + len(levels) for levels in self.strengths.values())
        self.on_progress(
            min(1.0, len(self._made) / total), f"exporting: {self._label(changes) or 'as it is'}"
        )
