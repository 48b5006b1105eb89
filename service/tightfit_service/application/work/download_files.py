"""Files of one trained network whose weights were changed: made once each, sized and judged without training.

The files are ONNX whatever is asked for: weights are rounded alike. Sizes are told as what the trial's own
file would lose by the change, and mostly estimated, for packing takes longer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tightfit_service.application.ports import (
    DownloadPass,
    PassContext,
    QuantizationSettings,
)
from tightfit_service.application.recipes.steps import CLUSTERING_STEP, SPARSITY_STEP
from tightfit_service.application.work.data import (
    SENSITIVITY_SAMPLES,
    Splits,
    accuracy_of,
    few,
)
from tightfit_service.application.work.download_layers import LayerStudy
from tightfit_service.application.work.recipe import RecipeWork
from tightfit_service.domain.dataset import SplitName
from tightfit_service.domain.errors import (
    InvalidModelError,
    InvalidRequestError,
    ParityError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import ModelFormat, NumberFormat
from tightfit_service.domain.recipe import PassStep

FORMAT = ModelFormat.ONNX
_CALIBRATION_SAMPLES = 16
_MOST_PACKED_BYTES = 2 << 20
"""Packing larger files takes minutes; their sizes are estimated throughout."""

SizeEstimator = Callable[[bytes, ModelFormat], int]
"""About the size of the packed form of a file, bytes."""

Parameters = Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class WeightChanges:
    """What is done to the weights of a network: the parameters of both passes, None leaves one out."""

    sparsity: Parameters = None
    clustering: Parameters = None

    @classmethod
    def of(cls, by_pass: Mapping[str, Parameters]) -> WeightChanges:
        """Return the changes with the parameters of each pass by its name."""
        return cls(
            sparsity=by_pass.get(SPARSITY_STEP) or None,
            clustering=by_pass.get(CLUSTERING_STEP) or None,
        )

    @property
    def steps(self) -> tuple[PassStep, ...]:
        """The steps that make them, zeros before clusters: what is zero belongs to no cluster."""
        chosen = ((SPARSITY_STEP, self.sparsity), (CLUSTERING_STEP, self.clustering))
        return tuple(
            PassStep(pass_name=name, parameters=parameters)
            for name, parameters in chosen
            if parameters is not None
        )

    def label(self, *, layer_count: int) -> str:
        """Return the passes and their strengths in a few words; `layer_count` layers can be changed."""
        return ", ".join(
            _words(step.pass_name, step.parameters["nodes"], layer_count) for step in self.steps
        )

    @property
    def key(self) -> str:
        """What tells different changes apart."""
        return json.dumps([self.sparsity, self.clustering], sort_keys=True)


UNCHANGED = WeightChanges()


@dataclass(frozen=True, kw_only=True)
class ChangedFile:
    """An exported file and about the size of its packed form; empty and infinite where none can be made."""

    data: bytes
    packed_bytes: float


def with_shared_scales(settings: QuantizationSettings) -> QuantizationSettings:
    """Return how clustered weights are exported: with one scale per tensor equal values stay equal.

    Where weights have 4 bits, that would cost more accuracy than equal values are worth.
    """
    used = {settings.number_format, *settings.node_formats.values()}
    return settings if NumberFormat.INT4 in used else replace(settings, per_channel=False)


@dataclass(kw_only=True)
class ChangedFiles:
    """The files of one network by what was done to its weights.

    Attributes:
        start: The trained float graph.
        settings: How it was exported.
        packed_bytes: Of the trial's own packed file.
    """

    recipes: RecipeWork
    passes: Mapping[str, DownloadPass]
    expected_bytes: SizeEstimator
    start: bytes
    splits: Splits
    settings: QuantizationSettings
    seed: int
    packed_bytes: int
    _files: dict[str, ChangedFile] = field(default_factory=dict)
    _packed: dict[str, int] = field(default_factory=dict)
    _sparse: dict[str, bytes] = field(default_factory=dict)
    _accuracies: dict[str, float | None] = field(default_factory=dict)

    @property
    def context(self) -> PassContext:
        """What the passes may look at."""
        return PassContext(calibration=self.splits.get(SplitName.CALIBRATION), seed=self.seed)

    def file(self, changes: WeightChanges) -> ChangedFile:
        """Return the exported file."""
        if changes.key not in self._files:
            self._files[changes.key] = self._made(changes)
        return self._files[changes.key]

    def size(self, changes: WeightChanges) -> float:
        """Return the predicted size: the trial's file less what these files lose by the change."""
        whole = self.file(UNCHANGED).packed_bytes
        return self.file(changes).packed_bytes + self.packed_bytes - whole

    def packed_size(self, changes: WeightChanges) -> float:
        """Return the size as `size` does, but by packing both files unless they are large."""
        data = self.file(changes).data
        if self.packed_bytes > _MOST_PACKED_BYTES or not data:
            return self.size(changes)
        for needed in (UNCHANGED, changes):
            if needed.key not in self._packed:
                packed = self.recipes.pack(self.file(needed).data, FORMAT)
                self._packed[needed.key] = len(packed)
        return float(self._packed[changes.key] + self.packed_bytes - self._packed[UNCHANGED.key])

    def _made(self, changes: WeightChanges) -> ChangedFile:
        calibration = self.splits.get(SplitName.CALIBRATION)
        # ranges of activations take the same few bytes however they are found
        settings = replace(self.settings, method="minmax")
        if changes.clustering is not None:
            settings = with_shared_scales(settings)
        try:
            exported = self.recipes.exporters[FORMAT].export(
                self._applied(self._with_zeros(changes), CLUSTERING_STEP, changes.clustering),
                calibration=None if calibration is None else few(calibration, _CALIBRATION_SAMPLES),
                settings=settings,
                metadata={},
            )
        except (InvalidModelError, InvalidRequestError, ParityError, UnsupportedError):
            if changes == UNCHANGED:
                raise
            # so much was taken away that the file no longer computes what the graph does
            return ChangedFile(data=b"", packed_bytes=math.inf)
        size = self.expected_bytes(exported.data, FORMAT)
        return ChangedFile(data=exported.data, packed_bytes=float(size))

    def _with_zeros(self, changes: WeightChanges) -> bytes:
        key = json.dumps(changes.sparsity, sort_keys=True)
        if key not in self._sparse:
            self._sparse[key] = self._applied(self.start, SPARSITY_STEP, changes.sparsity)
        return self._sparse[key]

    def _applied(self, graph: bytes, name: str, parameters: Parameters) -> bytes:
        if parameters is None:
            return graph
        step = PassStep(pass_name=name, parameters=parameters)
        return self.recipes.steps.apply(graph, step, self.context)

    def errors(self, changes: WeightChanges) -> Mapping[str, Mapping[str, float]]:
        """Return the relative squared error of each changed weight by pass and node.

        That of clusters is of what is not zero.
        """
        return {
            step.pass_name: self.passes[step.pass_name].errors(
                self.start if step.pass_name == SPARSITY_STEP else self._with_zeros(changes),
                step.parameters,
                self.context,
            )
            for step in changes.steps
        }

    def lost(self, changes: WeightChanges) -> float | None:
        """Return the accuracy (fraction) that a file loses on selection samples; None where none is known."""
        before, after = self._accuracy(UNCHANGED), self._accuracy(changes)
        return None if before is None or after is None else max(0.0, before - after)

    def _accuracy(self, changes: WeightChanges) -> float | None:
        if changes.key not in self._accuracies:
            self._accuracies[changes.key] = self._measured(changes)
        return self._accuracies[changes.key]

    def _measured(self, changes: WeightChanges) -> float | None:
        selection = self.splits.get(SplitName.SELECTION)
        data = self.file(changes).data
        if selection is None or not data:
            return None
        sample = few(selection, SENSITIVITY_SAMPLES)
        found = accuracy_of(self.recipes.evaluators[FORMAT], data, sample)
        return None if found is None else found.value


