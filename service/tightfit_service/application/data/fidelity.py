"""Datasets judged by fidelity: what a model answers before compression stands for labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tightfit_service.application.ports import Evaluator, OpenDataset
from tightfit_service.application.samples import FloatArray, Samples
from tightfit_service.domain.dataset import DatasetManifest, SplitName

_JUDGED = (SplitName.SELECTION, SplitName.EVALUATION)


@dataclass(kw_only=True)
class AnsweredDataset:
    """Implements `OpenDataset` over another one; answers are computed when they are first asked for.

    Attributes:
        dataset: Where inputs come from.
        original: The working graph before any step.
        names: Its inputs, in order.
        evaluator: Runs it.
    """

    dataset: OpenDataset
    original: bytes
    names: Sequence[str]
    evaluator: Evaluator
    _known: dict[SplitName, Samples | None] = field(default_factory=dict)

    @property
    def manifest(self) -> DatasetManifest:
        """The manifest."""
        return self.dataset.manifest

    def samples(self, split: SplitName) -> Samples | None:
        """Return a split; where accuracy is measured on it, with the original's answers as labels."""
        if split not in self._known:
            samples = self.dataset.samples(split)
            if samples is not None and split in _JUDGED:
                samples = samples.answered(self._answers, self.names)
            self._known[split] = samples
        return self._known[split]

    def _answers(self, feeds: Mapping[str, FloatArray]) -> FloatArray:
        return self.evaluator.outputs(self.original, feeds)
