"""What a student's answers cost: distance from its teachers' answers, and from the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from tightfit_service.adapters.training.targets import DistilledTensor
from tightfit_service.application.ports import RecoverySettings

NO_LABEL = -1
"""Stands in a batch's labels for samples (or pixels) that only teachers answer for."""


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """Loss of a batch of answers, the mean over samples and distilled tensors.

    Scores are compared as softened distributions by the KL divergence times the square of the
    temperature (Hinton et al., 2015). Of several teachers the distributions are averaged, not the
    logits, whose scales differ between networks (You et al., KDD 2017). Values are compared by
    squared error in units of their variance. Labels speak about the first tensor where it has
    scores for as many places (one, or all pixels) as there are labels per sample.

    Attributes:
        variances: Per distilled tensor, variance of the teacher's values; 1 for scores.
    """

    targets: tuple[DistilledTensor, ...]
    variances: tuple[float, ...]
    settings: RecoverySettings

    def __call__(
        self,
        outputs: Sequence[torch.Tensor],
        answers: Sequence[Sequence[torch.Tensor]],
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss as a scalar.

        Args:
            outputs: Of the student, per distilled tensor, shape (n, ...).
            answers: Of each teacher, per distilled tensor, in the same shapes.
            labels: Class of each place of each sample or NO_LABEL, shape (n, places).
        """
        per_target = [
            self._of_target(place, output, [answer[place] for answer in answers])
            for place, output in enumerate(outputs)
        ]
        loss = torch.stack(per_target).mean(dim=0)
        axis = self.targets[0].axis
        if axis is None or bool((labels == NO_LABEL).all()):
            return loss.mean()
        scores = by_class(outputs[0], axis)
        if scores.shape[2] != labels.shape[1]:
            return loss.mean()
        is_known = labels != NO_LABEL
        hard = functional.cross_entropy(scores, labels, ignore_index=NO_LABEL, reduction="none")
        hard = hard.sum(dim=1) / is_known.sum(dim=1).clamp(min=1)
        share = self.settings.distillation_weight
        return torch.where(is_known.any(dim=1), share * loss + (1 - share) * hard, loss).mean()

    def _of_target(
        self, place: int, output: torch.Tensor, answers: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return the loss per sample, shape (n,)."""
        axis = self.targets[place].axis
        if axis is None:
            wanted = torch.stack([answer.float().flatten(1) for answer in answers]).mean(dim=0)
            error = (output.float().flatten(1) - wanted).square().mean(dim=1)
            return error / self.variances[place]
        heat = self.settings.temperature
        own = functional.log_softmax(by_class(output, axis) / heat, dim=1)
        each = torch.stack(
            [functional.log_softmax(by_class(answer, axis) / heat, dim=1) for answer in answers]
        )
        wanted = torch.logsumexp(each, dim=0) - math.log(len(answers))
        divergence = (wanted.exp() * (wanted - own)).sum(dim=1).mean(dim=1)
        return divergence * heat**2


def by_class(value: torch.Tensor, axis: int) -> torch.Tensor:
    """Return scores as float32 of shape (n, classes, places)."""
    rows = value.float().movedim(axis, 1)
    return rows.reshape(*rows.shape[:2], -1)