def mean_error(errors: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean error of the changed layers by both passes, in [0, 1]."""
    nodes = sorted({node for by_node in errors.values() for node in by_node})
    left = [math.prod(1 - found.get(node, 0.0) for found in errors.values()) for node in nodes]
    return 1 - math.fsum(left) / len(left) if left else 0.0


def losses_of_layers(study: LayerStudy, errors: Mapping[str, Mapping[str, float]]) -> float | None:
    """Return the sum of what layers lose each by itself; None where that was not measured."""
    if not study.layers:
        return None
    return math.fsum(
        layer.loss_at(name, by_node.get(layer.node, 0.0))
        for layer in study.layers
        for name, by_node in errors.items()
    )


def _words(name: str, nodes: Mapping[str, Mapping[str, Any]], layer_count: int) -> str:
    """Return a pass and its strength, as a range where layers differ in it."""
    values: dict[str, list[float]] = {}
    for choice in nodes.values():
        for key, value in choice.items():
            if isinstance(value, int | float):
                values.setdefault(key, []).append(value)
    parts = [name]
    for key, found in values.items():
        low, high = min(found), max(found)
        parts.append(f"{key} {low:g}" if low == high else f"{key} {low:g} to {high:g}")
    if len(nodes) < layer_count:
        parts.append(f"in {len(nodes)} of {layer_count} layers")
    return " ".join(parts)
