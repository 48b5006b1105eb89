"""What the search believes that changes cost before any trial ran: with training behind them, and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightfit_service.application.costs.costing import option_id
from tightfit_service.application.course.worthwhile_ways import Way
from tightfit_service.application.recipes.attribution import ChangeLosses
from tightfit_service.application.work.sensitivity import SensitivityOutcome
from tightfit_service.search.sensitivity import Probe, SensitivityModel


@dataclass(frozen=True, kw_only=True)
class FirstModel:
    """The model that measured sensitivity gives, and how losses without training follow from its own.

    Attributes:
        model: Predicts losses after training.
        group_ratio: Times that of a cut, it costs untrained; None where no cut was measured.
        share_left: Of the loss by another way to compute a node, what training is assumed to leave.
        most: The accuracy (fraction) there is to lose.
    """

    model: SensitivityModel
    group_ratio: float | None
    share_left: float
    most: float

    @classmethod
    def of(cls, sensitivity: SensitivityOutcome, ways: Mapping[str, Sequence[Way]]) -> FirstModel:
        """Return what importance scores say, scaled by what was measured."""
        probes = [
            Probe(
                group_id=point.group_id,
                kept=point.kept,
                accuracy_loss=sensitivity.reference_accuracy - point.accuracy,
            )
            for point in sensitivity.points
        ]
        model = SensitivityModel.from_importance(sensitivity.importance).probe(probes)
        left = model.share_left(probes)
        options = {
            option_id(node): [left * way.loss for way in choices] for node, choices in ways.items()
        }
        return cls(
            model=model.with_options(options),
            group_ratio=model.untrained_ratio(probes),
            share_left=left,
            most=sensitivity.reference_accuracy,
        )

    def untrained(self, trained: ChangeLosses) -> ChangeLosses:
        """Return what changes cost alone and untrained of which `model` predicts these losses."""
        ratio = self.group_ratio
        groups = {} if ratio is None else {k: ratio * loss for k, loss in trained.groups.items()}
        nodes = {node: loss / self.share_left for node, loss in trained.nodes.items()}
        return ChangeLosses(
            groups={key: min(self.most, loss) for key, loss in groups.items()},
            nodes={key: min(self.most, loss) for key, loss in nodes.items()},
        )
