"""What zeros and shared values cost each layer: every layer changed alone, at a few strengths of each pass.

Two things are seen of each change, neither with any training. The accuracy lost on selection samples
is what counts, and too coarse by itself: one answer of a few hundred is several tenths of a percent.
The squared error of the answers tells changes apart that flip no answer. So its scale is fitted to the
accuracies over all changes of the network, and the mean of both is the loss. Where samples have no
labels, the error alone is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tightfit_service.application.ports import Evaluator, LayerSize, LayerSizes
from tightfit_service.application.samples import ModelInputs, Samples
from tightfit_service.application.work.data import accuracy_of, few
from tightfit_service.application.work.download_files import (
    FORMAT,
    UNCHANGED,
    ChangedFiles,
    WeightChanges,
)
from tightfit_service.application.work.download_layers import LayerFigures, LayerStudy, LevelFigures
from tightfit_service.domain.dataset import SplitName

_SAMPLES = 256
_ANSWERS = 64
"""Samples whose answers are compared; the error of many answers each needs fewer than accuracies do."""

Strengths = Mapping[str, Sequence[Mapping[str, Any]]]
"""By the name of the pass, its parameters from the mildest to the strongest."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one level of one pass was seen to do to one layer."""

    pass_name: str
    level: int
    node: str
    error: float
    change: float
    lost: float | None
    size: LayerSize


def measured_levels(count: int) -> tuple[int, ...]:
    """Return the levels of `count` that are measured: every second one, the strongest among them.

    The second strongest of these comes first, for there may be time for no more.
    """
    found = tuple(range(count - 1, -1, -2))
    return (*found[1:2], *found[:1], *found[2:])


def study_layers(
    files: ChangedFiles,
    strengths: Strengths,
    layer_sizes: LayerSizes,
    *,
    has_time: Callable[[], bool],
    on_layer: Callable[[str], None],
) -> LayerStudy:
    """Measure each layer alone, one level of each pass after the other while there is time.

    Args:
        files: Of the trained network.
        strengths: What either pass can do to it.
        layer_sizes: Sizes of single layers in exported files.
        has_time: Asked before anything is measured; levels that it left incomplete are forgotten.
        on_layer: Told what is measured.
    """
    judge = _Judge.of(files)
    if judge is None or not any(strengths.values()):
        return LayerStudy()
    whole = layer_sizes(files.file(UNCHANGED).data, FORMAT)
    orders = ([(name, i) for i in measured_levels(len(s))] for name, s in strengths.items())
    seen: list[_Seen] = []
    for chosen in itertools.zip_longest(*orders):
        found: list[_Seen] = []
        for name, level in filter(None, chosen):
            for one in _at_level(files, strengths, layer_sizes, judge, name, level):
                if not has_time():
                    return _study(whole, seen, is_cut_short=True)
                if one is not None and one.node in whole:
                    on_layer(f"{name} of {one.node}")
                    found.append(one)
        seen.extend(found)
    return _study(whole, seen, is_cut_short=False)


def _at_level(
    files: ChangedFiles,
    strengths: Strengths,
    layer_sizes: LayerSizes,
    judge: _Judge,
    name: str,
    level: int,
) -> Iterator[_Seen | None]:
    """Yield what a level does to each layer, and None whenever time has passed before."""
    yield None
    parameters = strengths[name][level]
    file = files.file(WeightChanges.of({name: parameters}))
    if not file.data:
        return
    sizes = layer_sizes(file.data, FORMAT)
    yield None
    for layer in files.passes[name].each_alone(files.start, parameters, files.context):
        if layer.node in sizes:
            yield _Seen(
                pass_name=name,
                level=level,
                node=layer.node,
                error=layer.error,
                change=judge.change(layer.graph),
                lost=judge.lost(layer.graph),
                size=sizes[layer.node],
            )


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """Compares graphs with the trained one.

    Attributes:
        inputs: Those of `_ANSWERS` samples.
        answers: What the trained graph answers to them.
        spread: Sum of the squared distances of these from their mean.
        accuracy: Of the trained graph on `samples`; None where these have no labels.
    """

    evaluator: Evaluator
    samples: Samples
    inputs: ModelInputs
    answers: npt.NDArray[np.float64]
    spread: float
    accuracy: float | None

    @classmethod
    def of(cls, files: ChangedFiles) -> _Judge | None:
        """Return the judge of a network; None where there are no samples."""
        samples = files.splits.get(SplitName.SELECTION) or files.splits.get(SplitName.CALIBRATION)
        if samples is None or not len(samples):
            return None
        samples = few(samples, _SAMPLES)
        evaluator = files.recipes.evaluators[FORMAT]
        first = slice(0, _ANSWERS)
        inputs: ModelInputs = samples.inputs(first)
        if samples.others:
            inputs = {name: stored.batch(first) for name, stored in samples.by_input.items()}
        answers = evaluator.outputs(files.start, inputs).astype(np.float64)
        accuracy = accuracy_of(evaluator, files.start, samples)
        return cls(
            evaluator=evaluator,
            samples=samples,
            inputs=inputs,
            answers=answers,
            spread=float(np.square(answers - answers.mean(axis=0)).sum()),
            accuracy=None if accuracy is None else accuracy.value,
        )

    def change(self, graph: bytes) -> float:
        """Return the squared error of the answers against their spread; 1 is as bad as the mean answer."""
        found = self.evaluator.outputs(graph, self.inputs).astype(np.float64)
        error = float(np.square(found - self.answers).sum())
        if error == 0:
            return 0.0
        return min(1.0, error / self.spread) if self.spread and math.isfinite(error) else 1.0

    def lost(self, graph: bytes) -> float | None:
        """Return the accuracy that is lost, a fraction; None where it is not known."""
        if self.accuracy is None:
            return None
        found = accuracy_of(self.evaluator, graph, self.samples)
        return None if found is None else max(0.0, self.accuracy - found.value)


def _study(
    whole: Mapping[str, LayerSize], seen: Sequence[_Seen], *, is_cut_short: bool
) -> LayerStudy:
    """Return the figures of the layers at the levels that were measured."""
    scale = _scale(seen)
    by_layer: dict[str, dict[str, list[LevelFigures]]] = {}
    for one in sorted(seen, key=lambda item: item.level):
        expected = scale * one.change
        figures = LevelFigures(
            level=one.level,
            error=one.error,
            loss=expected if one.lost is None or not scale else (one.lost + expected) / 2,
            packed_bytes=one.size.packed_bytes,
            zeros=one.size.zeros,
        )
        by_layer.setdefault(one.node, {}).setdefault(one.pass_name, []).append(figures)
    return LayerStudy(
        layers=tuple(
            LayerFigures(
                node=node,
                packed_bytes=whole[node].packed_bytes,
                zeros=whole[node].zeros,
                levels={name: tuple(figures) for name, figures in levels.items()},
            )
            for node, levels in by_layer.items()
        ),
        is_cut_short=is_cut_short,
    )


def _scale(seen: Sequence[_Seen]) -> float:
    """Return the accuracy that goes with an error of the answers of 1, by least squares."""
    products = math.fsum((one.lost or 0.0) * one.change for one in seen)
    squares = math.fsum(one.change**2 for one in seen)
    return products / squares if products > 0 else 1.0
